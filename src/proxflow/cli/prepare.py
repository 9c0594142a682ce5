"""``proxflow prepare``: bring pictures to one size, once, as bytes that training maps into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from proxflow.cli._common import Number, say
from proxflow.errors import ArgumentError


@dataclass(frozen=True)
class Prepare:
    """Bring pictures to one size, once, as bytes that training maps into memory.

    "proxflow train --data OUT" then reads them as fast as memory, however many there are. Pictures that cannot be read are
    left out and counted. Stopped at any moment, the same command goes on.

    For example:
        proxflow prepare pictures --size 64 --out prepared
        proxflow prepare 'shards:pictures-{000..127}.tar' --size 64 --out prepared --workers 8
        proxflow train --out runs/mine --data prepared

    Args:
        source: A folder of pictures (PNG, JPEG, WebP, BMP, TIFF), with folders in it as classes or not;
            'shards:NAME-{000..127}.tar', of WebDataset; arrow:PATH or hub:OWNER/NAME, Hugging Face data sets.
        out: Folder for the bytes, a few files of thousands of pictures each.
        size: Side of the squares that they are brought to, by scaling and cutting out the middle.
        workers: Processes that read; 0 reads in this one.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    out: Path
    size: Annotated[
        Number,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: their own, or the smallest side, at most 64)"),
    ] = None
    workers: Annotated[
        Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as many as there are cores)")
    ] = None


def run(options: Prepare) -> None:
    """Prepare pictures, or go on with it, and say what came out."""
    from proxflow.data.prepared import Prepared, prepare
    from proxflow.data.sources import pictures_of
    from proxflow.runtime.machine import reading_processes
    from proxflow.runtime.progress import bar

    if options.workers is not None and options.workers < 0:
        raise ArgumentError(f"--workers must not be negative, got {options.workers}")
    pictures = pictures_of(options.source, options.size, options.out)
    if pictures is None or isinstance(pictures, Prepared):
        raise ArgumentError(
            f"{options.source} need not be prepared, or cannot: expected a folder of pictures, shards:NAMES.tar, arrow:PATH "
            "or hub:OWNER/NAME"
        )
    channels, height, width = pictures.shape
    colour = "grey" if channels == 1 else "colour"
    say(
        f"prepare: {len(pictures)} {colour} pictures of {height} x {width}{pictures.scaling}, "
        f"{len(pictures) * channels * height * width / 1e6:.1f} MB; interrupt with Ctrl-C, the same command goes on"
    )
    workers = reading_processes() + 1 if options.workers is None else options.workers
    with bar("prepare", len(pictures), "pictures") as show:
        count = 0

        def done(number: int) -> None:
            nonlocal count
            count += number
            show(count)

        manifest = prepare(pictures, options.out, workers, done)
    for said in manifest["unread"][:10]:
        say(f"left out: {said}")
    lost = len(pictures) - manifest["number"]
    classes = f"{len(manifest['classes'])} classes" if manifest["classes"] else "no classes"
    made = manifest["number"]
    say(f"{options.out}: {made} pictures, {classes}, {lost} could not be read; train with --data {options.out}")
