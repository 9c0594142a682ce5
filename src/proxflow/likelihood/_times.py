"""Inverses of Gaussian paths: the times of places on the straight line from noise to data."""

from __future__ import annotations

import torch
from torch import Tensor

from proxflow.paths import GaussianPath


def time_of(path: GaussianPath, fraction: Tensor) -> Tensor:
    """Return the times of fractions τ (float64), by bisection to about the last bit."""
    low, high = torch.zeros_like(fraction), torch.ones_like(fraction)
    for _ in range(60):
        middle = (low + high) / 2
        before = path.straight(middle)[0] < fraction
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2
