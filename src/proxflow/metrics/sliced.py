"""The sliced Wasserstein distance between feature sets.

"Wasserstein Barycenter and its Application to Texture Mixing" (Rabin et al., 2012); "Sliced and Radon Wasserstein
Barycenters of Measures" (Bonneel et al., 2015).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.metrics._input import as_features, check_same_dimension, row_blocks
from proxflow.metrics.uncertainty import Estimate

PROJECTIONS = 256
"""Default number of directions; they are the same for all feature sets of a dimension."""

_DIRECTIONS_AT_A_TIME = 64


def sliced_wasserstein(real: Tensor, fake: Tensor, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """Return the root mean square, over random directions, of the 2-Wasserstein distance between the projected sets.

    (E_θ ∫ |F⁻¹(u) − G⁻¹(u)|² du)^½ for θ uniform on the sphere, F and G the distributions of θ·x and θ·y: exact in each
    direction, for sets of different size too. It depends on more than means and covariances, but only on
    one-dimensional projections. Two sets of one distribution are at a distance of order N^(−½), so compare equal
    counts.

    Args:
        real: Features (N, D), N at least 2.
        fake: Features (M, D), M at least 2.
        projections: Number n of directions; the relative error falls as 1/√n.
        seed: Seed of the directions.

    Returns:
        At least 0, in the units of the features.

    Raises:
        ArgumentError: Features are not finite, too few or of different dimension, or there are no projections.
    """
    return sliced_estimate(as_features(real, "real"), as_features(fake, "fake"), projections, seed).value


def sorted_projections(real: Tensor, projections: int = PROJECTIONS, seed: int = 0) -> Tensor:
    """Return the sorted projections of the features, (n, N), which can be reused for every other set."""
    return torch.cat([_sorted(real, part) for part in _directions(real.shape[1], projections, seed)])


def sliced_estimate(
    real: Tensor, fake: Tensor, projections: int = PROJECTIONS, seed: int = 0, known: Tensor | None = None
) -> Estimate:
    """Return the sliced distance; a fake sample's influence is its mean Kantorovich potential over twice the distance.

    ``known`` is :func:`sorted_projections` of the real features; without it they are computed here.
    """
    check_same_dimension(real, fake)
    if projections < 1:
        raise ArgumentError(f"projections must be at least 1; got {projections}")
    n, m = len(real), len(fake)
    # Both quantile functions are constant between the multiples of 1/n and 1/m.
    ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).to(torch.float64) / (n * m)
    of_real, of_fake = (ends - 1) // m, (ends - 1) // n
    # The real samples on either side of where the fake quantile function jumps from sample j to j + 1.
    passed = torch.arange(1, m) * n
    below, above = (passed - 1) // m, (passed // m).clamp_max(n - 1)
    total = 0.0
    potentials = torch.zeros(m, dtype=torch.float64)
    for k, part in enumerate(_directions(real.shape[1], projections, seed)):
        there = _sorted(real, part) if known is None else torch.split(known, _DIRECTIONS_AT_A_TIME)[k]
        here, order = _project(fake, part).sort(dim=1)
        gap = here[:, of_fake] - there[:, of_real]
        total += float((gap.square() @ widths).sum())
        # Optimal prices: at the edge between these two, samples j and j + 1 are equally good.
        edge = (there[:, below] + there[:, above]) / 2.0
        steps = here.diff(dim=1) * (here[:, 1:] + here[:, :-1] - 2.0 * edge)
        potential = torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0))
        potentials.index_add_(0, order.flatten(), (potential - potential.mean(dim=1, keepdim=True)).flatten())
    distance = math.sqrt(total / projections)
    scale = 1.0 / (2.0 * distance * projections) if distance > 0.0 else 0.0
    return Estimate(distance, potentials * scale)


def _directions(dimension: int, projections: int, seed: int) -> tuple[Tensor, ...]:
    """Return random directions, columns of (D, n), in blocks."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dimension, projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    return torch.split(directions, _DIRECTIONS_AT_A_TIME, dim=1)


def _sorted(features: Tensor, directions: Tensor) -> Tensor:
    return _project(features, directions).sort(dim=1).values


def _project(features: Tensor, directions: Tensor) -> Tensor:
    return torch.cat([block @ directions for _, block in row_blocks(features)]).T.contiguous()
