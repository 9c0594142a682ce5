"""What every sampler must satisfy, on every kind of flow that it serves. A sampler joins by joining ``SAMPLERS``."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import GaussianData
from test_flows import double
from torch.utils._python_dispatch import TorchDispatchMode

from proxflow import (
    BFN,
    GPFN,
    Binned,
    CategoricalEndpoints,
    Diffusion,
    DiscreteBFN,
    DiscretisedBFN,
    ExactClasses,
    ReverseKL,
)
from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams
from proxflow.samplers import SAMPLERS, PathSampler

EVENT = (3,)


class Counted:
    """A predictor that counts its calls, one for each evaluation."""

    def __init__(self, predict: Any) -> None:
        self.predict, self.calls = predict, 0

    def __call__(self, belief: Any, t: torch.Tensor) -> Any:
        self.calls += 1
        return self.predict(belief, t)


@dataclass(frozen=True)
class Setting:
    """A flow, and an exact predictor of some data."""

    flow: Any

    def __str__(self) -> str:
        return type(self.flow).__name__ + str(getattr(self.flow, "divergence", ""))

    def predict(self, device: torch.device | str = "cpu") -> Any:
        if isinstance(self.flow, DiscretisedBFN):  # data of one bin or another in each coordinate, independent
            bins, centres = self.flow.bins, None

            def binned(belief: Any, t: torch.Tensor) -> Binned:
                nonlocal centres
                centres = torch.arange(bins, dtype=belief.mean.dtype, device=device) * 2 / bins - 1 + 1 / bins
                a, b = (c.to(belief.mean.dtype)[:, None, None] for c in self.flow.path.coefficients(t.double()))
                # N(x; μ/a, (b/a)²) of each centre, by its exponent; at t = 0 all are alike.
                away = (belief.mean[..., None] - a * centres) / b.clamp_min(1e-12)
                return Binned(torch.where(b > 0, -0.5 * away.square(), 0.0))

            return binned
        if isinstance(self.flow, BFN | Diffusion) or self.flow.path is not None:
            return GaussianData(self.flow, 0.2, 0.15)
        # Classes 0 and 2, or all 1: what is known of one coordinate says something of the others.
        events = torch.tensor([[0, 2, 0], [1, 1, 1], [2, 2, 2]], device=device)
        return ExactClasses(self.flow, events, double([0.5, 0.25, 0.25]).to(device))

    def allowed(self, events: torch.Tensor) -> bool:
        if events.dtype == torch.int64:
            if not isinstance(self.flow, DiscreteBFN):  # a barycentric flow's classes need not agree after so few steps
                return bool((events >= 0).all()) and bool((events < 3).all())
            return {tuple(row) for row in events.tolist()} <= {(0, 2, 0), (1, 1, 1), (2, 2, 2)}
        if isinstance(self.flow, DiscretisedBFN):
            index = (events + 1) * self.flow.bins / 2 - 0.5
            return bool((index - index.round()).abs().max() < 1e-4)
        return bool(events.abs().max() <= 1)


SETTINGS = [
    Setting(flow)
    for flow in (
        GPFN(), Diffusion(), BFN(0.05), DiscretisedBFN(5, 0.05), DiscreteBFN(3, 3.0),
        GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3)),
    )
]  # fmt: skip
PAIRS = [
    pytest.param(name, setting, id=f"{name}-{setting}")
    for name in SAMPLERS
    for setting in SETTINGS
    if setting.flow.latent is not None or not isinstance(SAMPLERS[name], PathSampler)
]
every_pair = pytest.mark.parametrize(("name", "setting"), PAIRS)


def run(name, setting, nfe, indices=range(8), predict=None, seed=0, dtype=torch.float64, device="cpu"):
    streams = SampleStreams(seed, torch.tensor(list(indices), device=device))
    predict = setting.predict(device) if predict is None else predict
    shape = (len(streams.indices), *EVENT)
    return SAMPLERS[name](predict, setting.flow, shape, nfe, streams, dtype=dtype, device=device)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if isinstance(SAMPLERS[n], PathSampler)])
def test_flows_without_a_path_are_refused(name):
    setting = SETTINGS[-1]
    with pytest.raises(ArgumentError, match="use Deterministic or Stochastic"):
        run(name, setting, 3)


@every_pair
def test_evaluations_are_counted(name, setting):
    for nfe in (1, 2, 5):
        predict = Counted(setting.predict())
        samples = run(name, setting, nfe, predict=predict)
        assert predict.calls == samples.nfe == nfe
        assert samples.events.shape == (8, *EVENT)


@every_pair
def test_samples_of_an_exact_predictor_lie_where_the_data_do(name, setting):
    # One fixed belief and no noise: the noise-free Bayesian samplers give one sample, where classes do not agree yet.
    alone = name == "deterministic" and isinstance(setting.flow, DiscreteBFN)
    samples = run(name, setting, 60, indices=range(40)).events
    assert alone or setting.allowed(samples)
    distinct = len({tuple(row) for row in samples.tolist()})
    assert (distinct == 1) == (name == "deterministic" and isinstance(setting.flow, BFN | DiscretisedBFN | DiscreteBFN))


@every_pair
def test_a_sample_depends_on_its_seed_and_index_alone(name, setting):
    together = run(name, setting, 6).events
    apart = torch.cat([run(name, setting, 6, indices=part).events for part in (range(3), range(3, 8))])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)
    assert torch.equal(run(name, setting, 6).events, together)


@every_pair
def test_single_precision_gives_the_same_samples(name, setting):
    single, double_ = (run(name, setting, 8, dtype=dtype).events for dtype in (torch.float32, torch.float64))
    if single.is_floating_point():
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double_, rtol=0, atol=2e-4)
    else:
        assert torch.equal(single, double_)


class Given(SampleStreams):
    """Draws that cost a compiler nothing; ``test_compile`` has the real ones."""

    def normal(self, shape, dtype):
        return torch.linspace(-1, 1, shape.numel(), dtype=dtype).reshape(shape)

    def uniform(self, shape, dtype):
        return torch.linspace(0.1, 0.9, shape.numel(), dtype=dtype).reshape(shape)


@every_pair
def test_a_step_compiles_into_one_graph(name, setting):
    torch._dynamo.reset()
    sampler, flow, indices = SAMPLERS[name], setting.flow, torch.arange(4)
    prior = flow.prior((4, *EVENT), SampleStreams(0, indices), torch.float32, torch.device("cpu"))
    belief, state = sampler.init(flow, prior, SampleStreams(1, indices))
    times = [0.0, 0.2, 0.5]
    plan = sampler.plan(flow, belief, times, torch.device("cpu"))
    targets = [setting.predict()(belief, torch.full((4,), t)) for t in times[:2]]

    def two_steps(indices):  # two, so that the second has a memory
        streams, moved, memory = Given(2, indices), belief, state
        for k in (0, 1):
            moved, memory = sampler.step(flow, moved, targets[k], plan[k], plan[k + 1], streams, memory)
        return list(moved.tensors().values())

    # What follows the graph, on its way to code, is asked of each sampler and of each flow once: it costs most of the time.
    backend = "aot_eager" if setting is SETTINGS[0] or name == "deterministic" else "eager"
    compiled = torch.compile(two_steps, fullgraph=True, backend=backend)
    for found, expected in zip(compiled(indices), two_steps(indices), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class NoSync(TorchDispatchMode):
    """Refuses every operation that a device would have to finish before the host goes on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), f"the loop waits for {name}"
        return func(*args, **(kwargs or {}))


@every_pair
def test_the_loop_never_waits_for_the_device(name, setting):
    exact, mode = setting.predict(), NoSync()
    targets = iter([exact(belief, t) for belief, t in evaluations(name, setting, exact)])

    def predict(belief, t):
        if not entered:
            entered.append(mode.__enter__())
        return next(targets)

    entered: list[Any] = []
    try:
        samples = run(name, setting, 4, predict=predict)
    finally:
        if entered:
            mode.__exit__(None, None, None)
    assert len(samples.events) == 8
    with pytest.raises(AssertionError, match="waits for"), NoSync():
        float(torch.ones(()))


def evaluations(name, setting, exact):
    seen = []

    def predict(belief, t):
        seen.append((belief, t))
        return exact(belief, t)

    run(name, setting, 4, predict=predict)
    return seen
