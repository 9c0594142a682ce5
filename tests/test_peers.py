"""Special cases against public implementations (extra ``peers`` and tests/requirements-peers.txt).

Skipped where these are not installed.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support import Recorded
from torch import Tensor

from proxflow import (
    GPFN,
    AdamsBashforth,
    CategoricalEndpoints,
    Deterministic,
    DiagonalGaussian,
    Diffusion,
    FisherRao,
    GaussianEndpoints,
    Marginal,
    Multistep,
    Proximal,
    ReverseKL,
    Stochastic,
)
from proxflow.beliefs import Categorical
from proxflow.paths import GaussianPath
from proxflow.samplers.multistep import advance

STEPS, SHAPE = 50, (4, 3)
RECTIFIED = GPFN(endpoints=GaussianEndpoints(0.0))


def data(mean: Tensor, t: Tensor | float) -> Tensor:
    """A prediction of the data with some curvature, in closed form."""
    return torch.sin(2 * mean + 0.3) + 0.5 * t


def predict(belief, t: Tensor):
    x = data(belief.mean, t.reshape(-1, *[1] * (belief.mean.ndim - 1)))
    return DiagonalGaussian(x, x.new_zeros(()))


def noise(count: int = STEPS + 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def ours(sampler, flow, draws: list[Tensor], steps: int = STEPS, dtype=torch.float64, times=None) -> Tensor:
    return sampler(predict, flow, SHAPE, steps, Recorded(*draws), dtype=dtype, times=times).events


def agree(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# Rectified flow -----------------------------------------------------------------------------------------------------


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return (data(x, t) - x) / (1 - t)


def test_wasserstein_steps_are_the_euler_solver_of_flow_matching():
    solver = pytest.importorskip("flow_matching.solver").ODESolver(velocity)
    start = noise(1)
    grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    agree(ours(Deterministic(), RECTIFIED, start), solver.sample(start[0], None, "euler", time_grid=grid), 1e-12)


def test_wasserstein_steps_are_the_flow_match_scheduler_of_diffusers():
    # The scheduler rounds its state to float32 at each step, whatever precision it is given; so much must agree.
    scheduler = pytest.importorskip("diffusers.schedulers").FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(sigmas=[1 - k / STEPS for k in range(STEPS)])
    x = start = noise(1)[0].float()
    for timestep in scheduler.timesteps:
        x = scheduler.step(-velocity(x, 1 - timestep / 1000), timestep, x, return_dict=False)[0]
    agree(ours(Deterministic(), RECTIFIED, [start], dtype=torch.float32), x, 2e-5)


def test_wasserstein_training_beliefs_and_their_velocities_are_those_of_the_peers():
    path = pytest.importorskip("flow_matching.path").CondOTProbPath()
    matcher = pytest.importorskip("torchcfm").ConditionalFlowMatcher(sigma=0.0)
    start, x = noise(2)
    t = torch.tensor([0.0, 0.3, 0.7, 0.99], dtype=torch.float64)
    belief = RECTIFIED.belief(x, t, Recorded(start))
    theirs = path.sample(x_0=start, x_1=x, t=t)
    _, middle, target = matcher.sample_location_and_conditional_flow(start, x, t)
    agree(belief.mean, theirs.x_t, 1e-15)
    agree(belief.mean, middle, 1e-15)
    # The velocity that follows from the data, (x − μ)/(1 − t), is the target both peers train on.
    implied = (x - belief.mean) / RECTIFIED.schedule.remaining(t)[:, None]
    agree(implied, theirs.dx_t, 1e-12)
    agree(implied, target, 1e-12)
    # So with its floor out of the way the flow's loss is their mean squared error.
    loss = GPFN(endpoints=GaussianEndpoints(0.0), weight_floor=1e-9).loss(predict, x, Recorded(start), t)
    agree(loss, (velocity(theirs.x_t, t[:, None]) - theirs.dx_t).square().mean(1), 1e-9)


# Diffusion ----------------------------------------------------------------------------------------------------------


class Table(GaussianPath):
    """The variance-preserving path of a table of ᾱ, one for each of the times k/n, and 1 at the end."""

    def __init__(self, cumulated: Tensor) -> None:
        self.cumulated = torch.cat([cumulated.double(), torch.ones(1, dtype=torch.float64)])

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.cumulated[(t * (len(self.cumulated) - 1)).round().long()]
        return alpha.sqrt(), (1 - alpha).sqrt()


def ddim_of_diffusers(eta: float) -> tuple[Tensor, Diffusion, list[Tensor]]:
    """Samples of diffusers' DDIM on its own schedule of 1,000 levels, and the flow of the same path."""
    scheduler = pytest.importorskip("diffusers.schedulers").DDIMScheduler(
        prediction_type="sample", clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # the levels themselves stay as they are
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    draws = noise()
    x = draws[0]
    for k, timestep in enumerate(scheduler.timesteps):
        predicted = data(x, k / STEPS)
        x = scheduler.step(predicted, int(timestep), x, eta=eta, variance_noise=draws[k + 1], return_dict=False)[0]
    return x, Diffusion(Table(scheduler.alphas_cumprod[scheduler.timesteps])), draws


@pytest.mark.parametrize("sampler", [Marginal(kappa=0.0), Deterministic()], ids=str)
def test_without_fresh_noise_a_diffusion_is_the_ddim_of_diffusers(sampler):
    expected, flow, draws = ddim_of_diffusers(0.0)
    agree(ours(sampler, flow, draws), expected, 1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_share_of_fresh_noise_is_the_eta_of_diffusers(eta):
    # No fresh noise may reach the data: the last noise of the peer has standard deviation 0.
    expected, flow, draws = ddim_of_diffusers(eta)
    agree(ours(Marginal(kappa=eta), flow, draws), expected, 1e-12)


@pytest.mark.parametrize("sampler", [Marginal(kappa=1.0), Stochastic()], ids=str)
def test_with_all_noise_fresh_a_diffusion_is_the_ddpm_of_diffusers(sampler):
    scheduler = pytest.importorskip("diffusers.schedulers").DDPMScheduler(
        num_train_timesteps=STEPS, beta_end=0.4, prediction_type="sample", clip_sample=False
    )
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod, scheduler.one = scheduler.alphas_cumprod.double(), scheduler.one.double()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    for k, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(data(x, k / STEPS), int(timestep), x, generator, return_dict=False)[0]
    flow = Diffusion(Table(scheduler.alphas_cumprod[scheduler.timesteps]))
    found = sampler(predict, flow, SHAPE, STEPS, torch.Generator().manual_seed(3), dtype=torch.float64)
    agree(found.events, x, 1e-11)  # the peer clamps its variance at 1e-20


def azula_denoiser(schedule):
    """The prediction above as azula's denoiser; its time runs from data to noise."""
    denoise = pytest.importorskip("azula.denoise")

    class Exact(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x: Tensor, t: Tensor, **kwargs):
            return denoise.DiracPosterior(mean=data(x, 1 - t))

    return Exact()


@pytest.mark.parametrize(("flow", "name"), [(Diffusion(), "CosineSchedule"), (RECTIFIED, "RectifiedSchedule")], ids=str)
@pytest.mark.parametrize("kappa", [0.0, 0.6, 1.0])
def test_marginal_steps_are_the_ddim_and_ddpm_of_azula(flow, name, kappa):
    schedule = getattr(pytest.importorskip("azula.noise"), name)(alpha_min=0.0, sigma_min=0.0)
    peers = pytest.importorskip("azula.sample")
    settings = {"steps": STEPS, "silent": True, "dtype": torch.float64}
    # Their η scales the variance of the fresh noise, κ its standard deviation.
    samplers = [peers.DDIMSampler(azula_denoiser(schedule), eta=kappa**2, **settings)]
    if kappa == 1:
        samplers.append(peers.DDPMSampler(azula_denoiser(schedule), **settings))
    draws = noise()
    for sampler in samplers:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            recorded = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(STEPS)]
            torch.manual_seed(5)
            expected = sampler(draws[0])
        agree(ours(Marginal(kappa), flow, [draws[0], *recorded]), expected, 1e-12)


# The exponential multistep ------------------------------------------------------------------------------------------
#
# With x̂ linear in u the second-order step is exact for u = −ln(1 − τ). DPM-Solver++ takes u to be the logarithm of the
# signal-to-noise ratio of the path it is given. On the path x + (1 − τ) ε, whose state is our straight coordinate, the two
# are the same; on a path with another a(t) they differ in the second-order term alone.


def before_the_end(sampler, flow) -> tuple[Tensor, Tensor]:
    """The belief's mean at the last time, and the sample."""
    seen = []
    events = sampler(
        predict, flow, SHAPE, STEPS, Recorded(*noise(1)), dtype=torch.float64, watch=lambda t, b, x: seen.append(b.mean)
    ).events
    return seen[-1], events


@pytest.mark.parametrize(("sampler", "order"), [(Multistep(2), 2), (Multistep(3), 3), (Multistep(4), 4)], ids=str)
def test_the_multistep_is_the_exponential_adams_bashforth_of_azula(sampler, order):
    peer = pytest.importorskip("azula.noise").Schedule

    class Exploding(peer):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), t

    theirs = pytest.importorskip("azula.sample").xEABSampler(
        azula_denoiser(Exploding()), order=order, stop=1 / STEPS, steps=STEPS - 1, silent=True, dtype=torch.float64
    )
    last, events = before_the_end(sampler, RECTIFIED)
    expected = theirs(noise(1)[0])
    agree(last, expected, 1e-10)
    agree(events, data(expected, 1 - 1 / STEPS), 1e-10)


def test_adams_bashforth_in_the_velocity_is_that_of_azula():
    peer = pytest.importorskip("azula.noise").Schedule

    class Rectified(peer):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return 1 - t, t

    theirs = pytest.importorskip("azula.sample").vABSampler(
        azula_denoiser(Rectified()), order=2, steps=STEPS, silent=True, dtype=torch.float64
    )
    even = [k / STEPS for k in range(STEPS)]
    draws = Recorded(*noise(1))
    ours = AdamsBashforth()(predict, RECTIFIED, SHAPE, STEPS, draws, dtype=torch.float64, times=even).events
    agree(ours, theirs(noise(1)[0]), 1e-10)


def test_the_third_order_update_of_diffusers_has_half_of_the_last_term():
    # So it is not exact for a prediction quadratic in u; the second-order part is ours.
    scheduler = pytest.importorskip("diffusers.schedulers").DPMSolverMultistepScheduler(
        prediction_type="sample", solver_order=3
    )
    sigmas = torch.tensor([0.9, 0.8, 0.55, 0.3], dtype=torch.float64)
    alphas = (1 + sigmas.square()).rsqrt()
    scheduler.sigmas, scheduler._step_index = sigmas, 2
    y, *xs = noise(4)
    theirs = scheduler.multistep_dpm_solver_third_order_update(xs, sample=alphas[2] * y) / alphas[3]
    left, u = sigmas.tolist(), (-sigmas.log()).tolist()
    slopes = [(xs[k + 1] - xs[k]) / (u[k + 1] - u[k]) for k in (0, 1)]
    bend, h = (slopes[1] - slopes[0]) / (u[2] - u[0]), u[3] - u[2]
    missing = 0.5 * (h**2 - 2 * (h + math.expm1(-h))) * bend
    agree(advance(y, left[2], left[3], [(xs[k], left[k]) for k in (2, 1, 0)]), theirs + missing, 1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_and_the_predictor_before_it_are_those_of_unipc_in_diffusers(order):
    # Where it solves for its coefficients: for the first corrector and the second-order predictor it takes 1/2 instead.
    scheduler = pytest.importorskip("diffusers.schedulers").UniPCMultistepScheduler(
        prediction_type="sample", solver_order=order
    )
    sigmas = torch.tensor([0.9, 0.8, 0.55, 0.3, 0.2], dtype=torch.float64)
    alphas = (1 + sigmas.square()).rsqrt()  # its state is α times our straight coordinate, as above
    scheduler.sigmas, scheduler.timestep_list = sigmas, [None]
    y, *xs = noise(5)
    left = sigmas.tolist()
    # From level 2 to level 3, with predictions at levels 0, 1, 2, and 3 for the corrector.
    scheduler.model_outputs = xs[3 - order : 3]
    nodes = [(xs[k], left[k]) for k in (3, 2, 1, 0)]
    scheduler._step_index = 3
    corrected = scheduler.multistep_uni_c_bh_update(
        xs[3], last_sample=alphas[2] * y, this_sample=torch.zeros_like(y), order=order
    )
    agree(advance(y, left[2], left[3], nodes[: order + 1]), corrected / alphas[3], 1e-12)
    if order == 3:
        scheduler._step_index = 2
        predicted = scheduler.multistep_uni_p_bh_update(xs[2], sample=alphas[2] * y, order=order)
        agree(advance(y, left[2], left[3], nodes[1 : order + 1]), predicted / alphas[3], 1e-12)


def test_the_multistep_is_the_second_order_solver_of_diffusers():
    # Of its two second-order terms "heun" integrates the linear prediction exactly, (h − 1 + e^{−h})/h; "midpoint" takes
    # (1 − e^{−h})/2, which agrees to second order in h. The update is called itself, as ``step`` rounds to float32.
    scheduler = pytest.importorskip("diffusers.schedulers").DPMSolverMultistepScheduler(
        prediction_type="sample", solver_type="heun"
    )
    sigmas = torch.tensor([1 - k / STEPS for k in range(STEPS)], dtype=torch.float64)
    scheduler.sigmas = sigmas
    alphas = (1 + sigmas.square()).rsqrt()
    x, predictions = noise(1)[0] * alphas[0], []
    for k in range(STEPS - 1):
        scheduler._step_index = k
        predictions = [*predictions[-1:], data(x / alphas[k], k / STEPS)]
        if k == 0:
            x = scheduler.dpm_solver_first_order_update(predictions[-1], sample=x)
        else:
            x = scheduler.multistep_dpm_solver_second_order_update(predictions, sample=x)
    last, _ = before_the_end(Multistep(2), RECTIFIED)
    agree(last, x / alphas[-1], 1e-10)


# The simplex --------------------------------------------------------------------------------------------------------


def classes(seed: int) -> Categorical:
    generator = torch.Generator().manual_seed(seed)
    return Categorical(torch.randn((*SHAPE, 5), generator=generator, dtype=torch.float64).log_softmax(-1))


@pytest.mark.parametrize("t", [0.0, 0.25, 0.8, 1.0])
def test_fisher_flow_is_the_geodesic_path_of_flow_matching_on_the_sphere(t):
    path = pytest.importorskip("flow_matching.path")
    manifolds = pytest.importorskip("flow_matching.utils.manifolds")
    scheduler = pytest.importorskip("flow_matching.path.scheduler").CondOTScheduler()
    start, end = classes(1), classes(2)
    roots = [belief.probs.sqrt().reshape(-1, 5) for belief in (start, end)]
    sphere = path.GeodesicProbPath(scheduler, manifolds.Sphere())
    theirs = sphere.sample(x_0=roots[0], x_1=roots[1], t=torch.full([len(roots[0])], t, dtype=torch.float64))
    belief = Proximal(FisherRao())(start, end, t)
    agree(belief.probs.reshape(-1, 5), theirs.x_t.square(), 1e-12)


def test_fisher_flow_samples_along_the_geodesics_of_flow_matching():
    sphere = pytest.importorskip("flow_matching.utils.manifolds").Sphere()
    flow = GPFN(FisherRao(), endpoints=CategoricalEndpoints(5))
    times = [torch.tensor(k / STEPS, dtype=torch.float64) for k in range(STEPS + 1)]
    belief, target = classes(1), classes(2)
    x = belief.probs.sqrt()
    for t, s in pairwise(times):
        # A prediction that changes with time and belief.
        guess = Categorical((target.log_probs + (1 - t) * torch.sin(3 * belief.probs)).log_softmax(-1))
        belief = flow.update(belief, guess, t, s, None)
        speed = sphere.logmap(x, guess.probs.sqrt()) / (1 - t)
        x = sphere.expmap(x, (s - t) * speed)
    agree(belief.probs, x.square(), 1e-6)  # the peer's logarithm takes its arc from an arccosine: √ε near its zero


def test_linear_flow_on_the_simplex_is_the_mixture_path_of_flow_matching():
    path = pytest.importorskip("flow_matching.path")
    scheduler = pytest.importorskip("flow_matching.path.scheduler").CondOTScheduler()
    mixture = path.MixtureDiscreteProbPath(scheduler)
    flow = GPFN(ReverseKL(), endpoints=CategoricalEndpoints(5))
    t, h = torch.tensor([0.4], dtype=torch.float64), 0.1
    at = torch.arange(5)[:1]
    certain = flow.endpoints.target(at, classes(1))
    posterior = Categorical(classes(2).log_probs[0, :1])
    # Their velocity of the probabilities of one token, which sits at a class, over one Euler step.
    rate = mixture.posterior_to_velocity(posterior.log_probs, at, t)
    moved = flow.update(certain, posterior, t[0], t[0] + h, None)
    agree(moved.probs, certain.probs + h * rate, 1e-12)


def test_linear_flow_on_the_simplex_is_the_euler_solver_of_flow_matching():
    target = classes(2)

    def rate(x: Tensor, t: Tensor) -> Tensor:
        return (Categorical((target.log_probs + torch.sin(3 * x)).log_softmax(-1)).probs - x) / (1 - t)

    solver = pytest.importorskip("flow_matching.solver").ODESolver(rate)
    flow = GPFN(ReverseKL(), endpoints=CategoricalEndpoints(5))
    grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    belief = classes(1)
    expected = solver.sample(belief.probs, None, "euler", time_grid=grid[:-1])
    for t, s in pairwise(grid[:-1]):
        guess = Categorical((target.log_probs + torch.sin(3 * belief.probs)).log_softmax(-1))
        belief = flow.update(belief, guess, t, s, None)
    agree(belief.probs, expected, 1e-12)
