"""Samplers that move along the Gaussian path of the training beliefs: of their means, or of their logits."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._tensor import Generator, randn
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.samplers.base import Sampler, SamplingFlow
from proxflow.schedules import GaussianPath


def _straight(path: GaussianPath, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fraction τ = a/(a+b), 1 − τ, and a + b at time ``t``, in the precision of the belief."""
    a, b = path.coefficients(t)
    # Both vanish for BFN at t = 0; there the straight coordinate is all noise.
    scale = a + b
    total = scale.clamp_min(torch.finfo(torch.float64).tiny)
    rest = torch.where(a == 0, torch.ones_like(a), b / total)
    return (a / total).to(like.dtype), rest.to(like.dtype), scale.to(like.dtype)


class PathSampler(Sampler):
    """Base of samplers that move along the flow's :attr:`~proxflow.Flow.latent_path`.

    For Gaussian beliefs these are means a x + b ε, for discrete Bayesian flows logits a (K e_x − 1) + b ε.
    """

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
            x: Predicted data, or K ê − 1.
            tau: (τ, 1 − τ) now.
            new: (τ, 1 − τ) at the new time.
            generator: Source of fresh noise.
            memory: What the last call returned, ``None`` at first.
        """

    def init(self, flow: SamplingFlow, belief: Any, generator: Generator) -> tuple[Any, Any]:
        path = flow.latent_path
        if path is None or not isinstance(belief, DiagonalGaussian | Categorical):
            raise ArgumentError(
                f"{type(self).__name__} needs beliefs whose means or logits follow a(t) x + b(t) ε, which {flow} has not: "
                "use Deterministic or Stochastic"
            )
        latent = belief.mean if isinstance(belief, DiagonalGaussian) else belief.logits
        a, b = path.coefficients(torch.zeros((), dtype=torch.float64))
        scale = float(a + b)
        # A drawn prior is the noise ε; a fixed one says nothing of it, so ε is drawn here.
        y = latent / scale if scale > 0 else randn(latent.shape, generator, latent.dtype, latent.device)
        return belief, (path, y, None, None)

    def step(
        self, flow: SamplingFlow, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator, state: Any
    ) -> tuple[Any, Any]:
        path, y, memory, now = state
        # On scalars an operation costs as much as on a batch of points, so each time's are computed once.
        now = _straight(path, t, y) if now is None else now
        new = _straight(path, s, y)
        y, memory = self.move(y, flow.latent_data(target), now[:2], new[:2], generator, memory)
        return flow.belief_at(new[2] * y, s), (path, y, memory, new)


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
        moved = torch.lerp(x, y, decay)
        if memory is not None:
            last_x, last_h = memory
            # A step that lands on the target (h = ∞) lands on the newest prediction, whatever its slope was.
            bend = torch.where(new[1] > 0, h + torch.expm1(-h), 0)
            moved = torch.addcmul(moved, bend / last_h, x - last_x)
        return moved, (x, h)
