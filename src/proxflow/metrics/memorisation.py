"""Memorisation: the share of samples that are as near to a training sample as hardly any held-out one is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features
from proxflow.metrics._pairs import TIE
from proxflow.metrics.manifolds import nearest_distances
from proxflow.metrics.uncertainty import Estimate, mean_estimate

RARE = 0.05
"""Share of held-out samples that count as near to a training sample."""


@dataclass(frozen=True)
class Memorisation:
    """What counts as memorised: nearer to the training set than all but a few held-out samples; made by :meth:`of`.

    The bound is a low quantile, not the median: among the nearest half there are samples that are near because they are
    plain, and a model of plain samples would seem to copy. A copy is nearer than nearly everything held out. Two things
    remain: samples smoother than real ones are nearer to all of them, in pixels most of all, so what is found in pixels
    should also be looked for in features; and where training and held-out sets were kept apart by kinds of samples, a
    sample of a kind in training is nearer than a held-out one without being a copy.

    Args:
        training: Features of the training samples, (T, D).
        held_out: Distances of held-out samples to the nearest training sample, float64 (N,), in the unit of the features.
        reach: Largest distance at which a sample counts as memorised.
    """

    training: Tensor
    held_out: Tensor
    reach: float

    @classmethod
    def of(cls, training: Tensor, held_out: Tensor, share: float = RARE) -> Memorisation:
        """Take as the bound the distance that a share of the held-out samples is within.

        Args:
            training: Features of the samples that models are trained on, (T, D), T at least 2.
            held_out: Features of other real samples by the same extractor, (N, D), N at least 2.
            share: In (0, 1); of N samples the nearest ⌈share · N⌉ are within.

        Raises:
            ArgumentError: Features are not finite, too few or of different dimension, or the share is not in (0, 1).
        """
        if not 0 < share < 1:
            raise ArgumentError(f"share must lie between 0 and 1, got {share}")
        distances = nearest_distances(training, held_out)
        within = math.ceil(share * len(distances))
        return cls(as_features(training, "training"), distances, float(distances.sort().values[within - 1]))

    @property
    def floor(self) -> Estimate:
        """The share of the held-out samples themselves that count: about ``share``, with their own uncertainty."""
        return mean_estimate(self._counted(self.held_out))

    def score(self, features: Tensor) -> Estimate:
        """Return the share of samples that count as memorised, from 0 to 1; 1 for copies of training samples.

        Args:
            features: (M, D) of the same extractor, M at least 2.

        Raises:
            ArgumentError: Features are not finite, too few or of another dimension.
        """
        return mean_estimate(self._counted(nearest_distances(self.training, features)))

    def _counted(self, distances: Tensor) -> Tensor:
        return distances <= self.reach * (1.0 + TIE)
