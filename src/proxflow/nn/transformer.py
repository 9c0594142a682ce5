"""Transformer blocks, shared by networks of patches and of tokens: attention with rotary positions, and adaptive norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxflow.errors import ArgumentError
from proxflow.nn.layers import refuse_out_of_range, zero

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions, each (tokens, half the size of a head)."""


def rotary(positions: Tensor, size: int, base: float = 10_000.0) -> Angles:
    """Return the angles by which queries and keys at given positions are rotated.

    The attention of two tokens then depends only on the difference of their positions: "RoFormer: Enhanced Transformer
    with Rotary Position Embedding" (Su et al., 2021), arXiv 2104.09864, eq. 15. With several axes each rotates a share
    of the pairs: "Rotary Position Embedding for Vision Transformer" (Heo et al., 2024), arXiv 2403.13298, which uses
    base 100 for images.

    Args:
        positions: Positions of the tokens, (tokens,), or along several axes, (tokens, axes).
        size: Size of a head, a multiple of 2 · axes.
        base: Ratio of the fastest to the slowest rotation, approximately.

    Raises:
        ArgumentError: The size is not a multiple of 2 · axes.
    """
    positions = positions.reshape(len(positions), -1)
    axes = positions.shape[1]
    if size % (2 * axes):
        raise ArgumentError(f"rotary positions along {axes} axes need heads of a multiple of {2 * axes}, got {size}")
    precision = torch.promote_types(positions.dtype, torch.float32)
    count = size // (2 * axes)
    frequencies = base ** -(torch.arange(count, dtype=precision, device=positions.device) / count)
    angles = (positions.to(precision)[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate queries or keys (…, tokens, size): entries k and k + size/2 are a pair."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMS norm whose scales are cast to the precision of the input, as fused kernels need."""

    def __init__(self, width: int, elementwise_affine: bool = True) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions and normalised queries and keys with learnt scales (QK-norm).

    "Scaling Vision Transformers to 22 Billion Parameters" (Dehghani et al., 2023), arXiv 2302.05442, § 2, with RMS norm
    instead of layer norm.

    Args:
        width: Features of a token.
        heads: Number of heads, which divides the width.
        causal: Whether attention is causal: a token sees only itself and earlier ones.

    Shapes: ``x`` (batch, tokens, width) → the same.

    Raises:
        ArgumentError: The width is not a multiple of the heads.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ArgumentError(f"attention needs a width that its heads divide, got {width} and {heads} heads")
        self.heads, self.causal = heads, causal
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)
        self.norm_query, self.norm_key = (RMSNorm(width // heads) for _ in range(2))

    def forward(self, x: Tensor, angles: Angles) -> Tensor:
        query, key, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        query, key = rotate(self.norm_query(query), angles), rotate(self.norm_key(key), angles)
        mixed = functional.scaled_dot_product_attention(
            query.to(value.dtype), key.to(value.dtype), value, is_causal=self.causal
        )
        output: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return output


def hidden_width(width: int) -> int:
    """Return the hidden features of a SwiGLU layer with as many weights as two plain layers with 4 · width between.

    It has three matrices instead of two, so 8/3 · width features, as a multiple of 8.
    """
    return max(8, round(width / 3) * 8)


class SwiGLU(nn.Module):
    """Two layers, the first of which is gated: "GLU Variants Improve Transformer" (Shazeer, 2020), arXiv 2002.05202, eq. 6.

    Args:
        width: Features of a token.
        hidden: Features between the layers; ``None`` for :func:`hidden_width`.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden_width(width) if hidden is None else hidden
        self.project_in = nn.Linear(width, 2 * hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.project_in(x).chunk(2, dim=-1)
        output: Tensor = self.project_out(functional.silu(gate) * value)
        return output


class AdaptiveNorm(nn.Module):
    """RMS norm of tokens, with scale and shift computed from an embedding.

    Scale, shift and gate are initialised to zero: "Scalable Diffusion Models with Transformers" (Peebles & Xie, 2022),
    arXiv 2212.09748, § 3.2, "adaLN-Zero". Without an embedding scales are learnt, and there is neither shift nor gate.

    Args:
        width: Features of a token.
        embedding: Size of the embedding; 0 for none.
        gated: Whether it returns a gate as well.
    """

    def __init__(self, width: int, embedding: int = 0, gated: bool = True) -> None:
        super().__init__()
        self.norm = RMSNorm(width, elementwise_affine=not embedding)
        self.parts = 3 if gated else 2
        self.modulation: nn.Sequential | None = None
        if embedding:
            self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(embedding, self.parts * width)))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return normalised tokens (batch, tokens, width), and the gate (batch, 1, width), if any."""
        normed = self.norm(x)
        if self.modulation is None:
            return normed, None
        scale, shift, *gate = self.modulation(embedding)[:, None].chunk(self.parts, dim=-1)
        return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype)), gate[0] if gate else None


class Block(nn.Module):
    """Attention and a gated layer, each a residual; a new block is the identity.

    Args:
        width: Features of a token.
        heads: Number of attention heads.
        embedding: Size of the embedding that its norms adapt to; 0 for none.
        hidden: Features of the gated layer; ``None`` for :func:`hidden_width`.
        causal: Whether attention is causal: a token sees only itself and earlier ones.
        dropout: Dropout probability of the features that are added.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        embedding: int = 0,
        hidden: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_attention, self.norm_layer = AdaptiveNorm(width, embedding), AdaptiveNorm(width, embedding)
        self.attention, self.layer = Attention(width, heads, causal), SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)
        for part in (self.attention, self.layer):
            nn.init.xavier_uniform_(part.project_in.weight)
            nn.init.xavier_uniform_(part.project_out.weight)
            if not embedding:  # there is no gate initialised to zero
                zero(part.project_out)

    def forward(self, x: Tensor, angles: Angles, embedding: Tensor | None = None) -> Tensor:
        normed, gate = self.norm_attention(x, embedding)
        x = self._added(x, self.attention(normed, angles), gate)
        normed, gate = self.norm_layer(x, embedding)
        return self._added(x, self.layer(normed), gate)

    def _added(self, x: Tensor, made: Tensor, gate: Tensor | None) -> Tensor:
        made = self.dropout(made)
        return x + made if gate is None else torch.addcmul(x, made.to(x.dtype), gate.to(x.dtype))


class Transformer(nn.Module):
    """Transformer blocks and a final norm: tokens in, tokens out.

    Args:
        width: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads, which divides the width.
        embedding: Size of an embedding, of times and the like, that all norms adapt to; 0 for none.
        hidden: Features of the gated layers; ``None`` for :func:`hidden_width`.
        causal: Whether attention is causal: a token sees only itself and earlier ones.
        dropout: Dropout probability of the features that a block adds.
        base: See :func:`rotary`.

    Shapes: ``x`` (batch, tokens, width), ``positions`` (tokens,) or (tokens, axes), ``embedding`` (batch, embedding) →
    (batch, tokens, width).

    Raises:
        ArgumentError: An argument is out of range, or the sizes do not divide; when called, an embedding is missing, or
            given to blocks without one.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        embedding: int = 0,
        hidden: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        counts = {} if hidden is None else {"hidden": hidden}
        refuse_out_of_range("a transformer", dropout, width=width, depth=depth, heads=heads, **counts)
        self.head, self.base, self.adapts = width // heads, base, embedding > 0
        self.blocks = nn.ModuleList(
            Block(width, heads, embedding=embedding, hidden=hidden, causal=causal, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = AdaptiveNorm(width, embedding, gated=False)

    def forward(self, x: Tensor, positions: Tensor, embedding: Tensor | None = None) -> Tensor:
        if (embedding is not None) is not self.adapts:
            raise ArgumentError(
                f"these blocks {'adapt to an' if self.adapts else 'adapt to no'} embedding: "
                f"{'give one' if self.adapts else 'build them with embedding=SIZE, or give none'}"
            )
        angles = rotary(positions.to(torch.promote_types(x.dtype, torch.float32)), self.head, self.base)
        for block in self.blocks:
            x = block(x, angles, embedding)
        output: Tensor = self.norm(x, embedding)[0]
        return output
