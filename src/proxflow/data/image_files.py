"""Images as files: a PNG grid, an ``.npz`` array, or a folder of PNG files.

Images are arrays of bytes, (number, height, width, channels), with 1 channel (grey) or 3 (RGB).
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.runtime.files import writable_folder, write_atomically

Array = np.ndarray[Any, np.dtype[np.uint8]]

# What numpy and zipfile raise for damaged files: of headers, of sizes beyond memory, of unknown compressions.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)

GAP = 2
"""Pixels between the images of a grid and around it."""


def check_output(path: Path, number: int, channels: int) -> None:
    """Refuse an output that :func:`write` could not write, before any work is done for it.

    Args:
        path: File or folder to write; its ending chooses the form.
        number: Number of images to come.
        channels: Their channels.

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
    with path.open("wb") as file:  # to a name in capitals numpy would append an ending of its own
        np.savez_compressed(file, images=images)


def grid(images: Array) -> Array:
    """All images in one, row by row, as near to a square as their number allows, on a grey ground."""
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    ground = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), 96, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP) + GAP, (index % columns) * (width + GAP) + GAP
        ground[top : top + height, left : left + width] = image
    return ground


def read(path: Path) -> Array:
    """Read images from an ``.npz`` file with key ``images``, or from a folder of PNG files in the order of their names.

    Raises:
        DataError: There is no such file or folder, or it is corrupt or of another form.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() != ".npz":
        raise DataError(f"no images in {str(path)!r}: expected a folder of PNG files or an existing .npz file")
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is a single array; expected an .npz file")
            if "images" not in arrays:
                raise DataError(f'{path}: expected the key "images", found {", ".join(arrays) or "none"}')
            images: Array = arrays["images"]
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); expected an intact .npz file") from error
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f'{path}: "images" is {images.dtype} of shape {images.shape}; expected uint8, (number, height, width, '
            "channels), not empty"
        )
    return images


def read_labels(path: Path, count: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The classes that the images of an ``.npz`` file were drawn for, key ``labels``; ``None`` where it has none.

    Args:
        path: As :func:`read` takes it, and has read it.
        count: Number of its images.

    Raises:
        DataError: They are no whole numbers, or not as many as the images.
    """
    if path.is_dir():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "labels" not in arrays:
                return None
            labels = arrays["labels"]
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); expected an intact .npz file") from error
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f'{path}: "labels" is {labels.dtype} of shape {labels.shape}; expected whole numbers, one for each of the '
            f"{count} images"
        )
    whole: np.ndarray[Any, np.dtype[np.int64]] = labels.astype(np.int64)
    return whole


def _read_folder(folder: Path) -> Array:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error})") from error
    if not paths:
        raise DataError(f"{folder}: holds no PNG files, name.png")
    images: list[Array] = []
    for path in paths:
        try:
            # Beyond its limit for sizes Pillow warns before it refuses; both are a refusal here.
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path) as file,
            ):
                mode, pixels = file.mode, np.asarray(file)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected an intact PNG file") from error
        if mode not in ("L", "RGB"):
            raise DataError(f"{path}: has the colour mode {mode}; expected 8-bit grey (L) or colour (RGB)")
        image = pixels.reshape(*pixels.shape[:2], -1)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{path}: has height, width, channels {image.shape}, but {paths[0].name} has {images[0].shape}; expected "
                "all of one shape"
            )
        images.append(image)
    return np.stack(images)


def _picture(image: Array) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _name(index: int) -> str:
    return f"{index:05d}.png"
