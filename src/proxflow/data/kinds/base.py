"""What a kind of data is: how examples are read, shown to a network, made of samples, and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.examples import Examples
from proxflow.runtime.processes import Processes

Picture = np.ndarray[Any, np.dtype[np.uint8]]
"""Bytes (height, width, 1 or 3 channels)."""


@dataclass(frozen=True)
class Defaults:
    """What suits a kind of data where nothing else is asked for.

    Args:
        flow: A flow, as on the command line.
        network: A network.
        predictor: A predictor.
        clip: Range of the encoded data, that predictions are clipped to; ``None`` for unbounded data.
    """

    flow: str = "gpfn-w2"
    network: str = "mlp"
    predictor: str = "point"
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class Loaded:
    """Data that were read.

    Args:
        kind: Their kind, with what it found out about them.
        train: Examples to train on, in stored form.
        held_out: Examples kept from training, to tell how good it is; ``None`` for none.
        description: What the training examples are, as "3000 rows of 2 columns".
        notes: Sentences that a user should read before work begins.
    """

    kind: Kind
    train: Examples
    held_out: Examples | None
    description: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of data: a frozen dataclass of plain values, which a model's file holds.

    Data have two forms: stored, as files have them and people read them, and encoded, as networks and flows take them.

    Args:
        shape: Shape of an encoded event.
    """

    shape: tuple[int, ...]

    examples_word: ClassVar[str] = "examples"
    """What its examples are called, in the plural."""

    sources: ClassVar[str]
    """What it is read from, in words that follow "expected"."""

    defaults: ClassVar[Defaults] = Defaults()

    @classmethod
    @abstractmethod
    def takes(cls, source: str) -> bool:
        """Tell whether it reads such a source, by its name, its ending or a look into it; raises nothing."""

    @classmethod
    @abstractmethod
    def read(cls, source: str, *, held_out: float = 0.05, seed: int = 0, **settings: Any) -> Loaded:
        """Read data.

        Args:
            source: Name, file or folder.
            held_out: Share of the examples kept from training, in [0, 1).
            seed: Of the choice of these.
            **settings: Of the kind.

        Raises:
            ArgumentError: The share is none, or a setting is out of range or unknown.
            DataError: There is nothing such, or it is damaged or of another form.
        """

    @abstractmethod
    def encode(self, stored: Tensor) -> Tensor:
        """Return examples (number, …) as networks take them: (number, *shape)."""

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Return samples (number, *shape) in stored form."""

    @property
    def log_scale(self) -> float:
        """Logarithm of the volume, in the data's own units, of what is a unit volume when encoded.

        Densities of encoded data become those of the data by log p(stored) = log p(encoded) − log_scale.
        """
        return 0.0

    @abstractmethod
    def check_output(self, path: Path, number: int) -> None:
        """Refuse an output that :meth:`write` could not write for so many examples, before any work is done for it.

        Raises:
            ArgumentError: The ending is unknown, or the form cannot hold such examples.
            OutputError: The place cannot be written.
        """

    @abstractmethod
    def write(self, path: Path, stored: Tensor) -> None:
        """Write examples in the form that the path's ending chooses.

        Raises:
            OutputError: The place cannot be written.
        """

    @abstractmethod
    def preview(self, stored: Tensor) -> Picture:
        """Draw examples into one picture."""


def check_share(held_out: float) -> None:
    """Refuse a share of held-out examples that is none.

    Raises:
        ArgumentError: It does not lie in [0, 1).
    """
    if not 0 <= held_out < 1:
        raise ArgumentError(
            f"held_out, the share of the examples kept from training, must lie in [0, 1), got {held_out}"
        )


def split(examples: Examples, held_out: float, seed: int) -> tuple[Examples, Examples | None]:
    """Divide examples at random, those to train on in their order; so few that some process would have none stay whole.

    Raises:
        ArgumentError: The share does not lie in [0, 1).
    """
    check_share(held_out)
    number = int(held_out * len(examples))
    if number < Processes.current().size:
        return examples, None
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples[order[number:].sort().values], examples[order[:number]]
