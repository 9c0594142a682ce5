"""Common parts of networks: checks of arguments, the embedding of times, and layers initialised to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError


def event_shape(shape: Sequence[int], network: str, dimensions: int | None = None) -> tuple[int, ...]:
    """Return the shape of an event as a tuple.

    Raises:
        ArgumentError: It is not a sequence of integers ≥ 1, or has another number of dimensions.
    """
    wanted = (
        "(channels, height, width)" if dimensions == 3 else "of an event, as (channels, height, width) or (columns,)"
    )
    found = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if dimensions == 3 and len(found) in (1, 2) and all(isinstance(n, int) and n > 0 for n in found):
        raise ArgumentError(
            f"{network} is for images, (channels, height, width), and these data have the shape {found}: take mlp, or leave "
            "the network out"
        )
    if not found or any(not isinstance(n, int) or n < 1 for n in found) or dimensions not in (None, len(found)):
        raise ArgumentError(f"{network} needs a shape {wanted}, each number ≥ 1, got {shape!r}")
    return found


def refuse_out_of_range(network: str, dropout: float, **counts: int) -> None:
    """Refuse arguments of a network that are out of range.

    Raises:
        ArgumentError: A count is < 1, or the probability ``dropout`` does not lie in [0, 1).
    """
    for name, value in counts.items():
        if value < 1:
            raise ArgumentError(f"{network} needs {name} ≥ 1, got {value}")
    if not 0 <= dropout < 1:
        raise ArgumentError(f"{network} needs 0 ≤ dropout < 1, got {dropout}")


class TimeEmbedding(nn.Module):
    """Fourier features of the time, followed by a two-layer perceptron.

    Args:
        width: Size of the embedding, even.
        highest: Highest angular frequency.

    Shapes: ``t`` (batch,) in [0, 1] → (batch, width).
    """

    frequencies: Tensor

    def __init__(self, width: int, highest: float = 200 * math.pi) -> None:
        super().__init__()
        # Angular frequencies from π/2 (one slow sweep over [0, 1]) to the highest, geometrically spaced.
        exponents = torch.linspace(math.log(math.pi / 2), math.log(highest), width // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        embedded: Tensor = self.layers(waves.to(next(self.layers.parameters()).dtype))
        return embedded


Layer = TypeVar("Layer", bound=nn.Module)


def zero(layer: Layer) -> Layer:
    """Initialise a layer to zero, so that the residual block that it ends starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def embed_step(
    embed: TimeEmbedding, embed_gap: TimeEmbedding | None, batch: int, t: Tensor, end: Tensor | None
) -> Tensor:
    """Return the embedding of times t and, if the network reads them, of end times of steps: (batch, width).

    Args:
        embed: Embeds t.
        embed_gap: Embeds end − t; ``None`` for a network that reads no end.
        batch: Number of examples.
        t: Times in [0, 1], (batch,) or a scalar.
        end: Ends ≥ t, as t; ``None`` for t itself.

    Raises:
        ArgumentError: An end is given to a network that reads none.
    """
    if end is not None and embed_gap is None:
        raise ArgumentError("this network reads no end of a step: build it with reads_end=True")
    embedding: Tensor = embed(t.expand(batch))
    if embed_gap is not None:
        gap = torch.zeros_like(t) if end is None else end - t
        embedding = embedding + embed_gap(gap.expand(batch))
    return embedding


def gap_embedding(width: int) -> TimeEmbedding:
    """Return an embedding of end − t initialised to zero: weights from a network without it predict the same."""
    # Low frequencies: effective targets change little with the end time, and derivatives pass through here.
    embedding = TimeEmbedding(width, 8 * math.pi)
    zero(embedding.layers[-1])
    return embedding
