"""Metrics of generated images on the features of a named extractor.

Typical use: ``extract = classifier_features("mnist")``; ``reference = Reference.of(extract(test_images))``;
``reference.score(extract(to_bytes(samples)))``, beside ``real_floor`` at the same number of samples.
"""

from __future__ import annotations

from proxflow.metrics.comparison import Conditions, check_comparable
from proxflow.metrics.features import (
    CLASSIFIERS,
    FeatureExtractor,
    class_hits,
    classifier_features,
    load_classifier,
    mnist_features,
    pixel_features,
    weights_sha256,
)
from proxflow.metrics.frechet import FeatureStatistics, GaussianStatistics, frechet_distance, gather_features
from proxflow.metrics.inception import inception_features
from proxflow.metrics.kernel import KernelDistance, kernel_distance
from proxflow.metrics.manifolds import density_coverage, diversity, nearest_distances, precision_recall
from proxflow.metrics.per_class import ClassScores, class_scores
from proxflow.metrics.scores import Reference, Scores, real_floor
from proxflow.metrics.sliced import sliced_wasserstein
from proxflow.metrics.uncertainty import Estimate, bootstrap, bootstrap_seeds
from proxflow.metrics.vendi import vendi_score

__all__ = [
    "CLASSIFIERS",
    "ClassScores",
    "Conditions",
    "Estimate",
    "FeatureExtractor",
    "FeatureStatistics",
    "GaussianStatistics",
    "KernelDistance",
    "Reference",
    "Scores",
    "bootstrap",
    "bootstrap_seeds",
    "check_comparable",
    "class_hits",
    "class_scores",
    "classifier_features",
    "density_coverage",
    "diversity",
    "frechet_distance",
    "gather_features",
    "inception_features",
    "kernel_distance",
    "load_classifier",
    "mnist_features",
    "nearest_distances",
    "pixel_features",
    "precision_recall",
    "real_floor",
    "sliced_wasserstein",
    "vendi_score",
    "weights_sha256",
]
