"""All pairs of two feature sets, tile by tile, so that memory does not grow with the product of their sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from proxflow.metrics._input import row_blocks

# A tile of pairs: 64 MiB in float64.
_ROWS = 2048
_COLUMNS = 4096

# Squared distances below this fraction of the squared norms lose digits to cancellation and are recomputed by differences.
# Others are accurate to about 1e-10, and ties are decided with a larger tolerance.
_CANCELLED = 1e-5
TIE = 1e-9

Tile = tuple[slice, slice, Tensor]


def inner_products(a: Tensor, b: Tensor) -> Iterator[Tile]:
    """Yield rows of a (N, D), columns of b (M, D), and their inner products in float64."""
    for rows, columns, left, right in _tiles(a, b):
        yield rows, columns, left @ right.T


def squared_distances(a: Tensor, b: Tensor) -> Iterator[Tile]:
    """Yield rows of a (N, D), columns of b (M, D), and their squared Euclidean distances in float64.

    These are |a|² + |b|² − 2ab about the mean of b, or differences where that cancels: duplicates have distance exactly 0.
    """
    centre = _mean(b)
    for rows, columns, left, right in _tiles(a, b):
        x, y = left - centre, right - centre
        norms = x.square().sum(dim=1, keepdim=True)
        others = y.square().sum(dim=1)
        squares = torch.addmm(others, x, y.T, alpha=-2.0).add_(norms)
        close = squares < _CANCELLED * (norms + others.max())
        count = int(close.sum())
        if count * 16 > close.numel():
            squares = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square_()
        elif count:
            i, j = close.nonzero(as_tuple=True)
            step = max(1, _ROWS * _COLUMNS // left.shape[1])
            for start in range(0, count, step):
                part = slice(start, start + step)
                squares[i[part], j[part]] = (left[i[part]] - right[j[part]]).square().sum(dim=1)
        yield rows, columns, squares


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance of each row of a (N, D) to the nearest row of b (M, D), float64, (N,); 0 for duplicates.

    Products find the nearest row; its distance is then computed by differences.
    """
    centre = _mean(b)
    best = torch.full((len(a),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(a), dtype=torch.int64)
    for rows, columns, left, right in _tiles(a, b):
        y = right - centre
        # |x − y|² − |x|² has its minimum at the same y.
        relative = torch.addmm(y.square().sum(dim=1), left - centre, y.T, alpha=-2.0)
        found, where = relative.min(dim=1)
        better = found < best[rows]
        best[rows] = torch.where(better, found, best[rows])
        index[rows] = torch.where(better, where + columns.start, index[rows])
    squares = torch.empty_like(best)
    for rows, block in row_blocks(a):
        squares[rows] = (block - b[index[rows]].to(torch.float64)).square().sum(dim=1)
    return squares


def _mean(features: Tensor) -> Tensor:
    mean = torch.zeros(features.shape[1], dtype=torch.float64)
    for _, block in row_blocks(features):
        mean += block.sum(dim=0) / len(features)
    return mean


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    for top in range(0, len(a), _ROWS):
        rows = slice(top, min(top + _ROWS, len(a)))
        left = a[rows].to(torch.float64)
        for start in range(0, len(b), _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, len(b)))
            yield rows, columns, left, b[columns].to(torch.float64)
