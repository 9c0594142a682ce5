"""The kernel distance of features, known as KID: "Demystifying MMD GANs" (Bińkowski et al., 2018), arXiv 1801.01401, §3."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.metrics._input import as_features, check_same_dimension, row_blocks
from proxflow.metrics._pairs import inner_products
from proxflow.metrics.uncertainty import Estimate


@dataclass(frozen=True)
class KernelSums:
    """A feature set with its own terms of the kernel distance.

    Args:
        features: (N, D).
        means: float64, (N,): mean kernel value of each sample with the other samples.
    """

    features: Tensor
    means: Tensor

    @classmethod
    def of(cls, features: Tensor, name: str = "the") -> KernelSums:
        """Prepare features (N, D), N at least 2.

        Raises:
            ArgumentError: They are not of this form, or not finite.
        """
        held = as_features(features, name)
        sums = torch.zeros(len(held), dtype=torch.float64)
        for rows, _, products in inner_products(held, held):
            sums[rows] += _cubic(products, held.shape[1]).sum(dim=1)
        for rows, block in row_blocks(held):  # without each sample with itself
            sums[rows] -= _cubic(block.square().sum(dim=1), held.shape[1])
        return cls(held, sums / (len(held) - 1))


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate of the squared kernel distance.

    Args:
        value: 0 in expectation for equal distributions, so it may be negative.
        standard_error: Of the value, over both sets.
    """

    value: float
    standard_error: float


def kernel_distance(real: Tensor, fake: Tensor) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³, known as KID.

    mean k(x, x') + mean k(y, y') − 2 mean k(x, y) over all pairs of different samples. Unlike the Fréchet distance it
    is unbiased. Other tools average it over random subsets of 1,000 to save time, with the same expectation. Its
    standard error is a jackknife estimate over both sets ("Jackknifing U-statistics" (Arvesen, 1969)); near 0 it
    overestimates.

    Args:
        real: Features (N, D), N at least 2.
        fake: Features (M, D), M at least 2.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension.
    """
    return kernel_estimate(KernelSums.of(real, "real"), KernelSums.of(fake, "fake"))[0]


def kernel_estimate(real: KernelSums, fake: KernelSums) -> tuple[KernelDistance, Estimate]:
    """Return the kernel distance of two prepared sets; the estimate has only the influences of the fake samples."""
    check_same_dimension(real.features, fake.features)
    n, m = len(real.features), len(fake.features)
    of_real, of_fake = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for rows, columns, products in inner_products(fake.features, real.features):
        values = _cubic(products, real.features.shape[1])
        of_fake[rows] += values.sum(dim=1) / n
        of_real[columns] += values.sum(dim=0) / m
    value = float(real.means.mean() + fake.means.mean() - 2.0 * of_fake.mean())
    mine = _influences(fake.means, of_fake)
    theirs = _influences(real.means, of_real)
    variance = mine.square().sum() / (m * (m - 1)) + theirs.square().sum() / (n * (n - 1))
    return KernelDistance(value, math.sqrt(float(variance))), Estimate(value, mine)


def _influences(within: Tensor, across: Tensor) -> Tensor:
    # Leaving out sample j moves the mean over pairs within by −2 (w_j − w̄)/(n − 2) and that across by −(c_j − c̄)/(n − 1).
    n = len(within)
    scale = (n - 1) / (n - 2) if n > 2 else 1.0
    return 2.0 * scale * (within - within.mean()) - 2.0 * (across - across.mean())


def _cubic(products: Tensor, dimension: int) -> Tensor:
    base = products.div_(dimension).add_(1.0)
    return base.square().mul_(base)
