"""Images: stored as bytes, encoded in [−1, 1]."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxflow.data import NAMED, image_files, load
from proxflow.data.arrays import holds_table
from proxflow.data.images import ImageData, to_bytes, to_range
from proxflow.data.kinds.base import Defaults, Kind, Loaded, Picture, check_share, split
from proxflow.data.pictures import holds_pictures, survey
from proxflow.errors import ArgumentError, DataError
from proxflow.examples import Examples


@dataclass(frozen=True)
class Image(Kind):
    """Images of one shape, stored as uint8 (number, channels, height, width).

    Args:
        shape: (channels, height, width).
        classes: Number of classes; 0 for none. Labels 0, 1, … are the examples' condition.

    Raises:
        ArgumentError: The shape is not of three numbers ≥ 1, or the number of classes is negative.
    """

    shape: tuple[int, ...]
    classes: int = 0

    examples_word: ClassVar[str] = "images"
    sources: ClassVar[str] = (
        f"{', '.join(NAMED)}, an existing folder of IDX files named as MNIST's or of pictures (PNG, JPEG and others), or an "
        ".npz file with the key images"
    )
    defaults: ClassVar[Defaults] = Defaults(network="unet", clip=(-1.0, 1.0), parameterisation="x")

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ArgumentError(f"images have a shape (channels, height, width), each number ≥ 1, got {self.shape}")
        if self.classes < 0:
            raise ArgumentError(f"the number of classes must be at least 0, got {self.classes}")

    @classmethod
    def takes(cls, source: str) -> bool:
        path = Path(source)
        if source in NAMED or os.path.isdir(source):
            return source in NAMED or _has_idx(path, "train") or holds_pictures(path)
        # An .npz file without a table is probably meant for images: read reports what it lacks.
        return path.suffix.lower() == ".npz" and not holds_table(path)

    @classmethod
    def read(
        cls, source: str, *, held_out: float = 0.05, seed: int = 0, size: int | None = None, **settings: Any
    ) -> Loaded:
        """Read images.

        Args:
            source: ``mnist``, ``fashion-mnist``, a folder of IDX files or of pictures, or an ``.npz`` file.
            held_out: Share kept from training, in [0, 1). For sets with test images any share above 0 holds out these.
            seed: Seed of their choice.
            size: Side of the squares that pictures of a folder are scaled to, see :func:`proxflow.data.pictures.survey`.
            **settings: None are known.

        Raises:
            ArgumentError: The share or the size is out of range, the source has its own size, or a setting is unknown.
            DataError: There is no such source, or it is damaged or of another form.
        """
        check_share(held_out)
        if settings:
            raise ArgumentError(f"images have the setting size alone, got {', '.join(settings)}")
        path = Path(source)
        idx = source in NAMED or _has_idx(path, "train")
        if size is not None and (idx or not os.path.isdir(path)):
            raise ArgumentError(f"size is for folders of pictures; {source} has a size of its own")
        notes: tuple[str, ...] = ()
        kept: Examples | None
        if idx:
            train = _examples(load(source, "train"))
            tested = held_out > 0 and (source in NAMED or _has_idx(path, "t10k"))
            kept = _examples(load(source, "test")) if tested else None
        else:
            if os.path.isdir(path):
                found = survey(path, size)
                whole, notes = Examples(found.read()), (found.describe(),)
            else:
                whole = _examples(image_files.read_images(path))
            train, kept = split(whole, held_out, seed)
        if kept is not None and kept.x.shape[1:] != train.x.shape[1:]:
            raise DataError(
                f"{source}: training images are {tuple(train.x.shape[1:])} and test images {tuple(kept.x.shape[1:])}; "
                "expected one shape"
            )
        labels = [part.condition for part in (train, kept) if part is not None and isinstance(part.condition, Tensor)]
        if any(int(part.min()) < 0 for part in labels):
            raise DataError(f"{source}: has a label below 0; expected classes 0, 1, …")
        kind = cls(tuple(train.x.shape[1:]), max((int(part.max()) + 1 for part in labels), default=0))
        height, width = kind.shape[1:]
        return Loaded(kind, train, kept, f"{len(train)} images of {height} x {width}", notes)

    def encode(self, stored: Tensor) -> Tensor:
        """Map bytes to [−1, 1], see :func:`proxflow.data.to_range`."""
        return to_range(stored)

    def decode(self, samples: Tensor) -> Tensor:
        """Round samples to bytes, see :func:`proxflow.data.to_bytes`."""
        return to_bytes(samples)

    @property
    def log_scale(self) -> float:
        """d ln 127.5: bytes are 127.5 times as far apart as in [−1, 1]."""
        return math.prod(self.shape) * math.log(127.5)

    def check_output(self, path: Path, number: int) -> None:
        image_files.check_output(path, number, self.shape[0])

    def write(self, path: Path, stored: Tensor) -> None:
        """Write a PNG grid (.png), an array (.npz), or a folder of PNG files (no ending)."""
        image_files.write(path, _channels_last(stored))

    def preview(self, stored: Tensor) -> Picture:
        """Draw a grid; unless images have 1 or 3 channels, of the first channel."""
        images = _channels_last(stored)
        return image_files.grid(images if images.shape[-1] in (1, 3) else images[..., :1])


def _has_idx(folder: Path, prefix: str) -> bool:
    return os.path.isdir(folder) and any(folder.glob(f"{prefix}-images-idx3-ubyte*"))


def _examples(data: ImageData) -> Examples:
    return Examples(data.images, data.labels)


def _channels_last(images: Tensor) -> Picture:
    array: Picture = images.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return array
