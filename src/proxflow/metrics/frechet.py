"""The Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features, check_same_dimension


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean and covariance of a set of features.

    Args:
        mean: float64, (D,).
        covariance: float64, (D, D), symmetric and positive semidefinite.

    Raises:
        ArgumentError: A type or shape differs, or a value is not finite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean), len(self.mean)):
            raise ArgumentError(
                "mean and covariance must have shapes (D,) and (D, D); "
                f"got {tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            )
        if self.mean.dtype != torch.float64 or self.covariance.dtype != torch.float64:
            raise ArgumentError(
                f"mean and covariance must be float64; got {self.mean.dtype} and {self.covariance.dtype}"
            )
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ArgumentError("mean and covariance must be finite")

    @classmethod
    def of(cls, features: Tensor, name: str = "the") -> GaussianStatistics:
        """Sample mean and unbiased covariance of features (N, D), N at least 2.

        Raises:
            ArgumentError: The features are not of this form, or not finite; ``name`` says whose they are.
        """
        wide = as_features(features, name)
        mean = wide.mean(dim=0)
        centred = wide - mean
        return cls(mean, centred.T @ centred / (len(wide) - 1))


def frechet_distance(a: Tensor | GaussianStatistics, b: Tensor | GaussianStatistics) -> float:
    """Squared 2-Wasserstein distance between the Gaussians of two feature sets, known as FID.

    |μa − μb|² + tr(A + B − 2 (A^½ B A^½)^½). The estimate from n samples is biased upwards, so compare equal n only and
    state the value that as many real samples reach (:func:`proxflow.metrics.real_floor`). A set of identical samples
    is a point mass, with A = 0.

    Args:
        a: Features (N, D), N at least 2, or their statistics.
        b: The same for the other set; N may differ.

    Returns:
        At least 0; 0 for equal statistics, up to rounding.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension.
    """
    first = a if isinstance(a, GaussianStatistics) else GaussianStatistics.of(a, "the first")
    second = b if isinstance(b, GaussianStatistics) else GaussianStatistics.of(b, "the second")
    check_same_dimension(first.mean, second.mean)
    # tr (A^½ B A^½)^½ is the sum of the singular values of A^½ B^½. Taken so, the rounding of eigenvalues near zero
    # is not magnified by another square root, and the distance is symmetric.
    overlap = torch.linalg.svdvals(_square_root(first.covariance) @ _square_root(second.covariance)).sum()
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2.0 * overlap
    return max(0.0, float(distance))


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    # What lies below the rounding of the largest eigenvalue is a zero.
    noise = values[-1].abs() * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > noise, values, 0.0).sqrt()
    square_root: Tensor = (vectors * roots) @ vectors.T
    return square_root
