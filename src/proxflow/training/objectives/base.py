"""The interface of objectives, and a base of those on Gaussian beliefs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_rows, given
from proxflow.flows import Flow, draw_times
from proxflow.random import Generator


class Objective(Protocol):
    """A loss to train with; every :class:`proxflow.Flow` is one."""

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step, a backward pass counted as two; 3 for a flow's own loss."""

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


@dataclass(frozen=True)
class Batch:
    """The examples of a training step, the arguments of :meth:`BeliefObjective.loss`, with times ``t`` (batch,)."""

    flow: Flow[Any]
    x: Tensor
    t: Tensor
    generator: Generator
    condition: Condition | None
    start: Tensor | None

    def beliefs(self, t: Tensor) -> DiagonalGaussian:
        """Draw training beliefs at times ``t`` (batch,).

        Raises:
            ArgumentError: They are not Gaussian.
        """
        belief = self.flow.belief(self.x, t, self.generator, condition=self.condition, start=self.start)
        if not isinstance(belief, DiagonalGaussian):
            raise ArgumentError(
                f"a loss on Gaussian beliefs cannot train {self.flow}, which has {type(belief).__name__}"
            )
        return belief

    def given(self, predict: Predict) -> Predict:
        """Return a predictor with the condition set."""
        return given(predict, self.condition)


class BeliefObjective(ABC):
    """A base of objectives on a flow's Gaussian training beliefs: frozen dataclasses whose first field is the flow."""

    flow: Flow[Any]

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
        """Return the loss of each example, (batch,), a mean over coordinates.

        Args:
            predict: The predictor to train, as for :meth:`score`.
            x: Real data (batch, *event).
            generator: Random generator of times, noise and other draws.
            t: Times (batch,) in [0, 1]; ``None`` draws them.
            condition: Condition of the predictions, one row per example.
            start: Means of given prior draws, (batch, *event); ``None`` draws them.

        Raises:
            ArgumentError: The flow does not accept ``x``, its beliefs are not Gaussian, there is not one condition per
                example, or the objective trains another kind of predictor.
        """
        self.flow.check(x)
        check_rows(condition, len(x), "condition")
        t = draw_times(len(x), generator, x.device) if t is None else t
        return self.score(predict, Batch(self.flow, x, t, generator, condition, start))

    @abstractmethod
    def score(self, predict: Predict, batch: Batch) -> Tensor:
        """Return the loss of each example, (batch,)."""
