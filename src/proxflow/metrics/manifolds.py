"""Metrics of nearest neighbours and of pairwise distances: precision and recall, density and coverage, diversity, and the
distance to the training set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features, check_same_dimension
from proxflow.metrics._pairs import TIE, nearest, squared_distances
from proxflow.metrics.uncertainty import Estimate, mean_estimate


@dataclass(frozen=True)
class Manifold:
    """A feature set as a union of balls, each reaching to a sample's k-th nearest neighbour in the set.

    Args:
        features: (N, D).
        neighbours: float64, (N, k): squared distances to the nearest k others, ascending; 0 for duplicates.
        distances: float64, (N,): mean distance to the others.
    """

    features: Tensor
    neighbours: Tensor
    distances: Tensor

    @classmethod
    def of(cls, features: Tensor, k: int = 3, name: str = "the") -> Manifold:
        """Compute mean distances and the nearest k neighbours of features (N, D), N > k.

        Raises:
            ArgumentError: The features are not finite or not of this form, or k is below 1 or at least N.
        """
        held = as_features(features, name)
        count = len(held)
        if not 1 <= k < count:
            raise ArgumentError(f"k must be at least 1 and below the number of {name} samples, {count}; got {k}")
        closest = torch.full((count, k + 1), torch.inf, dtype=torch.float64)
        sums = torch.zeros(count, dtype=torch.float64)
        for rows, _, squares in squared_distances(held, held):
            found = squares.topk(min(k + 1, squares.shape[1]), dim=1, largest=False).values
            closest[rows] = torch.cat([closest[rows], found], dim=1).topk(k + 1, dim=1, largest=False).values
            sums[rows] += squares.sqrt_().sum(dim=1)
        # The first is skipped: a sample is at distance exactly 0 from itself.
        return cls(held, closest.sort(dim=1).values[:, 1:], sums / (count - 1))

    @property
    def mean_distance(self) -> float:
        """Mean distance over all pairs of different samples; 0 when all are the same."""
        return float(self.distances.mean())

    def reach(self, k: int) -> Tensor:
        """Return squared radii (N,) of the balls that reach to the k-th neighbour, with a tolerance for rounding."""
        return self.neighbours[:, k - 1] * (1.0 + TIE)


@dataclass(frozen=True)
class Overlap:
    """Measures of the overlap of two manifolds, with the influences of the fake samples; see :func:`precision_recall`.

    Args:
        precision: Fraction of fake samples in a real ball.
        recall: Fraction of real samples in a fake ball.
        density: Mean number of real balls that contain a fake sample, divided by k.
        coverage: Fraction of real balls with a fake sample.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def overlap(real: Manifold, fake: Manifold, k: int, wide_k: int) -> Overlap:
    """Return precision and recall at k neighbours, density and coverage at wide_k, of two prepared sets.

    The influence of a fake sample on recall and coverage comes from the real samples that only it covers. The radii of
    the other balls are held fixed.
    """
    check_same_dimension(real.features, fake.features)
    n, m = len(real.features), len(fake.features)
    inside = torch.zeros(m, dtype=torch.bool)
    around = torch.zeros(m, dtype=torch.int64)
    recalled, covered = _Covers(n), _Covers(n)
    narrow, wide, own = real.reach(k), real.reach(wide_k), fake.reach(k)
    for rows, columns, squares in squared_distances(real.features, fake.features):
        inside[columns] |= (squares <= narrow[rows, None]).any(dim=0)
        within = squares <= wide[rows, None]
        around[columns] += within.sum(dim=0)
        covered.add(rows, columns, within)
        recalled.add(rows, columns, squares <= own[columns])
    return Overlap(
        precision=mean_estimate(inside),
        recall=recalled.estimate(m),
        density=mean_estimate(around.to(torch.float64) / wide_k),
        coverage=covered.estimate(m),
    )


class _Covers:
    """The number of fake samples that cover each real sample, and its index if there is only one."""

    def __init__(self, count: int) -> None:
        self.times = torch.zeros(count, dtype=torch.int64)
        self.last = torch.zeros(count, dtype=torch.int64)

    def add(self, rows: slice, columns: slice, covers: Tensor) -> None:
        times = covers.sum(dim=1)
        found, where = covers.max(dim=1)
        self.last[rows] = torch.where(found, where + columns.start, self.last[rows])
        self.times[rows] += times

    def estimate(self, fakes: int) -> Estimate:
        alone = torch.bincount(self.last[self.times == 1], minlength=fakes).to(torch.float64) / len(self.times)
        share = float((self.times > 0).to(torch.float64).mean())
        return Estimate(share, (fakes - 1) * (alone - alone.mean()))


def spread(real: Manifold, fake: Manifold) -> Estimate:
    """Return the diversity of two prepared sets; see :func:`diversity`."""
    check_same_dimension(real.features, fake.features)
    if real.mean_distance == 0.0:
        raise ArgumentError("all real features are the same, so diversity has no scale; give different real samples")
    mean = fake.mean_distance
    return Estimate(mean / real.mean_distance, 2.0 * (fake.distances - mean) / real.mean_distance)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall.

    "Improved Precision and Recall Metric for Assessing Generative Models" (Kynkäänniemi et al., 2019), arXiv
    1904.06991, eqs. 1 and 2. Precision is the fraction of fake samples within the real manifold, recall the fraction of
    real samples within the fake manifold; balls are closed. Recall grows with the number of fake samples, so compare
    equal counts. The manifold of identical samples is their single point.

    Args:
        real: Features (N, D), N > k.
        fake: Features (M, D), M > k.
        k: k of the k-nearest-neighbour balls.

    Returns:
        Precision and recall, each from 0 to 1.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or k is not positive.
    """
    found = overlap(Manifold.of(real, k, "real"), Manifold.of(fake, k, "fake"), k, k)
    return found.precision.value, found.recall.value


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage.

    "Reliable Fidelity and Diversity Metrics for Generative Models" (Naeem et al., 2020), arXiv 2002.09797, eqs. 3 and
    4. Both only use balls around real samples, so that outliers among the fake ones have no effect. Density is the mean
    number of real balls that contain a fake sample, divided by k: 1 in expectation for equal distributions, larger if
    samples concentrate where real ones are dense. Coverage is the fraction of real balls that contain a fake sample:
    about 1 − 2^(−k) for equal distributions and counts, and growing with the number of fake samples. Balls are closed.

    Args:
        real: Features (N, D), N > k.
        fake: Features (M, D), M at least 2.
        k: k of the k-nearest-neighbour balls.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or k is not positive.
    """
    found = overlap(Manifold.of(real, k, "real"), Manifold.of(fake, 1, "fake"), 1, k)
    return found.density.value, found.coverage.value


def diversity(real: Tensor, fake: Tensor) -> float:
    """Return the mean pairwise distance of fake features divided by that of real features.

    Args:
        real: Features (N, D), N at least 2, not all the same.
        fake: Features (M, D), M at least 2.

    Returns:
        1 if as diverse as the real samples, 0 if all fake samples are the same.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or all real ones are the same.
    """
    return spread(Manifold.of(real, 1, "real"), Manifold.of(fake, 1, "fake")).value


def nearest_distances(training: Tensor, samples: Tensor) -> Tensor:
    """Return the distance of each sample to its nearest neighbour in the training set, small if a model memorises.

    Compare it with the same distances of real samples that were held out of training: those of a model that has learnt
    the distribution are similar, those of a model that memorises are smaller.

    Args:
        training: Features (N, D), N at least 2.
        samples: Features (M, D), M at least 2.

    Returns:
        float64, (M,); 0 for copies.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension.
    """
    held, own = as_features(training, "training"), as_features(samples, "sample")
    check_same_dimension(held, own)
    return nearest(own, held).sqrt()
