"""Uncertainty of a metric over samples: influences, standard errors and bootstrap intervals.

A metric T of n samples with influences ψ changes to first order by T* − T ≈ (1/n) Σ_j w_j ψ_j when sample j is drawn
w_j times. So its standard error is the standard deviation of ψ divided by √n (infinitesimal jackknife: "The Jackknife,
the Bootstrap and Other Resampling Plans" (Efron, 1982), chapter 6), and a bootstrap draws means of ψ. Features are not
resampled: duplicates would distort nearest-neighbour metrics and lower the rank for the Fréchet distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError

# Draws in memory at a time: 16 MiB.
_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Estimate:
    """A metric of n samples and the influence of each sample on it.

    Args:
        value: The metric.
        influences: float64, (n,), mean 0 up to rounding; the reference is held fixed.
    """

    value: float
    influences: Tensor

    @property
    def standard_error(self) -> float:
        """Standard deviation of the value over other samples of the same source."""
        n = len(self.influences)
        spread = (self.influences - self.influences.mean()).square().sum() / (n - 1)
        return math.sqrt(float(spread) / n)


def mean_estimate(values: Tensor) -> Estimate:
    """Return the mean of one value per sample, (n,)."""
    wide = values.to(torch.float64)
    mean = wide.mean()
    return Estimate(float(mean), wide - mean)


def bootstrap(
    estimates: Mapping[str, Estimate], seed: int, replicates: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals over samples, for metrics of the same samples.

    "Bootstrap Methods: Another Look at the Jackknife" (Efron, 1979): T + quantiles of (1/n) Σ_j w_j ψ_j, with w the
    multiplicities of n draws with replacement. The intervals show how much other samples of the same source would change
    the metrics for the same reference. They do not remove a bias that depends on n, such as that of the Fréchet distance;
    the floor of real samples shows it.

    Args:
        estimates: Estimates by name; all of the same number of samples.
        seed: Seed of the draws.
        replicates: Number of draws.
        level: Fraction of draws within the interval.

    Returns:
        The lower and the upper end, by name.

    Raises:
        ArgumentError: The sample counts differ, or there is no estimate, no replicate, or no level between 0 and 1.
    """
    _check(replicates, level)
    if len({len(estimate.influences) for estimate in estimates.values()}) != 1:
        raise ArgumentError("bootstrap takes at least one estimate, and all of the same number of samples")
    influences = torch.stack([estimate.influences for estimate in estimates.values()], dim=1)
    means = _resampled_means(influences - influences.mean(dim=0), replicates, seed)
    low, high = _quantiles(means, level)
    return {
        name: (estimate.value + float(low[index]), estimate.value + float(high[index]))
        for index, (name, estimate) in enumerate(estimates.items())
    }


def bootstrap_seeds(
    values: Sequence[float], seed: int, replicates: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over runs with different seeds.

    Runs differ in training and sampling, so this interval includes the uncertainty over samples. With fewer than about
    ten runs it is too narrow; with two it is their range.

    Args:
        values: One number for each run, at least two, finite.
        seed: Seed of the draws.
        replicates: Number of draws.
        level: Fraction of draws within the interval.

    Raises:
        ArgumentError: Fewer than two values, one is not finite, or no replicate or level between 0 and 1.
    """
    _check(replicates, level)
    held = torch.tensor(list(values), dtype=torch.float64)
    if len(held) < 2 or not bool(held.isfinite().all()):
        raise ArgumentError(f"an interval over seeds needs at least two finite values, one a seed; got {list(values)}")
    low, high = _quantiles(_resampled_means(held[:, None], replicates, seed), level)
    return float(low[0]), float(high[0])


def _check(replicates: int, level: float) -> None:
    if replicates < 1 or not 0.0 < level < 1.0:
        raise ArgumentError(f"replicates must be at least 1 and level between 0 and 1; got {replicates} and {level}")


def _resampled_means(values: Tensor, replicates: int, seed: int) -> Tensor:
    """Return means of n draws with replacement of the rows of values (n, M): (replicates, M)."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    means, size = [], max(1, _BLOCK_ELEMENTS // n)
    for start in range(0, replicates, size):
        count = min(size, replicates - start)
        draws = torch.randint(n, (count, n), generator=generator)
        draws += n * torch.arange(count)[:, None]
        times = torch.bincount(draws.flatten(), minlength=count * n).reshape(count, n)
        means.append(times.to(torch.float64) @ values / n)
    return torch.cat(means)


def _quantiles(means: Tensor, level: float) -> tuple[Tensor, Tensor]:
    ends = torch.tensor([(1.0 - level) / 2.0, (1.0 + level) / 2.0], dtype=torch.float64)
    low, high = means.quantile(ends, dim=0)
    return low, high
