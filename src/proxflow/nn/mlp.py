"""Multilayer perceptron for events of any shape, each read as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.nn.conditions import conditions, parts_of
from proxflow.nn.layers import TimeEmbedding, embed_step, event_shape, gap_embedding, refuse_out_of_range, zero


class _Block(nn.Module):
    """A residual block of two layers, whose input is scaled and shifted by the time."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width))
        last = zero(nn.Linear(width, width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        output: Tensor = x + self.layers(torch.addcmul(shift, x, 1 + scale))
        return output


class MLP(nn.Module):
    """A multilayer perceptron of residual blocks, for vectors, rows of a table and small events of any shape.

    The time scales and shifts the features of each block: "FiLM: Visual Reasoning with a General Conditioning Layer"
    (Perez et al., 2017), arXiv 1709.07871. There is no normalisation: in few dimensions all features of a layer may be
    nearly equal somewhere, and its derivatives would be unbounded there and make likelihoods useless.

    Args:
        shape: Shape of the events read.
        outputs: Size of the first output dimension; ``None`` for that of the events.
        width: Features of each layer.
        depth: Residual blocks.
        dropout: Dropout probability in the blocks.
        reads_end: Whether it reads a second time, ``end`` ≥ t, as :class:`UNet` does.
        classes: Number of classes, for labels as condition; 0 for none. See :class:`proxflow.nn.conditions.Conditions`,
            also for the next arguments.
        vectors: Size of vectors as condition; 0 for none.
        guidance: Largest guidance weight read with the condition; 0 for none.

    Shapes: ``x`` (batch, *shape), ``t`` and ``end`` (batch,) or scalars → (batch, outputs, *shape[1:]). ``end``
    defaults to t.

    Raises:
        ArgumentError: An argument is out of range, ``x`` has another shape, or an ``end`` is given to a network that
            reads none; a condition differs from what it was built for.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        reads_end: bool = False,
        classes: int = 0,
        vectors: int = 0,
        guidance: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = event_shape(shape, "MLP")
        first, *rest = self.shape
        self.returned = (first if outputs is None else outputs, *rest)
        refuse_out_of_range("MLP", dropout, outputs=self.returned[0], width=width, depth=depth)
        embedding = width + width % 2
        self.embed = TimeEmbedding(embedding)
        self.embed_gap: TimeEmbedding | None = None
        self.enter = nn.Linear(math.prod(self.shape), width)
        self.blocks = nn.ModuleList(_Block(width, embedding, dropout) for _ in range(depth))
        last = zero(nn.Linear(width, math.prod(self.returned)))
        self.head = nn.Sequential(nn.SiLU(), last)
        if reads_end:  # last, so that the other weights are initialised as without it
            self.embed_gap = gap_embedding(embedding)
        self.conditions = conditions(embedding, classes, vectors, guidance=guidance)
        self.conditional = self.conditions is not None

    def forward(self, x: Tensor, t: Tensor, end: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ArgumentError(f"MLP reads (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        embedding = embed_step(self.embed, self.embed_gap, x.shape[0], t, end)
        told = parts_of(self.conditions, condition)
        if self.conditions is not None:
            embedding = self.conditions(embedding, told)
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        output: Tensor = self.head(hidden).unflatten(1, self.returned)
        return output
