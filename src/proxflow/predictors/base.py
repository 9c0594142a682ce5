"""The interface of predictors: modules ``(belief, t) -> belief`` around a network of plain tensors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import Belief
from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.paths import GaussianPath


class Predictor(nn.Module, ABC):
    """A predictor of the target distribution from a belief. Known elsewhere as a denoiser.

    Args:
        network: Module ``(x, t) -> tensor`` of the belief's features (batch, …) and times (batch,). If its ``forward`` has a
            parameter ``condition``, the predictor reads one, too, unless the network says ``conditional = False``.
        flow: The flow it is trained for, if it is to be guided in that flow's geometry.
    """

    reads: frozenset[str] = frozenset()
    """Further arguments that it takes: ``"end"``, the times (batch,) at which the steps toward its predictions end;
    ``"noise"``, a ``generator`` for draws; ``"condition"``."""

    def __init__(self, network: nn.Module, flow: Flow[Any] | None = None) -> None:
        super().__init__()
        self.network = network
        self.geometry: Divergence | None = None if flow is None else flow.geometry
        self.path: GaussianPath | None = None if flow is None else flow.path
        takes = "condition" in inspect.signature(getattr(network, "forward", network)).parameters
        if takes and getattr(network, "conditional", True):
            self.reads = self.reads | {"condition"}

    @abstractmethod
    def forward(self, belief: Any, t: Tensor, *, condition: Condition | None = None) -> Belief:
        """Return the predicted target for beliefs at times ``t`` (batch,)."""

    def output(self, x: Tensor, t: Tensor, condition: Condition | None = None, **told: Tensor) -> Tensor:
        """Return the network's output in the precision of its input."""
        if condition is not None:
            told["condition"] = condition  # type: ignore[assignment]
        output: Tensor = self.network(x, t, **told)
        return output if output.dtype == x.dtype else output.to(x.dtype)


class RealPredictor(Predictor):
    """A predictor of real data, which may clip its predictions to the range of the data.

    Args:
        network: As for :class:`Predictor`.
        flow: The flow it is trained for.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well. Clipped values pass no gradient.

    Raises:
        ArgumentError: An empty range.
    """

    def __init__(
        self, network: nn.Module, flow: Flow[Any], clip: tuple[float, float] | None, clip_in_training: bool = False
    ) -> None:
        super().__init__(network, flow)
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        self.clip, self.clip_in_training = clip, clip_in_training
        self.target_std = float(flow.target(torch.zeros(1, 1, device="cpu")).given_std)

    def clipped(self, prediction: Tensor) -> Tensor:
        """Return a prediction clipped to the range of the data; in training only with ``clip_in_training``."""
        if self.clip is not None and (self.clip_in_training or not self.training):
            return prediction.clamp(*self.clip)
        return prediction


def check_shape(output: Tensor, wanted: tuple[int, ...], what: str = "keep the shape") -> None:
    """Refuse a network's output of another shape."""
    if output.shape != wanted:
        raise ArgumentError(f"the network must {what} {tuple(wanted)}, returned {tuple(output.shape)}")
