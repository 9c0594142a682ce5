"""Prediction of the end points of long steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.paths import Schedule
from proxflow.predictors.base import RealPredictor, check_shape


class LongStepPredictor(RealPredictor):
    """A predictor of the effective target X of a long step: one proximal step toward it lands where many small ones would.

    Known elsewhere as a shortcut, mean-flow or consistency model. At ``end`` = t, X is the prediction of the data; at
    ``end`` = 1 it is the sample, the end of the trajectory. X is an average of the predictions along the step and is
    clipped like them. Trained by :class:`proxflow.LongStep`.

    Args:
        network: Module ``(mean, t, end) -> tensor`` of the mean's shape (batch, *event), the point X; t and end are
            (batch,).
        flow: The flow it is trained for: Wasserstein-2, from a drawn prior to the data themselves.
        clip: Range of the data (lowest, highest) that predictions are clipped to outside training, or ``None``.

    Raises:
        ArgumentError: An empty range, means that do not move on straight lines, or a schedule that ends before the data
            (``final`` < 1).
    """

    reads = frozenset({"end"})

    def __init__(self, network: nn.Module, flow: Flow[Any], *, clip: tuple[float, float] | None = None) -> None:
        super().__init__(network, flow, clip)
        if not isinstance(flow.path, Schedule) or flow.path != getattr(flow, "schedule", None):
            raise ArgumentError(
                f"long steps need means that move on straight lines, as GPFN(Wasserstein2()) has, got {flow}"
            )
        if float(flow.path.remaining(torch.ones((), dtype=torch.float64, device="cpu"))) > 0:
            raise ArgumentError(f"long steps need a schedule that ends in the data, got {flow.path}: take final = 1")

    def forward(
        self, belief: DiagonalGaussian, t: Tensor, end: Tensor | None = None, *, condition: Condition | None = None
    ) -> DiagonalGaussian:
        """Return the effective targets of steps from times ``t`` (batch,) to ``end`` (batch,), by default t itself."""
        mean = belief.features()
        output = self.output(mean, t, condition, end=t if end is None else end)
        check_shape(output, mean.shape)
        return DiagonalGaussian(self.clipped(output), self.target_std)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights (``state_dict``) of a trained :class:`PointPredictor` of the same network without ``end``.

        Raises:
            ArgumentError: A weight has no counterpart here, or one of a different shape.
        """
        own = self.state_dict()
        for name, weight in weights.items():
            if name not in own or own[name].shape != weight.shape:
                raise ArgumentError(
                    f"weight {name!r} of shape {tuple(weight.shape)} has no place in this network: build both with equal "
                    "settings, and the plain one with parameterisation 'x'"
                )
        self.load_state_dict(weights, strict=False)
