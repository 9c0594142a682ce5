"""Precision and recall on nearest-neighbour manifolds, and diversity, from pairwise feature distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features, check_same_dimension

# Distances held at a time: 64 MiB in float64.
_BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Manifold:
    """A feature set as a union of balls, each reaching to a sample's k-th nearest neighbour in the set.

    Args:
        features: float64, (N, D).
        radii: float64, (N,); 0 where a sample has k duplicates.
        mean_distance: Mean distance over all pairs of different samples; 0 when all are the same.
    """

    features: Tensor
    radii: Tensor
    mean_distance: float

    @classmethod
    def of(cls, features: Tensor, k: int = 3, name: str = "the") -> Manifold:
        """Computes radii and mean distance of features (N, D), N > k.

        Raises:
            ArgumentError: The features are not finite or not of this form, or k is below 1 or at least N.
        """
        wide = as_features(features, name)
        count = len(wide)
        if not 1 <= k < count:
            raise ArgumentError(f"k must be at least 1 and below the number of {name} samples, {count}; got {k}")
        radii, total = [], 0.0
        for _, distances in _blocks(wide, wide):
            # A sample is at distance exactly 0 from itself, so one smallest value is skipped.
            radii.append(distances.topk(k + 1, dim=1, largest=False).values[:, -1])
            total += float(distances.sum())
        return cls(wide, torch.cat(radii), total / (count * (count - 1)))


def overlap(real: Manifold, fake: Manifold) -> tuple[float, float]:
    """Precision and recall of two prepared sets; see :func:`precision_recall`."""
    check_same_dimension(real.features, fake.features)
    inside_real = 0
    covered = torch.zeros(len(real.features), dtype=torch.bool)
    for rows, distances in _blocks(fake.features, real.features):
        inside_real += int((distances <= real.radii).any(dim=1).sum())
        covered |= (distances <= fake.radii[rows, None]).any(dim=0)
    return inside_real / len(fake.features), float(covered.to(torch.float64).mean())


def spread(real: Manifold, fake: Manifold) -> float:
    """Diversity of two prepared sets; see :func:`diversity`."""
    check_same_dimension(real.features, fake.features)
    if real.mean_distance == 0.0:
        raise ArgumentError("all real features are the same, so diversity has no scale; give different real samples")
    return fake.mean_distance / real.mean_distance


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2).

    Precision is the share of fake samples within the real manifold, recall the share of real samples within the fake
    manifold; a ball contains its boundary. Recall grows with the number of fake samples, so compare equal counts. The
    manifold of identical samples is their single point.

    Args:
        real: Features (N, D), N > k.
        fake: Features (M, D), M > k.
        k: The neighbour that a ball reaches to.

    Returns:
        Precision and recall, each from 0 to 1.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or k is not positive.
    """
    return overlap(Manifold.of(real, k, "real"), Manifold.of(fake, k, "fake"))


def diversity(real: Tensor, fake: Tensor) -> float:
    """Mean pairwise distance of fake features divided by that of real features.

    Args:
        real: Features (N, D), N at least 2, not all the same.
        fake: Features (M, D), M at least 2.

    Returns:
        1 when as diverse as real, 0 when all fake samples are the same.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or all real ones are the same.
    """
    return spread(Manifold.of(real, 1, "real"), Manifold.of(fake, 1, "fake"))


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields the Euclidean distances from blocks of rows of a to all of b, with the slice of those rows."""
    size = max(1, _BLOCK_ELEMENTS // len(b))
    for start in range(0, len(a), size):
        rows = slice(start, min(start + size, len(a)))
        # By differences, never by |a|² + |b|² − 2ab: duplicates must be at distance exactly 0.
        yield rows, torch.cdist(a[rows], b, compute_mode="donot_use_mm_for_euclid_dist")
