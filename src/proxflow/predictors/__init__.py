"""Predictors: a network's output as a predicted target.

A predictor is a module ``(belief, t) -> belief``. The network inside reads and returns plain tensors.
"""

from proxflow.predictors.base import Predictor, RealPredictor
from proxflow.predictors.binned import BinnedPredictor
from proxflow.predictors.classes import ClassPredictor
from proxflow.predictors.draw import DrawPredictor
from proxflow.predictors.guided import GuidanceRule, Guided, LinearGuidance, Projected, ZeroStar
from proxflow.predictors.long_step import LongStepPredictor
from proxflow.predictors.point import Parameterisation, PointPredictor
from proxflow.predictors.product import ProductPredictor

__all__ = [
    "BinnedPredictor",
    "ClassPredictor",
    "DrawPredictor",
    "GuidanceRule",
    "Guided",
    "LinearGuidance",
    "LongStepPredictor",
    "Parameterisation",
    "PointPredictor",
    "Predictor",
    "ProductPredictor",
    "Projected",
    "RealPredictor",
    "ZeroStar",
]
