"""Prediction of bin probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxflow.beliefs import Binned, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.flows import DiscretisedBFN
from proxflow.predictors.base import Predictor, check_shape


class BinnedPredictor(Predictor):
    """A predictor of bin probabilities, as the mass of a Gaussian in each bin.

    "Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037, §5. The network returns two numbers (ε̂, s) for each
    coordinate: for images (C, H, W) the shape is (batch, 2C, H, W), C channels of ε̂ and then C of s; for other events it is
    (batch, *event, 2). With training beliefs μ = a x + b ε the Gaussian is

        N((μ − b ε̂)/a, (b e^s/a)²),  s clamped to ±10, then the standard deviation to [1e-3, 10].

    If a belief holds no information yet (a = 0), it is N(0, 1).

    Args:
        network: Module ``(mean, t) -> tensor`` as described; t is (batch,).
        flow: The flow it is trained for, with its bins and path.

    Raises:
        ArgumentError: The flow has no Gaussian path.
    """

    def __init__(self, network: nn.Module, flow: DiscretisedBFN) -> None:
        if not isinstance(flow, DiscretisedBFN):
            raise ArgumentError(f"bins are predicted for DiscretisedBFN, which has them, got {flow}")
        super().__init__(network, flow)
        self.accuracies, self.bins = flow.accuracies, flow.bins

    def gaussian(self, belief: DiagonalGaussian, t: Tensor, *, condition: Condition | None = None) -> DiagonalGaussian:
        """Return the Gaussian whose mass in the bins is the prediction."""
        mean = belief.features()
        output = self.output(mean, t, condition)
        images = mean.ndim >= 4
        wanted = (mean.shape[0], 2 * mean.shape[1], *mean.shape[2:]) if images else (*mean.shape, 2)
        check_shape(output, wanted, "return two numbers for each coordinate,")
        noise, log_std = output.chunk(2, dim=1) if images else output.unbind(-1)
        a, b = self.accuracies.over(t, mean)
        silent = a < 1e-12
        a = a.clamp_min(1e-12)
        centre = torch.where(silent, 0, (mean - b * noise) / a)
        std = torch.where(silent, 1, b / a * log_std.clamp(-10, 10).exp()).clamp(1e-3, 10)
        return DiagonalGaussian(centre, std)

    def forward(self, belief: DiagonalGaussian, t: Tensor, *, condition: Condition | None = None) -> Binned:
        gaussian = self.gaussian(belief, t, condition=condition)
        return Binned.of_gaussian(gaussian.mean, gaussian.std, self.bins)
