"""A separate divergence for each part of a product."""

from __future__ import annotations

from dataclasses import dataclass

from proxflow.divergences.base import Divergence
from proxflow.errors import ArgumentError


@dataclass(frozen=True)
class PerPart(Divergence):
    """Σ_i D_i(p_i, q_i) on products of beliefs: for mixed data, with separate geometries for numbers and categories.

    ``PerPart((Wasserstein2(), FisherRao()))`` moves numbers as rectified flow does and categories on great circles.
    Values and steps are those of the parts, and steps compose if they do in every part.

    Args:
        parts: A divergence for each part of the products.
    """

    parts: tuple[Divergence, ...]

    def over_parts(self, number: int) -> list[Divergence]:
        if number != len(self.parts):
            raise ArgumentError(
                f"{self} has a divergence for each of {len(self.parts)} parts, the product has {number}"
            )
        return list(self.parts)
