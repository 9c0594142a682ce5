"""What training asks of an objective."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from proxflow.flows import Predict
from proxflow.random import Generator


class Objective(Protocol):
    """A loss to train with; every :class:`proxflow.Flow` is one."""

    @property
    def passes(self) -> float:
        """Network passes an example in a training step, a backward pass counted as two; 3 for a flow's own loss."""

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Loss of each example, (batch,); see :meth:`proxflow.Flow.loss`."""
