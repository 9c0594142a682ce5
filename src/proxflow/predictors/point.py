"""Predictions of points."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from proxflow._math import over_events
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.predictors.base import HasPath, Predictor

Parameterisation = Literal["x", "epsilon", "v"]


class PointPredictor(Predictor):
    """Predicts a point x̂ for Gaussian beliefs; a target with standard deviation ``target_std`` around it.

    With training beliefs μ = a x + b ε the network's output is, by ``parameterisation``:

    ==========  =========================================  ==================
    ``x``       x̂ itself
    ``epsilon`` the noise ε̂                                x̂ = (μ − b ε̂)/a
    ``v``       the velocity x̂ − ε̂ of the straight path    x̂ = (μ + b v̂)/(a + b)
    ==========  =========================================  ==================

    Args:
        network: Module ``(mean, t) -> tensor`` of the mean's shape (batch, *event); t is (batch,).
        flow: The flow it is trained for.
        parameterisation: What the network's output means.
        clip: Range of the data (lowest, highest) that predictions are clipped to, or ``None``.
        clip_in_training: Whether predictions in the loss are clipped as well, as the BFN reference does. Clipped values
            pass no gradient.

    Raises:
        ArgumentError: Unknown parameterisation, an empty range, or a flow without a Gaussian path for ``epsilon``/``v``.
    """

    def __init__(
        self,
        network: nn.Module,
        flow: HasPath,
        *,
        parameterisation: Parameterisation = "x",
        clip: tuple[float, float] | None = (-1.0, 1.0),
        clip_in_training: bool = False,
    ) -> None:
        super().__init__()
        if parameterisation not in get_args(Parameterisation):
            raise ArgumentError(f"parameterisation is one of {get_args(Parameterisation)}, got {parameterisation!r}")
        if flow.path is None and parameterisation != "x":
            raise ArgumentError(f"{flow} has no Gaussian path for parameterisation {parameterisation!r}: use 'x'")
        if clip is not None and not clip[0] < clip[1]:
            raise ArgumentError(f"clip is (lowest, highest) with lowest < highest, got {clip}")
        self.network, self.path, self.parameterisation = network, flow.path, parameterisation
        self.clip, self.clip_in_training = clip, clip_in_training
        self.target_std: float = getattr(getattr(flow, "endpoints", None), "target_std", 0.0)

    def forward(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        mean = belief.mean
        output = self.network(mean, t)
        if output.dtype != mean.dtype:
            output = output.to(mean.dtype)
        if output.shape != mean.shape:
            raise ArgumentError(f"the network must keep the shape {tuple(mean.shape)}, returned {tuple(output.shape)}")
        if self.parameterisation == "x" or self.path is None:
            prediction = output
        else:
            a, b = (over_events(c, mean) for c in self.path.coefficients(t))
            # Where a belief says nothing yet (a = 0; for BFN b = 0 too) the prediction is 0 or clipped, not NaN.
            nothing = torch.finfo(mean.dtype).tiny
            if self.parameterisation == "epsilon":
                prediction = (mean - b * output) / a.clamp_min(nothing)
            else:
                prediction = (mean + b * output) / (a + b).clamp_min(nothing)
        if self.clip is not None and (self.clip_in_training or not self.training):
            prediction = prediction.clamp(*self.clip)
        return DiagonalGaussian(prediction, self.target_std)
