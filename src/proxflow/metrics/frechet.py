"""The Fréchet distance between Gaussians fitted to features, known as FID.

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (Heusel et al., 2017), arXiv 1706.08500,
eq. 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features, check_same_dimension, row_blocks
from proxflow.metrics.uncertainty import Estimate


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
    _factor: Tensor | None = field(default=None, repr=False)
    """F with FᵀF = covariance, (rows, D), if fewer rows than D suffice."""

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
        """Compute sample mean and unbiased covariance of features (N, D), N at least 2.

        Raises:
            ArgumentError: The features are not of this form, or not finite; ``name`` says whose they are.
        """
        held = as_features(features, name)
        mean = torch.zeros(held.shape[1], dtype=torch.float64)
        for _, block in row_blocks(held):
            mean += block.sum(dim=0)
        mean /= len(held)
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for _, block in row_blocks(held):
            centred = block - mean
            scatter.addmm_(centred.T, centred)
        few = len(held) < len(mean)
        factor = (held.double() - mean) / math.sqrt(len(held) - 1) if few else None
        return cls(mean, scatter / (len(held) - 1), factor)

    def factor(self) -> Tensor:
        """Return F with FᵀF = covariance, (rows, D), with as few rows as are known to suffice."""
        return _square_root(self.covariance) if self._factor is None else self._factor


class FeatureStatistics:
    """Mean and covariance of features added in batches, or by several processes; holds D² numbers.

    Count, mean and the sum of centred outer products, in float64, combined by the pairwise rule of Chan, Golub and
    LeVeque (1979), which avoids cancellation however large the mean.

    Typical use: ``update`` with each batch, ``reduce`` if several processes share the work, then ``gaussian``.

    Args:
        dimension: D, the number of features.

    Raises:
        ArgumentError: The dimension is not positive.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise ArgumentError(f"dimension must be at least 1; got {dimension}")
        self.count = 0
        self._mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (N, D), N at least 1, of any floating type and device.

        Raises:
            ArgumentError: The features are of another form or dimension, or not finite.
        """
        if features.ndim == 2 and len(features) == 1:
            as_features(features.expand(2, -1), "the")  # one sample is enough for a batch
            held = features.detach().to("cpu", torch.float64)
        else:
            held = as_features(features, "the")
        check_same_dimension(self._mean, held)
        for _, block in row_blocks(held):
            mean = block.mean(dim=0)
            centred = block - mean
            self._join(len(block), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Add the features that another has seen.

        Raises:
            ArgumentError: It is of another dimension.
        """
        check_same_dimension(self._mean, other._mean)
        self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        gap = mean - self._mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.count * count / total)
        self._mean += gap * (count / total)
        self.count = total

    def reduce(self) -> None:
        """Make this the statistics of all processes, in each of them; do nothing without ``torch.distributed``.

        Every process must call it once. Three sums are exchanged: of counts, of means and of centred outer products.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
        first = torch.cat([self._mean * self.count, self._mean.new_tensor([self.count])]).to(device)
        distributed.all_reduce(first)
        first = first.cpu()
        total = int(first[-1])
        if total == 0:
            return
        mean = first[:-1] / total
        gap = self._mean - mean
        scatter = (self._scatter + self.count * torch.outer(gap, gap)).to(device)
        distributed.all_reduce(scatter)
        self.count, self._mean, self._scatter = total, mean, scatter.cpu()

    def gaussian(self) -> GaussianStatistics:
        """Return sample mean and unbiased covariance of all features so far.

        Raises:
            ArgumentError: There were fewer than two.
        """
        if self.count < 2:
            raise ArgumentError(f"statistics need at least 2 samples; got {self.count}")
        return GaussianStatistics(self._mean.clone(), self._scatter / (self.count - 1))


def gather_features(features: Tensor) -> Tensor:
    """Return the features of all processes, in the order of their ranks; as given without ``torch.distributed``.

    Args:
        features: (N, D) of one type in all processes, N at least 0 and not necessarily the same in each; every process
            must call it once.

    Returns:
        (sum of N, D) on the CPU.
    """
    held = features.detach().cpu()
    if not (distributed.is_available() and distributed.is_initialized()):
        return held
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(held)], device=device))
    longest = max(int(count) for count in counts)
    padded = torch.zeros(longest, held.shape[1], dtype=held.dtype, device=device)
    padded[: len(held)] = held.to(device)
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)].cpu() for part, count in zip(parts, counts, strict=True)])


def frechet_distance(a: Tensor | GaussianStatistics, b: Tensor | GaussianStatistics) -> float:
    """Return the squared 2-Wasserstein distance between the Gaussians of two feature sets, known as FID.

    |μa − μb|² + tr(A + B − 2 (A^½ B A^½)^½). The estimate from n samples is biased upwards: compare equal n only, and
    report the value of as many real samples (:func:`proxflow.metrics.real_floor`). A set of identical samples is a
    point mass, with A = 0.

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
    return _distance(first, second, _overlap(first.factor(), second.factor()))


def frechet_estimate(features: Tensor, real: GaussianStatistics) -> Estimate | None:
    """Return the Fréchet distance of samples to fixed statistics, with the influence of each sample.

    The derivative of the distance by the mean is 2 (μ − μr), by the covariance I − T with the optimal map
    T = R^½ (R^½ A R^½)^(−½) R^½ from the samples' Gaussian to the real one, so the influence of x is
    2 (μ − μr)·y + yᵀ (I − T) y, less its mean, where y = x − μ.

    Returns:
        ``None`` if there are no more samples than dimensions, for which the distance has no derivative.
    """
    held = as_features(features, "sample")
    if len(held) <= held.shape[1]:
        return None
    own = GaussianStatistics.of(held, "sample")
    check_same_dimension(own.mean, real.mean)
    root = _square_root(real.covariance)
    value = _distance(own, real, _overlap(_square_root(own.covariance), root))
    values, vectors = torch.linalg.eigh(root @ own.covariance @ root)
    # The map is zero in directions in which one of the two Gaussians has no variance.
    kept = values > values[-1].abs() * len(values) * torch.finfo(values.dtype).eps
    half = root @ vectors
    transport = (half * torch.where(kept, values, torch.inf).rsqrt()) @ half.T
    gap = own.mean - real.mean
    influences = torch.empty(len(held), dtype=torch.float64)
    for rows, block in row_blocks(held):
        y = block - own.mean
        influences[rows] = 2.0 * (y @ gap) + (y * (y - y @ transport)).sum(dim=1)
    return Estimate(value, influences - influences.mean())


def _distance(a: GaussianStatistics, b: GaussianStatistics, overlap: float) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces) - 2.0 * overlap)


def _overlap(a: Tensor, b: Tensor) -> float:
    # tr (A^½ B A^½)^½ is the sum of the singular values of F Gᵀ, where A = FᵀF and B = GᵀG. In this form no second
    # square root magnifies the rounding of eigenvalues near zero, and the distance is symmetric.
    return float(torch.linalg.svdvals(a @ b.T).sum())


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues below the rounding of the largest one are zero.
    noise = values[-1].abs() * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > noise, values, 0.0).sqrt()
    square_root: Tensor = (vectors * roots) @ vectors.T
    return square_root
