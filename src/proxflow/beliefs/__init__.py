"""Beliefs: distributions over data, the state of a proximal flow."""

from proxflow.beliefs.base import Belief
from proxflow.beliefs.binned import Binned, bin_centre, bin_of, gaussian_bin_log_prob
from proxflow.beliefs.categorical import Categorical
from proxflow.beliefs.full_gaussian import FullGaussian
from proxflow.beliefs.gaussian import DiagonalGaussian
from proxflow.beliefs.mixture import GaussianMixture
from proxflow.beliefs.product import Product

__all__ = [
    "Belief",
    "Binned",
    "Categorical",
    "DiagonalGaussian",
    "FullGaussian",
    "GaussianMixture",
    "Product",
    "bin_centre",
    "bin_of",
    "gaussian_bin_log_prob",
]
