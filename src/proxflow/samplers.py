"""Samplers: from noise to data, in a counted number of network evaluations.

There is one loop, in :meth:`Sampler.__call__`. A sampler supplies two operations: ``init`` makes its state from the prior,
``step`` moves belief and state from one time to the next with the newest prediction. The last prediction is the sample, so
no step ever divides by the distance to t = 1.

Two kinds:

* **Proximal** samplers move the belief by the flow's own update. They work for every flow.
* **Path** samplers know only that the training beliefs have means a(t) x + b(t) ε, and move the mean along that path. They
  carry y = μ/(a + b), in which every Gaussian path is the straight line y = τ x + (1 − τ) ε with τ = a/(a + b), so one
  formula, without a singularity at t = 0, serves rectified flow, BFN and diffusion alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from proxflow._tensor import Generator, SampleStreams, randn
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.schedules import GaussianPath


class SamplingFlow(Protocol):
    """What a sampler asks of a flow; every :class:`proxflow.Flow` has it."""

    @property
    def path(self) -> GaussianPath | None: ...

    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Any: ...

    def update(self, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator | None) -> Any: ...

    def times(self, nfe: int) -> list[float]: ...

    def belief_at(self, mean: Tensor, t: Tensor) -> DiagonalGaussian: ...


Predict = Callable[[Any, Tensor], Any]
Watch = Callable[[float, Belief, Belief], None]
"""Called at each evaluation with the time, the belief and the predicted target."""


@dataclass(frozen=True)
class Samples:
    """Result of a sampling run.

    Args:
        events: The samples, (batch, *event).
        nfe: Network evaluations spent, as counted.
    """

    events: Tensor
    nfe: int


class Sampler(ABC):
    """Base of all samplers; members are frozen dataclasses of their settings."""

    @abstractmethod
    def init(self, flow: SamplingFlow, belief: Any, generator: Generator) -> tuple[Any, Any]:
        """First belief and state, from a belief drawn from the prior."""

    @abstractmethod
    def step(
        self, flow: SamplingFlow, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        """Belief and state at time ``s``, from those at ``t`` and the target predicted there."""

    @torch.no_grad()
    def __call__(
        self,
        predict: Predict,
        flow: SamplingFlow,
        shape: Sequence[int],
        nfe: int,
        generator: Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        times: Sequence[float] | None = None,
        watch: Watch | None = None,
    ) -> Samples:
        """Draw samples with ``nfe`` evaluations of ``predict``.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            flow: The flow that ``predict`` was trained for.
            shape: Shape of the samples, (batch, *event).
            nfe: Number of network evaluations, ≥ 1.
            generator: Source of all randomness, on ``device``.
            dtype: Precision of the belief.
            device: Where to sample.
            times: Times of the evaluations, increasing from 0; ``None`` takes the flow's own.
            watch: Called at each evaluation.

        Raises:
            ArgumentError: ``nfe`` < 1, an empty shape, or times that do not increase from 0 within [0, 1].
        """
        if nfe < 1:
            raise ArgumentError(f"the number of network evaluations must be at least 1, got {nfe}")
        if not shape or min(shape) < 1:
            raise ArgumentError(f"shape is (batch, *event), each at least 1, got {tuple(shape)}")
        times = flow.times(nfe) if times is None else list(times)
        if len(times) != nfe or times[0] != 0 or times[-1] > 1 or any(s <= t for t, s in pairwise(times)):
            raise ArgumentError(f"times must be {nfe} numbers increasing from 0, at most 1, got {times}")
        device = torch.device(device)
        # Double precision on the host side of the schedule; one small transfer before the loop and none inside.
        grid = torch.tensor(times, dtype=torch.float64, device=device)
        belief, state = self.init(flow, flow.prior(shape, generator, dtype, device), generator)
        for k in range(nfe):
            target = predict(belief, grid[k].to(torch.float32 if dtype != torch.float64 else dtype).expand(shape[0]))
            if watch is not None:
                watch(times[k], belief, target)
            if k + 1 < nfe:
                belief, state = self.step(flow, belief, target, grid[k], grid[k + 1], generator, state)
        return Samples(target.mode, nfe)


class ProximalSampler(Sampler):
    """Base of samplers that move the belief by the flow's own update."""

    noisy: ClassVar[bool]
    """Whether the message is a noisy draw around the predicted target."""

    def init(self, flow: SamplingFlow, belief: Any, generator: Generator) -> tuple[Any, None]:
        return belief, None

    def step(
        self, flow: SamplingFlow, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator, state: None
    ) -> tuple[Any, None]:
        return flow.update(belief, target, t, s, generator if self.noisy else None), state


@dataclass(frozen=True)
class Deterministic(ProximalSampler):
    """The proximal step with the predicted target itself as message.

    For Wasserstein-2 with the linear schedule this is Euler's method on rectified flow's equation; for BFN it is the
    noise-free sampler.
    """

    noisy = False


@dataclass(frozen=True)
class Stochastic(ProximalSampler):
    """The proximal step with a noisy draw around the predicted target as message; BFN's own sampler (2308.07037)."""

    noisy = True


def _straight(path: GaussianPath, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fraction τ = a/(a+b), 1 − τ, and a + b at time ``t``, in the precision of the belief."""
    a, b = path.coefficients(t)
    # Both vanish for BFN at t = 0; there the straight coordinate is all noise.
    total = (a + b).clamp_min(torch.finfo(torch.float64).tiny)
    tau = a / total
    return (
        tau.to(like.dtype),
        torch.where(a == 0, torch.ones_like(tau), b / total).to(like.dtype),
        (a + b).to(like.dtype),
    )


class PathSampler(Sampler):
    """Base of samplers that move the mean along the Gaussian path of the training beliefs."""

    @abstractmethod
    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        generator: Generator,
        memory: Any,
    ) -> tuple[Tensor, Any]:
        """The straight coordinate at the new time.

        Args:
            y: Straight coordinate τ x + (1 − τ) ε.
            x: Predicted data.
            tau: (τ, 1 − τ) now.
            new: (τ, 1 − τ) at the new time.
            generator: Source of fresh noise.
            memory: What the last call returned, ``None`` at first.
        """

    def init(self, flow: SamplingFlow, belief: Any, generator: Generator) -> tuple[Any, Any]:
        if flow.path is None or not isinstance(belief, DiagonalGaussian):
            raise ArgumentError(
                f"{type(self).__name__} needs Gaussian beliefs whose means follow a(t) x + b(t) ε, which {flow} has not: "
                "use Deterministic or Stochastic"
            )
        mean = belief.mean
        a, b = flow.path.coefficients(torch.zeros((), dtype=torch.float64))
        scale = float(a + b)
        # A prior with a drawn mean is the noise ε; a fixed one says nothing of it, so ε is drawn here.
        y = mean / scale if scale > 0 else randn(mean.shape, generator, mean.dtype, mean.device)
        return belief, (flow.path, y, None)

    def step(
        self, flow: SamplingFlow, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        path, y, memory = state
        tau, rest, _ = _straight(path, t, y)
        new_tau, new_rest, scale = _straight(path, s, y)
        y, memory = self.move(y, target.mean, (tau, rest), (new_tau, new_rest), generator, memory)
        return flow.belief_at(scale * y, s), (path, y, memory)


@dataclass(frozen=True)
class Marginal(PathSampler):
    """Keeps the marginal of the path while replacing noise (DDIM/DDPM, 2010.02502, on any Gaussian path).

    y' = τ' x̂ + √((1−τ')² − s²) ε̂ + s ξ,  s = κ (1−τ') √(1 − (τ (1−τ') / (τ' (1−τ)))²).

    Args:
        kappa: Share of the noise replaced, in [0, 1]: 0 deterministic (DDIM), 1 ancestral (DDPM).
    """

    kappa: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.kappa <= 1:
            raise ArgumentError(f"kappa must lie in [0, 1], got {self.kappa}")

    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        generator: Generator,
        memory: None,
    ) -> tuple[Tensor, None]:
        noise = (y - tau[0] * x) / tau[1]
        ratio = tau[0] * new[1] / (new[0] * tau[1])
        fresh = self.kappa * new[1] * (1 - ratio.square()).clamp_min(0).sqrt()
        kept = (new[1].square() - fresh.square()).clamp_min(0).sqrt()
        y = new[0] * x + kept * noise
        if self.kappa > 0:
            y = y + fresh * randn(y.shape, generator, y.dtype, y.device)
        return y, memory


@dataclass(frozen=True)
class Multistep2(PathSampler):
    """Second-order exponential multistep, one evaluation a step (in the manner of DPM-Solver++, 2211.01095).

    In u = −ln(1 − τ) the step of a constant prediction is exact: y' = e^{−h} y + (1 − e^{−h}) x̂. The prediction's slope in
    u, from the last two evaluations, adds (h − 1 + e^{−h})(x̂_k − x̂_{k−1})/h_{k−1}.
    """

    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        generator: Generator,
        memory: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        decay = new[1] / tau[1]
        h = -decay.log()
        moved = decay * y + (1 - decay) * x
        if memory is not None:
            last_x, last_h = memory
            moved = moved + (h + torch.expm1(-h)) / last_h * (x - last_x)
        return moved, (x, h)


SAMPLERS: dict[str, Sampler] = {
    "deterministic": Deterministic(),
    "stochastic": Stochastic(),
    "marginal": Marginal(),
    "multistep2": Multistep2(),
}
"""Samplers by the name that the command line and results files use."""


def sample(
    model: nn.Module,
    flow: SamplingFlow,
    shape: Sequence[int],
    *,
    steps: int = 20,
    sampler: Sampler | str = "multistep2",
    seed: int = 0,
    batch_size: int = 128,
    first: int = 0,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw samples from a trained predictor; each depends on the seed and its index alone.

    Args:
        model: A predictor; its device and precision are used, and it is put into evaluation mode meanwhile.
        flow: The flow it was trained for.
        shape: (number of samples, *event).
        steps: Network evaluations spent on each sample (NFE), ≥ 1.
        sampler: A sampler or its name in :data:`SAMPLERS`.
        seed: Seed of the samples.
        batch_size: Samples drawn at a time, rounded up to a multiple of 16. A last, smaller batch is filled up with
            samples that are thrown away: kernels take other paths, with other rounding, for odd batch sizes.
        first: Index of the first sample.
        watch: Called at each evaluation of each batch.
        progress: Called with the number of samples finished, after each batch.

    Returns:
        The samples (number, *event) on the model's device.

    Raises:
        ArgumentError: An unknown sampler, or a number out of range.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ArgumentError(f"unknown sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[sampler]
    if not shape or min(shape) < 1 or batch_size < 1:
        raise ArgumentError(f"shape and batch size must be at least 1, got {tuple(shape)} and {batch_size}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    number, event = shape[0], tuple(shape[1:])

    def whole(size: int) -> int:
        return -(-size // 16) * 16

    was_training = model.training
    model.eval()
    finished = []
    try:
        for start in range(0, number, whole(batch_size)):
            wanted = min(whole(batch_size), number - start)
            size = whole(wanted)
            indices = torch.arange(first + start, first + start + size, device=parameter.device)
            streams = SampleStreams(seed, indices)
            result = sampler(
                model, flow, (size, *event), steps, streams, dtype=dtype, device=parameter.device, watch=watch
            )
            finished.append(result.events[:wanted])
            if progress is not None:
                progress(start + wanted)
    finally:
        model.train(was_training)
    return torch.cat(finished)
