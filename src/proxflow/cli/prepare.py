"""``proxflow prepare``: resize pictures once, to bytes or latents that training memory-maps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from proxflow.cli._common import Number, Text, autoencoder_of, say
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepare:
    """Resize pictures once, to bytes that training maps into memory.

    "proxflow train --data OUT" then reads them as fast as memory, however many there are. Pictures that cannot be read
    are left out and counted. The same command resumes after it was stopped at any moment. With an autoencoder the
    latents are kept instead of the pictures, in half precision.

    For example:
        proxflow prepare pictures --size 64 --out prepared
        proxflow prepare 'shards:pictures-{000..127}.tar' --size 64 --out prepared --workers 8
        proxflow train --out runs/mine --data prepared
        proxflow prepare pictures --size 256 --encoder sd-vae --out latents
        proxflow train --out runs/latents --data latents

    Args:
        source: A folder of pictures (PNG, JPEG, WebP, BMP, TIFF), with or without subfolders as classes;
            'shards:NAME-{000..127}.tar', of WebDataset; arrow:PATH or hub:OWNER/NAME, Hugging Face data sets.
        out: Folder for the bytes, a few files of thousands of pictures each.
        size: Side length of the squares that pictures are scaled and centre-cropped to.
        workers: Processes that read; 0 reads in the main process.
        encoder: An autoencoder: a folder with config.json and safetensors weights, as diffusers saves an AutoencoderKL,
            which needs the extra "latents"; or a name, see "proxflow list autoencoders".
        device: Where the autoencoder runs; auto takes CUDA if there is one.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    out: Path
    size: Annotated[
        Number,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: median sides, the shorter at most 64)"),
    ] = None
    workers: Annotated[
        Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as many as there are cores)")
    ] = None
    encoder: Annotated[Text, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none, the pictures)")] = None
    device: DeviceName = "auto"

    with_less_memory = "give --device cpu, or a smaller --size"


def run(options: Prepare, device: torch.device) -> None:
    """Prepare pictures, or resume it, and print a summary."""
    from proxflow.data import NAMED as SETS
    from proxflow.data.pictures import holds_pictures
    from proxflow.data.prepared import Latents, Prepared, is_prepared, prepare
    from proxflow.data.sources import pictures_of
    from proxflow.models import word
    from proxflow.runtime.machine import reading_processes
    from proxflow.runtime.progress import bar

    if options.workers is not None and options.workers < 0:
        raise ArgumentError(f"--workers must not be negative, got {options.workers}")
    if not is_prepared(options.out) and holds_pictures(options.out):
        raise ArgumentError(
            f"--out: {options.out} holds pictures, which would count no more once it is a prepared set: choose another "
            "folder"
        )
    pictures = pictures_of(options.source, options.size, options.out, damaged=True)
    known = Prepared if options.encoder is None else Latents
    if pictures is None or isinstance(pictures, known):
        wrong = f"{options.source}: there is no such folder"
        if os.path.exists(options.source) or ":" in options.source or options.source in SETS:
            wrong = f"{options.source} need not be prepared, or cannot"
        raise ArgumentError(f"{wrong}: expected a folder of pictures, shards:NAMES.tar, arrow:PATH or hub:OWNER/NAME")
    encoder, found = None, ""
    if options.encoder is not None:
        source = autoencoder_of(options.encoder)
        encoder, found = source.load(), word(source)
    channels, height, width = pictures.shape
    colour = "grey" if channels == 1 else "colour"
    bytes_of = (
        f", {len(pictures) * channels * height * width / 1e6:.1f} MB" if encoder is None else f", encoded by {found}"
    )
    say(
        f"prepare: {len(pictures)} {colour} pictures of {height} x {width}{pictures.scaling}{bytes_of}; left out: "
        f"{pictures.left_out.text}; interrupt with Ctrl-C, the same command goes on"
    )
    workers = reading_processes() + 1 if options.workers is None else options.workers
    with bar("prepare", len(pictures), "pictures") as show:
        count, damaged = 0, list[str]()

        def done(number: int) -> None:
            nonlocal count
            count += number
            show(count)

        manifest = prepare(pictures, options.out, workers, done, encoder, found, device, damaged.append)
    for said in damaged:
        say(said)
    for said in manifest["unread"][:10]:
        say(f"left out: {said}")
    lost = len(pictures) - manifest["number"]
    classes = f"{len(manifest['classes'])} classes" if manifest["classes"] else "no classes"
    made = manifest["number"]
    what = "pictures" if encoder is None else f"latents of {' x '.join(map(str, manifest['shape']))}"
    say(f"{options.out}: {made} {what}, {classes}, {lost} could not be read; train with --data {options.out}")
