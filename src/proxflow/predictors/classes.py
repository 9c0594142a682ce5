"""Prediction of class probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import Categorical, Revealed
from proxflow.examples import Condition
from proxflow.flows import Flow
from proxflow.predictors.base import Predictor


class ClassPredictor(Predictor):
    """A predictor of class probabilities for categorical beliefs.

    For images (C, H, W) the network reads (batch, C·K, H, W) and returns logits of that shape; for other events (batch,
    *event, K). Two classes need one number each: the network reads the first class's 2θ − 1 without a class dimension
    and returns its logit, in the shape of the event. A network with ``reads_tokens = True`` is given class indices, −1
    for hidden tokens, if the belief holds nothing else.

    Args:
        network: Module ``(features, t) -> tensor`` of the features' shape.
        flow: The flow it is trained for, if it is to be guided in that flow's geometry.
    """

    def __init__(self, network: nn.Module, flow: Flow[Any] | None = None) -> None:
        super().__init__(network, flow)

    def forward(self, belief: Categorical | Revealed, t: Tensor, *, condition: Condition | None = None) -> Categorical:
        if isinstance(belief, Revealed) and getattr(self.network, "reads_tokens", False):
            return classes_of(belief, self.output(belief.tokens, t, condition))
        features = belief.features()
        if belief.classes == 2 or features.ndim < 4:
            return classes_of(belief, self.output(features, t, condition))
        folded = features.movedim(-1, 2).flatten(1, 2)  # (batch, C, *space, K) → (batch, C·K, *space)
        logits = self.output(folded, t, condition)
        return Categorical(logits.reshape(logits.shape[0], -1, belief.classes, *logits.shape[2:]).movedim(2, -1))


def classes_of(belief: Categorical | Revealed, output: Tensor) -> Categorical:
    """Return predicted classes from an output of the shape of the belief's features."""
    return Categorical(torch.stack([output, torch.zeros_like(output)], dim=-1) if belief.classes == 2 else output)
