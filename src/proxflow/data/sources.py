"""Sources of pictures that are read as needed, by their strings."""

from __future__ import annotations

import os
from pathlib import Path

from proxflow.data import arrow, shards
from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import survey
from proxflow.data.prepared import Latents, Prepared, holds_latents, is_prepared
from proxflow.data.stored import Folder, Pictures

PREFIXES = (shards.PREFIX, *arrow.PREFIXES)
"""Prefixes of sources that are neither names nor paths."""


def pictures_of(
    source: str, size: int | None = None, exclude: Path | None = None, *, damaged: bool = False
) -> Pictures | None:
    """Return the pictures of a source: ``shards:…``, ``arrow:…``, ``hub:…``, a prepared cache, or a folder of pictures.

    Args:
        source: The source.
        size: Side of the squares that they are scaled and cropped to; ``None`` for the source's default.
        exclude: A file or folder to skip, where output will go.
        damaged: Whether to leave out pictures of folders whose headers cannot be read, instead of refusing them.

    Returns:
        The pictures; ``None`` for other sources.

    Raises:
        ArgumentError: The size is out of range, or the package that reads the source is not installed.
        DataError: There is no such source, or it is damaged.
    """
    if source.startswith(shards.PREFIX):
        return shards.Shards(source.removeprefix(shards.PREFIX), size)
    if source.startswith(arrow.PREFIXES):
        left_out = LeftOut()
        return arrow.Arrow(arrow.load(source, left_out), source, size, left_out)
    if not os.path.isdir(source):
        return None
    if is_prepared(Path(source)):
        return Latents(Path(source)) if holds_latents(Path(source)) else Prepared(Path(source), size)
    return Folder(survey(Path(source), size, exclude=exclude, damaged=damaged))
