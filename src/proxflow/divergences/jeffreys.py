"""Jeffreys' divergence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proxflow.beliefs import Categorical, DiagonalGaussian, FullGaussian
from proxflow.divergences.base import Divergence, value
from proxflow.divergences.kl import KL


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(p ‖ q) + KL(q ‖ p), in nats. Its step needs a solver. Known elsewhere as the symmetrised KL divergence."""

    additive = True


@value(Jeffreys, DiagonalGaussian)
@value(Jeffreys, FullGaussian)
@value(Jeffreys, Categorical)
def _(_: Jeffreys, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return KL()(p, q) + KL()(q, p)
