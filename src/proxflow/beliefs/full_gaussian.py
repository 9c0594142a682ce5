"""Gaussian beliefs with a full covariance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from proxflow.beliefs.base import Belief
from proxflow.errors import ArgumentError
from proxflow.random import Generator, randn_like


@dataclass(frozen=True, eq=False)
class FullGaussian(Belief):
    """N(mean, L Lᵀ), given by the Cholesky factor, whose condition number is the square root of the covariance's.

    Known elsewhere as a multivariate normal distribution.

    Args:
        mean: (batch, dimension), floating point.
        scale_tril: Cholesky factor L of the covariance, (batch, dimension, dimension): lower triangular, its diagonal
            ≥ 0, in the units of the data. A zero on the diagonal is a valid target for Wasserstein-2 only.

    Raises:
        ArgumentError: The shapes do not fit, or a tensor is not floating point.
    """

    mean: Tensor
    scale_tril: Tensor

    def __post_init__(self) -> None:
        if not (self.mean.is_floating_point() and self.scale_tril.is_floating_point()):
            raise ArgumentError(
                f"a Gaussian needs floating-point tensors, got {self.mean.dtype} and {self.scale_tril.dtype}"
            )
        if self.mean.ndim != 2 or self.scale_tril.shape != (*self.mean.shape, self.mean.shape[1]):
            raise ArgumentError(
                "a full-covariance Gaussian needs a mean (batch, dimension) and a factor (batch, dimension, dimension), "
                f"got {tuple(self.mean.shape)} and {tuple(self.scale_tril.shape)}"
            )

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Self:
        """Make the belief of symmetric positive definite covariances (batch, d, d), in squared units of the data.

        Raises:
            ArgumentError: The shapes do not fit, or a covariance is not positive definite.
        """
        if covariance.ndim != 3 or covariance.shape[1] != covariance.shape[2]:
            raise ArgumentError(f"covariances have the shape (batch, d, d), got {tuple(covariance.shape)}")
        if not torch.allclose(covariance, covariance.mT):
            raise ArgumentError("covariances must be symmetric")
        factor, info = torch.linalg.cholesky_ex(covariance)
        if bad := info.nonzero().flatten().tolist():
            raise ArgumentError(f"covariances must be positive definite; those of examples {bad} are not")
        return cls(mean, factor)

    @property
    def covariance(self) -> Tensor:
        """L Lᵀ, (batch, dimension, dimension)."""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def batch_size(self) -> int:
        return self.mean.shape[0]

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Generator) -> Tensor:
        noise = randn_like(self.mean, generator)
        return self.mean + (self.scale_tril @ noise[..., None]).squeeze(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.mean.shape)
        z = torch.linalg.solve_triangular(self.scale_tril, (x - self.mean)[..., None], upper=False).squeeze(-1)
        densities: Tensor = -0.5 * z.square() - self.scale_tril.diagonal(dim1=1, dim2=2).log()
        return (densities - 0.5 * math.log(2 * math.pi)).sum(1)

    def coordinates(self) -> Tensor:
        """Return the log-Cholesky coordinates: the mean, the logarithms of L's diagonal, and the entries below by rows."""
        rows, columns = self._below()
        diagonal = self.scale_tril.diagonal(dim1=1, dim2=2).log()
        return torch.cat([self.mean, diagonal, self.scale_tril[:, rows, columns]], dim=1)

    def at(self, coordinates: Tensor) -> Self:
        rows, columns = self._below()
        size = self.mean.shape[1]
        factor = torch.diag_embed(coordinates[:, size : 2 * size].exp())
        factor[:, rows, columns] = coordinates[:, 2 * size :]
        return type(self)(coordinates[:, :size], factor)

    def _below(self) -> tuple[Tensor, Tensor]:
        size = self.mean.shape[1]
        rows, columns = torch.tril_indices(size, size, offset=-1, device=self.mean.device)
        return rows, columns
