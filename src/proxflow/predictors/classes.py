"""Predictions of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxflow.beliefs import Categorical
from proxflow.predictors.base import Predictor


class ClassPredictor(Predictor):
    """Predicts class probabilities for categorical beliefs.

    For events with channels and space (C, H, W) the network reads (batch, C·K, H, W) and returns logits of that shape; for
    other events (batch, *event, K). Two classes need one number each: the network reads the first class's 2θ − 1 without
    a class dimension and returns its logit, in the shape of the event.

    Args:
        network: Module ``(features, t) -> tensor`` of the features' shape.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, belief: Categorical, t: Tensor) -> Categorical:
        features = belief.features()
        if belief.classes == 2 or features.ndim < 4:
            return _classes(belief, self.network(features, t).to(features.dtype))
        folded = features.movedim(-1, 2).flatten(1, 2)  # (batch, C, *space, K) → (batch, C·K, *space)
        logits = self.network(folded, t).to(features.dtype)
        return Categorical(logits.unflatten(1, (-1, belief.classes)).movedim(2, -1))


def _classes(belief: Categorical, output: Tensor) -> Categorical:
    """Predicted classes from an output of the shape of the belief's features."""
    return Categorical(torch.stack([output, torch.zeros_like(output)], dim=-1) if belief.classes == 2 else output)
