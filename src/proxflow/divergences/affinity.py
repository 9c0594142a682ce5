"""Divergences from skewed affinities ∫ p^{1−s} q^s: alpha divergences, Rényi's, and named multiples of these.

Affinities are per coordinate of an event; s may lie outside [0, 1], where the affinity can be infinite. Near p = q an
affinity is 1 − O(|p − q|²), so its logarithm and its distance from 1 are computed directly, as sums of terms eˣ − 1 − x.

An alpha divergence of whole events is one minus a product over the coordinates, which saturates as soon as one is far
away. Here it is summed over the coordinates instead: a step moves each coordinate independently, as in every other
geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import exp_excess, log_mix, log_ratio, sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
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
    normalised harmonic mean 1/((1 − f)/p + f/q). Between Gaussians it grows like the exponential of a squared distance,
    and is +∞ for σ_p² ≥ 2 σ_q².
    """

    additive = True


@dataclass(frozen=True)
class ReverseChiSquared(Divergence):
    """χ²(q ‖ p) = ∫ (p − q)²/p, **summed over the coordinates** of an event.

    Known elsewhere as Neyman's χ². Twice :class:`~proxflow.Alpha` (3). On categories its barycentric step is the
    normalised quadratic mean √((1 − f) p² + f q²). Between Gaussians it grows as that of :class:`ChiSquared`, and is +∞
    for σ_q² ≥ 2 σ_p².
    """

    additive = True


@dataclass(frozen=True)
class HellingerSquared(Divergence):
    """Squared Hellinger distance 1 − ∫ √(pq) = ½ ∫ (√p − √q)², **summed over the coordinates** of an event.

    Known elsewhere as one minus the Bhattacharyya coefficient. Between 0 and 1 in each coordinate. It is a quarter of
    :class:`~proxflow.Alpha` (0), and has the same step: on categories the normalised square of (1 − f) √p + f √q.
    """

    additive = True


@dataclass(frozen=True)
class Renyi(Divergence):
    """Rényi divergence log ∫ p^α q^{1−α} / (α − 1), in nats.

    "Rényi Divergence and Kullback–Leibler Divergence" (van Erven & Harremoës, 2014), arXiv 1206.2459. It is additive
    over independent coordinates. Its step needs a solver. For α > 1 it is infinite between Gaussians with (α − 1) σ_p²
    ≥ α σ_q².

    Args:
        order: α > 0, not 1 (there it is :class:`KL`).
    """

    order: float
    additive = True

    def __post_init__(self) -> None:
        if not (self.order > 0 and self.order != 1 and math.isfinite(self.order)):
            raise ArgumentError(f"a Rényi order is positive and finite, and order 1 is KL; got {self.order}")


def _excess(s: float, gap: Tensor) -> Tensor:
    """Compute (1 − s) e^{−s g} + s e^{(1−s) g} − 1, of the sign of s (1 − s); its two first-order terms cancel exactly."""
    return (1 - s) * exp_excess(-s * gap) + s * exp_excess((1 - s) * gap)


def gaussian_log_affinity(p: DiagonalGaussian, q: DiagonalGaussian, s: float) -> Tensor:
    """Compute log ∫ p^{1−s} q^s of each coordinate, the shape of the means; +∞ where the integral diverges."""
    largest = torch.maximum(p.std, q.std)
    precision = s * (p.std / largest).square() + (1 - s) * (q.std / largest).square()
    finite = precision > 0
    precision = torch.where(finite, precision, torch.ones_like(precision))
    shift = ((p.mean - q.mean) / largest).square() / precision
    gap = 2 * log_ratio(p.std, q.std)
    close = gap.abs() < 1
    near = torch.where(close & finite, _excess(s, torch.where(close, gap, torch.zeros_like(gap))), 0).log1p()
    far = torch.where(gap < 0, -s * gap, (1 - s) * gap) + precision.log()
    log_affinity = -0.5 * (s * (1 - s) * shift + torch.where(close, near, far))
    return torch.where(finite, log_affinity, torch.full_like(shift, torch.inf))


def categorical_deficit(p: Categorical, q: Categorical, s: float) -> Tensor:
    """Compute (1 − Σ p^{1−s} q^s) / (s (1 − s)) ≥ 0 of each coordinate, the shape of the logits less the classes."""
    log_p, log_q = p.log_probs, q.log_probs
    neither = log_p.isneginf() & log_q.isneginf()
    gap = torch.where(neither, torch.zeros_like(log_p), log_q - log_p)
    close = gap.abs() < 1
    near_gap = torch.where(close, gap, torch.zeros_like(gap))
    power = _log_power(log_p, log_q, s).exp()
    near = torch.where(close, power, torch.zeros_like(power)) * _excess(s, near_gap)
    # Σ (1 − s) p + s q = 1, so each class contributes the gap between its weighted arithmetic and geometric mean.
    far = (1 - s) * log_p.exp() + s * log_q.exp() - power
    return torch.where(close, near, far).sum(-1) / (s * (1 - s))


def categorical_log_affinity(p: Categorical, q: Categorical, s: float) -> Tensor:
    """Compute log Σ p^{1−s} q^s of each coordinate, the shape of the logits less the classes."""
    missing = s * (1 - s) * categorical_deficit(p, q, s)
    near = missing.abs() < 0.5
    direct = torch.logsumexp(_log_power(p.log_probs, q.log_probs, s), dim=-1)
    return torch.where(near, torch.where(near, -missing, torch.zeros_like(missing)).log1p(), direct)


def _log_power(log_p: Tensor, log_q: Tensor, s: float) -> Tensor:
    """Compute log p^{1−s} q^s, −∞ for a class that both exclude."""
    neither = log_p.isneginf() & log_q.isneginf()
    power = (1 - s) * log_p.masked_fill(neither, 0) + s * log_q.masked_fill(neither, 0)
    return power.masked_fill(neither, -torch.inf)


def _register(member: type[Divergence], times: float, exponent: Callable[[Any], float]) -> None:
    """Register values, an alpha divergence times a factor, and step for a class; e = (1 + a)/2 is the power of q."""

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
        # A class that either excludes stays excluded, unless the other has all the weight.
        no_p, no_q = log_p.isneginf(), log_q.isneginf()
        mixed = log_mix(e * log_p.masked_fill(no_p, 0), e * log_q.masked_fill(no_q, 0), f) / e
        return Categorical(mixed.masked_fill((no_p & (f < 1)) | (no_q & (f > 0)), -torch.inf).log_softmax(-1))


_register(Alpha, 1.0, lambda alpha: (1 + alpha.a) / 2)
_register(ChiSquared, 2.0, lambda _: -1.0)
_register(ReverseChiSquared, 2.0, lambda _: 2.0)
_register(HellingerSquared, 0.25, lambda _: 0.5)


@value(Renyi, DiagonalGaussian)
def _(divergence: Renyi, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    s = 1 - divergence.order
    return sum_events(-gaussian_log_affinity(p, q, s) / s)


@value(Renyi, Categorical)
def _(divergence: Renyi, p: Categorical, q: Categorical) -> Tensor:
    s = 1 - divergence.order
    return sum_events(-categorical_log_affinity(p, q, s) / s)
