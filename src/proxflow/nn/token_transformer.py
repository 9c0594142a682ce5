"""A transformer of tokens: class probabilities or indices in, class logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.nn.conditions import conditions, parts_of
from proxflow.nn.layers import TimeEmbedding, event_shape, zero
from proxflow.nn.transformer import Transformer

_WIDEST_EMBEDDING = 128
"""Largest time embedding: with a wider one the adaptive norms would hold half of all weights."""


class TokenTransformer(nn.Module):
    """A transformer with rotary positions that reads a belief about each token and returns class logits.

    Probabilities are read as the mean of the class embeddings under them, so that a certain class gives its embedding
    and no array larger than the input is made. The blocks, whose norms adapt to the time and start as plain ones, are
    those of :class:`proxflow.nn.transformer.Transformer`.

    Args:
        shape: Shape of the input: (context, classes of a token); for two classes (context,).
        width: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads, which divides the width.
        dropout: Dropout probability of the features that a block adds.
        causal: Whether attention is causal, as for an autoregressive model.
        classes: Number of classes, for labels as condition; 0 for none. See :class:`proxflow.nn.conditions.Conditions`,
            also for the next arguments.
        vectors: Size of vectors as condition; 0 for none.

    Shapes: ``x`` is 2θ − 1 for probabilities θ, (batch, *shape) of real numbers, for two classes that of the first; or
    class indices int64 (batch, context), −1 where nothing is known. ``t`` (batch,) or a scalar → logits (batch,
    *shape), for two classes the log-odds of the first.

    Raises:
        ArgumentError: An argument is out of range, or ``x`` has another shape; a condition differs from what it was
            built for.
    """

    reads_tokens = True
    """Whether it reads class indices, if a belief has nothing else."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        causal: bool = False,
        classes: int = 0,
        vectors: int = 0,
    ) -> None:
        super().__init__()
        self.shape = event_shape(shape, "TokenTransformer")
        if len(self.shape) > 2:
            raise ArgumentError(f"TokenTransformer needs a shape (context, classes) or (context,), got {self.shape}")
        self.symbols = self.shape[1] if len(self.shape) == 2 else 2
        embedding = min(width + width % 2, _WIDEST_EMBEDDING)
        self.blocks = Transformer(width, depth, heads, embedding=embedding, causal=causal, dropout=dropout)
        self.embed = TimeEmbedding(embedding)
        self.enter = nn.Parameter(torch.randn(self.symbols, width))
        # Not zero: hidden tokens, which have nothing else, would have zero queries in the attention.
        self.begin = nn.Parameter(torch.randn(width))
        self.leave = zero(nn.Linear(width, 1 if len(self.shape) == 1 else self.symbols))
        self.conditions = conditions(embedding, classes, vectors)
        self.conditional = self.conditions is not None
        self.register_buffer("places", torch.arange(self.shape[0]), persistent=False)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        wanted = self.shape if x.is_floating_point() else self.shape[:1]
        if tuple(x.shape[1:]) != wanted:
            raise ArgumentError(f"TokenTransformer reads (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
        embedding = self.embed(t.expand(x.shape[0]))
        told = parts_of(self.conditions, condition)
        if self.conditions is not None:
            embedding = self.conditions(embedding, told)
        output: Tensor = self.leave(self.blocks(self._entered(x), self.places, embedding))
        return output.squeeze(-1) if len(self.shape) == 1 else output

    def _entered(self, x: Tensor) -> Tensor:
        """Return Σ_k θ_k W_k + b, (batch, context, width)."""
        weight = self.enter
        if not x.is_floating_point():
            known = (x >= 0)[..., None]
            return torch.where(known, nn.functional.embedding(x.clamp_min(0), weight), 0) + self.begin
        if x.ndim == 2:
            return 0.5 * ((1 + x)[..., None] * weight[0] + (1 - x)[..., None] * weight[1]) + self.begin
        # Σ θ_k W_k = ½ (Σ (2θ_k − 1) W_k + Σ W_k): θ itself would be one more array of the input's size.
        return 0.5 * (x @ weight) + (0.5 * weight.sum(0) + self.begin)
