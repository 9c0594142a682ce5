"""Categorical beliefs: for every coordinate of an event, probabilities of K classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, gumbel_max


@dataclass(frozen=True, eq=False)
class Categorical(Belief):
    """Independent categorical distributions, held in log space so that no update overflows.

    Args:
        logits: Log-probabilities up to a constant, (batch, *event, classes), classes ≥ 2. −∞ is a class ruled out.

    Raises:
        ArgumentError: Wrong number of dimensions or classes, or not floating point.
    """

    logits: Tensor
    factorised = True

    def __post_init__(self) -> None:
        if not self.logits.is_floating_point() or self.logits.ndim < 2 or self.logits.shape[-1] < 2:
            raise ArgumentError(
                "a categorical belief needs floating-point logits (batch, *event, classes) with at least 2 classes, "
                f"got {self.logits.dtype} {tuple(self.logits.shape)}"
            )

    @classmethod
    def from_probs(cls, probs: Tensor) -> Self:
        """From probabilities ≥ 0 (batch, *event, classes) that sum to 1 over classes."""
        return cls(probs.log())

    @property
    def batch_size(self) -> int:
        return self.logits.shape[0]

    @property
    def classes(self) -> int:
        return self.logits.shape[-1]

    @property
    def log_probs(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def sample(self, generator: Generator) -> Tensor:
        return gumbel_max(self.log_probs, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.logits.shape[:-1])
        if x.dtype != torch.int64:
            raise ArgumentError(f"events of a categorical belief are int64 class indices, got {x.dtype}")
        return sum_events(self.log_probs.gather(-1, x[..., None]).squeeze(-1))

    def coordinates(self) -> Tensor:
        """Log-odds against the last class, (batch, sites · (classes − 1)); infinite where a class is ruled out."""
        return (self.logits[..., :-1] - self.logits[..., -1:]).reshape(self.batch_size, -1)

    def at(self, coordinates: Tensor) -> Self:
        free = coordinates.reshape(len(coordinates), *self.logits.shape[1:-1], self.classes - 1)
        return type(self)(torch.cat([free, torch.zeros_like(free[..., :1])], dim=-1).log_softmax(-1))

    def features(self) -> Tensor:
        """2θ − 1; for two classes only that of the first, without the class dimension (BFN reference, 2308.07037)."""
        scaled = 2 * self.probs - 1
        return scaled[..., 0] if self.classes == 2 else scaled

    def sites(self) -> Self:
        return type(self)(self.logits.reshape(-1, 1, self.classes))

    def unsites(self, sites: Self) -> Self:
        return type(self)(sites.logits.reshape(self.logits.shape))
