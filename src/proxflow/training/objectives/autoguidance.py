"""Autoguidance learnt by a student: its predictions are guided away from a weak model's, with one evaluation.

"Guiding a Diffusion Model with a Bad Version of Itself" (Karras et al., 2024), arXiv 2406.02507.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import mean_events
from proxflow.errors import ArgumentError
from proxflow.examples import Predict, evaluations
from proxflow.flows import Flow
from proxflow.training.objectives.base import Batch, BeliefObjective


@dataclass(frozen=True)
class Autoguidance(BeliefObjective):
    """A loss that trains a student to predict its teacher's target, guided away from a weak model's prediction.

    A weak model makes the same errors as a better one, only larger. So the prediction ĉ of the weak model and the
    teacher's q̂ can be extrapolated to a target better than either,

        x̂ = ĉ + w (q̂ − ĉ),  w > 1.

    This is the formula of classifier-free guidance with a weak model instead of an unconditional one (Karras et al.,
    2024, for denoisers when sampling). For Wasserstein-2 its proximal step has the energy w D(p, q̂) − (w − 1) D(p, ĉ).
    In sampling it takes two evaluations per step. The student learns it by the flow's weighted squared error and needs
    one evaluation. Its targets have no noise, so few examples are enough.

    Args:
        flow: The flow of teacher, weak model and student, with Gaussian beliefs.
        teacher: Its trained predictor, in evaluation mode; the student should start from its weights.
        weak: A predictor of the same flow, smaller, or trained for a tenth to a third as long.
        weight: w ≥ 1, finite. At 1 the student learns the teacher's prediction.

    Raises:
        ArgumentError: The weight is out of range.
    """

    flow: Flow[Any]
    teacher: Predict
    weak: Predict
    weight: float = 2.0

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step."""
        return 3.0 + evaluations(self.teacher) + evaluations(self.weak)  # student 1 + 2

    def __post_init__(self) -> None:
        if not 1 <= self.weight < math.inf:
            raise ArgumentError(f"the weight of guidance must be at least 1 and finite, got {self.weight}")

    def score(self, predict: Predict, batch: Batch) -> Tensor:
        """Return the weighted squared distance of the student ``predict`` to the guided target, (batch,)."""
        belief, t = batch.beliefs(batch.t), batch.t
        student, teacher, weak = map(batch.given, (predict, self.teacher, self.weak))
        with torch.no_grad():
            target = torch.lerp(weak(belief, t).mean, teacher(belief, t).mean, self.weight)
        return self.flow.weight(t) * mean_events((student(belief, t).mean - target).square())
