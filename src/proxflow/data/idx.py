"""The IDX format of MNIST and its relatives, read strictly.

A file is two zero bytes, a type code (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
32-bit count, and then exactly as many bytes as their product (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import torch
from torch import Tensor

from proxflow.data.arrays import check_unpacked
from proxflow.data.images import ImageData
from proxflow.errors import DataError
from proxflow.runtime.files import open_plain

Split = Literal["train", "test"]
_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
_CHUNK = 1 << 20


def file_names(split: Split) -> tuple[str, str]:
    """Return the usual names of a split's image and label files, without a compression suffix."""
    prefix = _PREFIXES[split]
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """Read one IDX file of unsigned bytes; the suffixes .gz and .xz are decompressed.

    Memory grows only with the actual content, not with the size in the header, which is checked by
    :func:`proxflow.data.arrays.check_unpacked` first; decompression stops one byte after the declared end.

    Args:
        path: The file.
        dimensions: The number of dimensions it must have.
        sha256: Checksum of the uncompressed file, if it is known.

    Returns:
        uint8, of the shape that the header declares.

    Raises:
        DataError: The file is missing, unreadable, not such an IDX file, truncated, too long, or has another checksum.
    """
    header_length = 4 + 4 * dimensions
    try:
        with _open(path) as (stream, size):
            header = _read_up_to(stream, header_length)
            shape = _parse_header(path, bytes(header), dimensions)
            expected = math.prod(shape)
            if path.suffix not in (".gz", ".xz") and size != header_length + expected:
                raise _wrong_length(path, shape, header_length, f"{size - header_length}")
            check_unpacked(path, size, expected)
            body = _read_up_to(stream, expected)
            excess = len(body) == expected and stream.read(1) != b""
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected an intact IDX file") from error
    except MemoryError as error:
        raise DataError(f"{path}: there is no memory for its content, {expected / 2**30:.3g} GiB") from error
    if len(body) != expected or excess:
        raise _wrong_length(path, shape, header_length, "more" if excess else f"{len(body)}")
    if sha256 is not None:
        digest = hashlib.sha256(header)
        digest.update(body)
        if digest.hexdigest() != sha256:
            raise DataError(f"{path}: sha256 of the content is {digest.hexdigest()}, expected {sha256}; reinstall it")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(shape)


def idx_sha256(array: Tensor) -> str:
    """Return the checksum of the uncompressed IDX file that holds an array of bytes (uint8, any shape)."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    digest = hashlib.sha256(header)
    digest.update(array.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_folder(
    folder: Path, split: Split, name: str | None = None, sha256: Mapping[str, str] | None = None
) -> ImageData:
    """Read a split from a folder of IDX files with the names of MNIST's and Fashion-MNIST's, plain or with suffix .gz.

    Args:
        folder: Folder of the files, for example /usr/share/datasets/fashion-mnist. A split without a label file has no
            classes.
        split: "train" or "test".
        name: Name of the data set; ``None`` for that of the folder.
        sha256: Checksums of all uncompressed files by name, for a set of known content; labels are then required.

    Raises:
        DataError: The image file is missing, or a file is not as expected.
    """
    image_name, label_name = file_names(split)
    image_path = _find(folder, image_name)
    if image_path is None:
        present = sorted(entry.name for entry in folder.iterdir())
        listing = ", ".join(present[:12]) + (", …" if len(present) > 12 else "") if present else "nothing"
        raise DataError(f"{folder}: expected {image_name} or {image_name}.gz; the folder holds {listing}")
    label_path = _find(folder, label_name)
    if sha256 is not None and label_path is None:
        raise DataError(f"{folder}: expected {label_name} or {label_name}.gz beside {image_path.name}")
    known = sha256 or {}
    images = read_idx(image_path, 3, known.get(image_name))
    labels = None if label_path is None else read_idx(label_path, 1, known.get(label_name))
    return assemble(name or folder.resolve().name, images, labels, str(folder))


def assemble(name: str, images: Tensor, labels: Tensor | None, origin: str) -> ImageData:
    """Make a data set from the contents of files: images (N, H, W) and labels (N,), both uint8."""
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{origin}: {len(images)} images but {len(labels)} labels; expected as many of both")
    return ImageData(name, images.unsqueeze(1), None if labels is None else labels.to(torch.int64))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open the decompressed content of a file, and yield the file's size in bytes as well."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix == ".gz":
            with gzip.open(file, "rb") as stream:
                yield cast(BinaryIO, stream), size
        elif path.suffix == ".xz":
            with lzma.open(file, "rb") as stream:
                yield cast(BinaryIO, stream), size
        else:
            yield file, size


def _read_up_to(stream: BinaryIO, length: int) -> bytearray:
    content = bytearray()
    while len(content) < length and (chunk := stream.read(min(_CHUNK, length - len(content)))):
        content += chunk
    return content


def _parse_header(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes((0, 0, 8, dimensions))
    if header[:4] != magic:
        raise DataError(
            f"{path}: begins with bytes {header[:4].hex(' ') or 'none'}, expected {magic.hex(' ')} "
            f"(IDX, unsigned bytes, {dimensions} dimensions)"
        )
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path}: ends within its header of {4 + 4 * dimensions} bytes")
    shape = cast(tuple[int, ...], struct.unpack(f">{dimensions}I", header[4:]))
    if 0 in shape:
        raise DataError(f"{path}: declares an empty array of shape {shape}; expected every dimension positive")
    return shape


def _wrong_length(path: Path, shape: tuple[int, ...], header_length: int, found: str) -> DataError:
    return DataError(
        f"{path}: has {found} bytes after its header of {header_length}, expected exactly {math.prod(shape)} "
        f"for shape {shape}"
    )
