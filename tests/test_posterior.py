"""Posterior sampling against posteriors that are known: Gaussian ones, mixtures, enumerated events."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proxflow import (
    BFN,
    GPFN,
    KL,
    Categorical,
    CategoricalEndpoints,
    Deterministic,
    DiagonalGaussian,
    Diffusion,
    DiscreteBFN,
    ExactClasses,
    ExactDraw,
    ExactMean,
    FisherRao,
    GaussianEndpoints,
    Guided,
    MinibatchOT,
    Multistep,
    PointPredictor,
    Posterior,
    Product,
    ProductEndpoints,
    Renewed,
    ReverseKL,
    Stochastic,
    given,
    inverse,
    models,
    particles,
    sample,
)
from proxflow.data import GaussianMixtureLaw
from proxflow.errors import ArgumentError
from proxflow.nn import MLP
from proxflow.paths import Linear
from proxflow.predictors import METHODS, Denoiser
from proxflow.samplers import default_sampler


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(d, seed=7):
    """A law N(m, Σ), its mean and its covariance."""
    root, mean = drawn(d, d, seed=seed), drawn(d, seed=seed + 1)
    covariance = root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    return normal(mean, covariance), mean, covariance


def normal(mean, covariance):
    return GaussianMixtureLaw(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])


def standard(d):
    return normal(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))


def mixture(d):
    means = 2 * drawn(3, d, seed=4)
    spread = torch.eye(d, dtype=torch.float64).expand(3, d, d) * torch.tensor([0.2, 0.5, 1.0])[:, None, None]
    return GaussianMixtureLaw(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, spread.contiguous())


def conditioned(mean, covariance, a, y, variance):
    """Mean (batch, d) and covariance of N(mean, covariance) given y = A x + N(0, variance)."""
    gain = covariance @ a.mT @ torch.linalg.inv(a @ covariance @ a.mT + variance * torch.eye(len(a)).double())
    return mean + (y - mean @ a.mT) @ gain.mT, covariance - gain @ a @ covariance


def deviations(events, mean, covariance):
    """How many standard errors means and covariances of samples are away from the truth, at most."""
    number, spread = len(events), covariance.diagonal()
    means = (events.mean(0) - mean).abs() / (spread / number).sqrt()
    errors = ((covariance.square() + spread[:, None] * spread) / number).sqrt()
    return max(float(means.max()), float(((torch.cov(events.mT) - covariance).abs() / errors).max()))


PROBLEMS = {
    "few": (2, drawn(1, 2, seed=1), 0.1),
    "square": (4, drawn(4, 4, seed=2), 1.0),
    "deficient": (6, drawn(5, 2, seed=3) @ drawn(2, 6, seed=4), 0.3),
    "many": (16, drawn(5, 16, seed=5), 0.01),
}
problems = pytest.mark.parametrize(("d", "a", "noise"), PROBLEMS.values(), ids=PROBLEMS)


@problems
@pytest.mark.parametrize("nfe", [1, 4])
def test_drawn_flower_is_exact_for_standard_normal_data_at_any_number_of_steps(d, a, noise, nfe):
    flow, y = GPFN(), a @ drawn(d, seed=9) + noise * drawn(len(a), seed=10)
    posterior = Posterior(
        ExactMean(flow, standard(d)), inverse.Matrix(a), y[None], noise=noise, method="flower-draw", flow=flow
    )
    assert posterior.sampler == "renewed"
    events = Renewed()(posterior, flow, (5000, d), nfe, seeded(11), dtype=torch.float64).events
    mean, covariance = conditioned(torch.zeros(d).double(), torch.eye(d).double(), a, y[None], noise**2)
    assert deviations(events, mean[0], covariance + 1e-9 * torch.eye(d).double()) < 4.2
    inside = ((events - mean).abs() < 1.6449 * covariance.diagonal().clamp_min(1e-12).sqrt()).double().mean(0)
    assert float((inside - 0.9).abs().max()) < 4 * math.sqrt(0.09 / 5000)


@problems
@pytest.mark.parametrize("flow", [GPFN(), GPFN(KL()), BFN(0.05), Diffusion()], ids=lambda flow: str(flow)[:12])
def test_mmps_is_the_exact_mean_for_gaussian_data_at_every_time(d, a, noise, flow):
    law, mean, covariance = gaussian(d)
    y = drawn(6, len(a), seed=12)
    posterior = Posterior(
        ExactMean(flow, law), inverse.Matrix(a), y, noise=noise, method="mmps", flow=flow, iterations=3 * len(a)
    )
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.97]).double()
    belief = flow.belief(law.sample(6, seeded(1), dtype=torch.float64), t, seeded(2))
    found = posterior(belief, t).mean
    for k in range(6):
        at, b = (float(c) for c in flow.path.coefficients(t[k]))
        first, left = conditioned(mean, covariance, at * torch.eye(d).double(), belief.mean[k : k + 1], b**2)
        wanted, _ = conditioned(first, left, a, y[k : k + 1], noise**2)
        torch.testing.assert_close(found[k : k + 1], wanted, rtol=1e-4, atol=1e-4)


def test_mmps_samples_gaussian_posteriors_in_the_limit():
    d, a, noise = PROBLEMS["square"]
    law, mean, covariance = gaussian(d)
    flow, y = GPFN(), drawn(1, 4, seed=13)
    posterior = Posterior(
        ExactMean(flow, law), inverse.Matrix(a), y, noise=noise, method="mmps", flow=flow, iterations=5
    )
    events = Multistep(2)(posterior, flow, (2000, d), 60, seeded(3), dtype=torch.float64).events
    wanted, left = conditioned(mean, covariance, a, y, noise**2)
    assert deviations(events, wanted[0], left) < 4


@pytest.mark.parametrize("nfe", [1, 3])
def test_draws_with_the_covariance_of_gaussian_data_are_exact(nfe):
    d, a, noise = PROBLEMS["few"]
    law, mean, covariance = gaussian(d)
    flow, y = GPFN(), drawn(1, 1, seed=13)
    posterior = Posterior(
        ExactMean(flow, law), inverse.Matrix(a), y, noise=noise, covariance=covariance, draw=True, flow=flow
    )
    events = Renewed()(posterior, flow, (5000, d), nfe, seeded(3), dtype=torch.float64).events
    wanted, left = conditioned(mean, covariance, a, y, noise**2)
    assert deviations(events, wanted[0], left) < 4


def test_every_method_is_its_formula_on_a_mixture():
    d, flow, noise = 4, GPFN(), 0.3
    law, a, y = mixture(d), drawn(2, d, seed=1), drawn(3, 2, seed=2)
    exact = ExactMean(flow, law)
    t = torch.tensor([0.2, 0.5, 0.8]).double()
    z = flow.belief(law.sample(3, seeded(1), dtype=torch.float64), t, seeded(2)).mean
    sigma = drawn(d, d, seed=8)
    sigma = sigma @ sigma.mT
    given = {"jfps": {"covariance": sigma}, "dps": {"strength": 0.7}, "diffpir": {"strength": 5.0}}
    found = {
        name: Posterior(
            exact, inverse.Matrix(a), y, noise=noise, method=name, flow=flow, iterations=20, **given.get(name, {})
        )(DiagonalGaussian(z, 1.0), t).mean
        for name in METHODS
        if name not in ("bayes", "flower-draw")
    }
    eye, one = torch.eye(d).double(), torch.eye(2).double()
    for k in range(3):
        s, b = float(t[k]), 1 - float(t[k])

        def mean(v, k=k):
            return exact(DiagonalGaussian(v[None], 1.0), t[k : k + 1]).mean[0]

        x, jacobian = mean(z[k]), torch.func.jacrev(mean)(z[k])
        wrong, r2 = y[k] - a @ x, b**2 / (s**2 + b**2)

        def bayes(c, wrong=wrong):
            return c @ a.mT @ torch.linalg.solve(noise**2 * one + a @ c @ a.mT, wrong)

        tweedie = b**2 / s * jacobian.mT
        wanted = {
            "flower": bayes(r2 * eye),
            "diffpir": bayes((b / s) ** 2 / 5 * eye),
            "mmps": bayes(tweedie),
            "tmpd": tweedie
            @ a.mT
            @ (wrong / (noise**2 + a @ tweedie @ a.mT @ torch.ones(2).double()).clamp_min(1e-30)),
            "jfps": bayes(torch.linalg.inv(torch.linalg.inv(sigma) + (s / b) ** 2 * eye)),
            "pigdm": tweedie @ a.mT @ torch.linalg.solve(noise**2 * one + r2 * a @ a.mT, wrong),
            "dps": 0.7 * tweedie @ a.mT @ wrong / wrong.norm(),
            "repaint": torch.linalg.pinv(a) @ wrong,
        }
        for name, step in wanted.items():
            if name == "tmpd" and bool((a @ tweedie @ a.mT @ torch.ones(2).double() < 0).any()):
                continue
            torch.testing.assert_close(found[name][k], x + step, rtol=1e-5, atol=1e-5, msg=name)


def test_the_divergence_chooses_the_method():
    law, y, a = standard(2), torch.zeros(1, 1).double(), inverse.Matrix(torch.ones(1, 2).double())
    for flow, method in ((GPFN(), "flower"), (GPFN(KL()), "mmps"), (BFN(0.1), "mmps"), (Diffusion(), "flower")):
        assert Posterior(ExactMean(flow, law), a, y, noise=0.1).method == method
        assert Posterior(PointPredictor(MLP((2,), width=8, depth=1), flow), a, y, noise=0.1).method == method
    for covariance, method in (
        ("path", "flower"),
        ("tweedie", "mmps"),
        ("tweedie-diagonal", "tmpd"),
        (torch.ones(2), "jfps"),
    ):
        assert Posterior(ExactMean(GPFN(), law), a, y, noise=0.1, covariance=covariance).method == method


def test_noise_is_renewed_unless_it_is_paired_with_the_data():
    law, y, a = standard(2), torch.zeros(1, 1).double(), inverse.Matrix(torch.ones(1, 2).double())
    paired = GPFN(KL(), coupling=MinibatchOT())
    predictor = PointPredictor(MLP((2,), width=8, depth=1), paired)
    for flow, asked, sampler in (
        (GPFN(), ExactMean(GPFN(), law), "marginal"),
        (BFN(0.1), ExactMean(BFN(0.1), law), "marginal"),
        (paired, predictor, "multistep2"),
    ):
        assert default_sampler(Posterior(asked, a, y, noise=0.1, method="mmps", flow=flow), flow) == sampler
    drawn_ = Posterior(ExactMean(GPFN(), law), a, y, noise=0.1, covariance=torch.ones(2), draw=True)
    assert default_sampler(drawn_, GPFN()) == "renewed"


@pytest.mark.parametrize("iterations", [1, 3])
def test_mmps_takes_as_many_products_as_it_says(iterations):
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            calls.append(0)
            return slope

    flow, law = GPFN(), mixture(4)
    exact = ExactMean(flow, law)

    def predict(belief, t):
        return DiagonalGaussian(Counted.apply(exact(belief, t).mean), 0.0)

    a = inverse.Matrix(drawn(3, 4))
    posterior = Posterior(predict, a, drawn(1, 3), noise=0.1, method="mmps", flow=flow, iterations=iterations)
    posterior(DiagonalGaussian(drawn(2, 4), 1.0), torch.full((2,), 0.5).double())
    assert len(calls) == iterations


def network(flow, shape, seed=0):
    torch.manual_seed(seed)
    return PointPredictor(MLP(shape, width=16, depth=2), flow)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("jfps", "bayes")])
def test_each_observation_belongs_to_its_own_example_whatever_the_batches(method):
    flow = GPFN()
    y, noise = drawn(37, 6, seed=2).float(), torch.rand(37, 6, generator=seeded(1)) + 0.05
    mask = inverse.Mask(torch.rand(37, 6, generator=seeded(3)) < 0.6, each=True)
    posterior = Posterior(network(flow, (6,)), mask, y, noise=noise, method=method)
    whole = sample(posterior, flow, (37, 6), nfe=5, seed=4, batch_size=48)
    torch.testing.assert_close(sample(posterior, flow, (37, 6), nfe=5, seed=4, batch_size=16), whole, rtol=0, atol=0)
    assert default_sampler(posterior, flow) == ("marginal" if METHODS[method].smooth else "renewed")
    with pytest.raises(ArgumentError, match="37 examples, and 36 samples"):
        sample(posterior, flow, (36, 6), nfe=1)
    one = Posterior(network(flow, (6,)), inverse.Mask(torch.arange(6) < 3), y[:1], noise=0.01, method=method)
    events = sample(one, flow, (20, 6), nfe=5)
    assert events.dtype == torch.float32
    if METHODS[method].products == 0:
        assert float((events[:, :3] - y[:1, :3]).abs().max()) < 0.1
        assert float(events[:, 3:].std(0).min()) > 0


def test_what_a_mask_hides_may_be_anything_and_zero_noise_holds_what_it_shows():
    flow, known = GPFN(), torch.tensor([True, False, True])
    y = torch.tensor([[0.5, math.nan, -0.25]])
    events = sample(Posterior(network(flow, (3,)), inverse.Mask(known), y), flow, (16, 3), nfe=3)
    torch.testing.assert_close(events[:, known], y[:, known].expand(16, 2))
    with pytest.raises(ArgumentError, match="not finite"):
        Posterior(network(flow, (3,)), inverse.Mask(~known), y)


def test_correlated_noise_is_whitened():
    d, flow = 4, GPFN()
    law, a, y = mixture(d), drawn(3, d, seed=1), drawn(2, 3, seed=2)
    root = drawn(3, 3, seed=6)
    covariance = root @ root.mT + 0.1 * torch.eye(3).double()
    belief, t = DiagonalGaussian(drawn(2, d), 1.0), torch.full((2,), 0.4).double()
    x = ExactMean(flow, law)(belief, t).mean
    r2 = 0.36 / (0.16 + 0.36)
    gain = r2 * a.mT @ torch.linalg.inv(covariance + r2 * a @ a.mT)
    wanted = x + (y - x @ a.mT) @ gain.mT
    for operator in (inverse.Matrix(a), inverse.Functions(lambda x: x @ a.mT, lambda y: y @ a)):
        posterior = Posterior(
            ExactMean(flow, law), operator, y, noise=inverse.Gaussian(covariance=covariance), method="flower", flow=flow
        )
        torch.testing.assert_close(posterior(belief, t).mean, wanted, rtol=1e-5, atol=1e-5)


def test_counts_pull_by_their_own_variance():
    flow, law = GPFN(), standard(3)
    belief, t = DiagonalGaussian(0.1 * drawn(2, 3), 1.0), torch.full((2,), 0.5).double()
    y = torch.full((2, 3), 0.4).double()
    posterior = Posterior(ExactMean(flow, law), inverse.Mask(torch.ones(3)), y, noise=inverse.Poisson(10.0), flow=flow)
    x = ExactMean(flow, law)(belief, t).mean
    variance = (x + 1) / 10
    torch.testing.assert_close(posterior(belief, t).mean, x + 0.5 / (0.5 + variance) * (y - x))


def test_nonlinear_observations_are_met():
    flow, law = GPFN(), standard(4)
    operator = inverse.Nonlinear(lambda x: (x.square() + x).flatten(1), steps=5)
    y = torch.full((1, 4), 0.75).double()
    posterior = Posterior(ExactMean(flow, law), operator, y, noise=0.01, flow=flow)
    events = Renewed()(posterior, flow, (20, 4), 10, seeded(1), dtype=torch.float64).events
    assert float((operator(events) - y).abs().quantile(0.9)) < 0.05


@pytest.mark.parametrize("method", [None, "repaint"])
def test_nonlinear_observations_need_a_noise(method):
    flow, law = GPFN(), standard(4)
    noise = 0.1 if method else 0.0
    with pytest.raises(ArgumentError, match="non-linear observation cannot be held exactly"):
        Posterior(
            ExactMean(flow, law),
            inverse.Nonlinear(torch.tanh),
            torch.zeros(1, 4),
            noise=noise,
            method=method,
            flow=flow,
        )


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_a_blur_tells_what_is_above_rounding_and_nothing_more(sigma, dtype):
    """Against the truncated pseudo-inverse in double precision; the prior mean stays where nothing is told."""
    blur, noise = inverse.Blur(sigma), seeded(3)
    x, prior = (torch.randn(2, 1, 12, 12, generator=noise, dtype=torch.float64) for _ in range(2))
    matrix = inverse.functions.dense(blur, (1, 12, 12)).matrix
    u, s, vh = torch.linalg.svd(matrix)
    kept = s.square() > torch.finfo(dtype).eps * s.max().square()
    gap = (u.mT @ (matrix @ (x - prior).flatten(1).mT)) / torch.where(kept, s, torch.inf)[:, None]
    expected = prior + (vh.mT @ gap).mT.reshape(x.shape)
    found = blur.prox(prior.to(dtype), blur(x).to(dtype), 0.0, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2 if dtype == torch.float32 else 1e-6)
    assert float((found - prior).abs().max()) < 10
    torch.testing.assert_close(blur(found.double()), blur(x), rtol=0, atol=5e-3)


def test_what_an_operator_would_make_too_large_of_noise_is_refused():
    flow, picture = GPFN(), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ArgumentError, match="repaint takes noise for data, and Blur undone"):
        Posterior(ExactMean(flow, standard(64)), inverse.Blur(2.0), picture, noise=0.1, method="repaint", flow=flow)
    half = inverse.Downsample(2)
    Posterior(ExactMean(flow, standard(64)), half, picture[..., :4, :4], noise=0.1, method="repaint", flow=flow)
    with pytest.raises(ArgumentError, match="strength is for dps and diffpir; flower has none"):
        Posterior(
            ExactMean(flow, standard(4)), inverse.Matrix(torch.eye(4)), torch.zeros(1, 4), strength=2.0, flow=flow
        )


def test_parts_of_another_kind_are_named():
    model = models.build((1, 8, 8), network="unet:channels=8,multipliers=1,patch=4")
    with pytest.raises(ArgumentError, match=r"got a Model: give its \.predictor"):
        Posterior(model, inverse.Downsample(2), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ArgumentError, match="a mask is a tensor of truth values, got ndarray"):
        inverse.Mask(np.ones((1, 8, 8), bool))
    with pytest.raises(ArgumentError, match="nothing is known by this mask"):
        inverse.Mask(torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="numbers that are not finite"):
        inverse.Matrix(torch.full((2, 4), torch.nan))
    with pytest.raises(ArgumentError, match="particles follow a Posterior, got PointPredictor"):
        particles(model.predictor, model.flow, (1, 1, 8, 8), number=4)


def test_a_wrong_adjoint_is_refused_when_first_used():
    flow, law = GPFN(), standard(4)
    wrong = inverse.Functions(lambda x: x[:, :2], lambda y: torch.nn.functional.pad(y, (2, 0)))
    with pytest.raises(ArgumentError, match="adjoint of the operator is wrong"):
        Posterior(ExactMean(flow, law), wrong, drawn(1, 2), noise=0.1, flow=flow)(
            DiagonalGaussian(drawn(2, 4), 1.0), torch.full((2,), 0.5)
        )


@pytest.mark.parametrize("flow", [GPFN(), BFN(0.05), Diffusion()], ids=lambda flow: type(flow).__name__)
def test_a_denoiser_is_the_posterior_mean_of_noisy_data(flow):
    law = mixture(3)
    denoiser = Denoiser(ExactMean(flow, law), flow)
    noisy, sigma = drawn(5, 3), torch.tensor([0.06, 0.3, 1.0, 2.0, 7.0]).double()
    torch.testing.assert_close(denoiser(noisy, sigma), law.posterior_mean(noisy, 1.0, sigma), rtol=1e-5, atol=1e-5)


class Told(torch.nn.Module):
    """The exact mean of the component that a label names, or of the whole mixture without one."""

    reads = frozenset({"condition"})

    def __init__(self, flow, law):
        super().__init__()
        self.flow, self.whole = flow, ExactMean(flow, law)
        self.parts = [ExactMean(flow, normal(m, c)) for m, c in zip(law.means, law.covariances, strict=True)]

    def forward(self, belief, t, *, condition=None):
        whole = self.whole(belief, t).mean
        if condition is None:
            return DiagonalGaussian(whole, 0.0)
        each = torch.stack([part(belief, t).mean for part in self.parts])
        own = each[condition.clamp_min(0), torch.arange(len(condition))]
        return DiagonalGaussian(torch.where((condition < 0)[:, None], whole, own), 0.0)


def test_an_observation_refines_what_a_label_says():
    d, flow, noise = 4, GPFN(), 0.3
    law, a, y = mixture(d), drawn(2, d, seed=1), drawn(6, 2, seed=2)
    label, t = torch.arange(6) % 3, torch.linspace(0.2, 0.9, 6).double()
    belief = DiagonalGaussian(drawn(6, d, seed=3), 1.0)
    posterior = Posterior(Told(flow, law), inverse.Matrix(a), y, noise=noise, method="mmps", flow=flow)
    found = posterior(belief, t, condition=label).mean
    for k in range(6):
        at, left = float(t[k]), 1 - float(t[k])
        first, spread = conditioned(
            law.means[label[k]], law.covariances[label[k]], at * torch.eye(d).double(), belief.mean[k : k + 1], left**2
        )
        wanted, _ = conditioned(first, spread, a, y[k : k + 1], noise**2)
        torch.testing.assert_close(found[k : k + 1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["flower", "mmps"])
def test_guided_predictions_are_refined_and_counted(method):
    flow, law = GPFN(), mixture(4)
    a, y = inverse.Matrix(drawn(2, 4, seed=1)), drawn(6, 2, seed=2)
    label, belief = torch.arange(6) % 3, DiagonalGaussian(drawn(6, 4, seed=3), 1.0)
    guided = Guided(Told(flow, law), 2.0, interval=(0.25, 0.75))
    posterior = Posterior(guided, a, y, noise=0.3, method=method, flow=flow)
    t = torch.full((6,), 0.5).double()
    if method == "flower":
        x = guided(belief, t, condition=label).mean
        torch.testing.assert_close(posterior(belief, t, condition=label).mean, a.prox(x, y, 0.09, 0.5))
    sampler = Multistep(2) if method == "mmps" else Renewed()
    found = sampler(given(posterior, label), flow, (6, 4), 4, seeded(1), dtype=torch.float64)
    assert found.nfe == 4 + 3  # guided at 0.25, 0.5 and 0.75
    events = sample(posterior, flow, (6, 4), nfe=4, seed=3, condition=label)
    assert bool(events.isfinite().all())
    assert not torch.equal(events, sample(posterior, flow, (6, 4), nfe=4, seed=3, condition=(label + 1) % 3))
    assert posterior.predictor is guided


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("jfps", "bayes")])
def test_no_step_waits_for_the_device_and_autocast_keeps_single_precision(method):
    flow, y = GPFN(), drawn(4, 6, seed=2).float()
    belief, t = DiagonalGaussian(drawn(4, 6).float(), torch.ones(())), torch.full((4,), 0.5)
    for operator in (inverse.Mask(torch.arange(6) < 3), inverse.Matrix(torch.eye(6))):
        posterior = Posterior(network(flow, (6,)), operator, y, noise=0.1, method=method)
        told = {"generator": seeded(1)} if posterior.draw else {}
        plain = posterior(belief, t, **told).mean
        told = {"generator": seeded(1)} if posterior.draw else {}
        with NoWaiting():
            assert torch.equal(posterior(belief, t, **told).mean, plain)
        told = {"generator": seeded(1)} if posterior.draw else {}
        with torch.autocast("cpu", torch.bfloat16):
            rounded = posterior(belief, t, **told).mean
        assert rounded.dtype == torch.float32
        assert bool(rounded.isfinite().all())


def test_draws_on_a_path_that_ends_early_are_what_its_last_prediction_would_be():
    """Of N(0, I) the last prediction at τ = 0.8 has less variance than the data, and so have draws before it."""
    flow, left = GPFN(schedule=Linear(final=0.8)), 0.2**2 / (0.8**2 + 0.2**2)
    law, seen = standard(2), inverse.Mask(torch.tensor([True, False]))
    posterior = Posterior(
        ExactMean(flow, law), seen, torch.zeros(1, 2).double(), noise=0.3, method="flower-draw", flow=flow
    )
    t = torch.tensor([0.0, 0.5, 1.0]).double()
    belief = DiagonalGaussian(torch.zeros(30_000, 2).double(), 1.0)
    for k in range(3):
        drawn_ = posterior(belief, t[k].expand(30_000), generator=seeded(k)).mean
        tau = 0.8 * float(t[k])
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2) - left
        wanted = torch.tensor([r2 * 0.09 / (r2 + 0.09), r2]).double()
        torch.testing.assert_close(drawn_.var(0), wanted, rtol=0.04, atol=1e-6)
    exact = Posterior(ExactMean(flow, law), seen, torch.tensor([[0.7, 0.0]]).double(), flow=flow)
    end = exact(DiagonalGaussian(drawn(3, 2), 1.0), torch.ones(3).double()).mean
    torch.testing.assert_close(end[:, 0], torch.full((3,), 0.7).double())


def test_a_flower_step_compiles_whole():
    flow = GPFN()
    mask = inverse.Mask(torch.arange(6) < 3)
    posterior = Posterior(network(flow, (6,)), mask, drawn(4, 6, seed=2).float(), noise=0.1)

    def step(mean, t):
        return posterior(DiagonalGaussian(mean, torch.ones(())), t).mean

    mean, t = drawn(4, 6).float(), torch.full((4,), 0.5)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(mean, t), step(mean, t))


class Written(TorchDispatchMode):
    """Counts the numbers that operations write, which is what steps beside matrix products cost."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(
                a.numel() for a in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(a)
            )
        return out


def test_a_flower_step_costs_hardly_more_than_one_without_an_observation():
    model = models.load("mnist")
    known = torch.ones(model.shape, dtype=torch.bool)
    known[:, 14:] = False
    clean, written = torch.zeros(4, *model.shape), {}
    for name in ("none", "mask"):
        predictor = model.predictor
        if name == "mask":
            predictor = Posterior(
                model.predictor, inverse.Mask(known), clean, noise=0.1, method="flower", flow=model.flow
            )
        with Written() as counter:
            Renewed()(predictor, model.flow, clean.shape, 5, seeded(1))
        written[name] = counter.numbers
    assert written["none"] < written["mask"] < 1.05 * written["none"]


def test_a_covariance_may_be_symmetric_but_for_rounding():
    flow, law = GPFN(), standard(3)
    root = drawn(3, 3, seed=5)
    exact = root @ root.mT
    rounded = exact + 1e-13 * drawn(3, 3, seed=6)
    belief, t = DiagonalGaussian(drawn(2, 3), 1.0), torch.full((2,), 0.4).double()
    found = [
        Posterior(ExactMean(flow, law), SOME_OF_THREE, torch.zeros(1, 3).double(), noise=0.1, covariance=c)(belief, t)
        for c in (exact, rounded)
    ]
    torch.testing.assert_close(found[0].mean, found[1].mean)


SOME_OF_THREE = inverse.Mask(torch.arange(3) < 2)


# Particles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["flower", "mmps", "dps"])
def test_the_evidence_of_standard_normal_data_is_estimated_without_bias(method):
    d, flow, noise = 4, GPFN(), 0.5
    a, y = drawn(2, d, seed=1), drawn(1, 2, seed=2)
    given = {} if method != "dps" else {"strength": 0.2}
    posterior = Posterior(
        ExactMean(flow, standard(d)), inverse.Matrix(a), y.repeat(40, 1), noise=noise, method=method, flow=flow, **given
    )
    found = particles(posterior, flow, (40, d), number=32, nfe=8, seed=3)
    covariance = noise**2 * torch.eye(2).double() + a @ a.mT
    truth = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(y[0])
    ratios = (found.log_evidence - truth).exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(40)
    assert float(ratios.std()) < 0.5
    mean, left = conditioned(torch.zeros(d).double(), torch.eye(d).double(), a, y, noise**2)
    events = found.draw(25, seeded(5)).flatten(0, 1)
    assert deviations(events, mean[0], left) < 5
    assert found.effective.shape == (8, 40)
    assert float(found.effective.min()) >= 1 - 1e-9
    assert float(found.effective.max()) <= 32 + 1e-9
    torch.testing.assert_close(found.log_weights.exp().sum(1), torch.ones(40).double())


def test_the_variance_of_particles_is_that_of_the_data():
    """For Gaussian data of equal variances each estimate by Tweedie's formula is exact, else their mean over signs is."""
    d, flow, a = 6, GPFN(), inverse.Matrix(drawn(2, 6, seed=1))
    root = drawn(d, d, seed=2)
    t = torch.tensor([0.3, 0.6, 0.9]).double().repeat(400)
    belief = DiagonalGaussian(drawn(1200, d, seed=3), 1.0)
    probe = drawn(1200, d, seed=4).sign()
    for covariance, exact in ((0.1 * torch.eye(d).double(), True), (root @ root.mT, False)):
        posterior = Posterior(ExactMean(flow, normal(torch.zeros(d).double(), covariance)), a, torch.zeros(1, 2).double(),
                              noise=0.1, method="mmps", flow=flow)  # fmt: skip
        found = posterior.refined(belief, t, probe=probe)[0].given_std.square().flatten()
        for k, time in enumerate((0.3, 0.6, 0.9)):
            at, b = flow.path.coefficients(torch.tensor(time).double())
            precision = torch.linalg.inv(covariance) + (at / b) ** 2 * torch.eye(d).double()
            wanted, own = torch.linalg.inv(precision).trace() / d, found[k::3]
            error = 1e-10 if exact else 4 * float(own.std()) / math.sqrt(400)
            assert abs(float(own.mean() - wanted)) < error
            assert not exact or float(own.std()) < 1e-10


def test_particles_by_tweedies_formula_are_right_for_data_that_are_narrow():
    """Of N(0, I/10) in a few steps: a kernel of the path's width has another law, and another evidence."""
    d, flow, noise = 8, GPFN(), 0.2
    a, y, covariance = drawn(2, d, seed=1), drawn(1, 2, seed=2), 0.1 * torch.eye(d).double()
    truth = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), noise**2 * torch.eye(2).double() + a @ covariance @ a.mT
    ).log_prob(y[0])
    mean, left = conditioned(torch.zeros(d).double(), covariance, a, y, noise**2)
    wrong = {}
    for method in ("mmps", "flower"):
        posterior = Posterior(
            ExactMean(flow, normal(torch.zeros(d).double(), covariance)), inverse.Matrix(a), y.repeat(40, 1), noise=noise,
            method=method, flow=flow,
        )  # fmt: skip
        found = particles(posterior, flow, (40, d), number=64, nfe=6, seed=3)
        ratios = (found.log_evidence - truth).exp()
        assert (abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(40)) == (method == "mmps")
        wrong[method] = deviations(found.draw(25, seeded(5)).flatten(0, 1), mean[0], left)
    assert wrong["mmps"] < 5 < wrong["flower"]


def test_particles_mend_the_bias_of_their_proposals():
    flow, noise = GPFN(), 0.2
    law = GaussianMixtureLaw(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.5, 0.0], [1.5, 1.0]]).double(),
        0.1 * torch.eye(2).double().repeat(2, 1, 1),
    )
    a, y = torch.tensor([[0.3, 1.0]]).double(), torch.tensor([[0.4]]).double()
    weights = []
    for k in range(2):
        seen = noise**2 + a @ law.covariances[k] @ a.mT
        weights.append(
            law.weights[k] * torch.distributions.Normal(a @ law.means[k], seen.sqrt()[0]).log_prob(y).exp().squeeze()
        )
    right = float(weights[1] / (weights[0] + weights[1]))
    posterior = Posterior(
        ExactMean(flow, law), inverse.Matrix(a), y.repeat(4, 1), noise=noise, method="flower", flow=flow
    )
    found = particles(posterior, flow, (4, 2), number=256, nfe=40, seed=1)
    share = float(((found.events[..., 0] > 0).double() * found.log_weights.exp()).sum(1).mean())
    assert abs(share - right) < 0.04


def test_the_mean_of_particles_is_weighted_in_the_precision_of_the_events():
    flow = GPFN()
    posterior = Posterior(network(flow, (6,)), inverse.Mask(torch.arange(6) < 3), drawn(2, 6).float(), noise=0.1)
    found = particles(posterior, flow, (2, 6), number=16, nfe=3, seed=2)
    weighted = (found.events.double() * found.log_weights.exp()[..., None]).sum(1)
    assert found.mean.dtype == found.events.dtype == torch.float32
    torch.testing.assert_close(found.mean.double(), weighted, rtol=0, atol=1e-6)


def test_particles_do_not_depend_on_batches():
    flow = GPFN()
    posterior = Posterior(network(flow, (6,)), inverse.Mask(torch.arange(6) < 3), drawn(3, 6).float(), noise=0.1)
    found = [particles(posterior, flow, (3, 6), number=16, nfe=4, seed=2, batch_size=size) for size in (16, 48)]
    again = particles(posterior, flow, (3, 6), number=16, nfe=4, seed=2, times=flow.times(4))
    assert torch.equal(found[0].events, again.events)
    other = particles(posterior, flow, (3, 6), number=16, nfe=4, seed=2, times=[0.0, 0.1, 0.4, 0.95])
    assert not torch.equal(other.events, again.events)
    assert torch.equal(found[0].events, found[1].events)
    assert torch.equal(found[0].log_evidence, found[1].log_evidence)


# Classes and mixed data ------------------------------------------------------------------------------------------------

EVENTS = torch.tensor([[0, 2, 0, 1], [1, 1, 1, 1], [2, 2, 2, 0], [0, 1, 2, 2]])
PROBS = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
CLASS_FLOWS = [
    DiscreteBFN(3),
    GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3)),
    GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)),
]
class_flows = pytest.mark.parametrize("flow", CLASS_FLOWS, ids=lambda flow: str(getattr(flow, "divergence", "bfn")))


@class_flows
def test_infilling_is_exact_against_enumeration(flow):
    exact = ExactClasses(flow, EVENTS, PROBS)
    known, y = torch.tensor([True, False, True, False]), torch.tensor([[0, 0, 2, 0]])
    posterior = Posterior(exact, inverse.Mask(known), y, flow=flow)
    assert posterior.method == "bayes"
    t = torch.full((50,), 0.3).double()
    belief = flow.belief(EVENTS[torch.randint(4, (50,), generator=seeded(1))], t, seeded(2))
    belief = Categorical(belief.logits.double())
    fits = (EVENTS[:, known] == y[:, known]).all(1)
    # What is left of the events, told of the unknown coordinates alone.
    left = ExactClasses(flow, EVENTS[fits][:, ~known], PROBS[fits] / PROBS[fits].sum())
    found = posterior(belief, t)
    wanted = left(Categorical(belief.logits[:, ~known]), t).probs
    possible = ~wanted.isnan().any(-1).any(-1)  # beliefs of other events may rule out all that fit
    torch.testing.assert_close(found.probs[:, ~known][possible], wanted[possible], rtol=1e-6, atol=1e-9)
    assert bool((found.mode[:, known] == y[:, known]).all())
    assert int(possible.sum()) > 5


def test_infilled_samples_have_the_law_of_the_events_that_fit():
    flow = DiscreteBFN(3)
    exact = ExactClasses(flow, EVENTS, PROBS)
    known = torch.tensor([True, False, False, False])
    posterior = Posterior(exact, inverse.Mask(known), torch.tensor([[0, 0, 0, 0]]), flow=flow)
    events = Stochastic()(posterior, flow, (800, 4), 60, seeded(1), dtype=torch.float64).events
    first = float((events == EVENTS[0]).all(1).double().mean())
    other = float((events == EVENTS[3]).all(1).double().mean())
    assert first + other > 0.99
    assert abs(first - 0.8) < 4 * math.sqrt(0.16 / 800)


def test_mixed_data_are_infilled_part_by_part():
    flow = GPFN(
        endpoints=ProductEndpoints(((GaussianEndpoints(), 2), (CategoricalEndpoints(3), 1))), divergence=ReverseKL()
    )
    seen = []

    class Predict(torch.nn.Module):
        def forward(self, belief, t):
            seen.append(belief)
            numbers, classes = belief.parts
            return Product((DiagonalGaussian(numbers.mean * 0, 0.0), Categorical(classes.logits * 0)))

    known = torch.tensor([True, False, True])
    rows = torch.tensor([[0.5, 9.0, 2.0], [-1.0, 9.0, 0.0]])
    posterior = Posterior(Predict(), inverse.Mask(known), rows, flow=flow)
    events = sample(posterior, flow, (2, 3), nfe=3, sampler=Deterministic())
    torch.testing.assert_close(events[:, known], rows[:, known])
    assert seen[0].parts[1].mode.flatten()[:2].tolist() == [2, 0]
    torch.testing.assert_close(seen[0].parts[1].probs.amax(-1)[:2], torch.ones(2, 1))


# Bad input -----------------------------------------------------------------------------------------------------------

LAW = standard(4)
FLOW = GPFN()
EXACT = ExactMean(FLOW, LAW)
SOME = inverse.Mask(torch.arange(4) < 2)


def called(**told):
    given = {
        "operator": inverse.Matrix(torch.eye(4)),
        "observation": torch.zeros(2, 4),
        "noise": 0.1,
        "predictor": EXACT,
    }
    given |= told
    posterior = Posterior(given.pop("predictor"), given.pop("operator"), given.pop("observation"), **given)
    return posterior(DiagonalGaussian(torch.zeros(2, 4), 1.0), torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"observation": torch.zeros(2, 3)}, "operator makes observations"),
        ({"observation": torch.zeros(3, 4)}, "3 examples"),
        ({"observation": torch.zeros(4)}, "one row an example"),
        ({"observation": None}, "one row an example"),
        ({"operator": inverse.Mask(torch.arange(5) < 2)}, "mask is of events"),
        ({"operator": 3}, "A and A_adjoint"),
        ({"operator": inverse.Matrix(torch.ones(4, 4)), "observation": torch.arange(8.0).reshape(2, 4), "noise": 0.0},
         "no event has this observation"),
        ({"noise": "much"}, "standard deviation"),
        ({"noise": -0.1}, "not negative"),
        ({"noise": torch.ones(3)}, "one for each number"),
        ({"noise": inverse.Gaussian(covariance=torch.eye(3))}, "covariance of noise"),
        ({"noise": inverse.Gaussian(covariance=torch.eye(4)), "operator": SOME}, "correlated over a mask"),
        ({"method": "magic"}, "known are flower"),
        ({"method": "mmps", "covariance": "path"}, "covariance of its own"),
        ({"covariance": "nearby"}, "covariance is one of"),
        ({"covariance": -torch.ones(4)}, "not negative"),
        ({"covariance": torch.ones(3)}, "of an event's shape"),
        ({"method": "jfps"}, "needs the covariance"),
        ({"method": "bayes"}, "classes and mixed data"),
        ({"method": "mmps", "draw": True}, "known root"),
        ({"method": "flower", "draw": True}, "needs generator"),
        ({"iterations": 0}, "at least 1"),
        ({"strength": 0.0}, "strength is positive"),
        ({"predictor": ExactDraw(FLOW, LAW)}, "predicts no mean"),
        ({"predictor": lambda belief, t: belief}, "observed exactly.* name the flow of this predictor as flow="),
        ({"observation": torch.zeros(2, 4, dtype=torch.long)}, "is int64: give pictures as sample.decode=False. does"),
        ({"observation": torch.zeros(2, 4, dtype=torch.complex64)}, "by torch.view_as_real"),
        ({"observation": torch.zeros(2, 4, dtype=torch.long), "operator": SOME, "method": "flower", "noise": None,
          "predictor": lambda belief, t: belief}, "got flower"),
        ({"operator": inverse.Mask(torch.ones(2, 4, dtype=torch.bool))}, "each=True"),
        ({"operator": inverse.Matrix(torch.eye(4), (2, 2))}, r"Matrix.matrix, .4,."),
        ({"observation": torch.zeros(1, 4), "noise": torch.ones(2)}, "an observation for each"),
        ({"method": "tmpd", "noise": 0.0}, "take flower or mmps"),
        ({"method": "repaint", "operator": inverse.Matrix(torch.ones(4, 4)), "observation": torch.arange(8.0).reshape(2, 4)},
         "noise and all"),
        ({"operator": inverse.Nonlinear(lambda x: x.detach().square())}, "in operations of torch"),
        ({"predictor": PointPredictor(MLP((4,)), FLOW, clip=(-1.0, 1.0)), "operator": SOME,
          "observation": torch.full((2, 4), 255.0)}, "as large as 255, and the data lie in"),
        ({"observation": torch.full((2, 4), math.inf)}, "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(told, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        called(**told)
    assert "\n" not in str(caught.value)


def test_a_student_of_one_evaluation_predicts_no_mean():
    model = models.load("mnist-few")
    with pytest.raises(ArgumentError, match="predicts no mean"):
        Posterior(model.predictor, inverse.Downsample(4), torch.zeros(1, 1, 7, 7), flow=model.flow)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_matrix_of_half_precision_is_solved_as_the_same_numbers_in_full(dtype):
    a = drawn(20, 300).div(17).to(dtype)
    y, x = drawn(2, 20, seed=1).float(), drawn(2, 300, seed=2).float()
    moved = inverse.Matrix(a).prox(x, y, 0.01, 1.0)
    torch.testing.assert_close(moved.double(), inverse.Matrix(a.double()).prox(x.double(), y.double(), 0.01, 1.0),
                               atol=1e-4, rtol=1e-4)  # fmt: skip


def test_what_is_predicted_exactly_as_observed_is_left_as_it_is():
    right = torch.tensor([[0.0], [1.0]])
    found = inverse.solve.least_residual(lambda v: (2 * v, v.expand(-1, 3)), right, 1)
    torch.testing.assert_close(found, torch.tensor([[0.0] * 3, [0.5] * 3]))


def test_operators_show_themselves_in_a_line():
    assert repr(inverse.Mask(torch.ones(1, 28, 28, dtype=torch.bool))) == "Mask(known=(1, 28, 28), each=False)"
    assert repr(inverse.Matrix(torch.eye(3)) @ inverse.Mask(torch.ones(3) > 0)).count("\n") == 0


@pytest.mark.parametrize(
    ("told", "posterior", "says"),
    [
        ({"number": 1}, {}, "number ≥ 2"),
        ({"threshold": 2.0}, {}, "threshold in"),
        ({"times": [0.0, 0.5]}, {}, "20 numbers increasing from 0"),
        ({}, {"draw": True}, "draw=False"),
        ({}, {"operator": inverse.Functions(lambda x: x, lambda y: y)}, "dense"),
        ({}, {"operator": inverse.Downsample(1), "observation": torch.zeros(2, 1, 2, 2), "noise": torch.ones(2, 2)},
         "one size of noise"),
        ({}, {"noise": inverse.Poisson(3.0)}, "Gaussian noise"),
        ({"shape": (3, 4)}, {}, "2 examples, and 3 posteriors"),
        ({"flow": GPFN(ReverseKL())}, {}, "Gaussian path"),
    ],
)  # fmt: skip
def test_particles_refuse_bad_input(told, posterior, says):
    given = {"operator": SOME, "observation": torch.zeros(2, 4), "noise": 0.1} | posterior
    refined = Posterior(EXACT, given.pop("operator"), given.pop("observation"), flow=FLOW, **given)
    settings = {"flow": FLOW, "shape": (2, 4)} | told
    with pytest.raises(ArgumentError, match=says):
        particles(refined, settings.pop("flow"), settings.pop("shape"), **settings)
