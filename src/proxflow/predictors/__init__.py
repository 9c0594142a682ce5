"""Predictors: they turn a network's output into a predicted target.

A predictor is a module ``(belief, t) -> belief``. The network inside reads and returns plain tensors.
"""

from proxflow.predictors.base import Predictor, RealPredictor
from proxflow.predictors.binned import BinnedPredictor
from proxflow.predictors.classes import ClassPredictor
from proxflow.predictors.denoiser import Denoiser
from proxflow.predictors.draw import DrawPredictor
from proxflow.predictors.guided import GuidanceRule, Guided, LinearGuidance, Projected, ZeroStar
from proxflow.predictors.long_step import LongStepPredictor
from proxflow.predictors.point import Parameterisation, PointPredictor
from proxflow.predictors.posterior import METHODS, Posterior
from proxflow.predictors.product import ProductPredictor, WithoutLast
from proxflow.predictors.told import GuidedAsTold, ToldGuidance, reads_guidance

__all__ = [
    "METHODS",
    "BinnedPredictor",
    "ClassPredictor",
    "Denoiser",
    "DrawPredictor",
    "GuidanceRule",
    "Guided",
    "GuidedAsTold",
    "LinearGuidance",
    "LongStepPredictor",
    "Parameterisation",
    "PointPredictor",
    "Posterior",
    "Predictor",
    "ProductPredictor",
    "Projected",
    "RealPredictor",
    "ToldGuidance",
    "WithoutLast",
    "ZeroStar",
    "reads_guidance",
]
