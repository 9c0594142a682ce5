"""Gaussian beliefs with independent coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, randn_like


@dataclass(frozen=True, eq=False, init=False)
class DiagonalGaussian(Belief):
    """N(mean, diag(std²)). Known elsewhere as a factorised or mean-field Gaussian.

    A standard deviation of 0 is a point mass: a valid target for Wasserstein-2, but at infinite distance for KL.

    Args:
        mean: (batch, *event), floating point.
        std: Standard deviation ≥ 0 in the units of the data: a number, a tensor broadcastable to the shape of ``mean``,
            or a function that returns such a tensor, called at first use. Reading it gives a view expanded to that
            shape.

    Raises:
        ArgumentError: The shapes do not fit, a tensor is not floating point, or a number is negative.
    """

    __match_args__ = ("mean", "std")

    mean: Tensor
    _std: Tensor | float | Callable[[], Tensor]
    factorised = True

    def __init__(self, mean: Tensor, std: Tensor | float | Callable[[], Tensor]) -> None:
        if not mean.is_floating_point():
            raise ArgumentError(f"a Gaussian needs a floating-point mean, got {mean.dtype}")
        if mean.ndim == 0:
            raise ArgumentError("a Gaussian's mean needs a batch dimension: (batch, *event)")
        if isinstance(std, Tensor):
            if not std.is_floating_point():
                raise ArgumentError(f"a Gaussian needs a floating-point std, got {std.dtype}")
            if std.ndim and not _broadcasts(std.shape, mean.shape):
                raise ArgumentError(
                    f"std of shape {tuple(std.shape)} does not broadcast to the mean's {tuple(mean.shape)}"
                )
        elif not callable(std) and not std >= 0:
            raise ArgumentError(f"a standard deviation must not be negative, got {std}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "_std", std)

    @property
    def given_std(self) -> Tensor:
        """The standard deviation as given, not expanded, so that arithmetic on it is not repeated over a batch."""
        std = self._std
        if isinstance(std, Tensor):
            return std
        return std() if callable(std) else self.mean.new_full((), std)

    @property
    def std(self) -> Tensor:
        # Expanded, so that example i of every tensor belongs to example i of the batch, as ``map`` promises; only when it is
        # asked for, since most steps read the mean alone.
        return self.given_std.expand(self.mean.shape)

    @property
    def batch_size(self) -> int:
        return self.mean.shape[0]

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Generator) -> Tensor:
        noise = randn_like(self.mean, generator)
        return torch.addcmul(self.mean, self.given_std, noise)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.mean.shape)
        z = (x - self.mean) / self.std
        return sum_events(-0.5 * z.square() - self.std.log() - 0.5 * math.log(2 * math.pi))

    def coordinates(self) -> Tensor:
        """Return the means, then logarithms of the standard deviations, (batch, 2 · sites)."""
        return torch.cat([self.mean.reshape(self.batch_size, -1), self.std.log().reshape(self.batch_size, -1)], dim=1)

    def at(self, coordinates: Tensor) -> Self:
        mean, log_std = coordinates.chunk(2, dim=1)
        shape = (len(coordinates), *self.mean.shape[1:])
        return type(self)(mean.reshape(shape), log_std.exp().reshape(shape))

    def shapes(self) -> list[torch.Size]:
        return [self.mean.shape, self.mean.shape]

    def sites(self) -> Self:
        return type(self)(self.mean.reshape(-1, 1), self.std.reshape(-1, 1))

    def unsites(self, sites: Self) -> Self:
        return type(self)(sites.mean.reshape(self.mean.shape), sites.std.reshape(self.mean.shape))


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Return whether a tensor of this shape expands to the other."""
    if len(shape) > len(to):
        return False
    for n, m in zip(reversed(shape), reversed(to), strict=False):  # noqa: SIM110  # all() takes twice as long
        if n not in (1, m):
            return False
    return True
