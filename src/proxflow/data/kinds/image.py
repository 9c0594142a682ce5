"""Images: stored as bytes, encoded in [−1, 1]."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from proxflow.data import CLASSES, NAMED, cifar, image_files, load
from proxflow.data.arrays import holds_table, shapes_in
from proxflow.data.augment import binarised
from proxflow.data.idx import Split
from proxflow.data.images import ImageData, to_bytes, to_range
from proxflow.data.kinds.base import Defaults, Kind, Loaded, Picture, check_share, split
from proxflow.data.left_out import LeftOut
from proxflow.data.pictures import holds_pictures
from proxflow.data.prepared import Latents, holds_latents, is_prepared
from proxflow.data.sources import PREFIXES, pictures_of
from proxflow.data.stored import Folder, Pictures
from proxflow.errors import ArgumentError, DataError
from proxflow.examples import Examples, examples_of
from proxflow.runtime import escape
from proxflow.runtime.machine import fits_in_memory

MOST_CLASSES, LONGEST_NAME = 2**16, 255
"""The largest number of classes, and of characters in a class name."""

_DRAWN_ONCE = 11
"""Seed of the pixels of held-out binary images."""


def checked_classes(given: Any) -> tuple[str, ...]:
    """Return names of classes; a number n gives "0" to "n − 1".

    Raises:
        ArgumentError: They are too many, too long, not printable or not distinct.
    """
    if isinstance(given, int):
        if not 0 <= given <= MOST_CLASSES:
            raise ArgumentError(f"the number of classes must be at least 0 and at most {MOST_CLASSES}, got {given}")
        given = map(str, range(given))
    names = tuple(given)
    if len(names) > MOST_CLASSES or len(set(names)) < len(names):
        raise ArgumentError(f"the names of at most {MOST_CLASSES} classes must differ, got {len(names)}")
    for name in names:
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise ArgumentError(
                f"the name of a class must be 1 to {LONGEST_NAME} printable characters, got {name!a:.80}"
            )
    return names


@dataclass(frozen=True)
class Image(Kind):
    """Images of one shape, stored as uint8 (number, channels, height, width).

    Args:
        shape: (channels, height, width).
        classes: Names of the classes, printable; empty for none. The condition of an example is the index of its class,
            0, 1, … A number n stands for the names "0" to "n − 1".

    Raises:
        ArgumentError: The shape is not of three numbers ≥ 1, or the names are too many, too long, not printable or not
            distinct.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()

    examples_word: ClassVar[str] = "images"
    sources: ClassVar[str] = (
        f"{', '.join(NAMED)}, an existing folder of IDX files named as MNIST's or of pictures (PNG, JPEG and others) or one "
        "that proxflow prepare wrote, a file .npz or .npy of images (number, height, width, channels), cifar10:FOLDER, "
        "cifar100:FOLDER, shards:NAMES.tar, arrow:PATH or hub:OWNER/NAME"
    )
    defaults: ClassVar[Defaults] = Defaults(network="unet", clip=(-1.0, 1.0), parameterisation="x")

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ArgumentError(f"images have a shape (channels, height, width), each number ≥ 1, got {self.shape}")
        object.__setattr__(self, "classes", checked_classes(self.classes))

    @classmethod
    def takes(cls, source: str) -> bool:
        path = Path(source)
        if source.startswith(PREFIXES) or cifar.split_source(source) is not None:
            return True
        if source in NAMED or os.path.isdir(source):
            if is_prepared(path):
                return not holds_latents(path)
            return source in NAMED or _has_idx(path, "train") or holds_pictures(path)
        if path.suffix.lower() == ".npy":
            return len(shapes_in(path).get("", ())) in (3, 4)
        # An .npz file without a table is probably meant for images: read reports what is missing.
        return path.suffix.lower() == ".npz" and not holds_table(path)

    @classmethod
    def read(
        cls,
        source: str,
        *,
        held_out: float = 0.05,
        seed: int = 0,
        size: int | None = None,
        exclude: Path | None = None,
        workers: int | None = None,
        **settings: Any,
    ) -> Loaded:
        """Read images and their classes.

        Folders of pictures, prepared caches, shards and Hugging Face data sets are held in memory if they take at most
        a quarter of what is free; else they are read as needed (:class:`proxflow.examples.LazyExamples`).

        Classes are those of the named sets, the labels of a folder of IDX files or of an ``.npz`` file, named by their
        numbers or strings, or the subfolders of pictures, see :meth:`proxflow.data.pictures.Survey.classes`.

        Args:
            source: ``mnist``, ``fashion-mnist``, ``emoji``, a folder of IDX files or of pictures, an ``.npz`` or
                ``.npy`` file, ``cifar10:FOLDER``, ``cifar100:FOLDER``, or a source of
                :func:`proxflow.data.sources.pictures_of`.
            held_out: Fraction held out, in [0, 1). For sets with test images any fraction above 0 holds out these.
            seed: Seed of the split.
            size: Side of the squares that pictures of a folder are scaled to, see :func:`proxflow.data.pictures.survey`.
            exclude: A folder or file to skip, where output will go.
            workers: Processes that will read; if given, nothing is held in memory unnecessarily.
            **settings: There are none.

        Raises:
            ArgumentError: The fraction or the size is out of range, the source has its own size, or a setting is
                unknown.
            DataError: There is no such source, or it is damaged or of another form.
        """
        check_share(held_out)
        if settings:
            raise ArgumentError(f"images have the setting size alone, got {', '.join(settings)}")
        path = Path(source)
        ours = cifar.split_source(source)
        idx = source in NAMED or ours is not None or _has_idx(path, "train")
        stored = None if idx else pictures_of(source, size, exclude)
        if isinstance(stored, Latents):
            raise DataError(f"{source}: holds latents, not images: leave --kind out")
        if size is not None and stored is None:
            raise ArgumentError(f"size is for folders of pictures; {source} has a size of its own")
        if stored is not None and not (isinstance(stored, Folder) and workers is None and _fits(stored)):
            return cls._stored(source, stored, held_out, seed, size, workers)
        labels: list[Any] = []
        names: tuple[str, ...] | None = None
        rules: list[str] = []
        scaling, left_out = "", LeftOut()
        parts: list[Tensor]
        if idx:
            tested = held_out > 0 and (source in NAMED or ours is not None or _has_idx(path, "t10k"))
            sets = [_set(source, part) for part in (("train", "test") if tested else ("train",))]
            parts = [part.images for part in sets]
            labels = [part.labels.numpy() for part in sets if part.labels is not None]
            if 0 < len(labels) < len(sets):
                raise DataError(f"{source}: only one of training and test images has labels; expected both or none")
            names = CLASSES.get(source) if ours is None else cifar.class_names(*ours)
        elif isinstance(stored, Folder):
            found = stored.survey
            parts, rules, scaling, left_out = [found.read()], found.levels, found.scaling, found.left_out
            if (told := found.classes()) is not None:
                labels, names = [np.array(told[0])], told[1]
        else:
            held = image_files.read_array(path)
            parts, rules, left_out = [held.images], [held.levels.text], held.left_out
            labels = [] if held.labels is None else [held.labels]
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = [tuple(part.shape[1:]) for part in parts]
            raise DataError(
                f"{source}: training images are {shapes[0]} and test images {shapes[1]}; expected one shape"
            )
        conditions, names = _numbered(labels, names)
        least, most = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
        rules = rules or [f"levels {least} to {most}"]
        try:
            kind = cls(tuple(parts[0].shape[1:]), names)
        except ArgumentError as error:
            raise DataError(f"{source}: {error}") from error
        channels, height, width = kind.shape
        number, levels = sum(map(len, parts)), "; ".join(rules)
        coloured = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        called = f"{len(names)} classes ({some_names(names)})" if names else "no classes"
        note = (
            f"{source}: {number} {coloured} pictures of {height} x {width}, {number * math.prod(kind.shape) / 1e6:.1f} MB "
            f"in memory{scaling}; {called}; {levels}; left out: {left_out.text}"
        )
        whole = [Examples(x, conditions[k] if conditions else None) for k, x in enumerate(parts)]
        train, kept = (whole[0], whole[1] if len(whole) > 1 else None) if idx else split(whole[0], held_out, seed)
        asked = {"source": source, "held_out": held_out, "seed": seed, **({} if size is None else {"size": size})}
        record = {**asked, "pictures": number, "classes": len(names), "levels": levels, "left_out": left_out.record}
        return Loaded(kind, train, kept, f"{len(train)} images of {height} x {width}", (note,), record)

    @classmethod
    def _stored(
        cls, source: str, stored: Pictures, held_out: float, seed: int, size: int | None, workers: int | None
    ) -> Loaded:
        """Return pictures that need not be in memory; see :meth:`read`."""
        try:
            kind = cls(stored.shape, stored.classes)
        except ArgumentError as error:
            raise DataError(f"{source}: {error}") from error
        train, kept = split(examples_of(stored, "training", workers), held_out, seed)
        (channels, height, width), number = stored.shape, len(stored)
        levels = "; ".join(stored.levels) or "levels of bytes"
        where = "in memory" if isinstance(train, Examples) else "read as they are needed"
        called = f"{len(kind.classes)} classes ({some_names(kind.classes)})" if kind.classes else "no classes"
        note = (
            f"{source}: {number} {'grey' if channels == 1 else 'colour'} pictures of {height} x {width}, "
            f"{number * math.prod(stored.shape) / 1e6:.1f} MB {where}{stored.scaling}; {called}; {levels}; left out: "
            f"{stored.left_out.text}"
        )
        asked = {"source": source, "held_out": held_out, "seed": seed, **({} if size is None else {"size": size})}
        read = {"pictures": number, "classes": len(kind.classes), "levels": levels}
        record = {**asked, **read, "left_out": stored.left_out.record}
        return Loaded(kind, train, kept, f"{len(train)} images of {height} x {width}", (note,), record)

    @property
    def decides(self) -> Mapping[str, Any]:
        return {"bins": 256}

    def encode(self, stored: Tensor) -> Tensor:
        """Map bytes to [−1, 1], see :func:`proxflow.data.to_range`."""
        return to_range(stored)

    def decode(self, samples: Tensor) -> Tensor:
        """Round samples to bytes, see :func:`proxflow.data.to_bytes`."""
        return to_bytes(samples)

    @property
    def log_scale(self) -> float:
        """d ln 127.5: bytes are 127.5 times as far apart as in [−1, 1]."""
        return math.prod(self.shape) * math.log(127.5)

    def check_output(self, path: Path, number: int) -> None:
        image_files.check_output(path, number, self.shape[0])

    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write a PNG grid (.png), an array (.npz), or a folder of PNG files (no suffix)."""
        image_files.write(Path(path), channels_last(stored))

    def preview(self, stored: Tensor) -> Picture:
        """Draw a grid, of the first channel unless images have 1 or 3."""
        images = channels_last(stored)
        return image_files.grid(images if images.shape[-1] in (1, 3) else images[..., :1])


@dataclass(frozen=True)
class Binary(Image):
    """Images whose pixels are black or white, drawn anew at each step with a pixel's brightness as its probability.

    They are stored as the bytes that were read; networks and flows take classes, 0 for black and 1 for white. Held-out
    images are drawn once.
    """

    defaults: ClassVar[Defaults] = Defaults(flow="bfn-discrete", network="unet", predictor="classes")
    augment: ClassVar[str] = "binarise"

    @classmethod
    def takes(cls, source: str) -> bool:
        return False  # chosen only by name

    @classmethod
    def read(
        cls,
        source: str,
        *,
        held_out: float = 0.05,
        seed: int = 0,
        size: int | None = None,
        exclude: Path | None = None,
        workers: int | None = None,
        **settings: Any,
    ) -> Loaded:
        """Read images as :meth:`Image.read` does, and draw the pixels of held-out ones.

        Raises:
            ArgumentError: As there; or the images do not fit into memory.
            DataError: As there.
        """
        found = super().read(
            source, held_out=held_out, seed=seed, size=size, exclude=exclude, workers=workers, **settings
        )
        kept = found.held_out
        if found.kind.shape[0] != 1:
            raise ArgumentError(
                f"{source}: binary images are black and white, and these are in colour: leave --kind out"
            )
        if isinstance(found.train, Examples) and (brightest := int(found.train.x.max())) < 128:
            raise ArgumentError(
                f"{source}: its brightest pixel has the level {brightest} of 255, so that hardly one would be drawn white: "
                "scale the images to 0 (black) and 255 (white)"
            )
        if not (isinstance(found.train, Examples) and (kept is None or isinstance(kept, Examples))):
            raise ArgumentError(
                f"{source}: binary images are drawn from images in memory: prepare smaller ones, and leave --workers out"
            )
        return replace(found, held_out=None if kept is None else replace(kept, x=drawn_once(kept.x)))

    @property
    def decides(self) -> Mapping[str, Any]:
        # β(1) = 3: "Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037, § 7.1.
        return {"classes": 2, "endpoints": {"kind": "categorical", "classes": 2}, "max_sqrt_beta": math.sqrt(3)}

    def encode(self, stored: Tensor) -> Tensor:
        """Return classes, int64: 1 for bytes from 128 on."""
        return (stored >= 128).long()

    def decode(self, samples: Tensor) -> Tensor:
        """Return bytes, 0 or 255."""
        return (255 * samples).to(torch.uint8)

    @property
    def log_scale(self) -> float:
        return 0.0  # probabilities have no volume


def drawn_once(stored: Tensor) -> Tensor:
    """Draw the pixels of images as black or white, with a fixed seed for each index."""
    return binarised(stored, _DRAWN_ONCE, range(len(stored)))


def _fits(stored: Pictures) -> bool:
    return fits_in_memory(len(stored) * math.prod(stored.shape))


def _set(source: str, part: Split) -> ImageData:
    """Return a split of a set with its own test images."""
    ours = cifar.split_source(source)
    return load(source, part) if ours is None else cifar.read_cifar(*ours, part)


def _has_idx(folder: Path, prefix: str) -> bool:
    return os.path.isdir(folder) and any(folder.glob(f"{prefix}-images-idx3-ubyte*"))


def _numbered(labels: list[Any], names: tuple[str, ...] | None) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return the classes of each part as indices of their names, int64, and the names.

    Args:
        labels: Labels of each part, integers or strings (number,); empty for none.
        names: Names of which the numbers are indices; ``None`` names each class by its number or string.
    """
    if not labels:
        return [], ()
    if names is None:
        known, places = np.unique(np.concatenate(labels), return_inverse=True)
        names = tuple(escape.name(str(name)) for name in known.tolist())
        labels = np.split(places, np.cumsum([len(part) for part in labels])[:-1])
    return [torch.from_numpy(part.astype(np.int64)) for part in labels], names


def some_names(names: tuple[str, ...]) -> str:
    """Return the first of many names."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def channels_last(images: Tensor) -> Picture:
    """Return images (number, channels, height, width) as bytes with the channels last."""
    array: Picture = images.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return array
