"""Squared distances of probabilities that a kernel or a cost between the classes induces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical
from proxflow.errors import ArgumentError


def factor_of(matrix: Tensor, name: str, kind: str) -> Tensor:
    """Return F with (θ − θ')ᵀ M (θ − θ') = |Fᵀ(θ − θ')|² for all probabilities, (classes, classes), float64.

    Raises:
        ArgumentError: M is not a finite symmetric matrix of at least 2 classes, or the form is not positive for some
            difference of probabilities, so that two beliefs would be at no distance, or at a negative one.
    """
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2
    if not (square and bool(matrix.isfinite().all()) and torch.equal(matrix, matrix.mT)):
        raise ArgumentError(f"{name} is a finite symmetric matrix (classes, classes), got {tuple(matrix.shape)}")
    # Differences of probabilities sum to 0: only what the centred matrix does is seen, and it has one eigenvalue 0.
    centred = matrix.double() - matrix.double().mean(0, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    sizes, vectors = torch.linalg.eigh(centred)
    order = sizes.abs().argsort(descending=True)[:-1]
    sizes, vectors = sizes[order], vectors[:, order]
    if not bool(sizes.min() > 1e-12 * sizes.abs().max()):
        raise ArgumentError(f"{name} must be {kind}: some difference of probabilities has no positive size under it")
    factor: Tensor = vectors * sizes.sqrt()
    return factor


def squared_distance(divergence: Any, p: Categorical, q: Categorical) -> Tensor:
    """Compute |Fᵀ(θ − θ')|², or |θ − θ'|² without F, summed over the coordinates of an event, (batch,)."""
    gap, factor = p.probs - q.probs, divergence._factor
    if factor is not None:
        if len(factor) != p.classes:
            raise ArgumentError(f"the matrix is for {len(factor)} classes, the beliefs have {p.classes}")
        gap = gap @ factor.to(gap)
    return sum_events(gap.square().sum(-1))
