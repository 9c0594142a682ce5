"""CIFAR-10 and CIFAR-100 in their binary version: tiny photographs in classes.

"Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009). They are not in this package. A record is a byte
for the class, or in CIFAR-100 one for the coarse and one for the fine class, and 3072 for the red, green and blue of 32 × 32
pixels (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from proxflow.data.idx import Split
from proxflow.data.images import ImageData
from proxflow.errors import DataError
from proxflow.runtime.files import open_plain

FILES: dict[str, dict[Split, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    "cifar100": {"train": ("train.bin",), "test": ("test.bin",)},
}
_ARCHIVE = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}
_NAMES = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}
_INSIDE = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
_PICKLED = {"cifar10": ("data_batch_1", "cifar-10-batches-py"), "cifar100": ("train", "cifar-100-python")}
_CLASSES, _PIXELS = {"cifar10": 10, "cifar100": 100}, 3 * 32 * 32


def split_source(source: str) -> tuple[str, Path] | None:
    """Return which set a source names and its folder: ``cifar10:FOLDER`` or ``cifar100:FOLDER``; ``None`` for others."""
    name, colon, rest = source.partition(":")
    return (name, Path(rest)) if colon and rest and name in FILES else None


def form_of(folder: Path) -> str | None:
    """Return which set a folder holds in the binary version, by the names of its files; ``None`` for none."""
    return next(
        (name for name in FILES if all((folder / f).is_file() for f in (FILES[name]["train"][0], _NAMES[name]))), None
    )


def read_cifar(name: str, folder: Path, split: Split) -> ImageData:
    """Read a split: images (N, 3, 32, 32) and labels.

    Args:
        name: "cifar10" or "cifar100", of which the fine classes are read.
        folder: Folder of its files, or the folder that its archive unpacks to.
        split: "train" or "test".

    Raises:
        DataError: A file is missing, truncated or damaged, or the folder has the pickled version.
    """
    place = _place(name, folder)
    size, images, labels = _PIXELS + (2 if name == "cifar100" else 1), [], []
    for file in FILES[name][split]:
        try:
            with open_plain(place / file) as opened:
                data = np.frombuffer(opened.read(), np.uint8)
        except OSError as error:
            raise DataError(f"{place / file}: cannot be read ({error.strerror or error})") from error
        if not len(data) or len(data) % size:
            raise DataError(f"{place / file}: has {len(data)} bytes; expected a multiple of {size}, so it is cut short")
        records = data.reshape(-1, size)
        classes = records[:, size - _PIXELS - 1]
        if classes.max() >= _CLASSES[name]:
            raise DataError(f"{place / file}: has the class {classes.max()}; expected classes below {_CLASSES[name]}")
        images.append(records[:, -_PIXELS:].reshape(-1, 3, 32, 32))
        labels.append(classes)
    return ImageData(
        name, torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels).astype(np.int64))
    )


def class_names(name: str, folder: Path) -> tuple[str, ...]:
    """Return the names of the classes from the set's own file; their numbers without it."""
    try:
        with open_plain(_place(name, folder) / _NAMES[name]) as file:
            found = tuple(
                line.strip() for line in file.read(2**16).decode("utf-8", "replace").splitlines() if line.strip()
            )
    except OSError:
        found = ()
    return found if len(found) == _CLASSES[name] else tuple(map(str, range(_CLASSES[name])))


def _place(name: str, folder: Path) -> Path:
    first = FILES[name]["train"][0]
    if not folder.is_dir():
        raise DataError(
            f"{name}:{folder}: there is no folder {folder}; expected the one that {_ARCHIVE[name]} unpacks to"
        )
    for place in (folder, folder / _INSIDE[name]):
        if (place / first).exists():
            return place
    pickled, inside = _PICKLED[name]
    if any((place / pickled).exists() for place in (folder, folder / inside)):
        raise DataError(
            f"{folder}: holds the pickled form, which can run any program and is not read: get the binary one, "
            f"{_ARCHIVE[name]}, and give the folder that it unpacks to"
        )
    raise DataError(f"{folder}: holds no {first}; expected the folder that {_ARCHIVE[name]} unpacks to")
