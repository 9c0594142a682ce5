"""Diffusion models' flows, on any Gaussian path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxflow._math import mean_events, over_events
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.flows.base import Flow, Predict, check_real, draw_times
from proxflow.paths import GaussianPath, VariancePreserving
from proxflow.random import Generator, randn, randn_like


@dataclass(frozen=True)
class Diffusion(Flow[DiagonalGaussian]):
    """Diffusion on any Gaussian path μ_t = a(t) x + b(t) ε, such as a variance-preserving one (2006.11239, 2010.02502).

    Beliefs are N(μ_t, b²). Without noise the update is DDIM's: a Wasserstein-2 step of the belief μ/(a + b), as in a
    :class:`GPFN` with τ = a/(a + b). With noise it is DDPM's ancestral step, which is Bayes' rule for a message
    y ~ N(x̂, 1/α) of accuracy α = a'²/b'² − a²/b², as in a :class:`BFN`:

    ========  ============================================================
    DDIM      μ' = (b'/b) μ + (a' − a b'/b) x̂
    DDPM      μ' = (a b'²/(a' b²)) μ + (g²/a') x̂ + (b'/a') g ξ,  g² = a'² − (a b'/b)²
    ========  ============================================================

    Networks trained elsewhere on such a path fit in unchanged, by ``PointPredictor(…, parameterisation="epsilon")``.

    Args:
        path: Coefficients (a, b). It begins in noise alone, or nearly so (a(0) ≪ b(0) ≈ 1), and ends in the data.
        weight_floor: In (0, 1]. Errors of the predicted data weigh (a/max(b, floor))²: toward 0 this is the plain squared
            error of the predicted noise.
    """

    path: GaussianPath = field(default_factory=VariancePreserving)
    weight_floor: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.weight_floor <= 1:
            raise ArgumentError(f"weight_floor must lie in (0, 1], got {self.weight_floor}")

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> DiagonalGaussian:
        mean = randn(torch.Size(shape), generator, dtype, device)
        return DiagonalGaussian(mean, 1.0)

    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> DiagonalGaussian:
        a, b = (over_events(c, x) for c in self.path.coefficients(t))
        return DiagonalGaussian(a * x + b * randn_like(x, generator), b)

    def belief_at(self, latent: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(latent, over_events(self.path.coefficients(t)[1], latent))

    def update(
        self, belief: DiagonalGaussian, target: DiagonalGaussian, t: Tensor, s: Tensor, generator: Generator | None
    ) -> DiagonalGaussian:
        mean, x = belief.mean, target.mean
        (a, b), (new_a, new_b) = self.path.coefficients(t), self.path.coefficients(s)
        keep = new_b / b
        if generator is None:
            moved = keep.to(mean.dtype) * mean + (new_a - a * keep).to(mean.dtype) * x
        else:
            squared = new_a.square() - (a * keep).square()
            noise = new_b * squared.clamp_min(0).sqrt() * randn_like(x, generator)
            moved = ((a * keep.square()).to(mean.dtype) * mean + squared.to(mean.dtype) * x + noise) / new_a
        return self.belief_at(moved.to(mean.dtype), s)

    def weight(self, t: Tensor) -> Tensor:
        a, b = self.path.coefficients(t)
        return (a / b.clamp_min(self.weight_floor)).square()

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        check_real(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        return self.weight(t) * mean_events((predicted.mean - x).square())

    def times(self, nfe: int) -> list[float]:
        return [k / nfe for k in range(nfe)]
