"""Images as files: a PNG grid, an ``.npz`` array, or a folder of pictures.

Images are arrays of bytes, (number, height, width, channels), with 1 channel (grey) or 3 (RGB).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from proxflow.data.arrays import read_npz
from proxflow.data.images import ImageData
from proxflow.data.pictures import read_pictures
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.runtime.files import writable_folder, write_atomically

Array = np.ndarray[Any, np.dtype[np.uint8]]

GAP = 2
"""Pixels between the images of a grid and around it."""


def check_output(path: Path, number: int, channels: int) -> None:
    """Refuse an output that :func:`write` could not write, before any work for it.

    Args:
        path: File or folder to write; its ending chooses the form.
        number: Number of images to come.
        channels: Number of their channels.

    Raises:
        ArgumentError: The ending is unknown, or the form cannot hold such images.
        OutputError: The place cannot be written, or holds other things.
    """
    ending = path.suffix.lower()
    if ending not in ("", ".png", ".npz"):
        raise ArgumentError(
            f"cannot tell from {str(path)!r} what to write: give a file ending in .png (one picture) or .npz (an array), "
            "or a name without an ending (a folder of PNG files)"
        )
    if ending != ".npz" and channels not in (1, 3):
        raise ArgumentError(f"PNG files hold 1 or 3 channels, and these images have {channels}: write to a .npz file")
    if ending:
        writable_folder(path.parent)
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: it is a folder")
        return
    writable_folder(path)
    ours = {_name(index) for index in range(number)}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if others:
        raise OutputError(f"the folder {path} holds other files ({others[0]}): choose an empty or a new one")


def write(path: Path, images: Array) -> None:
    """Write images in the form that the path's ending chooses, see :func:`check_output`.

    Raises:
        OutputError: The place cannot be written.
    """
    ending = path.suffix.lower()
    if ending == ".npz":
        write_atomically(path, lambda temporary: _write_array(temporary, images))
    elif ending == ".png":
        write_atomically(path, lambda temporary: _picture(grid(images)).save(temporary))
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(images):
                _picture(image).save(path / _name(index))
        except OSError as error:
            raise OutputError(f"cannot write to the folder {path}: {error.strerror or error}") from error


def _write_array(path: Path, images: Array) -> None:
    with path.open("wb") as file:  # numpy would append an ending to a name in capitals
        np.savez_compressed(file, images=images)


def grid(images: Array) -> Array:
    """Return all images in one, row by row, nearly square, on a grey ground."""
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    ground = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), 96, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP) + GAP, (index % columns) * (width + GAP) + GAP
        ground[top : top + height, left : left + width] = image
    return ground


def read(path: Path) -> Array:
    """Read images (number, height, width, channels) as :func:`read_images` does."""
    array: Array = np.array(read_images(path).images.permute(0, 2, 3, 1).numpy(), order="C")
    return array


def read_images(path: Path) -> ImageData:
    """Read images unchanged: of an ``.npz`` file, or of a folder of pictures of one size in the order of their names.

    An ``.npz`` file has them under the key ``images``, uint8, (number, height, width, channels), or (number, channels,
    height, width) if only the second dimension can be that of the channels; and optionally whole numbers ``labels``.

    Raises:
        DataError: There is no such file or folder, it is damaged or of another form, or the order of its dimensions is
            uncertain.
    """
    if path.is_dir():
        return ImageData(path.name, read_pictures(path, resize=False), None)
    if path.suffix.lower() != ".npz":
        raise DataError(f"no images in {str(path)!r}: expected a folder of pictures or an existing .npz file")
    held = read_npz(path, ("images", "labels"))
    images, labels = held["images"], held.get("labels")
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f'{path}: "images" is {images.dtype} of shape {images.shape}; expected uint8, (number, height, width, '
            "channels), not empty"
        )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
        raise DataError(
            f'{path}: "labels" is {labels.dtype} of shape {labels.shape}; expected whole numbers, one for each of the '
            f"{len(images)} images"
        )
    if _channels_last(images.shape, path):
        images = images.transpose(0, 3, 1, 2)
    whole = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    # A copy has the usual strides, also for one channel: from strides torch chooses a layout, which affects rounding.
    return ImageData(path.stem, torch.from_numpy(np.array(images, order="C")), whole)


_USUAL, _MOST_CHANNELS = (1, 3), 16


def _channels_last(shape: tuple[int, ...], path: Path) -> bool:
    """Tell whether the channels are the last dimension of four, and not the second.

    If just one of the two has size 1 or 3, it is that one; else the smaller, if also smaller than the third dimension.
    """
    second, middle, last = shape[1:]
    if (second in _USUAL) != (last in _USUAL):
        return last in _USUAL
    if second == last or second in _USUAL or min(second, last) >= min(middle, _MOST_CHANNELS + 1):
        raise DataError(
            f'{path}: "images" of shape {shape} may be (number, height, width, channels) or (number, channels, height, '
            "width); expected the first, with 1 channel (grey) or 3 (colour) and a height of another number"
        )
    return last < second


def _picture(image: Array) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _name(index: int) -> str:
    return f"{index:05d}.png"
