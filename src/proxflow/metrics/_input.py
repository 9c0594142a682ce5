"""The check of features that all metrics share."""

from __future__ import annotations

import torch
from torch import Tensor

from proxflow.errors import ArgumentError

# Squares of larger values, summed over samples and dimensions, would leave the range of float64.
_LARGEST = 1e100


def as_features(features: Tensor, name: str) -> Tensor:
    """Returns features (N, D) as float64 on the CPU.

    Raises:
        ArgumentError: Not floating point, not of shape (N, D), fewer than two samples, or a value is NaN, infinite or
            beyond 1e100.
    """
    if not features.is_floating_point() or features.ndim != 2 or features.shape[1] == 0:
        raise ArgumentError(
            f"{name} features must be floating point of shape (N, D); "
            f"got {features.dtype} of shape {tuple(features.shape)}"
        )
    if len(features) < 2:
        raise ArgumentError(f"{name} features must have at least 2 samples; got {len(features)}")
    wide = features.detach().to("cpu", torch.float64)
    bad = ~(wide.abs() <= _LARGEST).all(dim=1)
    if bool(bad.any()):
        raise ArgumentError(
            f"{name} features must be finite and at most {_LARGEST:g} in size; "
            f"{int(bad.sum())} of {len(bad)} samples are not, the first at {int(bad.int().argmax())}"
        )
    return wide


def check_same_dimension(real: Tensor, fake: Tensor) -> None:
    """Refuses feature sets of different dimension."""
    if real.shape[-1] != fake.shape[-1]:
        raise ArgumentError(
            f"both feature sets must have the same dimension (one extractor); got {real.shape[-1]} and {fake.shape[-1]}"
        )
