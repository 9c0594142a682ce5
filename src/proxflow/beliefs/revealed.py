"""Beliefs of masked diffusion: some coordinates of an event are known, the others unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, rand


@dataclass(frozen=True, eq=False)
class Revealed(Belief):
    """Certainty about some coordinates of an event of classes; the others are hidden, in the mask class.

    It is a vertex of the simplex of K + 1 classes at each coordinate, given by its index. As a distribution over events
    it is uniform over the K classes of a hidden coordinate.

    Args:
        tokens: Class indices int64 (batch, *event), −1 where hidden.
        classes: Number of classes K ≥ 2, without the mask.

    Raises:
        ArgumentError: Other types or shapes.
    """

    tokens: Tensor
    classes: int
    factorised = True

    def __post_init__(self) -> None:
        if self.tokens.dtype != torch.int64 or self.tokens.ndim < 1 or self.classes < 2:
            raise ArgumentError(
                f"a belief of known classes needs int64 indices (batch, *event) and at least 2 classes, got "
                f"{self.tokens.dtype} {tuple(self.tokens.shape)} and {self.classes}"
            )

    @property
    def hidden(self) -> Tensor:
        """Which coordinates are hidden, (batch, *event)."""
        return self.tokens < 0

    @property
    def batch_size(self) -> int:
        return len(self.tokens)

    @property
    def probs(self) -> Tensor:
        """Probabilities, (batch, *event, K)."""
        every = torch.arange(self.classes, device=self.tokens.device)
        certain = (self.tokens[..., None] == every).to(torch.float32)
        return torch.where(self.hidden[..., None], 1 / self.classes, certain)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return self.tokens.clamp_min(0)

    def sample(self, generator: Generator) -> Tensor:
        drawn = rand(self.tokens.shape, generator, torch.float64, self.tokens.device) * self.classes
        return torch.where(self.hidden, drawn.long().clamp(max=self.classes - 1), self.tokens)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.tokens.shape)
        return sum_events(self.probs.gather(-1, x[..., None]).squeeze(-1).log())

    def coordinates(self) -> Tensor:
        raise ArgumentError(
            "known and hidden classes are the corners of a simplex, which no unconstrained numbers reach"
        )

    def at(self, coordinates: Tensor) -> Self:
        raise ArgumentError(
            "known and hidden classes are the corners of a simplex, which no unconstrained numbers reach"
        )

    def features(self) -> Tensor:
        """Return 2e_x − 1, and 0 where hidden; for two classes only the first, as :meth:`Categorical.features`."""
        scaled = torch.where(self.hidden[..., None], 0, 2 * self.probs - 1)
        return scaled[..., 0] if self.classes == 2 else scaled

    def tensors(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        return replace(self, tokens=tensors["tokens"])
