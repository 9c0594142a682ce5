"""Alpha divergences (Amari).

Their joint value on an event is one minus a product over its coordinates, saturated as soon as one coordinate is far away.
Here they are summed over the coordinates instead: a step moves each coordinate by itself, as in every other geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._math import log_mix, sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences._affinity import categorical_deficit, gaussian_log_affinity
from proxflow.divergences.base import Divergence, closed_form, value
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

    @property
    def exponent(self) -> float:
        """(1 + a)/2, the power of q."""
        return (1 + self.a) / 2


def power_mean(belief: Categorical, target: Categorical, f: Tensor, e: float) -> Categorical:
    """Return the normalised ((1 − f) p^e + f q^e)^{1/e}, per coordinate."""
    log_p, log_q = belief.log_probs, target.log_probs
    if e > 0:
        return Categorical((log_mix(e * log_p, e * log_q, f) / e).log_softmax(-1))
    # A class that either rules out stays ruled out, unless the other has all the weight.
    no_p, no_q = log_p.isneginf(), log_q.isneginf()
    mixed = log_mix(e * log_p.masked_fill(no_p, 0), e * log_q.masked_fill(no_q, 0), f) / e
    return Categorical(mixed.masked_fill((no_p & (f < 1)) | (no_q & (f > 0)), -torch.inf).log_softmax(-1))


@value(Alpha, DiagonalGaussian)
def _(divergence: Alpha, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    e = divergence.exponent
    return sum_events(-torch.expm1(gaussian_log_affinity(p, q, e)) / (e * (1 - e)))


@value(Alpha, Categorical)
def _(divergence: Alpha, p: Categorical, q: Categorical) -> Tensor:
    return sum_events(categorical_deficit(p, q, divergence.exponent))


@closed_form(Alpha, Categorical)
def _(divergence: Alpha, belief: Categorical, target: Categorical, over: Callable[[Tensor], Tensor]) -> Categorical:
    return power_mean(belief, target, over(belief.logits), divergence.exponent)
