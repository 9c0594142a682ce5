"""Diffusion models, on any Gaussian path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxflow._math import mean_events, over_events
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows.base import Flow, Means, check_real
from proxflow.paths import GaussianPath, VariancePreserving, renewal
from proxflow.random import Generator, randn, randn_like


@dataclass(frozen=True)
class Diffusion(Flow[DiagonalGaussian]):
    """Diffusion on any Gaussian path μ_t = a(t) x + b(t) ε, such as a variance-preserving one.

    Beliefs are N(μ_t, b²). The deterministic update is that of "Denoising Diffusion Implicit Models" (Song et al.,
    2020), arXiv 2010.02502: a Wasserstein-2 step of the belief μ/(a + b), as in a :class:`GPFN` with τ = a/(a + b). The
    stochastic one is the ancestral step of "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), arXiv
    2006.11239: Bayes' rule for a message y ~ N(x̂, 1/α) of accuracy α = a'²/b'² − a²/b², as in a :class:`BFN`:

    ========  ============================================================
    DDIM      μ' = (b'/b) μ + (a' − a b'/b) x̂
    DDPM      μ' = (a b'²/(a' b²)) μ + (g²/a') x̂ + (b'/a') g ξ,  g² = a'² − (a b'/b)²
    ========  ============================================================

    The loss is denoising score matching. Networks trained elsewhere on such a path can be used unchanged, with
    ``PointPredictor(…, parameterisation="epsilon")``.

    Args:
        schedule: Noise schedule (a, b), from (nearly) pure noise, a(0) ≪ b(0) ≈ 1, to the data.
        weight_floor: In (0, 1]. Squared errors of the predicted data have the weight (a/max(b, floor))²: toward 0 this
            is the squared error of the predicted noise.
    """

    schedule: GaussianPath = field(default_factory=VariancePreserving)
    weight_floor: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.weight_floor <= 1:
            raise ArgumentError(f"weight_floor must lie in (0, 1], got {self.weight_floor}")

    @property
    def latent(self) -> Means:
        return Means(self.schedule, self._spread)

    def _spread(self, t: Tensor, z: Tensor) -> Tensor:
        return over_events(self.schedule.coefficients(t)[1], z)

    check = staticmethod(check_real)

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> DiagonalGaussian:
        return self.begin(randn(torch.Size(shape), generator, dtype, device))

    def begin(self, start: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(start, 1.0)

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> DiagonalGaussian:
        return self.reached(self.begin(randn_like(x, generator)), x, t)

    def reached(self, prior: DiagonalGaussian, x: Tensor, t: Tensor) -> DiagonalGaussian:
        a, b = self.schedule.over(t, x)
        return DiagonalGaussian(a * x + b * prior.mean, b)

    def update(
        self, belief: DiagonalGaussian, target: DiagonalGaussian, t: Tensor, s: Tensor, generator: Generator | None
    ) -> DiagonalGaussian:
        mean, x = belief.mean, target.mean
        kappa = 0.0 if generator is None else 1.0
        keep, take, fresh = (
            c.to(mean.dtype) for c in renewal(self.schedule.coefficients(t), self.schedule.coefficients(s), kappa)
        )
        moved = keep * mean + take * x
        if generator is not None:
            moved = moved + fresh * randn_like(x, generator)
        return DiagonalGaussian(moved, self._spread(s, moved))

    def weight(self, t: Tensor) -> Tensor:
        a, b = self.schedule.coefficients(t)
        return (a / b.clamp_min(self.weight_floor)).square()

    def score(self, predicted: DiagonalGaussian, x: Tensor, t: Tensor) -> Tensor:
        return self.weight(t) * mean_events((predicted.mean - x).square())

    def times(self, nfe: int) -> list[float]:
        return [k / nfe for k in range(nfe)]
