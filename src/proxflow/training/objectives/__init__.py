"""Objectives: losses that train a predictor for few evaluations, instead of the flow's own.

An objective has ``loss(predict, x, generator, t)`` like a flow, so that :func:`proxflow.fit` takes it instead of one,
and ``passes``, the cost of a training step.
"""

from proxflow.training.objectives.autoguidance import Autoguidance as Autoguidance
from proxflow.training.objectives.base import Objective as Objective
from proxflow.training.objectives.distribution_matching import DistributionMatching as DistributionMatching
from proxflow.training.objectives.distribution_matching import StudentAndCritic as StudentAndCritic
from proxflow.training.objectives.energy_score import EnergyScore as EnergyScore
from proxflow.training.objectives.long_step import LongStep as LongStep
