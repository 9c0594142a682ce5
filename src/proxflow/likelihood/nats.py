"""Negative log-likelihoods of a data set, and their mean with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from proxflow.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Nats:
    """Negative log-likelihood −log p(x), or an upper bound on it, for each example of a data set.

    Args:
        values: Nats of each example, (number,), independent of each other.
        dimensions: Coordinates of an event, ≥ 1, the divisor of bits per dimension.

    Raises:
        ArgumentError: The shape is wrong, there are fewer than two examples (for a standard error), a value is NaN, or
            there are no dimensions.
    """

    values: Tensor
    dimensions: int

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or len(self.values) < 2:
            raise ArgumentError(f"nats are one number for each of at least 2 examples, got {tuple(self.values.shape)}")
        if self.dimensions < 1:
            raise ArgumentError(f"an event has at least one dimension, got {self.dimensions}")
        if bool(self.values.isnan().any()):
            raise ArgumentError("some nats are NaN: check the predictions of the model for these data")

    @property
    def mean(self) -> float:
        """Nats per example."""
        return float(self.values.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`, over the choice of examples and all random draws of the computation."""
        return float(self.values.double().std()) / math.sqrt(len(self.values))

    @property
    def bits_per_dimension(self) -> float:
        return self.mean / (self.dimensions * math.log(2))
