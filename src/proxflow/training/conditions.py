"""Training with and without a condition: a share of the examples loses theirs, at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, without
from proxflow.random import Generator, rand
from proxflow.training.objectives import Objective

RATE = 0.1
"""The usual share of examples that lose their condition."""


@dataclass(frozen=True)
class ConditionDropout:
    """An objective whose examples lose their condition at a rate, so that one network learns to predict with and without.

    "Classifier-Free Diffusion Guidance" (Ho & Salimans, 2022), arXiv 2207.12598, alg. 1. Which examples lose it follows from
    the stream of each alone, so it does not depend on how a batch is shared out. All parts of a condition are lost together.

    Args:
        objective: The loss: a flow, or another objective.
        rate: Probability that an example loses its condition, in [0, 1].

    Raises:
        ArgumentError: The rate is out of range.
    """

    objective: Objective
    rate: float = RATE

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ArgumentError(f"the rate at which conditions are dropped must lie in [0, 1], got {self.rate}")

    @property
    def flow(self) -> Any:
        """The flow that the objective is about."""
        return getattr(self.objective, "flow", self.objective)

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step."""
        return self.objective.passes

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


def with_dropout(objective: Objective, predictor: nn.Module, rate: float | None = None) -> Objective:
    """Return an objective that drops conditions, if the predictor's network knows what an example without one is.

    Args:
        objective: The loss.
        predictor: What it trains.
        rate: As for :class:`ConditionDropout`; ``None`` for the usual one.

    Raises:
        ArgumentError: The rate is out of range, or one is given and the network reads no conditions, or does not know what
            an example without one is.
    """
    if getattr(getattr(predictor, "network", None), "conditional", False):
        return ConditionDropout(objective, RATE if rate is None else rate)
    if rate:
        raise ArgumentError(
            f"conditions are dropped at a rate of {rate}, and the network has none to drop: build it with classes=, "
            "vectors= or images=, as unet:classes=10"
        )
    return objective
