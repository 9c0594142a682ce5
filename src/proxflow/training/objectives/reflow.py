"""Reflow: training on a model's own pairs of prior draw and sample (2209.03003)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.flows import GPFN, Flow, Predict, draw_times
from proxflow.random import Generator


@dataclass(frozen=True)
class Reflow:
    """The flow's own loss, on prior draws that are paired with data: those that a model's deterministic flow leads to them.

    Such pairs keep both laws. On straight lines between them paths that crossed no longer do, so the flow that is learned
    costs no more transport for any convex cost, and bends less and less with more rounds (2209.03003).

    Args:
        flow: A GPFN whose training beliefs are on a Gaussian path: Wasserstein-2 or KL, to real data. Its coupling is
            not used.

    Raises:
        ArgumentError: Another flow.
    """

    flow: Flow[Any]

    passes = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.flow, GPFN) or self.flow.path is None:
            raise ArgumentError(
                f"reflow needs a GPFN with a Gaussian path, that of Wasserstein-2 or KL to real data, got {self.flow}"
            )

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Loss of each pair, (batch,); see :meth:`proxflow.Flow.loss`.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Pairs (batch, 2, *event): the mean of the prior draw, and the sample.
            generator: Source of the times.
            t: Times (batch,) in [0, 1]; ``None`` draws them.

        Raises:
            ArgumentError: ``x`` is not of this form.
        """
        if x.ndim < 3 or x.shape[1] != 2 or not x.is_floating_point():
            raise ArgumentError(
                f"reflow trains on pairs (batch, 2, *event) of real numbers, prior draw and sample, got {x.dtype} "
                f"{tuple(x.shape)}"
            )
        flow: GPFN = self.flow  # type: ignore[assignment]
        t = draw_times(len(x), generator, x.device) if t is None else t
        start, end = x.unbind(1)
        prior = DiagonalGaussian(start, 1.0)
        belief = flow.walk(prior, flow.endpoints.target(end, prior), t)
        weight = flow.schedule.velocity_weight(t, flow.weight_floor, math.prod(end.shape[1:]))
        return flow.endpoints.score(predict(belief, t), end, weight)
