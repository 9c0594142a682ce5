"""Beliefs: distributions over data, the state of a proximal flow."""

from proxflow.beliefs.base import Belief as Belief
from proxflow.beliefs.binned import Binned as Binned
from proxflow.beliefs.binned import bin_centre as bin_centre
from proxflow.beliefs.binned import bin_of as bin_of
from proxflow.beliefs.binned import gaussian_bin_log_prob as gaussian_bin_log_prob
from proxflow.beliefs.categorical import Categorical as Categorical
from proxflow.beliefs.full_gaussian import FullGaussian as FullGaussian
from proxflow.beliefs.gaussian import DiagonalGaussian as DiagonalGaussian
from proxflow.beliefs.mixture import GaussianMixture as GaussianMixture
from proxflow.beliefs.product import Product as Product
from proxflow.beliefs.revealed import Revealed as Revealed
