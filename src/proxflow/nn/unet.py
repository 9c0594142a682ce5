"""U-Net for images.

A network reads a tensor and a time in [0, 1] and returns a tensor, without beliefs, flows or divergences; a member of
:mod:`proxflow.predictors` turns that into a predicted target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxflow.errors import ArgumentError
from proxflow.examples import Condition
from proxflow.nn.conditions import conditions, flagged, parts_of
from proxflow.nn.layers import TimeEmbedding, embed_step, event_shape, gap_embedding, refuse_out_of_range, zero


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """A residual block of two 3×3 convolutions with a time-dependent scale and shift between them.

    Args:
        inputs: Channels read.
        outputs: Channels returned.
        width: Size of the embedding of the time.
        dropout: Dropout probability.
        shift: Whether the embedding only shifts, before the second norm, instead of scaling and shifting after it.
    """

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float, shift: bool = False) -> None:
        super().__init__()
        self.shift = shift
        self.enter = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, outputs if shift else 2 * outputs))
        self.norm = _norm(outputs)
        self.leave = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self._joined(self.skip(x), self.enter(x), embedding)

    def _joined(self, skip: Tensor, entered: Tensor, embedding: Tensor) -> Tensor:
        modulation = self.modulation(embedding)[:, :, None, None]
        if self.shift:
            hidden = self.norm(entered + modulation)
        else:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm(entered), 1 + scale)
        output: Tensor = skip + self.leave(hidden)
        return output


class Resample(ResidualBlock):
    """A residual block that changes the resolution, before its first convolution and on the skip path."""

    def __init__(
        self, channels: int, width: int, dropout: float, shift: bool, resize: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(channels, channels, width, dropout, shift)
        self.resize = resize

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.enter
        return self._joined(self.resize(x), convolution(self.resize(activation(norm(x)))), embedding)


def _halved(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2)


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Attention(nn.Module):
    """Self-attention over all pixels of a feature map, added to its input."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        if channels % self.heads:
            raise ArgumentError(f"attention needs channels divisible by {self.heads} heads, got {channels} channels")
        self.norm = _norm(channels)
        self.project_in = nn.Conv2d(channels, 3 * channels, 1)
        self.project_out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        projected = self.project_in(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = projected.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = x + self.project_out(mixed.transpose(-1, -2).reshape(batch, channels, height, width))
        return output


class Stage(nn.Module):
    """A residual block, optionally followed by attention with ``head`` channels per head; 0 for none."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float, shift: bool, head: int) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, width, dropout, shift)
        self.attention = Attention(outputs, head) if head else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        output: Tensor = self.attention(self.block(x, embedding))
        return output


class Halve(nn.Conv2d):
    """A convolution that halves the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Double(nn.Conv2d):
    """A convolution at twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_doubled(x))


class UNet(nn.Module):
    """A U-Net for images of any height, width and channel count.

    The U-Net of diffusion models: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), arXiv 2006.11239.
    Images whose sides are not multiples of ``patch · 2^(levels − 1)`` are padded, and the output is cropped.

    Args:
        shape: Shape of the images read, (channels, height, width). The same weights work for other heights and widths.
        outputs: Channels returned; ``None`` for as many as are read.
        channels: Width of the first level.
        multipliers: Width of each level as a multiple of ``channels``; each further level halves the resolution.
        blocks: Residual blocks per level on the way down (one more on the way up).
        attention: Levels (0 is the finest) with self-attention; the middle of the network has it if any level has.
        patch: Side of the space-to-depth stem: ``patch × patch`` pixels become channels, so that all convolutions
            run at a ``patch``-th of the resolution. 1 for none.
        dropout: Dropout probability in the residual blocks.
        reads_end: Whether it reads a second time, ``end`` ≥ t, by an embedding of end − t that is added to that of t.
            It is initialised to zero, so that weights of a network without it predict the same.
        classes: Number of classes, for labels as condition; 0 for none. See :class:`proxflow.nn.conditions.Conditions`,
            also for the next arguments.
        vectors: Size of vectors as condition; 0 for none.
        images: Channels of images as condition; 0 for none.
        guidance: Largest guidance weight read with the condition; 0 for none.
        resample: What changes the resolution between levels: "convolution", or "block", a residual block that changes
            the resolution, as in "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal & Nichol, 2021), arXiv
            2105.05233, § 3.
        modulation: What the time embedding does in a residual block: "scale" and shift after a norm, or "shift" before
            it, as in the paper.
        attention_up: Whether on the way up attention follows "each" residual block of the levels that have it, or the
            "last" of them, as in "Score-Based Generative Modeling through Stochastic Differential Equations" (Song et al.,
            2020), arXiv 2011.13456.
        head: Channels per attention head; more if a level's channels are not a multiple of it.

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
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        patch: int = 1,
        dropout: float = 0.0,
        reads_end: bool = False,
        classes: int = 0,
        vectors: int = 0,
        images: int = 0,
        guidance: float = 0.0,
        resample: Literal["convolution", "block"] = "convolution",
        modulation: Literal["scale", "shift"] = "scale",
        attention_up: Literal["each", "last"] = "each",
        head: int = 32,
    ) -> None:
        super().__init__()
        inputs = event_shape(shape, "UNet", 3)[0]
        outputs = inputs if outputs is None else outputs
        refuse_out_of_range("UNet", dropout, outputs=outputs, channels=channels, blocks=blocks, patch=patch, head=head)
        for name, value, known in (
            ("resample", resample, ("convolution", "block")),
            ("modulation", modulation, ("scale", "shift")),
            ("attention_up", attention_up, ("each", "last")),
        ):
            if value not in known:
                raise ArgumentError(f"UNet takes {name} {' or '.join(known)}, got {value!r:.80}")
        if not multipliers or min(multipliers) < 1:
            raise ArgumentError(f"UNet needs at least one multiplier, each ≥ 1, got {tuple(multipliers)}")
        if any(not 0 <= level < len(multipliers) for level in attention):
            raise ArgumentError(f"attention names levels 0 to {len(multipliers) - 1}, got {tuple(attention)}")
        self.inputs, self.patch = inputs, patch
        self.multiple = patch * 2 ** (len(multipliers) - 1)
        places = math.prod(-(-side // self.multiple) for side in shape[1:])
        if places * (deepest := channels * multipliers[-1]) == _norm(deepest).num_groups:
            raise ArgumentError(
                f"images of {shape[1]} x {shape[2]} become one place of {deepest} channels, which UNet normalises one by "
                "one to nothing: give more channels, fewer multipliers or a smaller patch"
            )

        width = 4 * channels
        self.embed = TimeEmbedding(width)
        self.embed_gap: TimeEmbedding | None = None
        self.stem = nn.Conv2d(inputs * patch**2, channels, 3, padding=1)

        shift, blocky = modulation == "shift", resample == "block"

        def stage(inputs: int, outputs: int, attend: bool) -> Stage:
            return Stage(inputs, outputs, width, dropout, shift, head if attend else 0)

        size, skips = channels, [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(Resample(size, width, dropout, shift, _halved) if blocky else Halve(size))
                skips.append(size)
            for _ in range(blocks):
                self.down.append(stage(size, channels * multiplier, level in attention))
                size = channels * multiplier
                skips.append(size)
        self.enter = stage(size, size, bool(attention))
        self.leave = stage(size, size, False)
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                attend = level in attention and (attention_up == "each" or block == blocks)
                self.up.append(stage(size + skips.pop(), channels * multiplier, attend))
                size = channels * multiplier
            if level:
                self.up.append(Resample(size, width, dropout, shift, _doubled) if blocky else Double(size))
        self.head = nn.Sequential(_norm(size), nn.SiLU(), zero(nn.Conv2d(size, outputs * patch**2, 3, padding=1)))
        if reads_end:  # last, so that the other weights are initialised as without it
            self.embed_gap = gap_embedding(width)
        self.conditions = conditions(width, classes, vectors, images, guidance)
        self.conditional = self.conditions is not None
        # Its output is added to the stem's, as if the channels were read together. Without an image it is zero.
        self.stem_image = nn.Conv2d((images + 1) * patch**2, channels, 3, padding=1, bias=False) if images else None

    def forward(self, x: Tensor, t: Tensor, end: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.inputs:
            raise ArgumentError(f"UNet reads (batch, {self.inputs}, height, width), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        embedding = embed_step(self.embed, self.embed_gap, x.shape[0], t, end)
        told = parts_of(self.conditions, condition)
        if self.conditions is not None:
            embedding = self.conditions(embedding, told)
        hidden = self.stem(self._folded(x))
        if self.conditions is not None and self.stem_image is not None:
            shape = (x.shape[0], self.conditions.images, height, width)
            hidden = hidden + self.stem_image(self._folded(flagged(told["image"], shape, x)))
        skips = [hidden]
        for layer in self.down:
            hidden = layer(hidden) if isinstance(layer, Halve) else layer(hidden, embedding)
            skips.append(hidden)
        hidden = self.leave(self.enter(hidden, embedding), embedding)
        for layer in self.up:
            if isinstance(layer, Stage):
                hidden = layer(torch.cat([hidden, skips.pop()], dim=1), embedding)
            else:
                hidden = layer(hidden, embedding) if isinstance(layer, Resample) else layer(hidden)
        output = functional.pixel_shuffle(self.head(hidden), self.patch)
        return output[..., :height, :width]

    def _folded(self, x: Tensor) -> Tensor:
        """Return images padded to a multiple of what the levels divide by, with patches as channels."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        return functional.pixel_unshuffle(x, self.patch)
