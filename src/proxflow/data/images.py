"""Image data sets as tensors of bytes, and maps between bytes and the models' range [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.random import Generator, rand


@dataclass(frozen=True)
class ImageData:
    """One split of an image data set.

    Args:
        name: The data set's name, for reports.
        images: uint8, (N, C, H, W), N at least 1.
        labels: int64, (N,), or None for a set without classes.

    Raises:
        ArgumentError: A tensor has another type or shape, or the counts differ.
    """

    name: str
    images: Tensor
    labels: Tensor | None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.numel() == 0:
            raise ArgumentError(
                f"images must be a non-empty uint8 tensor of shape (N, C, H, W); "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ArgumentError(
                f"labels must be an int64 tensor of shape (N,); "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.labels) != len(self.images):
            raise ArgumentError(
                f"images and labels must be equally many; got {len(self.images)} images and {len(self.labels)} labels"
            )


def to_range(images: Tensor) -> Tensor:
    """Map bytes to the models' range, x / 127.5 − 1.

    Args:
        images: uint8, any shape.

    Returns:
        float32 in [-1, 1], the same shape.

    Raises:
        ArgumentError: The images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ArgumentError(
            f"images must be uint8; got {images.dtype}: give bytes, (255 * x).round().to(torch.uint8) of values in [0, 1], "
            "or proxflow.data.to_bytes(x) of values in [-1, 1]"
        )
    return images.to(torch.float32) / 127.5 - 1.0


def to_bytes(values: Tensor) -> Tensor:
    """Clamp values to [-1, 1] and round them to bytes; the inverse of :func:`to_range` on all 256 levels.

    Args:
        values: Floating point, any shape; infinite values clamp.

    Returns:
        uint8, the same shape.

    Raises:
        ArgumentError: The values are not floating point, or one is not a number.
    """
    if not values.is_floating_point():
        raise ArgumentError(f"values must be floating point in [-1, 1]; got {values.dtype}")
    if bool(values.isnan().any()):
        raise ArgumentError(
            f"{int(values.isnan().sum())} of {values.numel()} values are NaN and have no byte; "
            "check the model that made them"
        )
    # Half-precision formats have fewer than 256 levels near ±1, so the arithmetic is in at least float32.
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return ((wide.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def dequantise(images: Tensor, generator: Generator) -> Tensor:
    """Map bytes to the models' range and add noise uniform over each byte's own bin of width 1/127.5.

    For any density p, log P(bytes) ≥ E log p(dequantised) − d ln 127.5, with d the coordinates of an image: "A note on the
    evaluation of generative models" (Theis et al., 2015), arXiv 1511.01844. Known elsewhere as uniform dequantisation.

    Args:
        images: uint8 (batch, …).
        generator: Random generator, on the images' device.

    Returns:
        float32, the same shape, in [−1 − 1/255, 1 + 1/255].

    Raises:
        ArgumentError: The images are not uint8.
    """
    values = to_range(images)
    return values + (rand(values.shape, generator, values.dtype, values.device) - 0.5) / 127.5
