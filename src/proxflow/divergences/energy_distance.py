"""The energy distance: how much further apart draws of two beliefs are than draws of one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences._quadratic import factor_of, squared_distance
from proxflow.divergences.base import Divergence, closed_form, value
from proxflow.divergences.kl import plain_mean
from proxflow.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class EnergyDistance(Divergence):
    """2 E c(X, Y) − E c(X, X') − E c(Y, Y'), **summed over the coordinates** of an event.

    "Energy Statistics: A Class of Statistics Based on Distances" (Székely & Rizzo, 2013). Known elsewhere as twice the
    Cramér distance or, where one of the two is a point, twice the continuous ranked probability score.

    On real data c = |x − y|, in units of the data, and the value is twice the squared L² distance of the distribution
    functions. On categories c is a matrix; the step is then the plain mean of probabilities, whatever the matrix.

    Args:
        cost: Distance of the classes, symmetric (classes, classes), zero between a class and itself, strictly of negative
            type as |i − j| is and every Euclidean distance; ``None`` for 1 between any two classes, |θ − θ'|².

    Raises:
        ArgumentError: A cost out of range.
    """

    cost: Tensor | None = None
    _factor: Tensor | None = field(init=False, repr=False, default=None)
    additive = True
    composes = (Categorical,)

    def __post_init__(self) -> None:
        if self.cost is not None:
            if self.cost.ndim == 2 and bool((self.cost.diagonal() != 0).any()):
                raise ArgumentError("a cost is zero between a class and itself")
            object.__setattr__(self, "_factor", factor_of(-self.cost, "a cost", "of negative type"))


@value(EnergyDistance, DiagonalGaussian)
def _(_: EnergyDistance, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    # E|N(δ, s²)| = √(2/π) s exp(−z²/2) + δ erf(z/√2) with z = δ/s (the folded normal). Both differences, of this from its
    # value at δ = 0 and of s from the mean of the spreads, are written without cancellation.
    gap, s = p.mean - q.mean, torch.hypot(p.std, q.std)
    z = gap / s.clamp_min(torch.finfo(s.dtype).tiny)
    root = math.sqrt(2 / math.pi)
    shift = root * s * torch.expm1(-z.square() / 2) + gap * torch.erf(z / math.sqrt(2))
    total = 2 * s + math.sqrt(2) * (p.std + q.std)
    spread = (p.std - q.std) * ((p.std - q.std) / total.clamp_min(torch.finfo(s.dtype).tiny))
    return sum_events(2 * (shift + root * spread))


value(EnergyDistance, Categorical)(squared_distance)
closed_form(EnergyDistance, Categorical)(plain_mean)
