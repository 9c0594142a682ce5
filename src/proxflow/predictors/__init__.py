"""Predictors: a network's output as a predicted target.

A predictor is a module ``(belief, t) -> belief``. The network inside reads and returns plain tensors.
"""

from proxflow.predictors.base import HasPath, Predictor
from proxflow.predictors.binned import BinnedPredictor, HasBins
from proxflow.predictors.classes import ClassPredictor
from proxflow.predictors.draw import DrawPredictor
from proxflow.predictors.long_step import LongStepPredictor
from proxflow.predictors.point import Parameterisation, PointPredictor
from proxflow.predictors.product import ProductPredictor

__all__ = [
    "BinnedPredictor",
    "ClassPredictor",
    "DrawPredictor",
    "HasBins",
    "HasPath",
    "LongStepPredictor",
    "Parameterisation",
    "PointPredictor",
    "Predictor",
    "ProductPredictor",
]
