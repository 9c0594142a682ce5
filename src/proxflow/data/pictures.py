"""Folders of pictures of any size, grey or colour, as one tensor of bytes."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxflow.data.left_out import LeftOut
from proxflow.data.levels import Found, Rule
from proxflow.errors import ArgumentError, DataError
from proxflow.runtime import escape
from proxflow.runtime.files import open_plain

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

FORMATS = sorted(set(ENDINGS.values()))
"""The formats that are opened. Pillow goes by content, and for others would start programs: Ghostscript for EPS."""

LARGEST = 64
"""Shorter side that larger pictures are scaled to by default."""

SAMPLE, GRID = "sample by proxflow", "grid by proxflow"
"""Values of the key ``Software`` in this library's PNG files, by which it recognises them."""

_MOST_PIXELS, _MOST_BYTES = 2**26, 2**36
"""Limits for one picture before it is decoded, and for all together: no file may claim unbounded memory."""

_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_DAMAGED = (OSError, ValueError, TypeError, KeyError, SyntaxError, ArithmeticError, MemoryError, struct.error)
"""Errors of Pillow for damaged files."""

_LEAVES_OUT = '"proxflow prepare" leaves such files out and counts them'

_RUN = (("run.json",), ("model.safetensors",), ("config.json", "cells"))
"""Files that mark a folder as written by a training run, a model or an experiment: its pictures are samples, not data."""

_Sides = tuple[int, int]


@dataclass(frozen=True)
class Survey:
    """The contents of a folder, surveyed before any picture is kept in memory.

    Args:
        folder: The folder.
        paths: Its pictures, in the order of their names.
        shape: Shape after scaling: (channels, height, width).
        sizes: Heights and widths of the original pictures, with counts.
        deep: The rule that converts integer levels beyond bytes to bytes; ``None`` if there are none.
        real: The rule for real levels.
        left_out: What is not read, by reason.
    """

    folder: Path
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    sizes: dict[_Sides, int]
    deep: Rule | None
    real: Rule | None
    left_out: LeftOut

    @property
    def memory(self) -> str:
        """Describe the memory that the pictures take."""
        channels, height, width = self.shape
        return f"{len(self.paths) * channels * height * width / 1e6:.1f} MB in memory"

    @property
    def scaling(self) -> str:
        """Describe from which sizes the pictures are scaled, if they are."""
        height, width = self.shape[1:]
        if set(self.sizes) == {(height, width)}:
            return ""
        (h, w), (tall, wide) = (pick(self.sizes, key=lambda sides: sides[0] * sides[1]) for pick in (min, max))
        small = "" if (h, w) == (tall, wide) else f"{h} x {w} to "
        enlarged = sum(number for sides, number in self.sizes.items() if sides[0] < height or sides[1] < width)
        more = f", {enlarged} of them enlarged" if enlarged else ""
        return f", scaled and cut from {small or 'up to '}{tall} x {wide}{more} (size sets the side of squares)"

    @property
    def levels(self) -> list[str]:
        """Describe the rules that convert levels beyond bytes to bytes."""
        return [rule.text for rule in (self.deep, self.real) if rule is not None]

    def classes(self) -> tuple[list[int], tuple[str, ...]] | None:
        """Return the class of each picture and the class names, those of sibling folders.

        Pictures beside or above these folders have the class −1. ``None`` without two sibling folders.
        """
        parents = [path.relative_to(self.folder).parts[:-1] for path in self.paths]
        level = 0
        while len(found := {parts[level] for parts in parents if len(parts) > level}) == 1:
            level += 1
        if not found:
            return None
        names = sorted(found, key=escape.name)
        index = {name: k for k, name in enumerate(names)}
        return [index[parts[level]] if len(parts) > level else -1 for parts in parents], tuple(map(escape.name, names))

    def read(self) -> Tensor:
        """Read the pictures: uint8, (number, channels, height, width).

        Raises:
            DataError: One is damaged, or they do not fit into memory.
        """
        height, width = self.shape[1:]
        try:
            images = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise DataError(
                f"{self.folder}: {len(self.paths)} pictures of {height} x {width} take {self.memory}, more than there is: "
                "ask for a smaller size"
            ) from error
        for index in range(len(self.paths)):
            try:
                images[index] = self.picture(index)
            except DataError as error:
                raise DataError(f"{error}; {_LEAVES_OUT}") from error
        return images

    def picture(self, index: int) -> Tensor:
        """Read one picture: uint8, (channels, height, width).

        Raises:
            DataError: It is damaged.
        """
        path = self.paths[index]
        with opened(path) as picture:
            return fitted(picture, self.shape, path, self.deep, self.real)


def fitted(picture: Image, shape: tuple[int, int, int], name: Any, deep: Rule | None, real: Rule | None) -> Tensor:
    """Return a picture upright, on white where transparent, scaled and cropped: uint8 (channels, height, width).

    Args:
        picture: The picture.
        shape: The shape; 1 channel makes it grey.
        name: Its name, for messages.
        deep: The rule that converts integer levels beyond bytes to bytes.
        real: The rule for real levels.

    Raises:
        DataError: It is damaged, or has levels for which there is no rule.
    """
    from PIL import ImageOps

    channels, height, width = shape
    try:
        plain = _upright(_plain(picture, channels, deep, real), picture)
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height))
        pixels = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(name, error) from error
    return pixels.reshape(height, width, channels).permute(2, 0, 1)


def _plain(picture: Image, channels: int, deep: Rule | None, real: Rule | None) -> Image:
    """Return a picture of 8-bit grey or colour, on white where it is transparent."""
    from PIL import Image

    rule = {"I": deep, "F": real}.get(picture.mode[:1])
    with warnings.catch_warnings(action="ignore"):
        picture.load()
    if rule is not None:
        picture = Image.fromarray(rule(np.asarray(picture)))
    elif picture.mode[:1] in ("I", "F"):
        raise ValueError(f"levels beyond bytes, {picture.mode}, of which one picture alone tells no rule")
    if _has_alpha(picture):
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("L" if channels == 1 else "RGB")


def read_exactly(source: Path, channels: int, sides: _Sides) -> tuple[Tensor, list[Path], LeftOut]:
    """Read a picture, or those of a folder by the rules of :func:`survey`, of one size and opaque.

    Transparent parts of a damaged picture or a mask may mean missing or white, so they are refused.

    Args:
        source: The picture or folder.
        channels: 1 makes pictures grey, 3 colour.
        sides: The required height and width.

    Returns:
        uint8 (number, channels, height, width), the pictures' paths in that order, and what of a folder is not read.

    Raises:
        DataError: There are none, or one is damaged, of another size, partly transparent or without a rule for its
            levels.
    """
    seen, left_out = _seen_in(source) if source.is_dir() else ([_seen(source)], LeftOut())
    for one in seen:
        if one.sides != sides:
            raise DataError(
                f"{one.path}: is of {one.sides[0]} x {one.sides[1]} pixels, and pictures of {sides[0]} x {sides[1]} (height "
                "x width) are needed: give it this size"
            )
        if one.further:
            left_out.add("further pictures within files", one.path.name, one.further)
    deep, real = (_rule(seen, kind) for kind in ("whole", "real"))
    images = torch.empty(len(seen), channels, *sides, dtype=torch.uint8)
    for image, one in zip(images, seen, strict=True):
        with opened(one.path) as picture:
            image.copy_(fitted(picture, (channels, *sides), one.path, deep, real))
            if _transparent(picture):
                raise DataError(
                    f"{one.path}: is transparent in parts, and nothing says what is there: paint them, and save the picture "
                    "without transparency"
                )
    return images, [one.path for one in seen], left_out


def _transparent(picture: Image) -> bool:
    """Return whether a picture whose pixels have been read is partly transparent."""
    if picture.mode[:1] in ("I", "F"):
        gone = picture.info.get("transparency")
        return gone is not None and bool((np.asarray(picture) == gone).any())
    return _has_alpha(picture) and int(np.asarray(picture.convert("RGBA"))[..., 3].min()) < 255


def _has_alpha(picture: Image) -> bool:
    return "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info


def read_pictures(folder: Path, size: int | None = None, *, resize: bool = True) -> Tensor:
    """Read every picture in a folder and its subfolders, see :func:`survey`: uint8, (number, 1 or 3, height, width)."""
    return survey(folder, size, resize=resize).read()


def survey(
    folder: Path, size: int | None = None, *, resize: bool = True, exclude: Path | None = None, damaged: bool = False
) -> Survey:
    """Survey the pictures in a folder and its subfolders.

    Pictures stay grey if all are, else all become colour; transparent parts become white; pictures are rotated by their
    Exif orientation. All get the median height and the median width, the lower one of an even number, scaled down until
    the shorter is at most 64, or the given size: each is scaled to cover that shape and centre-cropped.

    Grey levels beyond bytes become bytes by one rule for the folder, see :mod:`proxflow.data.levels`: integers are
    divided by a power of four, so that the largest fits a byte; 12-bit data in 16-bit files keep 256 levels.

    Links to pictures and folders are followed, and what is reached a second time is left out. So are hidden files,
    files of other kinds, further pictures within a file, folders that a training run or an experiment wrote, grids that
    this library drew, and samples that it drew, unless there are no other pictures.

    Args:
        folder: The folder, of PNG, JPEG, WebP, BMP or TIFF files.
        size: Side of the squares that pictures are scaled to; ``None`` for the shape above.
        resize: Whether pictures may be scaled; without it all must have one size.
        exclude: A file or folder within to skip, where output will go.
        damaged: Whether to leave out pictures whose headers cannot be read, instead of refusing them.

    Raises:
        ArgumentError: ``size`` is not 1 to 4096.
        DataError: There are none, a file is damaged, of another kind or not a regular file, there is no rule for the
            levels of a picture, sizes differ without ``resize``, or the pictures take too much memory.
    """
    check_size(size)
    seen, left_out = _seen_in(folder, exclude, damaged)
    sizes: dict[_Sides, int] = {}
    first: dict[_Sides, Path] = {}
    for one in seen:
        sizes[one.sides] = sizes.get(one.sides, 0) + 1
        first.setdefault(one.sides, one.path)
        if one.further:
            left_out.add("further pictures within files", one.path.relative_to(folder), one.further)
    if len(sizes) > 1 and not resize:
        (one_shape, one_path), (shape, path) = list(first.items())[:2]
        raise DataError(
            f"{path}: has height and width {shape}, but {one_path.name} has {one_shape}; expected all of one shape"
        )
    height, width = common_sides([one.sides for one in seen], size, LARGEST if resize else None)
    channels = 1 if all(one.grey for one in seen) else 3
    if len(seen) * channels * width * height > _MOST_BYTES:
        raise DataError(
            f"{folder}: {len(seen)} pictures of {height} x {width} are more than {_MOST_BYTES / 2**30:.0f} GiB: "
            "ask for a smaller size"
        )
    deep, real = (_rule(seen, kind) for kind in ("whole", "real"))
    paths = tuple(one.path for one in seen)
    found = Survey(folder, paths, (channels, height, width), sizes, deep, real, left_out)
    classes, _ = found.classes() or ([], ())
    if loose := [path for path, place in zip(paths, classes, strict=False) if place < 0]:
        left_out.add("labels that are missing", loose[0].relative_to(folder), len(loose))
    return found


def _seen_in(folder: Path, exclude: Path | None = None, damaged: bool = False) -> tuple[list[_Seen], LeftOut]:
    """Return the headers of a folder's pictures, and what is not read; arguments as in :func:`survey`."""
    walk = _Walk(folder, exclude)
    seen, unread = [], list[DataError]()
    for path in walk.pictures():
        try:
            seen.append(_seen(path))
        except DataError as error:
            unread.append(error)
            if damaged:
                walk.left_out.add("pictures that cannot be read", error)
    if unread and not damaged:
        total = len(seen) + len(unread)
        many = f" (of {total} pictures {len(unread)} cannot be read)" if len(unread) > 1 else ""
        raise DataError(f"{unread[0]}{many}; {_LEAVES_OUT}") from unread[0]
    for one in seen:
        if one.drawn == GRID:
            walk.left_out.add("grids and charts that proxflow drew", one.path.relative_to(folder))
    seen = [one for one in seen if one.drawn != GRID]
    drawn = [one for one in seen if one.drawn]
    if len(drawn) < len(seen):
        for one in drawn:
            walk.left_out.add("samples that proxflow drew", one.path.relative_to(folder))
        seen = [one for one in seen if not one.drawn]
    if not seen:
        raise DataError(
            f"{folder}: holds no pictures ({', '.join(sorted(ENDINGS))}), nor do the folders in it; left out: "
            f"{walk.left_out.text}"
        )
    return seen, walk.left_out


def common_sides(sides: Sequence[_Sides], size: int | None = None, largest: int | None = LARGEST) -> _Sides:
    """Return the common height and width for pictures of these sides: a given size, or their medians, scaled down."""
    if size is not None:
        return size, size
    height, width = (sorted(one[k] for one in sides)[(len(sides) - 1) // 2] for k in range(2))
    if largest is not None and (short := min(height, width)) > largest:
        height, width = round(height * largest / short), round(width * largest / short)
    return height, width


def check_size(size: int | None) -> None:
    """Refuse a size of pictures that is out of range.

    Raises:
        ArgumentError: It is not 1 to 4096.
    """
    if size is not None and not 1 <= size <= 4096:
        raise ArgumentError(f"the size of pictures must be 1 to 4096, got {size}")


def _rule(seen: list[_Seen], kind: str) -> Rule | None:
    """Return the common rule for the levels of this kind of all pictures; ``None`` if there are none.

    Raises:
        DataError: There is no rule; the message names a picture that causes this.
    """
    found = [(one.path, one.levels) for one in seen if one.levels is not None and one.levels.kind == kind]
    if not found:
        return None
    try:
        return reduce(Found.__or__, (levels for _, levels in found)).rule()
    except DataError as error:
        for path, levels in found:
            try:
                levels.rule()
            except DataError as own:
                raise DataError(f"{path}: {own}") from error
        raise DataError(f"{found[0][0].parent}: the set of its pictures {error}") from error


@dataclass(frozen=True)
class _Seen:
    """The header of a picture, and the range of its levels if they are not bytes.

    Args:
        path: The picture.
        sides: Height and width after rotation.
        grey: Whether it is grey.
        levels: Its levels if they are not bytes.
        drawn: :data:`SAMPLE` or :data:`GRID` if this library drew it; else ``None``.
        further: Number of pictures in the file beside the first.
    """

    path: Path
    sides: _Sides
    grey: bool
    levels: Found | None
    drawn: str | None
    further: int


def _seen(path: Path) -> _Seen:
    with opened(path) as picture:
        sides, grey = header(picture)
        software = picture.info.get("Software")
        drawn = software if software in (SAMPLE, GRID) else None
        levels = _levels(picture, path) if picture.mode[:1] in ("I", "F") else None
        return _Seen(path, sides, grey, levels, drawn, _further(picture))


def _levels(picture: Image, path: Path) -> Found:
    try:
        with warnings.catch_warnings(action="ignore"):
            picture.load()
        return Found.of(np.asarray(picture))
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _further(picture: Image) -> int:
    """Return the number of pictures in a file beside the first, as pages; 0 if the metadata are damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return max(0, int(getattr(picture, "n_frames", 1)) - 1)
    except (*_DAMAGED, EOFError):
        return 0


def holds_pictures(folder: Path) -> bool:
    """Return whether a folder or its subfolders contain a picture, by file suffix."""
    try:
        return next(_Walk(folder).pictures(), None) is not None
    except DataError:
        return False


def _marked(folder: Path) -> bool:
    return any(all((folder / name).exists() for name in names) for names in _RUN)


@dataclass
class _Walk:
    """A walk through a folder and its subfolders.

    Args:
        folder: The folder.
        exclude: A file or folder to skip.
        left_out: What was left out so far.
    """

    folder: Path
    exclude: Path | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    def pictures(self) -> Iterator[Path]:
        """Yield the pictures of the folder by name, then those of its subfolders.

        Raises:
            DataError: A folder cannot be read.
        """
        self._away = None if self.exclude is None else os.path.realpath(self.exclude)
        self._been: set[str] = set()
        yield from self._inside(self.folder, os.path.realpath(self.folder))

    def _inside(self, folder: Path, real: str) -> Iterator[Path]:
        self._been.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            folders = [entry.is_dir() for entry in entries]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{folder}: cannot be read ({error})") from error
        inner = []
        for entry, is_folder in zip(entries, folders, strict=True):
            path = folder / entry.name
            where = os.path.realpath(path) if entry.is_symlink() else os.path.join(real, entry.name)
            name = path.relative_to(self.folder)
            if where == self._away:
                self.left_out.add("places for the output", name)
            elif entry.name.startswith("."):
                self.left_out.add("hidden folders" if is_folder else "hidden files", name)
            elif is_folder and _marked(path):
                self.left_out.add("folders that proxflow wrote", name)
            elif not is_folder and path.suffix.lower() not in ENDINGS:
                self.left_out.add("files of other kinds", name)
            elif where in self._been:
                self.left_out.add("links to what is read already", name)
            elif is_folder:
                inner.append((path, where))
            else:
                self._been.add(where)
                yield path
        for path, where in inner:
            if where in self._been:  # an earlier link led there
                self.left_out.add("links to what is read already", path.relative_to(self.folder))
            else:
                yield from self._inside(path, where)


def header(picture: Image) -> tuple[_Sides, bool]:
    """Return height and width of a picture after rotation, and whether it is grey."""
    # For TIFF files Pillow returns the size after rotation.
    turned = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
    return picture.size if turned else picture.size[::-1], picture.mode in _GREY


@contextmanager
def opened(path: Path | str, content: bytes | None = None) -> Iterator[Image]:
    """Open a picture: its header has been read, not yet its pixels.

    Args:
        path: The file, or the name of its content in messages.
        content: Its content; ``None`` reads the file.

    Raises:
        DataError: It is damaged, of another kind or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        file: Any = open_plain(Path(path)) if content is None else io.BytesIO(content)
    except OSError as error:
        raise _damaged(path, error) from error
    with file:
        try:
            with warnings.catch_warnings(action="ignore"):  # about odd metadata; the size is checked below
                try:
                    picture = Image.open(file, formats=FORMATS)
                except UnidentifiedImageError:
                    if (mended := _without_damaged_metadata(file)) is None:
                        raise
                    picture = Image.open(mended, formats=FORMATS)
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            if isinstance(error, UnidentifiedImageError):
                file.seek(0)
                if file.read(4) == b"GIF8":
                    raise DataError(f"{path}: is a GIF, which is not read: save it as PNG") from error
                raise DataError(
                    f"{path}: cannot be read as {', '.join(FORMATS)}; expected an intact picture"
                ) from error
            raise _damaged(path, error) from error
        if picture.width * picture.height > _MOST_PIXELS:
            raise DataError(f"{path}: has {picture.width} x {picture.height} pixels; expected at most {_MOST_PIXELS}")
        yield picture


def _without_damaged_metadata(file: IO[bytes]) -> IO[bytes] | None:
    """Return a PNG file without non-pixel chunks of wrong checksum; ``None`` for other files."""
    file.seek(0)
    kept = [file.read(8)]
    if kept[0] != b"\x89PNG\r\n\x1a\n":
        return None
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = file.read(length + 4)
        needed = kind[:1].isupper() or kind == b"tRNS"
        if needed or body[length:] == zlib.crc32(kind + body[:length]).to_bytes(4, "big"):
            kept += [head, body]
    return io.BytesIO(b"".join(kept))


def _damaged(path: Path | str, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        reason = f"a link to {os.readlink(path)}, which does not exist"
    return DataError(f"{path}: cannot be read ({reason}); expected an intact picture")


def _orientation(picture: Image) -> int:
    """Return the Exif orientation, 1 to 8; 1 if the metadata are damaged or missing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = picture.getexif().get(0x0112, 1)
    except _DAMAGED:
        return 1
    return found if found in range(1, 9) else 1


def _upright(plain: Image, picture: Image) -> Image:
    """Rotate ``plain``, made from a picture, by the orientation of that picture."""
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
