"""The energy score, by which a predictor that draws learns the whole distribution of the data given a belief.

"Distributional Diffusion Models with Scoring Rules" (De Bortoli et al., 2025), arXiv 2502.02483.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from proxflow._math import mean_events
from proxflow.beliefs import GaussianMixture
from proxflow.errors import ArgumentError
from proxflow.examples import Predict, reads
from proxflow.flows import Flow
from proxflow.random import randn
from proxflow.training.objectives.base import Batch, BeliefObjective


def energy_score(draws: Tensor, x: Tensor, beta: float = 1.0, repulsion: float = 1.0) -> Tensor:
    """Return mean_i |X_i − x|^β − (λ/2) mean_{i≠j} |X_i − X_j|^β of each example, where |·| is the root mean square.

    With λ = 1 it is an unbiased estimate of the energy score of the draws' distribution, which only the distribution of
    x minimises: "Strictly Proper Scoring Rules, Prediction, and Estimation" (Gneiting & Raftery, 2007). The norm is
    that of whole events, divided by √d: it scores coordinates jointly, and scores of events of different size are
    comparable.

    Args:
        draws: X, (batch, m, *event).
        x: Data, (batch, *event).
        beta: β in (0, 2).
        repulsion: λ; 0 only needs one draw.

    Returns:
        (batch,).

    Raises:
        ArgumentError: The shapes do not fit, or there are fewer than 2 draws to repel each other.
    """
    if draws.ndim != x.ndim + 1 or draws[:, 0].shape != x.shape:
        raise ArgumentError(
            f"draws are (batch, m, *event) of events {tuple(x.shape)} (batch, *event), got {tuple(draws.shape)}"
        )
    number = draws.shape[1]
    total = _distance(draws[:, 0], x, beta)
    for k in range(1, number):
        total = total + _distance(draws[:, k], x, beta)
    near = total / number
    if repulsion == 0:
        return near
    if number < 2:
        raise ArgumentError(f"draws that repel each other must be at least 2, got {number}")
    apart = torch.zeros_like(near)
    for i, j in combinations(range(number), 2):
        apart = apart + _distance(draws[:, i], draws[:, j], beta)
    return near - repulsion / (number * (number - 1)) * apart


def _distance(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Return |x − y|^β, (batch,), with gradient 0 at x = y, as between an untrained network's draws (last layer 0)."""
    squared = mean_events((x - y).square())
    same = squared == 0
    return squared.masked_fill(same, 1).pow(beta / 2).masked_fill(same, 0)


@dataclass(frozen=True)
class EnergyScore(BeliefObjective):
    """A loss that trains a :class:`proxflow.DrawPredictor` by the energy score of its draws.

    Scores are weighted by the flow's weight of squared errors to the power β/2, as errors enter with the power β. The
    network evaluates the batch m times, so that a step costs m times as much as with the flow's loss.

    Args:
        flow: A flow with Gaussian beliefs.
        beta: β in (0, 2), the power of distances. Toward 2 the mean of the draws counts more and their variance less.
        repulsion: λ in [0, 1], how much draws repel each other. With 1 the score is proper: the distribution of the
            data given the belief is optimal. Less gives draws nearer to the data with too little variance; with 0 they
            collapse.
        draws: m ≥ 2, draws of each belief.

    Raises:
        ArgumentError: A setting out of range; in :meth:`loss`, a flow whose beliefs are not Gaussian.
    """

    flow: Flow[Any]
    beta: float = 1.0
    repulsion: float = 1.0
    draws: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.beta < 2:
            raise ArgumentError(f"beta must lie in (0, 2), got {self.beta}")
        if not 0 <= self.repulsion <= 1:
            raise ArgumentError(f"repulsion must lie in [0, 1], got {self.repulsion}")
        if self.draws < 2:
            raise ArgumentError(f"the energy score needs at least 2 draws of each belief, got {self.draws}")

    @property
    def passes(self) -> float:
        """Network passes for each example of a training step; see :class:`proxflow.Objective`."""
        return 3.0 * self.draws

    def score(self, predict: Predict, batch: Batch) -> Tensor:
        """Return the loss of each example, (batch,).

        ``predict`` is a :class:`proxflow.DrawPredictor`, or a function of a belief, times (batch,) and standard normal
        ``noise=`` (batch, m, *event) that returns a mixture whose means are the draws.

        Raises:
            ArgumentError: ``predict`` does not draw.
        """
        owner = getattr(predict, "module", predict)  # with several processes a module wraps the predictor
        if isinstance(owner, nn.Module) and "noise" not in reads(owner):
            raise ArgumentError(
                f"the energy score trains predictors that draw, DrawPredictor, not {type(owner).__name__}"
            )
        belief, t = batch.beliefs(batch.t), batch.t
        shape = torch.Size([len(t), self.draws, *belief.mean.shape[1:]])
        noise = randn(shape, batch.generator, belief.mean.dtype, belief.mean.device)
        predicted: GaussianMixture = batch.given(predict)(belief, t, noise=noise)
        score = energy_score(predicted.means, batch.x, self.beta, self.repulsion)
        return self.flow.weight(t).pow(self.beta / 2) * score
