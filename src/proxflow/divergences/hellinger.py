"""The squared Hellinger distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences.alpha import Alpha, power_mean
from proxflow.divergences.base import Divergence, closed_form, value


@dataclass(frozen=True)
class HellingerSquared(Divergence):
    """Squared Hellinger distance 1 − ∫ √(pq) = ½ ∫ (√p − √q)², **summed over the coordinates** of an event.

    Known elsewhere as one minus the Bhattacharyya coefficient. Between 0 and 1 in each coordinate. It is a quarter of
    :class:`~proxflow.Alpha` (0), and has the same step: on categories the normalised square of (1 − f) √p + f √q.
    """

    additive = True


@value(HellingerSquared, DiagonalGaussian)
@value(HellingerSquared, Categorical)
def _(_: HellingerSquared, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return Alpha(0)(p, q) / 4


@closed_form(HellingerSquared, Categorical)
def _(_: HellingerSquared, belief: Categorical, target: Categorical, over: Callable[[Tensor], Tensor]) -> Categorical:
    return power_mean(belief, target, over(belief.logits), 0.5)
