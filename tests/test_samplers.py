"""Samplers, with exact predictors so that their own error is all there is."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from support import GaussianData, Recorded, vectors
from test_flows import ReferenceNetwork, double, seeded

from proxflow import (
    BFN,
    GPFN,
    KL,
    CategoricalEndpoints,
    Cosine,
    Deterministic,
    Diffusion,
    DiscreteBFN,
    FisherRao,
    GaussianEndpoints,
    Marginal,
    Multistep,
    PointPredictor,
    Stochastic,
    nn,
    sample,
)
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.samplers import SAMPLERS, PathSampler

POINT = GPFN(endpoints=GaussianEndpoints(0.0))
FLOWS = [
    POINT,
    GPFN(schedule=Cosine()),
    GPFN(KL(), endpoints=GaussianEndpoints(0.3)),
    Diffusion(),
    BFN(0.05),
    BFN(1e-3),
]


class Velocity(torch.nn.Module):
    """A network with some curvature, in closed form."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, mean, t):
        return torch.sin(2 * mean + self.shift) - t.reshape(-1, 1) * mean


def test_wasserstein_steps_are_rectified_flow_euler():
    # z ← z + (t' − t) v, written out by itself, over 50 steps.
    model = PointPredictor(Velocity(), POINT, parameterisation="v", clip=None)
    z = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    for k in range(50):
        t = torch.full((5,), k / 50, dtype=torch.float64)
        z = z + (1 / 50) * model.network(z, t)
    with torch.no_grad():
        samples = Deterministic()(model, POINT, (5, 3), 50, seeded(), dtype=torch.float64)
    torch.testing.assert_close(samples.events, z.detach(), rtol=0, atol=1e-12)


def test_reference_bfn_sampler_and_its_count():
    case = json.loads((vectors() / "bfn.json").read_text())["continuous"]
    flow = BFN(math.sqrt(case["min_variance"]))
    model = PointPredictor(ReferenceNetwork(), flow, parameterisation="epsilon", clip=(-1.0, 1.0)).eval()
    expected, steps = double(case["sample"]["result"]), case["sample"]["steps"]
    noise = Recorded(*(double(draw) for draw in case["sample"]["noise"]))
    samples = Stochastic()(model, flow, expected.shape, steps + 1, noise, dtype=torch.float64)
    torch.testing.assert_close(samples.events, expected, rtol=0, atol=1e-10)
    assert not noise.draws  # n updates used all n draws, and the last evaluation none


# A member from outside the package: the class, and its place in the list, are all it takes to join the contracts.
@dataclass(frozen=True)
class Held(PathSampler):
    """Holds the prediction and the noise that it leaves fixed over a step."""

    def move(self, step, memory):
        decay = step.new[1] / step.tau[1]
        return decay * step.y + (1 - decay) * step.x, memory


MEMBERS = {**SAMPLERS, "held": Held()}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 20])
@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_evaluations_are_counted_truly(flow, name, nfe):
    predict = GaussianData(flow, 0.2, 0.5)
    samples = MEMBERS[name](predict, flow, (2, 3), nfe, seeded())
    assert predict.calls == nfe == samples.nfe
    assert samples.events.shape == (2, 3)
    assert samples.events.isfinite().all()


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("sampler", [Marginal(0.0), Marginal(0.5), Marginal(1.0), Multistep(2)], ids=str)
def test_path_samplers_reach_the_data_distribution(sampler, flow):
    # The last prediction is a conditional mean, narrower than the data by what is still unknown at the last time.
    predict = GaussianData(flow, 0.2, 0.5)
    events = sampler(predict, flow, (20_000, 1), 200, seeded(), dtype=torch.float64).events
    assert float(events.mean()) == pytest.approx(0.2, abs=0.015)
    assert float(events.std()) == pytest.approx(0.5, rel=0.05)
    assert stats.kstest(((events - events.mean()) / events.std()).flatten().numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("times", [[0.0, 0.4, 1.0], [0.0, 0.4, 0.8, 1.0]], ids=len)
@pytest.mark.parametrize(
    "sampler", [s for n, s in SAMPLERS.items() if isinstance(s, PathSampler) and n != "adams-bashforth2"], ids=str
)
@pytest.mark.parametrize("flow", [GPFN(), Diffusion()], ids=str)
def test_a_step_that_lands_on_its_target_lands_on_the_newest_prediction(flow, sampler, times):
    # The paths end without noise at t = 1, where the step in −ln(1 − τ) is infinite.
    seen: list[torch.Tensor] = []

    def predict(belief, t):
        seen.append(belief.mean)
        return DiagonalGaussian(torch.full_like(belief.mean, float(len(seen))), belief.mean.new_zeros(()))

    sampler(predict, flow, (2, 3), len(times), seeded(), times=times)
    torch.testing.assert_close(seen[-1], torch.full((2, 3), len(times) - 1.0))


@pytest.mark.parametrize("flow", [BFN(0.05), Diffusion()], ids=str)
def test_bayesian_messages_reach_the_data_distribution(flow):
    events = Stochastic()(GaussianData(flow, 0.2, 0.5), flow, (20_000, 1), 400, seeded(), dtype=torch.float64).events
    assert float(events.mean()) == pytest.approx(0.2, abs=0.015)
    assert float(events.std()) == pytest.approx(0.5, rel=0.05)


def test_noise_free_bfn_gives_one_sample_and_gpfn_does_not():
    bfn = Deterministic()(GaussianData(BFN(0.05), 0.2, 0.5), BFN(0.05), (50, 4), 20, seeded())
    assert float(bfn.events.std(0).max()) == 0
    gpfn = Deterministic()(GaussianData(POINT, 0.2, 0.5), POINT, (2000, 4), 100, seeded())
    assert float(gpfn.events.std(0).min()) > 0.4


@pytest.mark.parametrize(("sampler", "order"), [(Deterministic(), 1), (Marginal(0.0), 1), (Multistep(2), 2)], ids=str)
def test_order_of_convergence(sampler, order):
    # For Gaussian data the flow of the exact velocity maps quantiles to quantiles: x = mean + std · ε.
    mean, std = 0.2, 0.5
    predict = GaussianData(POINT, mean, std)
    noise = torch.randn(64, 1, generator=seeded(), dtype=torch.float64)
    errors = []
    for nfe in (40, 80, 160):
        events = sampler(predict, POINT, (64, 1), nfe, seeded(), dtype=torch.float64).events
        errors.append(float((events - (mean + std * noise)).abs().max()))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_constant_prediction_is_exact_for_path_samplers(flow):
    # With x̂ constant every deterministic path sampler must follow μ = a x̂ + b ε without error, whatever the step.
    seen = []

    def predict(belief, t):
        seen.append((float(t[0]), belief.mean))
        return type(belief)(torch.full_like(belief.mean, 0.7), torch.zeros_like(belief.mean))

    for sampler in (Multistep(2), Marginal(0.0)):
        seen.clear()
        sampler(predict, flow, (3, 2), 6, seeded(), dtype=torch.float64)
        if flow.path.coefficients(torch.zeros(()))[1] > 0:
            noise = seen[0][1]
        else:
            noise = torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
        for t, mean in seen[1:]:
            a, b = flow.path.coefficients(double(t))
            torch.testing.assert_close(mean, a * 0.7 + b * noise, rtol=1e-9, atol=1e-9)


def test_discrete_flows_sample_classes():
    x = torch.tensor([1, 0, 2])

    def predict(belief, t):
        return Categorical(20 * torch.nn.functional.one_hot(x, 3).double().expand(belief.logits.shape))

    for flow in (DiscreteBFN(3), GPFN(FisherRao(), endpoints=CategoricalEndpoints(3))):
        for sampler in (Deterministic(), Stochastic()):
            events = sampler(predict, flow, (4, 3), 10, seeded(), dtype=torch.float64).events
            assert torch.equal(events, x.expand(4, 3))
    with pytest.raises(ArgumentError, match="use Deterministic or Stochastic"):
        Multistep(2)(predict, flow, (4, 3), 10, seeded())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    # One level on few pixels: enough that its convolutions round differently in odd batches, as a large network's do.
    network = nn.UNet((1, 8, 8), channels=16, multipliers=(1,), blocks=1, patch=2)
    for parameter in network.parameters():  # a fresh network's last layer is zero
        torch.nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("flow", [GPFN(), Diffusion(), BFN(0.05)], ids=str)
def test_same_seed_same_samples_whatever_the_batch(model, flow, name):
    predict = PointPredictor(model, flow, parameterisation="x")
    sampler = name if name in SAMPLERS else MEMBERS[name]

    def draw(n, **settings):
        return sample(predict, flow, (n, 1, 6, 6), nfe=4, sampler=sampler, seed=3, **settings)

    together = draw(20, batch_size=64)
    assert torch.equal(together, draw(20, batch_size=16))
    # Below 16 memory falls with the batch, and kernels for other sizes round differently.
    torch.testing.assert_close(together[:3], draw(3, batch_size=1), rtol=0, atol=1e-5)
    assert torch.equal(together[:7], draw(7))
    assert torch.equal(together[17:], draw(3, first=17))
    other = sample(predict, flow, (7, 1, 6, 6), nfe=4, sampler=sampler, seed=4)
    assert torch.equal(together[:7], other) == (name == "deterministic" and isinstance(flow, BFN))


def test_a_graph_is_of_work_on_a_cuda_device(model):
    with pytest.raises(ArgumentError, match=r"the predictor is on cpu$"):
        sample(PointPredictor(model, GPFN(), parameterisation="x"), GPFN(), (4, 1, 8, 8), nfe=2, graph=True)


def test_sampling_restores_the_mode_and_reports(model):
    predict = PointPredictor(model, POINT, parameterisation="x").train()
    done, times = [], []
    sample(
        predict, POINT, (20, 1, 8, 8), nfe=3, batch_size=16,
        watch=lambda t, belief, target: times.append(t), progress=done.append,
    )  # fmt: skip
    assert predict.training
    assert done == [16, 20]
    assert times == [0, 1 / 3, 2 / 3] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nfe": 0}, "at least 1, got 0"),
        ({"nfe": -3}, "at least 1, got -3"),
        ({"sampler": "magic"}, "no sampler is called 'magic'"),
        ({"shape": (0, 1, 8, 8)}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"shape": (2, 3, 8, 8)}, "UNet reads"),
    ],
)
def test_bad_requests(model, change, message):
    shape = change.pop("shape", (2, 1, 8, 8))
    with pytest.raises(ArgumentError, match=message):
        sample(PointPredictor(model, POINT, parameterisation="x"), POINT, shape, **change)


@pytest.mark.parametrize("times", [[0.1, 0.5], [0, 0], [0, 1.5], [0]])
def test_bad_times(times):
    with pytest.raises(ArgumentError, match="increasing from 0"):
        Deterministic()(GaussianData(POINT, 0.0, 1.0), POINT, (2, 1), 2, seeded(), times=times)


def test_kappa_out_of_range():
    with pytest.raises(ArgumentError, match="kappa"):
        Marginal(1.5)
