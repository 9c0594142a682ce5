"""Metrics of generated images on the features of a named extractor.

Typical use: ``extract = mnist_features()``; ``reference = Reference.of(extract(test_images))``;
``reference.score(extract(to_bytes(samples)))``, beside ``real_floor`` at the same number of samples.
"""

from __future__ import annotations

from proxflow.metrics.features import FeatureExtractor, mnist_features
from proxflow.metrics.frechet import GaussianStatistics, frechet_distance
from proxflow.metrics.manifolds import diversity, precision_recall
from proxflow.metrics.scores import Reference, Scores, real_floor

__all__ = [
    "FeatureExtractor",
    "GaussianStatistics",
    "Reference",
    "Scores",
    "diversity",
    "frechet_distance",
    "mnist_features",
    "precision_recall",
    "real_floor",
]
