"""The χ² divergences, in both directions.

Both are alpha divergences, ∫ p²/q − 1 being a skewed affinity. Between Gaussians they grow like the exponential of a squared
distance, and are infinite as soon as the variance in the numerator is twice that in the denominator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences.alpha import Alpha, power_mean
from proxflow.divergences.base import Divergence, closed_form, value

Over = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChiSquared(Divergence):
    """χ²(p ‖ q) = ∫ (p − q)²/q = ∫ p²/q − 1, **summed over the coordinates** of an event.

    Known elsewhere as Pearson's χ². Twice :class:`~proxflow.Alpha` (−3). On categories its barycentric step is the
    normalised harmonic mean 1/((1 − f)/p + f/q). Between Gaussians it is +∞ where σ_p² ≥ 2 σ_q².
    """

    additive = True


@dataclass(frozen=True)
class ReverseChiSquared(Divergence):
    """χ²(q ‖ p) = ∫ (p − q)²/p, **summed over the coordinates** of an event.

    Known elsewhere as Neyman's χ². Twice :class:`~proxflow.Alpha` (3). On categories its barycentric step is the normalised
    quadratic mean √((1 − f) p² + f q²). Between Gaussians it is +∞ where σ_q² ≥ 2 σ_p².
    """

    additive = True


@value(ChiSquared, DiagonalGaussian, reverse=ReverseChiSquared)
@value(ChiSquared, Categorical, reverse=ReverseChiSquared)
def _(_: ChiSquared | ReverseChiSquared, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return 2 * Alpha(-3)(p, q)


@closed_form(ChiSquared, Categorical)
def _(_: ChiSquared, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    return power_mean(belief, target, over(belief.logits), -1)


@closed_form(ReverseChiSquared, Categorical)
def _(_: ReverseChiSquared, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    return power_mean(belief, target, over(belief.logits), 2)
