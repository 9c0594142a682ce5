"""Arrays of NumPy's ``.npy`` and ``.npz`` files. No pickle is read, and nothing is unpacked before its size is checked."""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from proxflow.errors import ArgumentError, DataError
from proxflow.runtime.files import open_plain

Array = np.ndarray[Any, np.dtype[Any]]

UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, ArithmeticError,
)  # fmt: skip
"""Errors of numpy and zipfile for damaged files: headers, sizes beyond memory, unknown compressions."""

UNPACK_GIB = "PROXFLOW_UNPACK_GIB"
"""The environment variable that raises the limit of :func:`check_unpacked`."""

_TIMES = 100
"""Compressed content may be larger by this factor, or up to the limit if that is more: pictures compress less."""


def check_unpacked(path: Path, packed: int, unpacked: int) -> None:
    """Refuse content that would unpack to more than 1 GiB and more than 100 times its size in the file.

    Args:
        path: The file.
        packed: Its size in bytes.
        unpacked: Its declared unpacked size in bytes.

    Raises:
        DataError: It would; the message names the environment variable that raises the limit.
        ArgumentError: That variable is not a number above 0.
    """
    text = os.environ.get(UNPACK_GIB, "1")
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ArgumentError(f"the environment variable {UNPACK_GIB} must be a number above 0, got {text!r:.80}")
    if unpacked > max(limit * 2**30, _TIMES * packed):
        mend = f"if it is to be trusted, set {UNPACK_GIB}={math.ceil(unpacked / 2**30)}"
        raise DataError(
            f"{path}: {packed / 2**20:.3g} MiB would unpack to {unpacked / 2**30:.4g} GiB; expected at most {limit:g} GiB "
            f"or {_TIMES} times the file: {mend if unpacked < 2**50 else 'it is damaged'}"
        )


def why(error: Exception, expected: str) -> str:
    """Return why a file cannot be read: numpy's own advice for damaged files is about pickles, which are never read."""
    if isinstance(error, FileNotFoundError):
        return f"does not exist; expected {expected}"
    reason = "no memory for it" * isinstance(error, MemoryError)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    if reason:
        return f"cannot be read ({reason}); expected {expected}"
    return f"is no{expected.removeprefix('an')}, or holds Python objects, which are not read"


@dataclass(frozen=True)
class Header:
    """The header of an array.

    Args:
        shape: Its shape.
        dtype: Its type.
        begins: Bytes before the data.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begins: int

    @property
    def size(self) -> int:
        """Bytes of header and data."""
        return self.begins + math.prod(self.shape) * self.dtype.itemsize


_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _header(file: IO[bytes]) -> Header:
    """Read the header of an array in numpy's format 1 or 2.

    Raises:
        ValueError: It is not such an array, or one of Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"format {version}")
    shape, _, dtype = _READERS[version](file)
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError("Python objects")
    return Header(tuple(shape), dtype, file.tell())


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Open an ``.npz`` file, and yield its size in bytes as well."""
    with open_plain(path) as file, zipfile.ZipFile(file) as archive:
        yield archive, os.fstat(file.fileno()).st_size


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by their keys."""
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def headers_in(path: Path) -> dict[str, Header]:
    """Return the headers of the arrays in an ``.npz`` file by key; for an ``.npy`` file under "".

    Members that are damaged or not arrays are left out; for other files the result is empty.
    """
    found: dict[str, Header] = {}
    try:
        if path.suffix.lower() == ".npy":
            with open_plain(path) as file:
                return {"": _header(file)}
        with _archive(path) as (archive, _):
            for key, info in _entries(archive).items():
                try:
                    with archive.open(info) as entry:
                        found[key] = _header(entry)
                except UNREADABLE:
                    continue
    except UNREADABLE:
        pass
    return found


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of :func:`headers_in`."""
    return {key: header.shape for key, header in headers_in(path).items()}


def holds_table(path: Path) -> bool:
    """Return whether a file has rows of numbers, not images: no key ``images``, and ``x`` or an array (rows, columns)."""
    shapes = shapes_in(path)
    if "images" in shapes or any(len(shape) in (3, 4) for shape in shapes.values()):
        return "x" in shapes and len(shapes["x"]) == 2 and "images" not in shapes
    return "x" in shapes or any(len(shape) == 2 for shape in shapes.values())


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """Read arrays of an ``.npz`` file: the first key is required, the others are optional.

    Raises:
        DataError: The file is missing, damaged or a single array, holds Python objects, lacks the first key, would
            unpack to too much, see :func:`check_unpacked`, or is not a regular file.
    """
    try:
        with open_plain(path) as file:
            single = file.read(6) == b"\x93NUMPY"
        if single:
            raise DataError(f"{path}: is a single array; expected an .npz file")
        with _archive(path) as (archive, size):
            entries = _entries(archive)
            if keys[0] not in entries:
                raise DataError(f'{path}: expected the key "{keys[0]}", found {", ".join(entries) or "none"}')
            wanted = {key: entries[key] for key in keys if key in entries}
            headers = {}
            for key, info in wanted.items():
                with archive.open(info) as entry:
                    try:
                        headers[key] = _header(entry)
                    except UNREADABLE as error:
                        raise DataError(
                            f'{path}: "{key}" is no intact array, or holds Python objects, which are not read'
                        ) from error
                if headers[key].size != info.file_size:
                    raise DataError(
                        f'{path}: "{key}" claims shape {headers[key].shape} of {headers[key].dtype}, and has '
                        f"{info.file_size} bytes; expected an intact .npz file"
                    )
            check_unpacked(path, size, sum(header.size for header in headers.values()))
            found = {}
            for key, info in wanted.items():
                with archive.open(info) as entry:
                    found[key] = np.lib.format.read_array(entry, allow_pickle=False)
            return found
    except (DataError, ArgumentError):
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: {why(error, 'an intact .npz file')}") from error


def read_npy(path: Path) -> Array:
    """Read the array of an ``.npy`` file.

    Raises:
        DataError: The file is missing, damaged, not a regular file or an ``.npz`` file, or holds Python objects.
    """
    try:
        with open_plain(path) as file:
            if zipfile.is_zipfile(file):
                raise DataError(f"{path}: holds several arrays; expected an .npy file of one, or the ending .npz")
            file.seek(0)
            _check_length(file, _header(file))
            file.seek(0)
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: {why(error, 'an intact .npy file')}") from error
    return array


def _check_length(file: BinaryIO, header: Header) -> None:
    if (held := os.fstat(file.fileno()).st_size) < header.size:
        raise ValueError(f"{held} bytes, {header.size} claimed")
