"""Prediction by draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import DiagonalGaussian, GaussianMixture
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, rows
from proxflow.flows import Flow
from proxflow.predictors.base import RealPredictor
from proxflow.random import Generator, randn_like


class DrawPredictor(RealPredictor):
    """A predictor of the whole distribution of the data given the belief, p(x | belief, t), by draws from it.

    "Distributional Diffusion Models with Scoring Rules" (De Bortoli et al., 2025), arXiv 2502.02483. The network reads
    the belief's mean and standard normal noise of the same shape, and returns a draw. A belief and an exact draw from
    its posterior have the joint distribution of belief and data, so a step of any length toward the draw leads to a
    belief of the right distribution: any number of evaluations then samples the data distribution. Long steps toward
    the posterior mean, which a :class:`PointPredictor` predicts, blur. Trained by :class:`proxflow.EnergyScore`.

    Args:
        network: Module ``(features, t) -> tensor``. It reads the mean and then the noise along the first dimension of the
            event, (batch, 2C, H, W) for images and (batch, 2n) for vectors, and returns a tensor of the mean's shape; t is
            (batch,).
        flow: The flow it is trained for.
        clip: Range of the data (lowest, highest) that draws are clipped to outside training, or ``None``.

    Raises:
        ArgumentError: An empty range; when called, neither generator nor noise, or a wrong shape of noise or output.
    """

    reads = frozenset({"noise"})

    def __init__(self, network: nn.Module, flow: Flow[Any], *, clip: tuple[float, float] | None = None) -> None:
        super().__init__(network, flow, clip)

    def forward(
        self,
        belief: DiagonalGaussian,
        t: Tensor,
        *,
        generator: Generator | None = None,
        noise: Tensor | None = None,
        condition: Condition | None = None,
    ) -> DiagonalGaussian | GaussianMixture:
        """Draw from the predicted distribution at times ``t`` (batch,): once with a generator, or with given noise.

        Args:
            belief: Beliefs, (batch, *event).
            t: Their times, (batch,).
            generator: Random generator for one draw, which is the target of the step.
            noise: Standard normal noise (batch, draws, *event), for compiled code, which cannot use generators. The
                result is a mixture whose means are the draws, an estimate of the predicted distribution.
            condition: One row per example.
        """
        mean, several = belief.features(), noise is not None
        if noise is None and generator is None:
            raise ArgumentError(
                "a DrawPredictor draws its predictions and needs generator=: train it with EnergyScore; what asks for the "
                "mean of the data, as likelihoods do, needs a PointPredictor"
            )
        if noise is None:
            noise = randn_like(mean, generator)[:, None]  # type: ignore[arg-type]
        number = noise.shape[1] if noise.ndim > 1 else 0
        if number < 1 or noise.shape != (mean.shape[0], number, *mean.shape[1:]):
            raise ArgumentError(
                f"noise for beliefs {tuple(mean.shape)} has the dimension of draws, at least 1, after the batch, got "
                f"{tuple(noise.shape)}"
            )
        read = torch.cat([mean.repeat_interleave(number, 0), noise.flatten(0, 1)], dim=1)
        each = torch.arange(t.shape[0], device=t.device).repeat_interleave(number)
        drawn = self.output(read, t.repeat_interleave(number, 0), rows(condition, each))
        if drawn.shape != (number * mean.shape[0], *mean.shape[1:]):
            raise ArgumentError(
                f"the network must return events {tuple(mean.shape[1:])} for features {tuple(read.shape[1:])}, returned "
                f"{tuple(drawn.shape[1:])}"
            )
        drawn = self.clipped(drawn)
        if not several:
            return DiagonalGaussian(drawn, self.target_std)
        std = drawn.new_full((), self.target_std)
        return GaussianMixture(
            drawn.new_zeros(mean.shape[0], number), drawn.reshape(mean.shape[0], number, *drawn.shape[1:]), std
        )
