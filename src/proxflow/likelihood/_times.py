"""Where along the straight line from noise to data a Gaussian path is at a time, and when it is at a place."""

from __future__ import annotations

import torch
from torch import Tensor

from proxflow.paths import GaussianPath


def fraction_at(path: GaussianPath, t: Tensor) -> Tensor:
    """τ = a/(a + b) at times ``t``; 0 where both vanish."""
    a, b = path.coefficients(t)
    return a / (a + b).clamp_min(torch.finfo(torch.float64).tiny)


def time_of(path: GaussianPath, fraction: Tensor) -> Tensor:
    """The times of fractions τ (float64), by bisection to about their last bit."""
    low, high = torch.zeros_like(fraction), torch.ones_like(fraction)
    for _ in range(60):
        middle = (low + high) / 2
        before = fraction_at(path, middle) < fraction
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2
