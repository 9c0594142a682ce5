"""All scores of a set of samples against one reference of real samples, whose part is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features
from proxflow.metrics.frechet import GaussianStatistics, frechet_distance
from proxflow.metrics.manifolds import Manifold, overlap, spread


@dataclass(frozen=True)
class Scores:
    """How samples compare with real ones; comparable at equal ``samples`` and on one extractor only.

    Args:
        frechet: Fréchet distance, 0 at best.
        precision: Share of samples within the real manifold.
        recall: Share of real samples within the samples' manifold.
        diversity: Mean pairwise distance relative to real samples; 1 as diverse, 0 collapsed.
        samples: The number of samples scored.
    """

    frechet: float
    precision: float
    recall: float
    diversity: float
    samples: int


@dataclass(frozen=True)
class Reference:
    """Real samples, prepared for comparison; made by :meth:`of`.

    Args:
        statistics: Mean and covariance of their features.
        manifold: Their features, ball radii and mean pairwise distance.
        k: The neighbour that the balls reach to.
    """

    statistics: GaussianStatistics
    manifold: Manifold
    k: int

    @classmethod
    def of(cls, features: Tensor, k: int = 3) -> Reference:
        """Prepares real features (N, D), N > k, for example those of the MNIST test images.

        Raises:
            ArgumentError: The features are not finite or too few, or k is not positive.
        """
        return cls(GaussianStatistics.of(features, "real"), Manifold.of(features, k, "real"), k)

    def score(self, features: Tensor) -> Scores:
        """Scores samples by their features.

        Args:
            features: (M, D) of the same extractor, M > k.

        Raises:
            ArgumentError: The features are not finite, too few or of another dimension.
        """
        statistics = GaussianStatistics.of(features, "sample")
        frechet = frechet_distance(statistics, self.statistics)
        manifold = Manifold.of(features, self.k, "sample")
        precision, recall = overlap(self.manifold, manifold)
        return Scores(frechet, precision, recall, spread(self.manifold, manifold), len(features))


def real_floor(reference: Reference, features: Tensor, n: int, seed: int) -> Scores:
    """The scores that n other real samples reach: what a perfect model would get at this sample count.

    Args:
        reference: The reference that samples are scored against.
        features: Features of other real samples, for example of the MNIST training images, (N, D).
        n: How many of them to score: the first n of a random permutation.
        seed: Determines the permutation.

    Raises:
        ArgumentError: n is not between 1 and N, or scoring refuses the samples.
    """
    wide = as_features(features, "real")
    if not 1 <= n <= len(wide):
        raise ArgumentError(f"n must be from 1 to the number of real samples, {len(wide)}; got {n}")
    order = torch.randperm(len(wide), generator=torch.Generator().manual_seed(seed))
    return reference.score(wide[order[:n]])
