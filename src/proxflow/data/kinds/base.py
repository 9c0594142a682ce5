"""The interface of kinds of data: how examples are read, encoded for networks, decoded, and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.examples import AnyExamples, Examples, LazyExamples

E = TypeVar("E", Examples, LazyExamples, AnyExamples)

Picture = np.ndarray[Any, np.dtype[np.uint8]]
"""Bytes (height, width, 1 or 3 channels)."""

MOST_NUMBERS = 2**31
"""Numbers of an event that no model reaches: more are refused when a model is built and when one is loaded."""

FARTHEST = 1e15
"""Standard deviations from the mean beyond which the square of a number comes near the limit of float32."""


@dataclass(frozen=True)
class Defaults:
    """The flow, network and predictor that a kind of data takes by default.

    Args:
        flow: A flow, as on the command line.
        network: A network.
        predictor: A predictor.
        clip: Range of the encoded data, to which predictions are clipped; ``None`` for unbounded data.
        parameterisation: Of the predictor; ``None`` for the predictor's own choice.
    """

    flow: str = "gpfn-w2"
    network: str = "mlp"
    predictor: str = "point"
    clip: tuple[float, float] | None = None
    parameterisation: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Data as read from a source.

    Args:
        kind: Their kind, with the properties found in them.
        train: Examples to train on, in stored form.
        held_out: Examples kept from training, for evaluation; ``None`` for none.
        description: A description of the training examples, as "3000 rows of 2 columns".
        notes: Sentences that a user should read before training.
        record: What was read by which rule, and what was left out, as JSON values for the provenance of a model.
    """

    kind: Kind
    train: AnyExamples
    held_out: AnyExamples | None
    description: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of data: a frozen dataclass of plain values, which a model's file holds.

    Data have two forms: stored, as in files, and encoded, as networks and flows take them.

    Args:
        shape: Shape of an encoded event.
    """

    shape: tuple[int, ...]

    ending: ClassVar[str] = ".png"
    """The ending of the file that samples go to where no other is asked for; :meth:`write` takes it."""

    shown: ClassVar[str] = ".png"
    """The ending of the files that training draws samples into: a picture (:meth:`preview`), or what :meth:`write` takes."""

    examples_word: ClassVar[str] = "examples"
    """Name of its examples, in the plural."""

    sources: ClassVar[str]
    """Its sources, in words that follow "expected"."""

    defaults: ClassVar[Defaults] = Defaults()

    augment: ClassVar[str] = ""
    """What is always done to examples in training, in the words of :class:`proxflow.data.augment.Augmentation`."""

    @property
    def decides(self) -> Mapping[str, Any]:
        """Settings of a flow that the data decide, as JSON values by field; taken where a flow has the field."""
        return {}

    @classmethod
    @abstractmethod
    def takes(cls, source: str) -> bool:
        """Tell whether it reads such a source, by its name, ending or content; raise nothing."""

    @classmethod
    @abstractmethod
    def read(cls, source: str, *, held_out: float = 0.05, seed: int = 0, **settings: Any) -> Loaded:
        """Read data.

        Args:
            source: Name, file or folder.
            held_out: Share of the examples kept from training, in [0, 1).
            seed: Seed of their choice.
            **settings: Settings of the kind.

        Raises:
            ArgumentError: The share is out of range, or a setting is out of range or unknown.
            DataError: There is no such source, or it is damaged or of another form.
        """

    @abstractmethod
    def encode(self, stored: Tensor) -> Tensor:
        """Return examples (number, …) as networks take them: (number, *shape)."""

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Return samples (number, *shape) in stored form."""

    def labelled(self, stored: Tensor, labels: Tensor) -> Tensor:
        """Return samples in stored form with the labels (number,) they were drawn for, where these are a part of them."""
        return stored

    @property
    def log_scale(self) -> float:
        """Logarithm of the volume, in the data's own units, of a unit volume of encoded data.

        Densities convert by log p(stored) = log p(encoded) − log_scale.
        """
        return 0.0

    @abstractmethod
    def check_output(self, path: Path, number: int) -> None:
        """Refuse an output that :meth:`write` could not write for so many examples, before any work for it.

        Raises:
            ArgumentError: The ending is unknown, or the form cannot hold such examples.
            OutputError: The place cannot be written.
        """

    @abstractmethod
    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write examples in the form that the path's ending chooses.

        Raises:
            OutputError: The place cannot be written.
        """

    @abstractmethod
    def preview(self, stored: Tensor) -> Picture:
        """Draw examples into one picture."""


def check_share(held_out: float) -> None:
    """Refuse a share of held-out examples that is out of range.

    Raises:
        ArgumentError: It does not lie in [0, 1).
    """
    if not 0 <= held_out < 1:
        raise ArgumentError(
            f"held_out, the share of the examples kept from training, must lie in [0, 1), got {held_out}"
        )


def split(examples: E, held_out: float, seed: int) -> tuple[E, E | None]:
    """Split examples at random, training examples in their order: the same split whatever the number of processes.

    Raises:
        ArgumentError: The share does not lie in [0, 1), or leaves fewer than two to train on.
    """
    check_share(held_out)
    number = int(held_out * len(examples))
    if not number:
        return examples, None
    if len(examples) - number < 2:
        raise ArgumentError(
            f"held_out {held_out} leaves {len(examples) - number} of {len(examples)} examples to train on, and training "
            "takes 2: keep fewer of them"
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples[order[number:].sort().values], examples[order[:number]]
