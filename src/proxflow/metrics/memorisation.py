"""Memorisation: the fraction of samples nearer to a training sample than nearly all held-out samples are."""

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
"""Fraction of held-out samples that count as near to a training sample."""


@dataclass(frozen=True)
class Memorisation:
    """Criterion of memorisation: nearer to the training set than all but a few held-out samples; made by :meth:`of`.

    The bound is a low quantile, not the median: samples in the nearest half may be near only because they are simple,
    and a model of simple samples would seem to copy. A copy is nearer than nearly all held-out samples. Two limitations
    remain: samples smoother than real ones are nearer to all of them, most of all in pixels, so a finding in pixels
    should be checked in features; and if training and held-out sets differ in kinds of samples, a sample of a training
    kind is nearer than a held-out one without being a copy.

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
        """Set the bound to the distance within which a fraction of the held-out samples lies.

        Args:
            training: Features of the samples that models are trained on, (T, D), T at least 2.
            held_out: Features of other real samples, from the same extractor, (N, D), N at least 2.
            share: In (0, 1); the nearest ⌈share · N⌉ of N samples are within.

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
        """The score of the held-out samples themselves: about ``share``, with its uncertainty."""
        return mean_estimate(self._counted(self.held_out))

    def score(self, features: Tensor) -> Estimate:
        """Return the fraction of samples that count as memorised, from 0 to 1; 1 for copies of training samples.

        Args:
            features: (M, D) of the same extractor, M at least 2.

        Raises:
            ArgumentError: Features are not finite, too few or of another dimension.
        """
        return mean_estimate(self._counted(nearest_distances(self.training, features)))

    def _counted(self, distances: Tensor) -> Tensor:
        return distances <= self.reach * (1.0 + TIE)
