"""Alpha divergences (Amari), and the multiples of some that have names of their own: χ² and squared Hellinger.

Their joint value on an event is one minus a product over its coordinates, saturated as soon as one coordinate is far away.
Here they are summed over the coordinates instead: a step moves each coordinate by itself, as in every other geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import log_mix, sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences._affinity import categorical_deficit, gaussian_log_affinity
from proxflow.divergences.base import Divergence, Over, closed_form, value
from proxflow.errors import ArgumentError


@dataclass(frozen=True)
class Alpha(Divergence):
    """D_a(p, q) = 4/(1 − a²) · (1 − ∫ p^{(1−a)/2} q^{(1+a)/2}), **summed over the coordinates** of an event.

    Amari's convention ("Information Geometry and Its Applications", Amari, 2016, §2.6): a → −1 is KL(p ‖ q), a → 1 is
    KL(q ‖ p), and D₀ is four times the squared Hellinger distance. On categories the barycentric step is the normalised
    power mean ((1 − f) p^e + f q^e)^{1/e} with e = (1 + a)/2; its steps do not compose.

    Args:
        a: Finite, not ±1 (there it is :class:`~proxflow.KL` or :class:`~proxflow.ReverseKL`).
    """

    a: float
    additive = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.a) or abs(self.a) == 1:
            raise ArgumentError(f"a must be finite; a = −1 is KL and a = 1 is ReverseKL; got {self.a}")


@dataclass(frozen=True)
class ChiSquared(Divergence):
    """χ²(p ‖ q) = ∫ (p − q)²/q = ∫ p²/q − 1, **summed over the coordinates** of an event.

    Known elsewhere as Pearson's χ². Twice :class:`~proxflow.Alpha` (−3). On categories its barycentric step is the
    normalised harmonic mean 1/((1 − f)/p + f/q). Between Gaussians it grows like the exponential of a squared distance, and
    is +∞ where σ_p² ≥ 2 σ_q².
    """

    additive = True


@dataclass(frozen=True)
class ReverseChiSquared(Divergence):
    """χ²(q ‖ p) = ∫ (p − q)²/p, **summed over the coordinates** of an event.

    Known elsewhere as Neyman's χ². Twice :class:`~proxflow.Alpha` (3). On categories its barycentric step is the normalised
    quadratic mean √((1 − f) p² + f q²). Between Gaussians it grows as that of :class:`ChiSquared`, and is +∞ where
    σ_q² ≥ 2 σ_p².
    """

    additive = True


@dataclass(frozen=True)
class HellingerSquared(Divergence):
    """Squared Hellinger distance 1 − ∫ √(pq) = ½ ∫ (√p − √q)², **summed over the coordinates** of an event.

    Known elsewhere as one minus the Bhattacharyya coefficient. Between 0 and 1 in each coordinate. It is a quarter of
    :class:`~proxflow.Alpha` (0), and has the same step: on categories the normalised square of (1 − f) √p + f √q.
    """

    additive = True


def _register(member: type[Divergence], times: float, exponent: Callable[[Any], float]) -> None:
    """Give a member the values of an alpha divergence, times a factor, and its step; e = (1 + a)/2 is the power of q."""

    @value(member, DiagonalGaussian)
    def _(divergence: Any, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
        e = exponent(divergence)
        return times * sum_events(-torch.expm1(gaussian_log_affinity(p, q, e)) / (e * (1 - e)))

    @value(member, Categorical)
    def _(divergence: Any, p: Categorical, q: Categorical) -> Tensor:
        return times * sum_events(categorical_deficit(p, q, exponent(divergence)))

    @closed_form(member, Categorical)
    def _(divergence: Any, belief: Categorical, target: Categorical, over: Over) -> Categorical:
        """Return the normalised ((1 − f) p^e + f q^e)^{1/e}, per coordinate."""
        e, f, log_p, log_q = exponent(divergence), over(belief.logits), belief.log_probs, target.log_probs
        if e > 0:
            return Categorical((log_mix(e * log_p, e * log_q, f) / e).log_softmax(-1))
        # A class that either rules out stays ruled out, unless the other has all the weight.
        no_p, no_q = log_p.isneginf(), log_q.isneginf()
        mixed = log_mix(e * log_p.masked_fill(no_p, 0), e * log_q.masked_fill(no_q, 0), f) / e
        return Categorical(mixed.masked_fill((no_p & (f < 1)) | (no_q & (f > 0)), -torch.inf).log_softmax(-1))


_register(Alpha, 1.0, lambda alpha: (1 + alpha.a) / 2)
_register(ChiSquared, 2.0, lambda _: -1.0)
_register(ReverseChiSquared, 2.0, lambda _: 2.0)
_register(HellingerSquared, 0.25, lambda _: 0.5)
