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
"""Largest size of an event: more is refused when a model is built and when one is loaded."""

FARTHEST = 1e15
"""Largest distance from the mean in standard deviations: beyond, squares come near the limit of float32."""


@dataclass(frozen=True)
class Defaults:
    """The flow, network and predictor that a kind of data takes by default.

    Args:
        flow: A flow, as on the command line.
        network: A network.
        predictor: A predictor.
        clip: Range of the encoded data, to which predictions are clipped; ``None`` for unbounded data.
        parameterisation: Parameterisation of the predictor; ``None`` for the predictor's own default.
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
        kind: Their kind, with the properties found in the data.
        train: Training examples, in stored form.
        held_out: Held-out examples, for evaluation; ``None`` for none.
        description: A description of the training examples, as "3000 rows of 2 columns".
        notes: Sentences that a user should read before training.
        record: What was read and left out, and by which rules, as JSON values for the provenance of a model.
    """

    kind: Kind
    train: AnyExamples
    held_out: AnyExamples | None
    description: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of data: a frozen dataclass of plain values, which are saved in a model's file.

    Data have two forms: stored, as in files, and encoded, for networks and flows.

    Args:
        shape: Shape of an encoded event.
    """

    shape: tuple[int, ...]

    ending: ClassVar[str] = ".png"
    """The default suffix of files of samples; :meth:`write` supports it."""

    shown: ClassVar[str] = ".png"
    """The suffix of files of samples during training: a picture (:meth:`preview`), or one that :meth:`write` supports."""

    examples_word: ClassVar[str] = "examples"
    """Name of its examples, in the plural."""

    sources: ClassVar[str]
    """Its sources, as a phrase after "expected"."""

    defaults: ClassVar[Defaults] = Defaults()

    augment: ClassVar[str] = ""
    """Augmentation that is always applied in training, see :class:`proxflow.data.augment.Augmentation`."""

    @property
    def decides(self) -> Mapping[str, Any]:
        """Settings of a flow that the data decide, as JSON values by field; used if a flow has the field."""
        return {}

    @classmethod
    @abstractmethod
    def takes(cls, source: str) -> bool:
        """Return whether it accepts a source, by its name, suffix or content; raise nothing."""

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
        """Return encoded examples, (number, …) → (number, *shape)."""

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Return samples (number, *shape) in stored form."""

    def labelled(self, stored: Tensor, labels: Tensor) -> Tensor:
        """Return samples in stored form with the labels (number,) they were drawn for, if the form includes these."""
        return stored

    @property
    def log_scale(self) -> float:
        """Logarithm of the volume, in the data's own units, of a unit volume of encoded data.

        Densities convert by log p(stored) = log p(encoded) − log_scale.
        """
        return 0.0

    @abstractmethod
    def check_output(self, path: Path, number: int) -> None:
        """Refuse an output that :meth:`write` could not write for so many examples, before work starts.

        Raises:
            ArgumentError: The suffix is unknown, or the format cannot hold such examples.
            OutputError: The path cannot be written.
        """

    @abstractmethod
    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write examples in the format of the path's suffix.

        Raises:
            OutputError: The path cannot be written.
        """

    @abstractmethod
    def preview(self, stored: Tensor) -> Picture:
        """Draw examples as one picture."""


def check_share(held_out: float) -> None:
    """Refuse a held-out fraction that is out of range.

    Raises:
        ArgumentError: It is not in [0, 1).
    """
    if not 0 <= held_out < 1:
        raise ArgumentError(
            f"held_out, the share of the examples kept from training, must lie in [0, 1), got {held_out}"
        )


def split(examples: E, held_out: float, seed: int) -> tuple[E, E | None]:
    """Split examples at random, keeping their order: the same split for any number of processes.

    Raises:
        ArgumentError: The fraction is not in [0, 1), or leaves fewer than two training examples.
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
