"""Predictions of bins."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from proxflow._math import over_events
from proxflow.beliefs import Binned, DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.paths import GaussianPath
from proxflow.predictors.base import Predictor


class HasBins(Protocol):
    """A flow of discretised data: :class:`proxflow.DiscretisedBFN`."""

    @property
    def path(self) -> GaussianPath | None: ...

    @property
    def bins(self) -> int: ...


class BinnedPredictor(Predictor):
    """Predicts the mass of a Gaussian in each bin of discretised data (2308.07037, §5).

    The network returns two numbers (ε̂, s) for each coordinate, as channels: for events with channels and space (C, H, W)
    (batch, 2C, H, W), first C times ε̂ and then C times s; for other events (batch, *event, 2). With training beliefs
    μ = a x + b ε the Gaussian is

        N((μ − b ε̂)/a, (b e^s/a)²),  s clamped to ±10, then the standard deviation to [1e-3, 10].

    Where a belief says nothing yet (a = 0) it is N(0, 1).

    Args:
        network: Module ``(mean, t) -> tensor`` as described; t is (batch,).
        flow: The flow it is trained for, which has the bins and the path.

    Raises:
        ArgumentError: A flow without a Gaussian path.
    """

    def __init__(self, network: nn.Module, flow: HasBins) -> None:
        super().__init__()
        if flow.path is None:
            raise ArgumentError(f"{flow} has no Gaussian path, which bins of real data need")
        self.network, self.path, self.bins = network, flow.path, flow.bins

    def gaussian(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        """The Gaussian whose mass in the bins is predicted."""
        mean = belief.features()
        output = self.network(mean, t).to(mean.dtype)
        images = mean.ndim >= 4
        wanted = (len(mean), 2 * mean.shape[1], *mean.shape[2:]) if images else (*mean.shape, 2)
        if output.shape != wanted:
            raise ArgumentError(
                f"the network must return two numbers for each coordinate, {wanted}, returned {tuple(output.shape)}"
            )
        noise, log_std = output.chunk(2, dim=1) if images else output.unbind(-1)
        a, b = (over_events(c, mean) for c in self.path.coefficients(t))
        silent = a < 1e-12
        a = a.clamp_min(1e-12)
        centre = torch.where(silent, 0, (mean - b * noise) / a)
        std = torch.where(silent, 1, b / a * log_std.clamp(-10, 10).exp()).clamp(1e-3, 10)
        return DiagonalGaussian(centre, std)

    def forward(self, belief: DiagonalGaussian, t: Tensor) -> Binned:
        gaussian = self.gaussian(belief, t)
        return Binned.of_gaussian(gaussian.mean, gaussian.std, self.bins)
