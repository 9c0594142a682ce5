"""Folders of pictures of any size, grey or colour, as one tensor of bytes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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
"""Side that pictures of unequal sizes are brought to, unless the smallest is smaller or another is asked for."""

_MOST_PIXELS, _MOST_BYTES = 2**26, 2**36
"""Of one picture before it is decoded, and of all of them together: no file may claim unbounded memory."""

_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")


def read_pictures(folder: Path, size: int | None = None) -> Tensor:
    """Reads every picture in a folder and the folders in it, in the order of their names.

    Grey pictures stay grey where all are, else all become colour; 16-bit ones become 8-bit; what is transparent shows
    white; pictures are turned as their camera says. Sizes are made equal by scaling the shorter side and cutting out the
    middle.

    Args:
        folder: Where the pictures lie: PNG, JPEG, WebP, BMP or TIFF.
        size: Side of the squares that pictures are brought to. ``None`` keeps their size where all share one, and takes
            the smallest side among them otherwise, at most 64.

    Returns:
        uint8, (number, 1 or 3, height, width).

    Raises:
        ArgumentError: ``size`` < 1.
        DataError: There are none, a file is damaged or of another kind, a link leads out of the folder, or they are more
            than memory should hold.
    """
    from PIL import ImageOps

    if size is not None and not 1 <= size <= 4096:
        raise ArgumentError(f"the size of pictures must be 1 to 4096, got {size}")
    paths = list(_paths(folder))
    if not paths:
        raise DataError(f"{folder}: holds no pictures ({', '.join(sorted(ENDINGS))}), nor do the folders in it")
    sizes, grey = set(), True
    for path in paths:
        with _opened(path, folder) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation: by a quarter
            sizes.add(picture.size[::-1] if turned else picture.size)
            grey = grey and picture.mode in _GREY
    width, height = next(iter(sizes))
    if size is not None or len(sizes) > 1:
        width = height = size if size is not None else min(LARGEST, *(side for found in sizes for side in found))
    channels = 1 if grey else 3
    if len(paths) * channels * width * height > _MOST_BYTES:
        raise DataError(
            f"{folder}: {len(paths)} pictures of {width} x {height} are more than {_MOST_BYTES / 2**30:.0f} GiB: "
            "ask for a smaller size"
        )
    images = torch.empty(len(paths), channels, height, width, dtype=torch.uint8)
    for index, path in enumerate(paths):
        try:
            with _opened(path, folder) as picture:
                plain = _plain(ImageOps.exif_transpose(picture), grey)
                if plain.size != (width, height):
                    plain = ImageOps.fit(plain, (width, height))
                pixels = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
        except (OSError, ValueError, SyntaxError, ArithmeticError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected an intact picture") from error
        images[index] = pixels.reshape(height, width, channels).permute(2, 0, 1)
    return images


def _paths(folder: Path) -> Iterator[Path]:
    root = folder.resolve()

    def fail(error: OSError) -> None:
        raise DataError(f"{folder}: cannot be read ({error})") from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.suffix.lower() in ENDINGS and not name.startswith("."):
                if not path.resolve().is_relative_to(root):
                    raise DataError(f"{path}: is a link that leads out of {folder}; copy the picture into the folder")
                yield path


def _opened(path: Path, folder: Path) -> Image:
    """A picture whose header has been read, not yet its pixels."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="error"):  # what Pillow warns of, sizes and damages, is refused here
            picture = Image.open(path, formats=[ENDINGS[path.suffix.lower()]])
            picture.getexif()
    except (
        OSError, ValueError, TypeError, KeyError, SyntaxError, ArithmeticError, Warning, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: cannot be read ({error}); expected an intact picture") from error
    if picture.width * picture.height > _MOST_PIXELS:
        picture.close()
        raise DataError(f"{path}: has {picture.width} x {picture.height} pixels; expected at most {_MOST_PIXELS}")
    return picture


def _plain(picture: Image, grey: bool) -> Image:
    """A picture of 8-bit grey or colour, on white where it is transparent."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits
        picture = picture.point(lambda level: level / 256).convert("L")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("L" if grey else "RGB")
