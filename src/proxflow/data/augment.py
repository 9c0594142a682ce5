"""Augmentation: images changed at random at each step, as a function of the step's seed and their place in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams, mix

NAMES = ("flip", "crop", "zoom", "binarise")
"""What may be done to images, in the order in which it is done."""

_SHIFT = 8
"""Images are moved by up to their sides over this."""

_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
"""Share of an image that is taken, and ratio of its width to its height in units of the image's."""


@dataclass(frozen=True)
class Augmentation:
    """Changes of images, uint8 (batch, channels, height, width), that keep their shape.

    Args:
        names: Which, of :data:`NAMES`.
    """

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Augmentation:
        """Return what the words between commas say; ``flip!`` is flip, see :func:`refuse_mirrored`.

        Raises:
            ArgumentError: One is unknown.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in (*NAMES, "flip!"):
                raise ArgumentError(f"augment takes {', '.join(NAMES)}, with commas between them, got {word!r:.80}")
        words = ["flip" if word == "flip!" else word for word in words]
        return cls(tuple(name for name in NAMES if name in words))

    def check(self, x: Tensor) -> None:
        """Refuse what is no images, if anything is to be done.

        Raises:
            ArgumentError: They are no images of bytes.
        """
        if self.names and (x.dtype != torch.uint8 or x.ndim != 4):
            raise ArgumentError(
                f"augment is for images of bytes (number, channels, height, width), got {x.dtype} {tuple(x.shape)}: leave "
                "it out"
            )

    def __call__(self, x: Tensor, seed: int, places: range) -> Tensor:
        """Change images.

        Args:
            x: The images.
            seed: Seed of the step.
            places: Their places in the whole batch, on which, with the seed, it depends how each is changed.

        Raises:
            ArgumentError: They are no images of bytes.
        """
        self.check(x)
        if not self.names:
            return x
        streams = SampleStreams(seed, torch.arange(places.start, places.stop, device=x.device))
        u = streams.uniform(torch.Size([len(x), 7]), torch.float64)  # of each change its own, whatever others there are
        if "flip" in self.names:
            x = torch.where(u[:, 0, None, None, None] < 0.5, x.flip(-1), x)
        if "crop" in self.names:
            x = _moved(_moved(x, u[:, 1], 2), u[:, 2], 3)
        x = _zoomed(x, u[:, 3:]) if "zoom" in self.names else x
        return binarised(x, seed, places) if "binarise" in self.names else x


def binarised(x: Tensor, seed: int, places: range) -> Tensor:
    """Draw each value as 0 or 255, its share of 255 being the probability of the latter.

    Known as dynamic binarisation: "Importance Weighted Autoencoders" (Burda et al., 2016), arXiv 1509.00519, § 5.

    Args:
        x: Bytes (batch, …).
        seed: Seed of the draws.
        places: Places of the examples, on which, with the seed, their draws depend.
    """
    generator, drawn = torch.Generator(), torch.empty(x.shape)
    # A generator for each example, as streams of single numbers take longer than training on what they draw.
    for row, place in zip(drawn, places, strict=True):
        row.uniform_(generator=generator.manual_seed(mix(seed, place)))
    return torch.where(255 * drawn.to(x.device) < x, 255, 0).to(torch.uint8)


def refuse_mirrored(text: str, name: str | None) -> None:
    """Refuse to mirror images of digits and letters, unless ``flip!`` says so.

    Args:
        text: What is to be done to images.
        name: The data set, if it has a name.

    Raises:
        ArgumentError: They are to be mirrored.
    """
    if name in ("mnist", "emoji") and "flip" in (word.strip() for word in text.split(",")):
        raise ArgumentError(
            f"augment: {name} has digits and letters, which mirrored are others: leave flip out, or give flip! to mirror "
            "them all the same"
        )


def _moved(x: Tensor, u: Tensor, axis: int) -> Tensor:
    """Move each image along an axis by up to an eighth of its side; what lies at the edge is mirrored."""
    side = x.shape[axis]
    most = min(max(1, side // _SHIFT), side - 1)
    shift = (u * (2 * most + 1)).floor().long() - most
    place = (torch.arange(side, device=x.device) + shift[:, None]).abs()
    place = side - 1 - (side - 1 - place).abs()
    return x.gather(axis, place[:, None, :, None].expand_as(x) if axis == 2 else place[:, None, None].expand_as(x))


def _zoomed(x: Tensor, u: Tensor) -> Tensor:
    """Scale a part of each image to its whole; u (batch, 4) says which."""
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * u[:, 0]
    aspect = (_ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** u[:, 1]).sqrt()
    width, height = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    zero = torch.zeros_like(width)
    right, down = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)
    affine = torch.stack([width, zero, right, zero, height, down], dim=1).reshape(-1, 2, 3).float()
    grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
    drawn = functional.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn.round().clamp(0, 255).to(torch.uint8)
