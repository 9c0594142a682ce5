"""Arrays of NumPy's ``.npy`` and ``.npz`` files. No pickle is read."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxflow.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, ArithmeticError,
)  # fmt: skip
"""Errors of numpy and zipfile for damaged files: headers, sizes beyond memory, unknown compressions."""


def why(error: Exception, expected: str) -> str:
    """Return why a file cannot be read: numpy's own advice for damaged files is about pickles, which are never read."""
    if isinstance(error, FileNotFoundError):
        return f"does not exist; expected {expected}"
    reason = error.strerror if isinstance(error, OSError) else "no memory for it" * isinstance(error, MemoryError)
    if reason:
        return f"cannot be read ({reason}); expected {expected}"
    return f"is no{expected.removeprefix('an')}, or holds Python objects, which are not read"


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an ``.npz`` file by their keys; only headers are read.

    Arrays whose header is damaged or of an unknown version are left out; for a file that is no ``.npz`` there are none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                with file.open(name) as entry:
                    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    if (version := np.lib.format.read_magic(entry)) in readers:
                        shapes[name.removesuffix(".npy")] = readers[version](entry)[0]
    except UNREADABLE:
        pass
    return shapes


def holds_table(path: Path) -> bool:
    """Tell whether an ``.npz`` file has rows of numbers, not images: a key ``x`` or an array (rows, columns)."""
    shapes = shapes_in(path)
    return "images" not in shapes and ("x" in shapes or any(len(shape) == 2 for shape in shapes.values()))


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """Read arrays of an ``.npz`` file: the first key is required, the others are optional.

    Raises:
        DataError: The file is missing, damaged or a single array, holds Python objects, or lacks the first key.
    """
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is a single array; expected an .npz file")
            if keys[0] not in held:
                raise DataError(f'{path}: expected the key "{keys[0]}", found {", ".join(held) or "none"}')
            return {key: held[key] for key in keys if key in held}
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: {why(error, 'an intact .npz file')}") from error


def read_npy(path: Path) -> Array:
    """Read the array of an ``.npy`` file.

    Raises:
        DataError: The file is missing, damaged or an ``.npz`` file, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{path}: {why(error, 'an intact .npy file')}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds several arrays; expected an .npy file of one, or the ending .npz")
    return array
