"""Prediction of points."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.predictors.base import RealPredictor, check_shape

Parameterisation = Literal["x", "epsilon", "v"]


class PointPredictor(RealPredictor):
    """A predictor of a point x̂ for Gaussian beliefs: under squared loss the posterior mean E[x | belief].

    Known elsewhere as a denoiser, with x-prediction, ε-prediction or v-prediction.

    With training beliefs μ = a x + b ε the network's output is, by ``parameterisation``:

    ==========  =========================================  ==================
    ``x``       x̂ itself
    ``epsilon`` the noise ε̂                                x̂ = (μ − b ε̂)/a
    ``v``       the velocity x̂ − ε̂ of the straight path    x̂ = (μ + b v̂)/(a + b)
    ==========  =========================================  ==================

    Args:
        network: Module ``(mean, t) -> tensor`` of the mean's shape (batch, *event); t is (batch,). See :class:`Predictor`.
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
        flow: Flow[Any],
        *,
        parameterisation: Parameterisation = "x",
        clip: tuple[float, float] | None = (-1.0, 1.0),
        clip_in_training: bool = False,
    ) -> None:
        super().__init__(network, flow, clip, clip_in_training)
        if parameterisation not in get_args(Parameterisation):
            raise ArgumentError(f"parameterisation is one of {get_args(Parameterisation)}, got {parameterisation!r}")
        if flow.path is None and parameterisation != "x":
            raise ArgumentError(f"{flow} has no Gaussian path for parameterisation {parameterisation!r}: use 'x'")
        self.parameterisation = parameterisation

    def forward(self, belief: DiagonalGaussian, t: Tensor, *, condition: Condition | None = None) -> DiagonalGaussian:
        mean = belief.mean
        output = self.output(mean, t, condition)
        check_shape(output, mean.shape)
        if self.parameterisation == "x" or self.path is None:
            prediction = output
        else:
            a, b = self.path.over(t, mean)
            # Where a = 0 (for BFN b = 0 too) the belief says nothing: the prediction is 0 or clipped, not NaN.
            nothing = torch.finfo(mean.dtype).tiny
            if self.parameterisation == "epsilon":
                prediction = (mean - b * output) / a.clamp_min(nothing)
            else:
                prediction = (mean + b * output) / (a + b).clamp_min(nothing)
        return DiagonalGaussian(self.clipped(prediction), self.target_std)
