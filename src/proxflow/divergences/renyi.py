"""Rényi divergences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences._affinity import categorical_log_affinity, gaussian_log_affinity
from proxflow.divergences.base import Divergence, value
from proxflow.errors import ArgumentError


@dataclass(frozen=True)
class Renyi(Divergence):
    """Rényi divergence log ∫ p^α q^{1−α} / (α − 1), in nats.

    "Rényi Divergence and Kullback–Leibler Divergence" (van Erven & Harremoës, 2014), arXiv 1206.2459. It adds up over
    independent coordinates. Its step needs a solver. For α > 1 it is infinite between Gaussians where (α − 1) σ_p² ≥ α σ_q².

    Args:
        order: α > 0, not 1 (there it is :class:`KL`).
    """

    order: float
    additive = True

    def __post_init__(self) -> None:
        if not (self.order > 0 and self.order != 1 and math.isfinite(self.order)):
            raise ArgumentError(f"a Rényi order is positive and finite, and order 1 is KL; got {self.order}")


@value(Renyi, DiagonalGaussian)
def _(divergence: Renyi, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    s = 1 - divergence.order
    return sum_events(-gaussian_log_affinity(p, q, s) / s)


@value(Renyi, Categorical)
def _(divergence: Renyi, p: Categorical, q: Categorical) -> Tensor:
    s = 1 - divergence.order
    return sum_events(-categorical_log_affinity(p, q, s) / s)
