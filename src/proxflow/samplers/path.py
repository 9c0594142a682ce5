"""Samplers that move along the Gaussian path of the training beliefs: of their means, or of their logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxflow._math import on_device
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.paths import GaussianPath
from proxflow.random import Generator, randn_like
from proxflow.samplers.base import Sampler, SamplingFlow


class Point(NamedTuple):
    """What a path sampler knows of a time before the loop begins.

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
    """Length h of a step in u = −ln(1 − τ), ∞ for one that lands on the target."""
    return math.log(left / new_left) if new_left > 0 else math.inf


def extrapolate(last: Tensor, x: Tensor, slope: float) -> Tensor:
    """x + slope (x − last), in one pass."""
    return torch.lerp(last, x, 1 + slope) if slope else x


class PathSampler(Sampler):
    """Base of samplers that move along the flow's :attr:`~proxflow.Flow.latent_path`.

    For Gaussian beliefs these are means a x + b ε, for discrete Bayesian flows logits a (K e_x − 1) + b ε.
    """

    @abstractmethod
    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[float, float],
        new: tuple[float, float],
        generator: Generator,
        memory: Any,
    ) -> tuple[Tensor, Any]:
        """The straight coordinate at the new time.

        Args:
            y: Straight coordinate τ x + (1 − τ) ε.
            x: Predicted data, or K ê − 1.
            tau: (τ, 1 − τ) now.
            new: (τ, 1 − τ) at the new time.
            generator: Source of fresh noise.
            memory: What the last call returned, ``None`` at first.
        """

    def init(self, flow: SamplingFlow, belief: Any, generator: Generator) -> tuple[Any, Any]:
        path = self._path(flow, belief)
        if getattr(self, "kappa", 0) > 0 and getattr(flow, "coupling", None) is not None:
            raise ArgumentError(
                f"{self} replaces noise by fresh noise, as if it did not depend on the data, but {flow} pairs them: use a "
                "sampler without noise, such as Multistep2"
            )
        latent = belief.mean if isinstance(belief, DiagonalGaussian) else belief.logits
        a, b = path.coefficients(torch.zeros((), dtype=torch.float64))
        scale = float(a + b)
        # A drawn prior is the noise ε; a fixed one says nothing of it, so ε is drawn here.
        y = latent / scale if scale > 0 else randn_like(latent, generator)
        return belief, (y, None)

    def plan(self, flow: SamplingFlow, belief: Any, times: Sequence[float], device: torch.device) -> Sequence[Point]:
        # Numbers, so that a step does its arithmetic on the host and a device sees nothing but passes over the batch.
        a, b = self._path(flow, belief).coefficients(torch.tensor(times, dtype=torch.float64))
        # Both vanish for BFN at t = 0; there the straight coordinate is all noise.
        total = (a + b).clamp_min(torch.finfo(torch.float64).tiny)
        left = torch.where(a == 0, torch.ones_like(a), b / total)
        grid = on_device(times, device)
        stds: Sequence[Tensor | None] = [None] * len(times)
        if isinstance(belief, DiagonalGaussian):
            # The spread depends on time alone, so one example a time has it.
            one_each = belief.mean.new_zeros([len(times), *[1] * (belief.mean.ndim - 1)])
            stds = flow.belief_at(one_each, grid).std.flatten().unbind()
        return list(map(Point, grid.unbind(), (a / total).tolist(), left.tolist(), (a + b).tolist(), stds))

    def step(
        self, flow: SamplingFlow, belief: Any, target: Any, t: Point, s: Point, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        y, memory = state
        x = flow.latent_data(target)
        y, memory = self.move(y, x, (t.taken, t.left), (s.taken, s.left), generator, memory)
        latent = y if s.scale == 1 else s.scale * y
        moved = flow.belief_at(latent, s.time) if s.std is None else DiagonalGaussian(latent, s.std)
        return moved, (y, memory)

    def _path(self, flow: SamplingFlow, belief: Any) -> GaussianPath:
        path = flow.latent_path
        if path is None or not isinstance(belief, DiagonalGaussian | Categorical):
            raise ArgumentError(
                f"{type(self).__name__} needs beliefs whose means or logits follow a(t) x + b(t) ε, which {flow} has not: "
                "use Deterministic or Stochastic"
            )
        return path


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
        tau: tuple[float, float],
        new: tuple[float, float],
        generator: Generator,
        memory: None,
    ) -> tuple[Tensor, None]:
        ratio = tau[0] * new[1] / (new[0] * tau[1])
        replaced = max(1 - ratio**2, 0.0)
        # With ε̂ = (y − τ x̂)/(1 − τ) written out, y' is a sum of y, x̂ and ξ. Without ξ the weights add up to 1.
        keep = new[1] * math.sqrt(1 - self.kappa**2 * replaced) / tau[1]
        total = keep + new[0] - keep * tau[0]
        moved = torch.lerp(x, y, keep / total)
        if self.kappa > 0:
            fresh = self.kappa * new[1] * math.sqrt(replaced)
            moved.mul_(total).add_(randn_like(y, generator), alpha=fresh)
        return moved, memory


@dataclass(frozen=True)
class Multistep2(PathSampler):
    """Second-order exponential multistep, one evaluation a step (in the manner of DPM-Solver++, 2211.01095).

    In u = −ln(1 − τ) the step of a constant prediction is exact: y' = e^{−h} y + (1 − e^{−h}) x̂. The prediction's slope in
    u, from the last two evaluations, adds (h − 1 + e^{−h})(x̂_k − x̂_{k−1})/h_{k−1}, as if x̂ were the prediction
    x̂_k + (h/(1 − e^{−h}) − 1)(x̂_k − x̂_{k−1})/h_{k−1}.
    """

    @property
    def memoryless(self) -> bool:
        return False

    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[float, float],
        new: tuple[float, float],
        generator: Generator,
        memory: tuple[Tensor, float] | None,
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        h, ahead = log_step(tau[1], new[1]), x
        # A step that lands on the target (h = ∞) lands on the newest prediction, whatever its slope was.
        if memory is not None and math.isfinite(h):
            last_x, last_h = memory
            ahead = extrapolate(last_x, x, (-h / math.expm1(-h) - 1) / last_h)
        return torch.lerp(ahead, y, new[1] / tau[1]), (x, h)
