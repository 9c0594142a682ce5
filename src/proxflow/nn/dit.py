"""Diffusion transformer (DiT): images as patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.nn.conditions import conditions, flagged, parts_of
from proxflow.nn.layers import TimeEmbedding, embed_step, event_shape, gap_embedding, refuse_out_of_range, zero
from proxflow.nn.transformer import Transformer

Size = Literal["Ti", "S", "B", "L", "XL"]

SIZES: dict[Size, tuple[int, int, int]] = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and heads by name: table 1 of the paper of :class:`DiT`, and the smaller "Ti" of vision transformers."""

_BASE = 100.0
"""Base of the rotary positions, for images of tens of patches per side; see :func:`proxflow.nn.transformer.rotary`."""


class DiT(nn.Module):
    """A diffusion transformer (DiT) for images of any height, width and channel count.

    "Scalable Diffusion Models with Transformers" (Peebles & Xie, 2022), arXiv 2212.09748, with the defaults of its
    successors: RMS norm instead of layer norm, normalised queries and keys, gated layers (SwiGLU) and rotary position
    embedding along rows and columns. The gated layers have as many weights as the plain ones of the paper, so
    parameters and operations of each size are as published. Images whose sides are not multiples of the patch are
    padded, and the output is cropped.

    Args:
        shape: Shape of the images read, (channels, height, width). The same weights work for other heights and widths.
        outputs: Channels returned; ``None`` for as many as are read.
        size: Width, depth and heads by name, see :data:`SIZES`.
        patch: Side length of a patch, in pixels.
        width: Features of a token; each head's share is a multiple of 4; ``None`` for that of the size.
        depth: Number of blocks, likewise.
        heads: Heads of the attention, likewise.
        tokens: Tokens for the condition beside those of the patches, if there are labels or vectors: "Back to Basics:
            Let Denoising Generative Models Denoise" (Li & He, 2025), arXiv 2511.13720. With 0 the condition is only
            added to the time embedding.
        dropout: Dropout probability of the features that a block adds.
        reads_end: Whether it reads a second time, ``end`` ≥ t, as :class:`proxflow.nn.UNet` does.
        classes: Number of classes, for labels as condition; 0 for none. See :class:`proxflow.nn.conditions.Conditions`,
            also for the next arguments.
        vectors: Size of vectors as condition; 0 for none.
        images: Channels of images as condition; 0 for none.
        guidance: Largest guidance weight read with the condition; 0 for none.

    Shapes: ``x`` (batch, channels, height, width), ``t`` and ``end`` (batch,) or scalars → (batch, outputs, height,
    width). ``end`` defaults to t.

    Raises:
        ArgumentError: An argument is out of range, ``x`` has another number of dimensions or channels, or an ``end`` is
            given to a network that reads none; a condition differs from what it was built for.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        outputs: int | None = None,
        size: Size = "S",
        patch: int = 2,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        tokens: int = 0,
        dropout: float = 0.0,
        reads_end: bool = False,
        classes: int = 0,
        vectors: int = 0,
        images: int = 0,
        guidance: float = 0.0,
    ) -> None:
        super().__init__()
        inputs = event_shape(shape, "DiT", 3)[0]
        outputs = inputs if outputs is None else outputs
        if size not in SIZES:
            raise ArgumentError(f"DiT has the sizes {', '.join(SIZES)}, got {size!r}")
        width, depth, heads = (
            own if given is None else given for given, own in zip((width, depth, heads), SIZES[size], strict=True)
        )
        refuse_out_of_range("DiT", dropout, outputs=outputs, patch=patch, width=width, depth=depth, heads=heads)
        if width % (4 * heads):
            raise ArgumentError(f"DiT needs a width of a multiple of 4 for each of {heads} heads, got {width}")
        if tokens < 0 or (tokens and not (classes or vectors)):
            raise ArgumentError(
                f"DiT takes tokens ≥ 0, and tokens of labels or vectors where it reads some, got {tokens}"
            )
        self.inputs, self.patch, self.width = inputs, patch, width
        self.embed = TimeEmbedding(width)
        self.embed_gap: TimeEmbedding | None = None
        self.enter = nn.Linear(inputs * patch**2, width)
        self.transformer = Transformer(width, depth, heads, embedding=width, dropout=dropout, base=_BASE)
        self.leave = zero(nn.Linear(width, outputs * patch**2))
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)
        if reads_end:  # last, so that the other weights are initialised as without it
            self.embed_gap = gap_embedding(width)
        self.conditions = conditions(width, classes, vectors, images, guidance)
        self.conditional = self.conditions is not None
        self.tokens = nn.Parameter(torch.randn(tokens, width) * 0.02) if tokens else None
        # Its output is added to that of the denoised image. Without an image it is zero.
        self.enter_image = nn.Linear((images + 1) * patch**2, width, bias=False) if images else None

    def forward(self, x: Tensor, t: Tensor, end: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.inputs:
            raise ArgumentError(f"DiT reads (batch, {self.inputs}, height, width), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        embedding = embed_step(self.embed, self.embed_gap, x.shape[0], t, end)
        told = parts_of(self.conditions, condition)
        rows, columns = (-(-side // self.patch) for side in (height, width))
        hidden, first = self.enter(self._patches(x)), 0
        if self.conditions is not None:
            if self.enter_image is not None:
                shape = (x.shape[0], self.conditions.images, height, width)
                hidden = hidden + self.enter_image(self._patches(flagged(told["image"], shape, x)))
            alone = self.conditions(torch.zeros_like(embedding), told)
            embedding = embedding + alone
            if self.tokens is not None:
                hidden, first = torch.cat([alone[:, None] + self.tokens, hidden], dim=1), len(self.tokens)
        hidden = self.transformer(hidden, _grid(first, rows, columns, x.device), embedding)[:, first:]
        output = self.leave(hidden).transpose(1, 2).unflatten(2, (rows, columns))
        return functional.pixel_shuffle(output, self.patch)[..., :height, :width]

    def _patches(self, x: Tensor) -> Tensor:
        """Return the patches of images padded to multiples of the patch, (batch, tokens, features)."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        return functional.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)


def _grid(first: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return row and column of each patch, (tokens, 2), after ``first`` tokens without a position, at 0."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device).expand(rows, columns)
    return functional.pad(torch.stack([row, column], dim=-1).flatten(0, 1), (0, 0, first, 0))
