"""Samplers that move along the Gaussian path of the training beliefs: of their means, or of their logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from proxflow._math import on_device
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.flows import Flow, Latent
from proxflow.paths import renewal
from proxflow.random import Generator, randn_like
from proxflow.samplers.base import Sampler


class Point(NamedTuple):
    """The schedule at one time, for a path sampler.

    Args:
        time: The time, a float64 scalar on the device.
        taken: τ = a/(a + b).
        left: 1 − τ.
        scale: a + b.
        std: Standard deviation of Gaussian beliefs there, a scalar; else ``None``.
    """

    time: Tensor
    taken: float
    left: float
    scale: float
    std: Tensor | None


def log_step(left: float, new_left: float) -> float:
    """Return the length h of a step in u = −ln(1 − τ), ∞ for one that ends on the target."""
    return math.log(left / new_left) if new_left > 0 else math.inf


def extrapolate(last: Tensor, x: Tensor, slope: float) -> Tensor:
    """Return x + slope (x − last), in one pass."""
    return torch.lerp(last, x, 1 + slope) if slope else x


class Step(NamedTuple):
    """One step of a path sampler.

    Args:
        y: Straight coordinate τ x + (1 − τ) ε, (batch, …).
        x: Predicted data, or K ê − 1, of its shape.
        tau: (τ, 1 − τ) now.
        new: (τ, 1 − τ) at the new time.
        generator: Source of fresh noise.
    """

    y: Tensor
    x: Tensor
    tau: tuple[float, float]
    new: tuple[float, float]
    generator: Generator


def renewed(step: Step, kappa: float) -> Tensor:
    """Return the straight coordinate at the new time after a step of :func:`proxflow.paths.renewal`."""
    keep, _, fresh = renewal(step.tau, step.new, kappa)
    total = keep + step.new[0] - keep * step.tau[0]  # without noise the weights add up to 1
    moved = torch.lerp(step.x, step.y, keep / total)
    if kappa > 0:
        moved.mul_(total).add_(randn_like(step.y, step.generator), alpha=fresh)
    return moved


class PathSampler(Sampler):
    """A sampler that moves along the flow's :attr:`~proxflow.Flow.latent`, the interpolant a u(x) + b ε.

    For Gaussian beliefs the interpolant is of the means, for discrete Bayesian flows of the logits.
    """

    @abstractmethod
    def move(self, step: Step, memory: Any) -> tuple[Tensor, Any]:
        """Return the straight coordinate at the new time, and the memory for the next call (``None`` at first)."""

    def init(self, flow: Flow[Any], belief: Any, generator: Generator) -> tuple[Any, Any]:
        latent = self._latent(flow)
        if getattr(self, "kappa", 0) > 0 and flow.coupling is not None:
            raise ArgumentError(
                f"{self} replaces noise by fresh noise, as if it did not depend on the data, but {flow} pairs them: use a "
                "sampler without noise, such as Multistep(2)"
            )
        if getattr(self, "kappa", 0) > 0 and not flow.begins_normal:
            raise ArgumentError(
                f"{self} replaces what a sample began with by standard normal noise, and {flow} begins with others: use "
                "a sampler without noise, such as Multistep(2)"
            )
        z = latent.of(belief)
        scale = float(latent.path.straight(torch.zeros((), dtype=torch.float64))[2])
        # A drawn prior is the noise ε itself; for a fixed prior ε is drawn here.
        y = z / scale if scale > 0 else randn_like(z, generator)
        return belief, (latent, y, None)

    def plan(self, flow: Flow[Any], belief: Any, times: Sequence[float], device: torch.device) -> Sequence[Point]:
        # Python numbers: the schedule is computed on the host, and the device only works on batches.
        latent, grid = self._latent(flow), on_device(times, device)
        taken, left, scale = latent.path.straight(torch.tensor(times, dtype=torch.float64))
        stds = latent.std(grid, latent.of(belief))
        each = [None] * len(times) if stds is None else stds.unbind()
        return list(map(Point, grid.unbind(), taken.tolist(), left.tolist(), scale.tolist(), each))

    def step(
        self, flow: Flow[Any], belief: Any, target: Any, t: Point, s: Point, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        latent, y, memory = state
        y, memory = self.move(
            Step(y, latent.of_target(target), (t.taken, t.left), (s.taken, s.left), generator), memory
        )
        z = y if s.scale == 1 else s.scale * y
        moved = latent.belief(z, s.time) if s.std is None else DiagonalGaussian(z, s.std)
        return moved, (latent, y, memory)

    def _latent(self, flow: Flow[Any]) -> Latent:
        latent = flow.latent
        if latent is None:
            divergence = getattr(flow, "divergence", None)
            of = "" if divergence is None else f" with {type(divergence).__name__}"
            # From a fixed belief, samples only differ by the noise of the steps.
            fits = ("Stochastic",) if flow.begins_fixed else ("Deterministic", "Stochastic")
            raise ArgumentError(
                f"{type(self).__name__} needs a flow with a Gaussian path, which {type(flow).__name__}{of} has not: use "
                f"{' or '.join(fits)}, in words {' or '.join(fits).lower()}"
            )
        return latent


@dataclass(frozen=True)
class Marginal(PathSampler):
    """A sampler that replaces noise while keeping the marginals of the path. Known elsewhere as DDIM with η = κ.

    "Denoising Diffusion Implicit Models" (Song et al., 2020), arXiv 2010.02502, eqs. 12 and 16, on any Gaussian path:
    y' = τ' x̂ + √((1−τ')² − s²) ε̂ + s ξ,  s = κ (1−τ') √(1 − (τ (1−τ') / (τ' (1−τ)))²).

    Args:
        kappa: Fraction of the noise replaced, in [0, 1]: 0 is deterministic (DDIM), 1 ancestral (DDPM).
    """

    kappa: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.kappa <= 1:
            raise ArgumentError(f"kappa must lie in [0, 1], got {self.kappa}")

    def move(self, step: Step, memory: Any) -> tuple[Tensor, Any]:
        return renewed(step, self.kappa), memory


@dataclass(frozen=True)
class Renewed(PathSampler):
    """A sampler that replaces all noise at each step, y' = τ' x̂ + (1 − τ') ξ, and only keeps the target.

    The steps of "Flower: A Flow-Matching Solver for Inverse Problems" (Pourya et al., 2025), arXiv 2509.26287, with a
    :class:`~proxflow.Posterior`, on any Gaussian path. It samples the right distribution if targets are draws from p(x
    | belief). If they are means, samples are too smooth, unless an observation determines most of the data.
    """

    kappa: ClassVar[float] = 1.0

    def move(self, step: Step, memory: Any) -> tuple[Tensor, Any]:
        taken, left = step.new
        return (taken * step.x).add_(randn_like(step.y, step.generator), alpha=left), memory
