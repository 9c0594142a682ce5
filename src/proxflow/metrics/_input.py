"""The check of features that all metrics share, and the blocks in which features are read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from proxflow.errors import ArgumentError

# The cubic kernel takes sixth powers, and its error squares of these: larger values would overflow float64.
_LARGEST = 1e20

# Values held at a time beside the features: 64 MiB in float64.
_BLOCK_ELEMENTS = 1 << 23


def as_features(features: Tensor, name: str) -> Tensor:
    """Return features (N, D) on the CPU, float64 if they are float64, otherwise float32; copied only if needed.

    Sets may be large. Metrics compute in float64, block by block.

    Raises:
        ArgumentError: Not floating point, not of shape (N, D), fewer than two samples, or a value is NaN, infinite or
            beyond 1e20.
    """
    if not features.is_floating_point() or features.ndim != 2 or features.shape[1] == 0:
        raise ArgumentError(
            f"{name} features must be floating point of shape (N, D); "
            f"got {features.dtype} of shape {tuple(features.shape)}"
        )
    if len(features) < 2:
        raise ArgumentError(f"{name} features must have at least 2 samples; got {len(features)}")
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    held = features.detach().to("cpu", dtype)
    bad = torch.cat([~(block.abs() <= _LARGEST).all(dim=1) for _, block in row_blocks(held)])
    if bool(bad.any()):
        raise ArgumentError(
            f"{name} features must be finite and at most {_LARGEST:g} in size; "
            f"{int(bad.sum())} of {len(bad)} samples are not, the first at {int(bad.int().argmax())}"
        )
    return held


def row_blocks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows in float64, each with its slice."""
    size = max(1, _BLOCK_ELEMENTS // features.shape[1])
    for start in range(0, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        yield rows, features[rows].to(torch.float64)


def check_same_dimension(real: Tensor, fake: Tensor) -> None:
    """Refuse feature sets of different dimension."""
    if real.shape[-1] != fake.shape[-1]:
        raise ArgumentError(
            f"both feature sets must have the same dimension (one extractor); got {real.shape[-1]} and {fake.shape[-1]}"
        )
