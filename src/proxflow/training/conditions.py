"""Random changes of conditions in training: dropout of conditions, and guidance as an input of students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import GUIDANCE, Condition, Predict, lacking, named, without
from proxflow.random import Generator, rand
from proxflow.training.objectives import Objective

RATE = 0.1
"""Default fraction of examples whose condition is withheld."""

UNGUIDED = 0.25
"""Fraction of the examples without guidance, if guidance is an input."""


@dataclass(frozen=True)
class _Conditioned:
    """An objective around another one that changes the conditions of examples."""

    objective: Objective

    @property
    def flow(self) -> Any:
        """The flow of the objective."""
        return getattr(self.objective, "flow", self.objective)

    @property
    def passes(self) -> float:
        """Network passes per example of a training step."""
        return self.objective.passes


@dataclass(frozen=True)
class ConditionDropout(_Conditioned):
    """An objective that withholds conditions at random, so that one network learns to predict with and without them.

    "Classifier-Free Diffusion Guidance" (Ho & Salimans, 2022), arXiv 2207.12598, alg. 1. This is drawn from each
    example's own random stream, so that it does not depend on how a batch is divided. All parts of a condition are
    withheld together.

    Args:
        objective: The loss: a flow, or another objective.
        rate: Probability that an example's condition is withheld, in [0, 1].

    Raises:
        ArgumentError: The rate is out of range.
    """

    rate: float = RATE

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ArgumentError(f"the rate at which conditions are dropped must lie in [0, 1], got {self.rate}")

    def loss(
        self,
        predict: Predict,
        x: Tensor,
        generator: Generator,
        t: Tensor | None = None,
        *,
        condition: Condition | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each example, (batch,); see :meth:`proxflow.Flow.loss`."""
        if condition is not None and self.rate:
            chance = rand(torch.Size([len(x)]), generator, torch.float32, x.device)
            condition = without(condition, chance < self.rate)
        return self.objective.loss(predict, x, generator, t, condition=condition, start=start)


@dataclass(frozen=True)
class GuidanceInput(_Conditioned):
    """An objective with random guidance as an input, so that a student learns every weight and interval.

    "Improved Mean Flows: On the Challenges of Fastforward Generative Models" (Geng et al., 2025), arXiv 2512.02012. A
    quarter of the examples, and those without a condition, have no guidance. The others have a weight uniform from 1 to
    the largest, a first time that is 0 for half of them and else uniform up to ½, and a last time that is 1 for half of
    them and else uniform from ½. These are the key "guidance" of the condition, which is read by the teacher, a
    :class:`proxflow.predictors.GuidedAsTold`, and by the student's network, built with ``guidance=``.

    Args:
        objective: The loss of a student with such a teacher.
        largest: The largest weight, above 1.

    Raises:
        ArgumentError: When called, examples without conditions.
    """

    largest: float

    @property
    def law(self) -> dict[str, Any]:
        """The distribution of guidance as JSON values, for the provenance of a model."""
        return {
            "weight": f"uniform from 1 to {self.largest:g}",
            "first": "0 for half, else uniform up to 0.5",
            "last": "1 for half, else uniform from 0.5",
            "unguided": UNGUIDED,
        }

    def loss(
        self,
        predict: Predict,
        x: Tensor,
        generator: Generator,
        t: Tensor | None = None,
        *,
        condition: Condition | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each example, (batch,); see :meth:`proxflow.Flow.loss`."""
        if condition is None:
            raise ArgumentError("guidance leads toward a condition: give examples that have some")
        chance = rand(torch.Size([len(x), 4]), generator, torch.float32, x.device)
        share, early, late, led = chance.unbind(1)
        weight = 1 + (self.largest - 1) * share
        first, last = (early - 0.5).clamp_min(0), 1 - (late - 0.5).clamp_min(0)
        asked = torch.stack([weight, first, last], 1)
        asked = without(asked, (led < UNGUIDED) | lacking(condition))
        told = {**named(condition), GUIDANCE: asked}
        return self.objective.loss(predict, x, generator, t, condition=told, start=start)


def with_dropout(objective: Objective, predictor: nn.Module, rate: float | None = None) -> Objective:
    """Return an objective that withholds conditions, if the predictor's network has a null condition.

    Args:
        objective: The loss.
        predictor: The predictor that it trains.
        rate: As for :class:`ConditionDropout`; ``None`` for the default.

    Raises:
        ArgumentError: The rate is out of range, or one is given and the network reads no conditions or has no null
            condition.
    """
    if getattr(getattr(predictor, "network", None), "conditional", False):
        return ConditionDropout(objective, RATE if rate is None else rate)
    if rate:
        raise ArgumentError(
            f"conditions are dropped at a rate of {rate}, and the network has none to drop: build it with classes=, "
            "vectors= or images=, as unet:classes=10"
        )
    return objective
