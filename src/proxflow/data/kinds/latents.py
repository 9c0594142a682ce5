"""Latents of pictures from an autoencoder, each channel standardised for the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from proxflow.data import image_files
from proxflow.data.autoencoders import Codec
from proxflow.data.images import to_bytes
from proxflow.data.kinds.base import Defaults, Kind, Loaded, Picture, split
from proxflow.data.kinds.image import Image, channels_last, checked_classes, some_names
from proxflow.data.prepared import Latents as Prepared
from proxflow.data.prepared import holds_latents
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import Examples, examples_of
from proxflow.runtime.files import writable_folder, write_atomically


@dataclass(frozen=True)
class Latents(Kind):
    """Latents of pictures, stored as the autoencoder returned them, float16 (number, channels, height, width).

    Encoded, each channel has mean 0 and standard deviation 1 over all prepared latents: "High-Resolution Image
    Synthesis with Latent Diffusion Models" (Rombach et al., 2021), arXiv 2112.10752, scales all by one number.

    Args:
        shape: (channels, height, width).
        mean: Mean of each channel.
        std: Standard deviation of each channel, > 0.
        picture: (channels, height, width) of the pictures.
        encoder: SHA-256 of the autoencoder's weights.
        found: The string that the autoencoder was loaded by, as ``kl:path=DIR``; empty for none.
        classes: Names of the classes, as in :class:`proxflow.data.kinds.image.Image`.

    Raises:
        ArgumentError: A shape is not of three numbers ≥ 1, the numbers of channels differ, a mean or standard deviation is
            out of range, or as :class:`proxflow.data.kinds.image.Image`.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    picture: tuple[int, ...]
    encoder: str
    found: str = ""
    classes: tuple[str, ...] = ()

    examples_word: ClassVar[str] = "latents"
    sources: ClassVar[str] = "a folder of latents that proxflow prepare wrote with --encoder"
    defaults: ClassVar[Defaults] = Defaults(network="dit")

    def __post_init__(self) -> None:
        for shape in (self.shape, self.picture):
            if len(shape) != 3 or min(shape) < 1:
                raise ArgumentError(
                    f"latents and their pictures have a shape (channels, height, width), each number ≥ 1, got {shape}"
                )
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ArgumentError(
                f"latents of {self.shape[0]} channels have as many means and standard deviations, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ArgumentError("means of channels must be finite numbers, and standard deviations finite and > 0")
        object.__setattr__(self, "classes", checked_classes(self.classes))

    @classmethod
    def takes(cls, source: str) -> bool:
        return holds_latents(Path(source))

    @classmethod
    def read(
        cls, source: str, *, held_out: float = 0.05, seed: int = 0, workers: int | None = None, **settings: Any
    ) -> Loaded:
        """Read latents and their classes.

        They are held in memory if they take at most a quarter of what is free; else they are read as needed.

        Args:
            source: A folder that ``proxflow prepare`` wrote with an encoder.
            held_out: Fraction held out, in [0, 1).
            seed: Seed of the split.
            workers: Processes that will read; if given, nothing is held in memory.
            **settings: There are none.

        Raises:
            ArgumentError: The fraction is out of range, or a setting is given.
            DataError: The folder is of another form, not finished, or damaged.
        """
        if settings:
            raise ArgumentError(f"latents have the size of their pictures and no settings, got {', '.join(settings)}")
        if not holds_latents(Path(source)):
            raise DataError(f"no latents in {source!r}: expected {cls.sources}")
        stored = Prepared(Path(source))
        try:
            kind = cls(
                stored.shape, stored.mean, stored.std, stored.pictured, stored.encoder, stored.found, stored.classes
            )
        except ArgumentError as error:
            raise DataError(f"{source}: {error}") from error
        train, kept = split(examples_of(stored, "training", workers), held_out, seed)
        where = "in memory" if isinstance(train, Examples) else "read as they are needed"
        called = f"{len(kind.classes)} classes ({some_names(kind.classes)})" if kind.classes else "no classes"
        size, of = " x ".join(map(str, kind.shape)), " x ".join(map(str, kind.picture[1:]))
        megabytes = 2e-6 * len(stored) * math.prod(kind.shape)
        note = (
            f"{source}: {len(stored)} latents of {size}, of pictures of {of}, {megabytes:.1f} MB {where}; {called}; "
            f"encoder of sha256 {kind.encoder[:12]}; left out: {stored.left_out.text}"
        )
        record = {
            "source": source, "held_out": held_out, "seed": seed, "latents": len(stored), "classes": len(kind.classes),
            "left_out": stored.left_out.record,
        }  # fmt: skip
        return Loaded(kind, train, kept, f"{len(train)} latents of {size}", (note,), record)

    def encode(self, stored: Tensor) -> Tensor:
        """Standardise latents, (x − mean) / std of each channel, in float32."""
        if stored.shape[1:] != self.shape:
            raise ArgumentError(
                f"these latents have the shape {tuple(stored.shape[1:])}, latents here have {self.shape}"
            )
        return (stored.float() - self._of(self.mean, stored)) / self._of(self.std, stored)

    def decode(self, samples: Tensor) -> Tensor:
        """Return latents in the autoencoder's scale, float16; see :meth:`codec`."""
        return (samples.float() * self._of(self.std, samples) + self._of(self.mean, samples)).half()

    def _of(self, numbers: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=like.device)[:, None, None]

    @property
    def log_scale(self) -> float:
        """Σ log std over all numbers of an event."""
        return self.shape[1] * self.shape[2] * sum(map(math.log, self.std))

    def codec(self, module: nn.Module, device: torch.device | str = "cpu") -> Codec:
        """Return the autoencoder that decodes latents, if it is the one that made them.

        Raises:
            DataError: Its weights differ.
        """
        codec = Codec(module, device)
        if codec.sha256 != self.encoder:
            raise DataError(
                f"this autoencoder has other weights, sha256 {codec.sha256[:12]}, than the one that made the latents, "
                f"{self.encoder[:12]}: give that one"
            )
        return codec

    @property
    def pictured(self) -> Image:
        """The kind of the pictures."""
        return Image(self.picture, self.classes)

    def check_output(self, path: Path, number: int) -> None:
        if path.suffix.lower() != ".npz":
            raise ArgumentError(
                f"latents that are not decoded go to a file ending in .npz, got {str(path)!r}: give such a file, or an "
                "autoencoder"
            )
        writable_folder(path.parent)
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: it is a folder")

    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write latents unchanged, float16 (number, channels, height, width), under the key "latents" (.npz)."""
        path = Path(path)
        held = stored.detach().to("cpu", torch.float16).numpy()

        def put(temporary: Path) -> None:
            with temporary.open("wb") as file:  # numpy would append a suffix to an upper-case name
                np.savez_compressed(file, latents=held)

        write_atomically(path, put)

    def preview(self, stored: Tensor) -> Picture:
        """Draw a grid of the first three channels as colours, or the first as grey, within three standard deviations."""
        shown = to_bytes(self.encode(stored)[:, : 3 if self.shape[0] >= 3 else 1] / 3)
        return image_files.grid(channels_last(shown))
