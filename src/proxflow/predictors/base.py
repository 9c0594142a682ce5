"""The interface of predictors: modules ``(belief, t) -> belief`` around a network of plain tensors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import Belief
from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.paths import GaussianPath

_FULL = {torch.float32, torch.float64}


class Predictor(nn.Module, ABC):
    """A predictor of the target distribution from a belief. Known elsewhere as a denoiser.

    Args:
        network: Module ``(x, t) -> tensor`` of the belief's features (batch, …) and times (batch,). If its ``forward``
            has a parameter ``condition``, or other further parameters, the predictor reads a condition as well, unless
            the network has ``conditional = False``. With a single other parameter the condition is passed to it; with
            several, the condition is a dictionary with their names.
        flow: The flow it is trained for, if it is to be guided in that flow's geometry.

    Raises:
        ArgumentError: The network takes no times; when called, it returns no tensor.
    """

    reads: frozenset[str] = frozenset()
    """Further arguments: ``"end"``, the times (batch,) at which the steps toward its predictions end; ``"noise"``, a
    ``generator`` for draws; ``"condition"``."""

    predicts_mean: bool = True
    """Whether it predicts the mean of the data given the belief, and not a sample, as a one-step student does."""

    def __init__(self, network: nn.Module, flow: Flow[Any] | None = None) -> None:
        super().__init__()
        self.network = network
        self.geometry: Divergence | None = None if flow is None else flow.geometry
        self.path: GaussianPath | None = None if flow is None else flow.path
        further = _further_inputs(network)
        self.needed = tuple(p.name for p in further if p.default is p.empty)
        self.inputs = _names(further) if getattr(network, "conditional", True) else ()
        if self.inputs:
            self.reads = self.reads | {"condition"}

    @abstractmethod
    def forward(self, belief: Any, t: Tensor, *, condition: Condition | None = None) -> Belief:
        """Return the predicted target for beliefs at times ``t`` (batch,)."""

    def output(self, x: Tensor, t: Tensor, condition: Condition | None = None, **told: Tensor) -> Tensor:
        """Return the network's output in the precision of its input, if real, computed in that of its weights."""
        if condition is not None:
            told |= self._named(condition)
        if missing := [name for name in self.needed if name not in told]:
            raise ArgumentError(
                f"the forward of {type(self.network).__name__} needs {', '.join(missing)} beside x and t, and none is "
                "given: give it in the condition, or the parameter a default"
            )
        own = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        if {own, x.dtype} == _FULL:  # half precisions are left to autocast
            output: Tensor = self.network(x.to(own), t.to(own), **told)
        elif own in (torch.float16, torch.bfloat16) and not torch.is_autocast_enabled(x.device.type):
            raise ArgumentError(
                f"the network's weights are {own}, and beliefs {x.dtype}: leave weights in float32 and sample under "
                "torch.autocast, which works the network out in half precision"
            )
        else:
            output = self.network(x, t, **told)
        if isinstance(output, Tensor) and output.is_complex() and not x.is_complex():
            raise ArgumentError(f"the network must return real numbers, got {output.dtype}: take what is meant of them")
        if not isinstance(output, Tensor):
            way = ": return its .sample, by a module around it" if hasattr(output, "sample") else ""
            raise ArgumentError(f"the network must return a tensor, got {type(output).__name__}{way}")
        return output if output.dtype == x.dtype or not x.is_floating_point() else output.to(x.dtype)

    def _named(self, condition: Condition) -> dict[str, Any]:
        """Return a condition as keyword arguments of the network."""
        if "condition" in self.inputs:
            return {"condition": condition}
        named = condition if isinstance(condition, Mapping) else dict.fromkeys(self.inputs[:1], condition)
        if unknown := [name for name in named if name not in self.inputs]:
            raise ArgumentError(
                f"the network's forward has no parameter {unknown[0]!r} for this part of the condition; it has "
                f"{', '.join(self.inputs)}"
            )
        if not isinstance(condition, Mapping) and len(self.inputs) > 1:
            raise ArgumentError(
                f"the network's forward has the further inputs {', '.join(self.inputs)}: give the condition as a dictionary "
                "with these names"
            )
        return dict(named)


def _further_inputs(network: nn.Module) -> list[inspect.Parameter]:
    """Return what a network's forward takes by name beside x and t."""
    parameters = list(inspect.signature(getattr(network, "forward", network)).parameters.values())
    in_place = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if in_place < 2 <= len(parameters) and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise ArgumentError(
            f"the network's forward is called as forward(x, t), and that of {type(network).__name__} takes "
            f"({', '.join(p.name for p in parameters)}), of which too few without their names: give it x and t first"
        )
    if len(parameters) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise ArgumentError(
            f"the network's forward must take features and times, (x, t), and that of {type(network).__name__} takes "
            f"({', '.join(p.name for p in parameters)}): give it a parameter t (batch,), which it may leave unread"
        )
    return [p for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _names(further: Sequence[inspect.Parameter]) -> tuple[str, ...]:
    """Return the names of a condition's parts: of all inputs but end, or "condition" alone where there is that."""
    named = tuple(p.name for p in further if p.name != "end")
    return ("condition",) if "condition" in named else named


class RealPredictor(Predictor):
    """A predictor of real data, which may clip its predictions to the range of the data.

    Args:
        network: As for :class:`Predictor`.
        flow: The flow it is trained for.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well. Clipped values pass no gradient.

    Raises:
        ArgumentError: An empty range, or ``clip_in_training`` without one.
    """

    def __init__(
        self, network: nn.Module, flow: Flow[Any], clip: tuple[float, float] | None, clip_in_training: bool = False
    ) -> None:
        super().__init__(network, flow)
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        if clip_in_training and clip is None:
            raise ArgumentError(
                "clip_in_training says when predictions are clipped, and clip gives no range to clip to"
            )
        self.flow, self.clip, self.clip_in_training = flow, clip, clip_in_training
        self.target_std = float(flow.target(torch.zeros(1, 1, device="cpu")).given_std)

    def clipped(self, prediction: Tensor) -> Tensor:
        """Return a prediction clipped to the range of the data; in training only with ``clip_in_training``."""
        if self.clip is not None and (self.clip_in_training or not self.training):
            return prediction.clamp(*self.clip)
        return prediction


def check_shape(output: Tensor, wanted: tuple[int, ...], what: str = "keep the shape") -> None:
    """Refuse a network's output of the wrong shape."""
    if output.shape != wanted:
        raise ArgumentError(f"the network must {what} {tuple(wanted)}, returned {tuple(output.shape)}")
