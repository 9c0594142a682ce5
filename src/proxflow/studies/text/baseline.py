"""The autoregressive baseline: each token given the earlier ones, by the flows' transformer with a causal mask."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from proxflow._math import class_cross_entropy, mean_events, sum_events
from proxflow.random import Generator, SampleStreams, gumbel_max


class Autoregressive(nn.Module):
    """A predictor of each token given those before it.

    Args:
        network: A causal network that reads class indices (batch, context), −1 for none.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, context, classes) of the tokens ``x`` (batch, context)."""
        before = nn.functional.pad(x[:, :-1], (1, 0), value=-1)
        logits: Tensor = self.network(before, torch.zeros(len(x), device=x.device))
        return logits

    def negative_log_likelihood(self, x: Tensor) -> Tensor:
        """Return −log p(x) of each text, nats, exactly: (batch,)."""
        return sum_events(class_cross_entropy(self(x).double(), x))

    @torch.no_grad()
    def sample(self, number: int, context: int, seed: int) -> Tensor:
        """Draw texts, int64 (number, context), with ``context`` network evaluations."""
        x, streams = torch.zeros(number, context, dtype=torch.int64), SampleStreams(seed, torch.arange(number))
        for place in range(context):
            x[:, place] = gumbel_max(self(x)[:, place].double().log_softmax(-1), streams)
        return x


class NextToken:
    """The loss of the baseline, for :func:`proxflow.fit`."""

    passes: ClassVar[float] = 3.0

    def __repr__(self) -> str:
        return "NextToken()"

    def loss(self, predict: Any, x: Tensor, generator: Generator, t: Tensor | None = None, **told: Any) -> Tensor:
        """Return −log p(x) of each text, a mean over its tokens, (batch,)."""
        return mean_events(class_cross_entropy(predict(x), x))
