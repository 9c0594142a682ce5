"""Data: the embedded MNIST, any folder of IDX files as images, and toy sets whose law is known."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from proxflow.data.idx import Split, read_folder
from proxflow.data.images import ImageData, dequantise, to_bytes, to_range
from proxflow.data.mnist import load_mnist
from proxflow.data.pictures import read_pictures
from proxflow.data.toy import Checkerboard, GaussianMixtureLaw, Law, Moons, Spirals, eight_gaussians
from proxflow.errors import ArgumentError, DataError

__all__ = [
    "Checkerboard",
    "GaussianMixtureLaw",
    "ImageData",
    "Law",
    "Moons",
    "Spirals",
    "Split",
    "dequantise",
    "eight_gaussians",
    "load",
    "read_pictures",
    "to_bytes",
    "to_range",
]

_EMBEDDED = {"mnist": load_mnist}


def load(source: str | Path, split: Split) -> ImageData:
    """Loads one split of an image data set.

    Args:
        source: "mnist" for the embedded set; anything else is a folder with IDX files named as MNIST's or
            Fashion-MNIST's, plain or gzipped (``./mnist`` is a folder, too).
        split: "train" or "test".

    Returns:
        The images as uint8 (N, C, H, W), and the labels where there are any.

    Raises:
        ArgumentError: The split is unknown.
        DataError: There is no such set or folder, or a file is missing, truncated or corrupt.
    """
    if split not in get_args(Split):
        raise ArgumentError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}")
    if isinstance(source, str) and source in _EMBEDDED:
        return _EMBEDDED[source](split)
    folder = Path(source)
    try:
        if folder.is_dir():
            return read_folder(folder, split)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}); expected a folder with IDX files") from error
    raise DataError(
        f"no data set {str(source)!r}: expected an embedded one ({', '.join(sorted(_EMBEDDED))}) "
        "or an existing folder with IDX files"
    )
