"""Metrics of generated images on the features of a named extractor.

Typical use: ``extract = classifier_features("mnist")``; ``reference = Reference.of(extract(test_images))``;
``reference.score(extract(to_bytes(samples)))``, beside ``real_floor`` at the same number of samples.
"""

from proxflow.metrics.comparison import Conditions as Conditions
from proxflow.metrics.comparison import check_comparable as check_comparable
from proxflow.metrics.features import CLASSIFIERS as CLASSIFIERS
from proxflow.metrics.features import FeatureExtractor as FeatureExtractor
from proxflow.metrics.features import class_hits as class_hits
from proxflow.metrics.features import classifier_features as classifier_features
from proxflow.metrics.features import load_classifier as load_classifier
from proxflow.metrics.features import mnist_features as mnist_features
from proxflow.metrics.features import pixel_features as pixel_features
from proxflow.metrics.features import second_of as second_of
from proxflow.metrics.features import weights_sha256 as weights_sha256
from proxflow.metrics.frechet import FeatureStatistics as FeatureStatistics
from proxflow.metrics.frechet import GaussianStatistics as GaussianStatistics
from proxflow.metrics.frechet import frechet_distance as frechet_distance
from proxflow.metrics.frechet import gather_features as gather_features
from proxflow.metrics.inception import inception_features as inception_features
from proxflow.metrics.kernel import KernelDistance as KernelDistance
from proxflow.metrics.kernel import kernel_distance as kernel_distance
from proxflow.metrics.manifolds import density_coverage as density_coverage
from proxflow.metrics.manifolds import diversity as diversity
from proxflow.metrics.manifolds import nearest_distances as nearest_distances
from proxflow.metrics.manifolds import precision_recall as precision_recall
from proxflow.metrics.memorisation import Memorisation as Memorisation
from proxflow.metrics.natural import natural_features as natural_features
from proxflow.metrics.per_class import ClassScores as ClassScores
from proxflow.metrics.per_class import class_scores as class_scores
from proxflow.metrics.per_class import labels_in_proportion as labels_in_proportion
from proxflow.metrics.principal import principal_features as principal_features
from proxflow.metrics.principal import shipped_features as shipped_features
from proxflow.metrics.scores import Reference as Reference
from proxflow.metrics.scores import Scores as Scores
from proxflow.metrics.scores import real_floor as real_floor
from proxflow.metrics.sliced import sliced_wasserstein as sliced_wasserstein
from proxflow.metrics.uncertainty import Estimate as Estimate
from proxflow.metrics.uncertainty import bootstrap as bootstrap
from proxflow.metrics.uncertainty import bootstrap_seeds as bootstrap_seeds
from proxflow.metrics.vendi import vendi_score as vendi_score
