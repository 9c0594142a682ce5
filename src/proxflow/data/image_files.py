"""Images as files: a PNG grid, an ``.npz`` array, or a folder of pictures.

Images are arrays of bytes, (number, height, width, channels), with 1 channel (grey) or 3 (RGB).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from proxflow.data.arrays import read_npy, read_npz, shapes_in
from proxflow.data.images import ImageData
from proxflow.data.left_out import LeftOut
from proxflow.data.levels import Found, Rule
from proxflow.data.pictures import GRID, SAMPLE, read_pictures
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.runtime.files import writable_folder, write_atomically

Array = np.ndarray[Any, np.dtype[np.uint8]]

GAP = 2
"""Pixels between the images of a grid and around it."""


def check_output(path: Path, number: int, channels: int) -> None:
    """Refuse an output that :func:`write` could not write, before work starts.

    Args:
        path: File or folder to write; the suffix chooses the format.
        number: Number of images to come.
        channels: Number of their channels.

    Raises:
        ArgumentError: The suffix is unknown, or the format cannot hold such images.
        OutputError: The path cannot be written, or holds something else.
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
    """Write images in the format of the path's suffix, see :func:`check_output`.

    Raises:
        OutputError: The path cannot be written.
    """
    ending = path.suffix.lower()
    if ending == ".npz":
        write_atomically(path, lambda temporary: _write_array(temporary, images))
    elif ending == ".png":
        # A single picture is not a grid, so that it can be read again.
        write_png(path, *((grid(images), GRID) if len(images) > 1 else (images[0], SAMPLE)))
    else:
        writable_folder(path)
        for index, image in enumerate(images):
            write_png(path / _name(index), image, SAMPLE, flush=False)


def write_png(path: Path, image: Array | Image.Image, mark: str = GRID, *, flush: bool = True) -> None:
    """Write a picture of bytes (height, width, 1 or 3), or a Pillow image, as PNG.

    Args:
        path: The file.
        image: The picture.
        mark: Mark by which it is recognised, :data:`proxflow.data.pictures.GRID` or
            :data:`proxflow.data.pictures.SAMPLE`.
        flush: As :func:`proxflow.runtime.files.write_atomically`.

    Raises:
        OutputError: The path cannot be written.
    """
    told = PngInfo()
    told.add_text("Software", mark)
    picture = image if isinstance(image, Image.Image) else _picture(image)
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG", pnginfo=told), flush=flush)


def _write_array(path: Path, images: Array) -> None:
    with path.open("wb") as file:  # numpy would append a suffix to an upper-case name
        np.savez_compressed(file, images=images)


def grid(images: Array, columns: int | None = None) -> Array:
    """Return a grid of images on grey; nearly square unless the number of columns is given."""
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
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
    """Read images without scaling: from a file of arrays, see :func:`read_array`, or a folder of pictures.

    Pictures of a folder must have one size, and are sorted by name. Labels are integers or strings of them; others are
    numbered in sorted order.

    Raises:
        DataError: There is no such file or folder, it is damaged or of another form, or the order of its dimensions is
            ambiguous.
    """
    if path.is_dir():
        return ImageData(path.name, read_pictures(path, resize=False), None)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise DataError(
            f"no images in {str(path)!r}: expected a folder of pictures, or an existing file .npz or .npy of arrays"
        )
    found = read_array(path)
    labels = None
    if found.labels is not None:
        texts = found.labels.dtype.kind not in "iu"
        plain = texts and all(str(name).isdecimal() and len(str(name)) < 10 for name in found.labels)
        numbers = np.unique(found.labels, return_inverse=True)[1] if texts and not plain else found.labels
        labels = torch.from_numpy(numbers.astype(np.int64))
    return ImageData(path.stem, found.images, labels)


@dataclass(frozen=True)
class ArrayFile:
    """The images of a file of arrays.

    Args:
        images: uint8 (number, channels, height, width).
        labels: Integers ≥ 0 or strings, (number,); ``None`` if there are none.
        levels: The rule by which levels became bytes.
        left_out: Other arrays of the file.
    """

    images: Tensor
    labels: np.ndarray[Any, np.dtype[Any]] | None
    levels: Rule
    left_out: LeftOut


WANTED = 'uint8 of shape (number, height, width, channels) under the key "images"'


def read_array(path: Path) -> ArrayFile:
    """Read the images of an ``.npz`` or ``.npy`` file.

    They are the array ``images``, or the only one of three or four dimensions, (number, height, width), (number,
    height, width, channels) or (number, channels, height, width): the channels are the one of the two dimensions that
    is 1 or 3, or else the smaller one, if it is also smaller than the other sides and at most 16. Bytes are unchanged,
    and other levels are converted by :mod:`proxflow.data.levels`. ``labels``, or ``arr_1`` beside ``arr_0``, are
    integers or strings.

    Raises:
        DataError: The file is missing, damaged or of another form, the order of its dimensions is ambiguous, there is
            no rule for its levels, or the number of labels differs.
    """
    left_out = LeftOut()
    if path.suffix.lower() == ".npy":
        images, labels, named = read_npy(path), None, f"{path}: the array"
    else:
        shapes = shapes_in(path)
        pictured = [key for key, shape in shapes.items() if len(shape) in (3, 4)]
        key = pictured[0] if "images" not in shapes and len(pictured) == 1 else "images"
        others = ("labels", "arr_1") if key == "arr_0" else ("labels",)
        held = read_npz(path, (key, *others))
        images, named = held[key], f'{path}: "{key}"'
        labels = next((held[other] for other in others if other in held), None)
        for other in (other for other in shapes if other not in held):
            left_out.add("arrays of other names", other)
    if 0 in images.shape or images.ndim not in (3, 4):
        raise DataError(f"{named} is {images.dtype} of shape {images.shape}; expected {WANTED}, not empty")
    if labels is not None:
        labels = _labels(path, labels, len(images))
    if images.ndim == 4 and _channels_last(images.shape, named):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim == 3:
        if images.shape[2] in (1, 3, 4) and images.shape[2] < images.shape[1]:
            raise DataError(
                f"{named} of shape {images.shape} may be one picture (height, width, channels), or pictures of "
                f"{images.shape[2]} columns; expected {WANTED}"
            )
        images = images[:, None]
    try:
        rule = Found.of(images).rule()
    except DataError as error:
        raise DataError(f"{named} {error}") from error
    # A copy has standard strides, also for one channel: torch derives a memory format from strides, which affects rounding.
    pixels = np.array(rule(images), order="C")
    return ArrayFile(torch.from_numpy(pixels), labels, rule, left_out)


def _labels(path: Path, labels: np.ndarray[Any, np.dtype[Any]], number: int) -> np.ndarray[Any, np.dtype[Any]]:
    if labels.dtype.kind not in "iuUS" or labels.shape != (number,):
        raise DataError(
            f'{path}: "labels" is {labels.dtype} of shape {labels.shape}; expected whole numbers or texts, one for each of '
            f"the {number} images"
        )
    if labels.dtype.kind in "iu":
        if int(labels.min()) < 0:
            raise DataError(f"{path}: has a label below 0; expected classes 0, 1, …")
        return labels
    return np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels


_USUAL, _MOST_CHANNELS = (1, 3), 16


def _channels_last(shape: tuple[int, ...], named: str) -> bool:
    """Return whether the channels are the last of four dimensions, and not the second.

    If just one of the two has size 1 or 3, it is that one; else the smaller, if also smaller than the third dimension.
    """
    second, middle, last = shape[1:]
    if (second in _USUAL) != (last in _USUAL):
        return last in _USUAL
    if second == last or second in _USUAL or min(second, last) >= min(middle, _MOST_CHANNELS + 1):
        raise DataError(
            f"{named} of shape {shape} may be (number, height, width, channels) or (number, channels, height, "
            "width); expected the first, with 1 channel (grey) or 3 (colour) and a height of another number"
        )
    return last < second


def _picture(image: Array) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _name(index: int) -> str:
    return f"{index:05d}.png"
