"""Scores of posterior samples: against a Gaussian posterior, and against draws or quantiles of one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from proxflow.metrics import sliced_wasserstein
from proxflow.studies.posterior.problems import Normal

SLICES = 100


def against_normal(samples: Tensor, posterior: Normal) -> dict[str, tuple[float, float | None]]:
    """Score samples (number, d) against a Gaussian posterior: value and standard error by metric.

    ``mean`` and ``covariance`` are standard scores, 0 ± 1 for independent draws from the posterior: number ‖m‖² for the
    mean m of whitened samples is χ² with d degrees of freedom, and number ‖S − I‖²/2 for their covariance S nearly so
    with d (d + 1)/2; a χ² is standardised by its mean and standard deviation. ``bures`` is the 2-Wasserstein distance
    between the Gaussians of equal moments. ``coverage90`` is the posterior probability of the coordinates' intervals
    between the quantiles 0.05 and 0.95 of samples, ``coverage90-worst`` that of the coordinate farthest from 0.9.
    """
    number, d = samples.shape
    x = samples.double()
    factor = torch.linalg.cholesky(posterior.covariance)
    white = torch.linalg.solve_triangular(factor, (x - posterior.mean).mT, upper=False).mT
    mean, own = white.mean(0), torch.cov(x.mT).reshape(d, d)
    off = torch.cov(white.mT).reshape(d, d) - torch.eye(d, dtype=x.dtype)
    pairs = d * (d + 1) / 2
    root = _root(posterior.covariance)
    bures = (own + posterior.covariance).trace() - 2 * _root(root @ own @ root).trace()
    apart = (x.mean(0) - posterior.mean).square().sum() + bures.clamp_min(0)
    low, high = (x.quantile(q, dim=0) for q in (0.05, 0.95))
    covered = posterior.below(high) - posterior.below(low)
    worst = covered[(covered - 0.9).abs().argmax()]
    return {
        "mean": (float((number * mean.square().sum() - d) / math.sqrt(2 * d)), 1.0),
        "covariance": (float((number / 2 * off.square().sum() - pairs) / math.sqrt(2 * pairs)), 1.0),
        "bures": (float(apart.sqrt()), None),
        "coverage90": (float(covered.mean()), float(covered.std(correction=0)) / math.sqrt(d)),
        "coverage90-worst": (float(worst), None),
    }


def _root(matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh((matrix + matrix.mT) / 2)
    root: Tensor = axes * values.clamp_min(0).sqrt() @ axes.mT
    return root


def against_draws(samples: Tensor, truth: Tensor, seed: int) -> float:
    """Return the sliced 2-Wasserstein distance of samples to draws from the posterior; ∞ if they are not finite."""
    if not bool(samples.isfinite().all()):
        return math.inf
    return sliced_wasserstein(truth, samples.double(), SLICES, seed)


def of_intervals(samples: Tensor, below: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, float | None]]:
    """Return the posterior probability between quantiles of samples, averaged over coordinates: ``coverage50``, and 90.

    Args:
        samples: (number, d).
        below: The posterior's distribution functions, from values (d,) to probabilities.
    """
    found: dict[str, tuple[float, float | None]] = {}
    for share in (50, 90):
        low, high = (samples.quantile(0.5 + sign * share / 200, dim=0) for sign in (-1, 1))
        found[f"coverage{share}"] = (float((below(high) - below(low)).mean()), None)
    return found
