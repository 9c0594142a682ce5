"""The interface of objectives."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict
from proxflow.flows import Flow
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


def gaussian_belief(
    flow: Flow[Any],
    x: Tensor,
    t: Tensor,
    generator: Generator,
    what: str,
    condition: Condition | None,
    start: Tensor | None,
) -> DiagonalGaussian:
    """Draw a training belief.

    Raises:
        ArgumentError: It is not Gaussian, or ``x`` is not data of the flow; ``what`` names the objective.
    """
    flow.check(x)
    belief = flow.belief(x, t, generator, condition=condition, start=start)
    if not isinstance(belief, DiagonalGaussian):
        raise ArgumentError(f"{what} needs Gaussian beliefs, {flow} has {type(belief).__name__}")
    return belief
