"""Kinds of data: images, rows of numbers, tables, text, latents, and those of other packages."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from proxflow import names
from proxflow.data import cifar
from proxflow.data.kinds.base import Defaults, Kind, Loaded, Picture, split
from proxflow.data.pictures import ENDINGS
from proxflow.errors import ArgumentError, DataError

__all__ = ["Defaults", "Kind", "Loaded", "Picture", "kind_of_source", "read", "split"]

_ENDINGS = {".csv", ".npy", ".npz", ".parquet", ".tar", ".txt", *ENDINGS}
"""Suffixes of file names."""


def read(source: str | os.PathLike[str], *, held_out: float = 0.05, seed: int = 0, **settings: Any) -> Loaded:
    """Read data as ``proxflow train --data`` does: as the first kind that accepts the source.

    Known elsewhere as a data module: ``read(…).kind`` is the kind of the examples, which are in ``.train`` and
    ``.held_out``.

    Args:
        source: Name, file or folder.
        held_out: Fraction of the examples held out, in [0, 1).
        seed: Seed of the split.
        **settings: Settings of the kind, as ``size=64`` for pictures, ``tokens="bytes"`` for text, ``target="income"``
            for tables.

    Raises:
        ArgumentError: The fraction is out of range, or a setting is out of range or unknown.
        DataError: No kind accepts the source, or it is damaged.
    """
    source = os.fspath(source)
    return kind_of_source(source).read(source, held_out=held_out, seed=seed, **settings)


def kind_of_source(source: str, name: str | None = None) -> type[Kind]:
    """Return the kind of data that reads a source.

    Args:
        source: Name, file or folder.
        name: Name of the kind, see ``proxflow list kinds``; ``None`` for the first that accepts the source, the
            library's own before those of other packages.

    Raises:
        ArgumentError: No kind has this name, or its package is broken.
        DataError: No kind accepts the source.
    """
    if name is not None:
        kind = names.find("kinds", name).load()
        if not (isinstance(kind, type) and issubclass(kind, Kind)):
            raise ArgumentError(
                f"the kind {name}: expected a class that derives from proxflow.data.kinds.Kind, got {kind!r}"
            )
        return kind
    set_name = source.removesuffix(":")
    if set_name in cifar.FILES and not os.path.exists(source):
        raise DataError(
            f"{source} lacks its folder, as the set does not come with this package: give {set_name}:FOLDER"
        )
    if os.path.isdir(source) and (found := cifar.form_of(Path(source))) is not None:
        raise DataError(f"the folder {source} holds {found} in its binary form: give {found}:{source}")
    told = []
    for known in names.known("kinds"):
        try:
            kind = kind_of_source(source, known)
        except ArgumentError:  # a broken package does not block the other kinds
            continue
        if kind.takes(source):
            return kind
        told.append(kind.sources)
    if os.path.isdir(source):
        if any(glob.iglob(os.path.join(glob.escape(source), "**", "*.parquet"), recursive=True)) or os.path.exists(
            os.path.join(source, "dataset_info.json")
        ) or os.path.exists(os.path.join(source, "dataset_dict.json")):  # fmt: skip
            raise DataError(f"the folder {source} is a Hugging Face data set: give arrow:{source}")
        if any(glob.iglob(os.path.join(glob.escape(source), "*.tar"))):
            raise DataError(f"the folder {source} holds tar files: give 'shards:{os.path.join(source, '*.tar')}'")
        raise DataError(
            f"the folder {source} holds no pictures, IDX files, texts (.txt) or what proxflow prepare wrote: give one that "
            "does, or the path of a single file, as table.csv; proxflow train --help names all data"
        )
    if os.path.exists(source):
        ending = os.path.splitext(source)[1] or "without an ending"
        if ending.lower() == ".tar":
            raise DataError(f"{source} is a tar file: give shards:{source}, if it is of the WebDataset form")
        raise DataError(
            f"{source}: no kind of data is known by the ending of this file, {ending}: name it .txt if it is text, .csv if "
            "it is a table of cells between commas, .npy or .npz if it holds arrays; or say with --kind what it is"
        )
    if os.path.splitext(source)[1].lower() in _ENDINGS:
        raise DataError(
            f"{source}: does not exist; expected a file or folder of data that is there, or a name, as mnist"
        )
    raise DataError(f"no training data {source!r}: expected {'; '.join(dict.fromkeys(told))}")
