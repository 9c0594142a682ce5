"""Augmentation: random changes of images, a function of the step's seed and their index in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams, mix

NAMES = ("flip", "crop", "zoom", "binarise")
"""The augmentations, in the order of application."""

_TAKE = ("crop", "zoom")
"""Those that can also take squares of larger images."""

_SHIFT = 8
"""Images are shifted by up to their sides divided by this."""

_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
"""Range of the fraction of an image's area that is taken, and of its aspect ratio relative to the image's."""


@dataclass(frozen=True)
class Augmentation:
    """Changes of images, uint8 (batch, channels, height, width).

    Shapes are kept, unless squares are taken of larger images, as in "Going Deeper with Convolutions" (Szegedy et al.,
    2014), arXiv 1409.4842, § 6.

    Args:
        names: Some of :data:`NAMES`.
        taken: The one of crop and zoom that takes squares of larger images, and their side: crop takes windows, zoom
            scales parts to this size.
    """

    names: tuple[str, ...] = ()
    taken: tuple[str, int] | None = None

    @classmethod
    def of(cls, text: str) -> Augmentation:
        """Return the augmentation of a comma-separated list; ``flip!`` is flip, see :func:`refuse_mirrored`.

        ``crop:64`` and ``zoom:64`` take squares of this side of larger images.

        Raises:
            ArgumentError: One is unknown, or they exclude each other.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        taken = []
        for word in words:
            name, colon, side = word.partition(":")
            if word not in (*NAMES, "flip!") and name not in _TAKE:
                raise ArgumentError(f"augment takes {', '.join(NAMES)}, with commas between them, got {word!r:.80}")
            if colon and not (side.isdecimal() and 1 <= int(side) <= 4096):
                raise ArgumentError(f"augment: expected a side of 1 to 4096 pixels, as {name}:64, got {word!r:.80}")
            if colon:
                taken.append((name, int(side)))
        if len(taken) > 1:
            raise ArgumentError(
                f"augment: one of {' and '.join(f'{name}:{side}' for name, side in taken)} says of which side images are: "
                "leave the other out, or its number"
            )
        if any(name in words for name, _ in taken):
            raise ArgumentError(f"augment: {taken[0][0]} and {taken[0][0]}:{taken[0][1]} are two things: leave one out")
        words = [word.rstrip("!").partition(":")[0] for word in words]
        if taken and taken[0][0] == "zoom" and "binarise" in words:
            raise ArgumentError(
                f"augment: zoom:{taken[0][1]} scales pixels, and black and white ones cannot be scaled: take "
                f"crop:{taken[0][1]}, or smaller images"
            )
        return cls(tuple(name for name in NAMES if name in words), taken[0] if taken else None)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of augmented images (channels, height, width)."""
        return tuple(shape) if self.taken is None else (shape[0], self.taken[1], self.taken[1])

    def check(self, x: Tensor) -> None:
        """Refuse data that are not images, if there is any augmentation, and images smaller than the squares.

        Raises:
            ArgumentError: They are not images of bytes, or too small.
        """
        if self.names and (x.dtype != torch.uint8 or x.ndim != 4):
            raise ArgumentError(
                f"augment is for images of bytes (number, channels, height, width), got {x.dtype} {tuple(x.shape)}: leave "
                "it out"
            )
        if self.taken is None:
            return
        (name, side), (height, width) = self.taken, x.shape[2:]
        if min(height, width) < side or height == width == side:
            raise ArgumentError(
                f"augment: {name}:{side} takes squares of {side} x {side} of larger images, and these are {height} x "
                f"{width}: keep them larger (of pictures --size), or take smaller squares"
            )
        if name == "zoom" and height != width:
            raise ArgumentError(
                f"augment: zoom:{side} is for square images, and these are {height} x {width}: make squares of them (of "
                f"pictures --size), or take crop:{side}"
            )

    def whole(self, x: Tensor) -> Tensor:
        """Return held-out images in the shape of training ones: their centre crop, or each one scaled.

        Args:
            x: The images (batch, channels, height, width); those of the right shape stay unchanged.

        Raises:
            ArgumentError: As :meth:`check`.
        """
        if self.taken is None or x.shape[2:] == (self.taken[1], self.taken[1]):
            return x
        self.check(x)
        (name, side), (height, width) = self.taken, x.shape[2:]
        if name == "zoom":
            return torch.cat([_scaled(one[None], side) for one in x])
        top, left = (height - side) // 2, (width - side) // 2
        return x[:, :, top : top + side, left : left + side].contiguous()

    def __call__(self, x: Tensor, seed: int, places: range) -> Tensor:
        """Change images.

        Args:
            x: The images.
            seed: Seed of the step.
            places: Their indices in the whole batch, which with the seed determine the changes.

        Raises:
            ArgumentError: As :meth:`check`.
        """
        self.check(x)
        if not self.names:
            return x
        streams = SampleStreams(seed, torch.arange(places.start, places.stop, device=x.device))
        u = streams.uniform(torch.Size([len(x), 7]), torch.float64)  # separate ones for each change
        name, side = self.taken or ("", 0)
        if "flip" in self.names:
            x = torch.where(u[:, 0, None, None, None] < 0.5, x.flip(-1), x)
        if "crop" in self.names:
            cut = (lambda x, u, axis: _window(x, u, axis, side)) if name == "crop" else _moved
            x = cut(cut(x, u[:, 1], 2), u[:, 2], 3)
        if "zoom" in self.names:
            x = _parts(x, u[:, 3:], side) if name == "zoom" else _zoomed(x, u[:, 3:])
        return binarised(x, seed, places) if "binarise" in self.names else x


def binarised(x: Tensor, seed: int, places: range) -> Tensor:
    """Draw each value as 0 or 255, the latter with probability value/255.

    Known as dynamic binarisation: "Importance Weighted Autoencoders" (Burda et al., 2016), arXiv 1509.00519, § 5.

    Args:
        x: Bytes (batch, …).
        seed: Seed of the draws.
        places: Indices of the examples, which with the seed determine their draws.
    """
    generator, drawn = torch.Generator(), torch.empty(x.shape)
    # A generator for each example, as streams of single numbers would take longer than training.
    for row, place in zip(drawn, places, strict=True):
        row.uniform_(generator=generator.manual_seed(mix(seed, place)))
    return torch.where(255 * drawn.to(x.device) < x, 255, 0).to(torch.uint8)


def refuse_mirrored(text: str, name: str | None) -> None:
    """Refuse to mirror images of digits and letters, unless with ``flip!``.

    Args:
        text: The list of augmentations.
        name: The data set, if it has a name.

    Raises:
        ArgumentError: They would be mirrored.
    """
    if name in ("mnist", "emoji") and "flip" in (word.strip() for word in text.split(",")):
        raise ArgumentError(
            f"augment: {name} has digits and letters, which mirrored are others: leave flip out, or give flip! to mirror "
            "them all the same"
        )


def _moved(x: Tensor, u: Tensor, axis: int) -> Tensor:
    """Shift each image along an axis by up to an eighth of its side, with reflected edges."""
    side = x.shape[axis]
    most = min(max(1, side // _SHIFT), side - 1)
    shift = (u * (2 * most + 1)).floor().long() - most
    place = (torch.arange(side, device=x.device) + shift[:, None]).abs()
    return _at(x, side - 1 - (side - 1 - place).abs(), axis)


def _window(x: Tensor, u: Tensor, axis: int, side: int) -> Tensor:
    """Take a uniformly random window of each image along an axis."""
    return _at(x, _first(u, x.shape[axis] - side)[:, None] + torch.arange(side, device=x.device), axis)


def _first(u: Tensor, most: Tensor | int) -> Tensor:
    """Return uniform integers from 0 to ``most``, from uniform numbers (batch,)."""
    return (u * (most + 1)).floor().long().clamp_max(most)


def _at(x: Tensor, place: Tensor, axis: int) -> Tensor:
    """Select rows or columns of each image by their indices (batch, side)."""
    place = place[:, None, :, None] if axis == 2 else place[:, None, None]
    shape = [len(x), *x.shape[1:]]
    shape[axis] = place.shape[axis]
    return x.gather(axis, place.expand(shape))


def _parts(x: Tensor, u: Tensor, side: int) -> Tensor:
    """Scale a part of each square image to a smaller square; u (batch, 4) says which."""
    whole, (width, height) = x.shape[-1], _sides(u)
    wide, high = ((share * whole).round().long().clamp(1, whole) for share in (width, height))
    left, top = _first(u[:, 2], whole - wide), _first(u[:, 3], whole - high)
    places = torch.stack([top, top + high, left, left + wide], dim=1).tolist()
    return torch.cat([_scaled(one[None, :, t:b, a:z], side) for one, (t, b, a, z) in zip(x, places, strict=True)])


def _scaled(x: Tensor, side: int) -> Tensor:
    """Scale an image (1, channels, height, width) to a square."""
    # One by one, so that the result does not depend on other images.
    drawn = functional.interpolate(x.float(), (side, side), mode="bilinear", align_corners=False, antialias=True)
    return drawn.round().clamp(0, 255).to(torch.uint8)


def _sides(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return width and height of parts, as fractions of the image's, from uniform numbers (batch, 2 or more)."""
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * u[:, 0]
    aspect = (_ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** u[:, 1]).sqrt()
    return (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)


def _zoomed(x: Tensor, u: Tensor) -> Tensor:
    """Scale a part of each image to its full size; u (batch, 4) says which."""
    width, height = _sides(u)
    zero = torch.zeros_like(width)
    right, down = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)
    affine = torch.stack([width, zero, right, zero, height, down], dim=1).reshape(-1, 2, 3).float()
    grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
    drawn = functional.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn.round().clamp(0, 255).to(torch.uint8)
