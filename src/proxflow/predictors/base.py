"""What a predictor is: a module ``(belief, t) -> belief`` around a network of plain tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from proxflow.beliefs import Belief
from proxflow.paths import GaussianPath


class HasPath(Protocol):
    """Any flow: an object with the Gaussian path of its training beliefs, or ``None``."""

    @property
    def path(self) -> GaussianPath | None: ...


class Predictor(nn.Module, ABC):
    """A module that predicts the target distribution from a belief."""

    reads_end: ClassVar[bool] = False
    """Whether it is to be called with ``end=``, the times (batch,) at which the steps toward its predictions end."""

    reads_noise: ClassVar[bool] = False
    """Whether it is to be called with ``generator=``, the source of the noise that its predictions are drawn by."""

    @abstractmethod
    def forward(self, belief: Any, t: Tensor) -> Belief:
        """The predicted target for beliefs at times ``t`` (batch,)."""
