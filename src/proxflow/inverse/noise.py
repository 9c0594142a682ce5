"""Noise models of observations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import over_events
from proxflow.errors import ArgumentError
from proxflow.random import Generator, randn_like


class Noise(ABC):
    """A noise model: how an observation differs from A x."""

    @abstractmethod
    def variance(self, clean: Tensor) -> Tensor | float:
        """Return the variance of the noise at ``clean`` = A x, (batch, *observed): a scalar, or broadcastable."""

    def draw(self, clean: Tensor, generator: Generator) -> Tensor:
        """Draw observations given A x; by default Gaussian ones with :meth:`variance`."""
        variance = self.variance(clean)
        std = variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)
        return clean + std * randn_like(clean, generator)


@dataclass(frozen=True, eq=False)
class Gaussian(Noise):
    """Gaussian noise; a standard deviation of 0 makes the observation a hard constraint.

    Args:
        std: Standard deviation ≥ 0: a scalar, one for each example (number,), or one for each entry of an observation,
            (*observed) or (number, *observed).
        covariance: (observed, observed), positive definite, over the flattened observation, instead of ``std``.

    Raises:
        ArgumentError: A value that is negative or not finite, or a covariance that is not symmetric and positive
            definite.
    """

    std: Tensor | float = 0.0
    covariance: Tensor | None = None

    def __post_init__(self) -> None:
        least = float(self.std.min()) if isinstance(self.std, Tensor) else float(self.std)
        most = float(self.std.max()) if isinstance(self.std, Tensor) else float(self.std)
        if not (least >= 0 and math.isfinite(most)):
            told = f"{least:g}" if least == most or math.isnan(least) else f"{least:g} to {most:g}"
            raise ArgumentError(f"the standard deviation of noise is finite and not negative, got {told}")
        if self.covariance is not None:
            c = self.covariance
            if c.ndim != 2 or c.shape[0] != c.shape[1] or not torch.allclose(c, c.mT):
                raise ArgumentError(f"a covariance of noise is a symmetric matrix, got {tuple(c.shape)}")
            if int(torch.linalg.cholesky_ex(c).info) > 0:
                raise ArgumentError("a covariance of noise is positive definite, and this one is not")

    @property
    def none(self) -> bool:
        """Whether there is no noise at all."""
        return self.covariance is None and not isinstance(self.std, Tensor) and self.std == 0

    def variance(self, clean: Tensor) -> Tensor | float:
        if not isinstance(self.std, Tensor):
            return self.std**2
        std = self.std.to(clean)
        if std.ndim == 1 and clean.ndim > 1 and len(std) == len(clean) and clean.shape[1:] != std.shape:
            std = over_events(std, clean)
        elif std.ndim > clean.ndim or any(
            n not in (1, m) for n, m in zip(reversed(std.shape), reversed(clean.shape), strict=False)
        ):
            raise ArgumentError(
                f"noise has one standard deviation, one for each example or one for each number of {tuple(clean.shape)}; "
                f"got {tuple(std.shape)}"
                + (": for one an example give an observation for each" if std.ndim == 1 and len(clean) == 1 else "")
            )
        return std.square()


@dataclass(frozen=True)
class Poisson(Noise):
    """Poisson noise of counts: gain · (y + offset) is Poisson with mean gain · (A x + offset).

    Proximal steps use a Gaussian of the same variance, (A x + offset)/gain, at the predicted x, at least that of one
    count.

    Args:
        gain: Counts per unit of A x, > 0.
        offset: Shift that makes A x + offset ≥ 0: 1 for pictures in [−1, 1].

    Raises:
        ArgumentError: The gain is not positive.
    """

    gain: float
    offset: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise ArgumentError(f"the gain of counts is finite and positive, got {self.gain}")

    def variance(self, clean: Tensor) -> Tensor:
        return (clean + self.offset).clamp_min(1 / self.gain) / self.gain

    def draw(self, clean: Tensor, generator: Generator) -> Tensor:
        if not isinstance(generator, torch.Generator):
            raise ArgumentError("counts are drawn by torch's generators alone")
        rate = self.gain * (clean + self.offset).clamp_min(0)
        return torch.poisson(rate, generator=generator) / self.gain - self.offset


def noise_of(given: Any) -> Noise:
    """Return a noise model: of a standard deviation, a tensor of them, ``None`` for no noise, or itself."""
    if isinstance(given, Noise):
        return given
    if given is None:
        return Gaussian(0.0)
    if isinstance(given, bool) or not isinstance(given, int | float | Tensor):
        raise ArgumentError(
            f"noise is a standard deviation, or Gaussian or Poisson of proxflow.inverse, got {type(given).__name__}"
        )
    return Gaussian(given if isinstance(given, Tensor) else float(given))
