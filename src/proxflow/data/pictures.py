"""Folders of pictures of any size, grey or colour, as one tensor of bytes."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from proxflow.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

LARGEST = 64
"""Shorter side that larger pictures are scaled to, unless another size is asked for."""

_MOST_PIXELS, _MOST_BYTES = 2**26, 2**36
"""Limits for one picture before it is decoded, and for all together: no file may claim unbounded memory."""

_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_DAMAGED = (OSError, ValueError, TypeError, KeyError, SyntaxError, ArithmeticError, MemoryError, struct.error)
"""Errors of Pillow for damaged files."""

_RUN = ("run.json", "model.safetensors")
"""Files that mark the folder of a training run or a model, whose pictures are samples, not data."""


@dataclass(frozen=True)
class Survey:
    """The contents of a folder, surveyed before any picture is kept in memory.

    Args:
        folder: The folder.
        paths: Its pictures, in the order of their names.
        shape: Shape after scaling: (channels, height, width).
        largest: Height and width of the largest of them, by pixels.
        bits: Depth of grey levels beyond bytes: the smallest even number that holds those of all pictures.
        left_out: Folders of training runs in it, which are not read.
    """

    folder: Path
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    largest: tuple[int, int]
    bits: int
    left_out: tuple[Path, ...]

    def describe(self) -> str:
        """Return a sentence about the pictures to be read and the memory they take."""
        channels, height, width = self.shape
        megabytes = len(self.paths) * channels * height * width / 1e6
        kind = "grey" if channels == 1 else "colour"
        said = f"{self.folder}: {len(self.paths)} {kind} pictures of {height} x {width}, {megabytes:.1f} MB in memory"
        if self.largest != (height, width):
            said += f", scaled and cut from up to {self.largest[0]} x {self.largest[1]} (size sets the side of squares)"
        if self.left_out:
            said += f"; left out: {', '.join(path.name for path in self.left_out[:3])}"
            said += f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
            said += ", which a training run wrote" if len(self.left_out) == 1 else ", which training runs wrote"
        return said

    def read(self) -> Tensor:
        """Read the pictures: uint8, (number, channels, height, width).

        Raises:
            DataError: One is damaged.
        """
        from PIL import ImageOps

        channels, height, width = self.shape
        images = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        for index, path in enumerate(self.paths):
            try:
                with _opened(path) as picture:
                    plain = _upright(_plain(picture, channels == 1, self.bits, path), picture)
                    if plain.size != (width, height):
                        plain = ImageOps.fit(plain, (width, height))
                    pixels = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
            except _DAMAGED as error:
                if isinstance(error, DataError):
                    raise
                raise _damaged(path, error) from error
            images[index] = pixels.reshape(height, width, channels).permute(2, 0, 1)
        return images


def read_pictures(folder: Path, size: int | None = None, *, resize: bool = True) -> Tensor:
    """Read every picture in a folder and the folders in it, see :func:`survey`: uint8, (number, 1 or 3, height, width)."""
    return survey(folder, size, resize=resize).read()


def survey(folder: Path, size: int | None = None, *, resize: bool = True) -> Survey:
    """Survey the pictures in a folder and the folders in it, links included.

    Pictures stay grey if all are, else all become colour; transparent parts become white; pictures are turned as their
    camera recorded. All get the smallest height and the smallest width among them, scaled down until the shorter is at most
    64, or the size asked for: each picture is scaled to cover that shape, and its middle is cut out.

    Grey levels of 16 and 32 bits are divided by a power of four, the same for the folder, so that the largest fits a byte:
    of 12-bit data in 16-bit files 256 levels are kept. Real numbers are levels from 0 (black) to 1 (white).

    Args:
        folder: Where the pictures lie: PNG, JPEG, WebP, BMP or TIFF.
        size: Side of the squares that pictures are scaled to; ``None`` for the shape above.
        resize: Whether pictures may be scaled; without it all must have one size.

    Raises:
        ArgumentError: ``size`` is not 1 to 4096.
        DataError: There are none, a file is damaged or of another kind, the levels of a picture are of an unknown kind,
            sizes differ without ``resize``, or the pictures take too much memory.
    """
    if size is not None and not 1 <= size <= 4096:
        raise ArgumentError(f"the size of pictures must be 1 to 4096, got {size}")
    left_out: list[Path] = []
    paths = tuple(_paths(folder, left_out))
    if not paths:
        raise DataError(f"{folder}: holds no pictures ({', '.join(sorted(ENDINGS))}), nor do the folders in it")
    sizes: dict[tuple[int, int], Path] = {}
    grey, bits = True, 8
    for path in paths:
        with _opened(path) as picture:
            # For TIFF files Pillow gives the size after turning.
            turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
            sizes.setdefault(picture.size if turned else picture.size[::-1], path)
            grey = grey and picture.mode in _GREY
            if picture.mode.startswith("I"):
                bits = max(bits, _bits(picture, path))
    if len(sizes) > 1 and not resize:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise DataError(
            f"{other}: has height and width {second}, but {one.name} has {first}; expected all of one shape"
        )
    height, width = (min(sides) for sides in zip(*sizes, strict=True))
    if size is not None:
        height = width = size
    elif resize and (short := min(height, width)) > LARGEST:
        height, width = round(height * LARGEST / short), round(width * LARGEST / short)
    channels = 1 if grey else 3
    if len(paths) * channels * width * height > _MOST_BYTES:
        raise DataError(
            f"{folder}: {len(paths)} pictures of {height} x {width} are more than {_MOST_BYTES / 2**30:.0f} GiB: "
            "ask for a smaller size"
        )
    largest = max(sizes, key=lambda sides: sides[0] * sides[1])
    return Survey(folder, paths, (channels, height, width), largest, bits, tuple(left_out))


def holds_pictures(folder: Path) -> bool:
    """Tell by the endings of names whether there is a picture in a folder or the folders in it."""
    try:
        return next(_paths(folder, []), None) is not None
    except DataError:
        return False


def _paths(folder: Path, left_out: list[Path], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the pictures of a folder by name, then those of the folders in it; note those of training runs."""
    try:
        real = folder.resolve(strict=True)
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        folders = {entry: None for entry in entries if entry.is_dir()}  # a dict: ordered, with fast look-up
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be read ({error})") from error
    for path in entries:
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path not in folders:
            yield path
    for inner in folders:
        if any((inner / name).exists() for name in _RUN):
            left_out.append(inner)
        elif os.path.realpath(inner) not in map(str, (*above, real)):  # a link to a folder above would never end
            yield from _paths(inner, left_out, (*above, real))


def _opened(path: Path) -> Image:
    """Open a picture: its header has been read, not yet its pixels."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):  # about odd metadata; the size is checked below
            picture = Image.open(path, formats=sorted(set(ENDINGS.values())))
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise _damaged(path, error) from error
    if picture.width * picture.height > _MOST_PIXELS:
        picture.close()
        raise DataError(f"{path}: has {picture.width} x {picture.height} pixels; expected at most {_MOST_PIXELS}")
    return picture


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path}: cannot be read ({error}); expected an intact picture")


def _orientation(picture: Image) -> int:
    """Return the Exif orientation, 1 to 8; 1 where the metadata are damaged or missing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = picture.getexif().get(0x0112, 1)
    except _DAMAGED:
        return 1
    return found if found in range(1, 9) else 1


def _upright(plain: Image, picture: Image) -> Image:
    """Turn ``plain``, made of a picture, by the orientation of that picture."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(picture))
    return plain if turn is None else plain.transpose(turn)


def _bits(picture: Image, path: Path) -> int:
    """Return the depth that the levels of a picture of whole numbers need: 8, 10, … 16 bits."""
    try:
        with warnings.catch_warnings(action="ignore"):
            picture.load()
        levels = np.asarray(picture)
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    least, most = int(levels.min()), int(levels.max())
    if least < 0 or most >= 2**16:
        raise DataError(f"{path}: has grey levels from {least} to {most}; expected 0 to 65535")
    return max(8, 2 * -(-most.bit_length() // 2))


def _plain(picture: Image, grey: bool, bits: int, path: Path) -> Image:
    """Return a picture of 8-bit grey or colour, on white where it is transparent."""
    from PIL import Image

    with warnings.catch_warnings(action="ignore"):
        picture.load()
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> (bits - 8)).astype(np.uint8))
    elif picture.mode == "F":
        levels = np.asarray(picture)
        if not (levels.min() >= 0 and levels.max() <= 1):  # also where one is not a number
            raise DataError(
                f"{path}: has real grey levels from {levels.min():g} to {levels.max():g}; expected 0 (black) to 1 (white)"
            )
        picture = Image.fromarray((levels * 255).round().astype(np.uint8))
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("L" if grey else "RGB")
