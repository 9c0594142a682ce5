"""Beliefs about discrete coordinates: for every coordinate of an event, probabilities of K classes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, gumbel_max


@dataclass(frozen=True, eq=False)
class Discrete(Belief):
    """Independent distributions over K values of each coordinate, stored in log space so that no update overflows.

    Subclasses map events to indices and back (:meth:`events_of`, :meth:`indices_of`); the rest is shared.
    """

    logits: Tensor
    factorised = True
    _words: ClassVar[tuple[str, str]]
    """Names of the family and its values in errors."""

    def __post_init__(self) -> None:
        if not self.logits.is_floating_point() or self.logits.ndim < 2 or self.logits.shape[-1] < 2:
            family, values = self._words
            raise ArgumentError(
                f"a {family} belief needs floating-point logits (batch, *event, {values}) with at least 2 {values}, "
                f"got {self.logits.dtype} {tuple(self.logits.shape)}"
            )

    @abstractmethod
    def events_of(self, indices: Tensor) -> Tensor:
        """Return the events of indices 0 … K − 1, (batch, *event)."""

    @abstractmethod
    def indices_of(self, x: Tensor) -> Tensor:
        """Return the indices of events, int64 (batch, *event).

        Raises:
            ArgumentError: Events of another type.
        """

    @property
    def batch_size(self) -> int:
        return self.logits.shape[0]

    @property
    def log_probs(self) -> Tensor:
        """Normalised log-probabilities in nats, (batch, *event, K)."""
        return self.logits.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities, (batch, *event, K)."""
        return self.logits.softmax(-1)

    @property
    def mode(self) -> Tensor:
        return self.events_of(self.logits.argmax(-1))

    def sample(self, generator: Generator) -> Tensor:
        return self.events_of(gumbel_max(self.log_probs, generator))

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.logits.shape[:-1])
        return sum_events(self.log_probs.gather(-1, self.indices_of(x)[..., None]).squeeze(-1))

    def coordinates(self) -> Tensor:
        """Return log-odds against the last value, (batch, sites · (K − 1)); infinite for values of probability 0."""
        return (self.logits[..., :-1] - self.logits[..., -1:]).reshape(self.batch_size, -1)

    def at(self, coordinates: Tensor) -> Self:
        free = coordinates.reshape(len(coordinates), *self.logits.shape[1:-1], self.logits.shape[-1] - 1)
        return type(self)(torch.cat([free, torch.zeros_like(free[..., :1])], dim=-1).log_softmax(-1))

    def sites(self) -> Self:
        return type(self)(self.logits.reshape(-1, 1, self.logits.shape[-1]))

    def unsites(self, sites: Self) -> Self:
        return type(self)(sites.logits.reshape(self.logits.shape))


@dataclass(frozen=True, eq=False)
class Categorical(Discrete):
    """Independent categorical distributions; events are class indices, int64.

    Args:
        logits: Log-probabilities up to a constant, (batch, *event, classes), classes ≥ 2. −∞ excludes a class.

    Raises:
        ArgumentError: Wrong number of dimensions or classes, or not floating point.
    """

    _words = ("categorical", "classes")

    @classmethod
    def from_probs(cls, probs: Tensor) -> Self:
        """Make the belief of probabilities ≥ 0 (batch, *event, classes) that sum to 1 over classes."""
        return cls(probs.log())

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self.logits.shape[-1]

    @property
    def mean(self) -> Tensor:
        return self.probs

    def events_of(self, indices: Tensor) -> Tensor:
        return indices

    def indices_of(self, x: Tensor) -> Tensor:
        if x.dtype != torch.int64:
            raise ArgumentError(f"events of a categorical belief are int64 class indices, got {x.dtype}")
        return x

    def features(self) -> Tensor:
        """Return 2θ − 1; for two classes only that of the first, without the class dimension.

        So does the public code of Bayesian Flow Networks (Graves et al., 2023), arXiv 2308.07037.
        """
        probs = self.probs
        # In place if no gradient is needed: with many classes each copy counts.
        scaled = 2 * probs - 1 if probs.requires_grad else probs.mul_(2).sub_(1)
        return scaled[..., 0] if self.classes == 2 else scaled
