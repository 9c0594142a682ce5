"""The Gaussian copula: each column's own distribution, and linearly correlated normal scores."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.float64]]

_scores = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
_levels = np.vectorize(NormalDist().cdf, otypes=[np.float64])


@dataclass(frozen=True)
class GaussianCopula:
    """A generator of tables: normal scores of each column, drawn with their correlation in the training rows.

    A value shared by several rows takes the middle of its ranks, so that categories and ties keep their frequencies.
    Numbers are drawn as order statistics of the training rows. Missing cells are a value above all others.

    Args:
        columns: The sorted training values of each column.
        root: L of the correlation L Lᵀ of the scores.
    """

    columns: tuple[Rows, ...]
    root: Rows

    @classmethod
    def fit(cls, rows: Rows) -> GaussianCopula:
        """Return the copula of rows (number, columns), numbers, NaN for missing ones, and category indices."""
        ordered = tuple(np.sort(rows[:, k]) for k in range(rows.shape[1]))  # NaN comes last
        scores = np.stack([_scores(_ranks(rows[:, k])) for k in range(rows.shape[1])], 1)
        scores = scores - scores.mean(0)
        spread = np.sqrt((scores**2).mean(0))
        scores = scores / np.where(spread > 0, spread, 1.0)
        correlation = scores.T @ scores / len(rows)
        values, axes = np.linalg.eigh((correlation + correlation.T) / 2)
        values = np.clip(values, 1e-9, None)
        correlation = axes * values @ axes.T
        scale = np.sqrt(np.diag(correlation))
        scale = np.where(spread > 0, scale, 1.0)
        correlation = correlation / np.outer(scale, scale)
        np.fill_diagonal(correlation, 1.0)
        return cls(ordered, np.linalg.cholesky(correlation + 1e-9 * np.eye(len(scale))))

    def sample(self, number: int, seed: int) -> Rows:
        """Draw rows (number, columns)."""
        normal = np.random.default_rng(seed).standard_normal((number, len(self.columns)))
        level = _levels(normal @ self.root.T)
        made = []
        for k, values in enumerate(self.columns):
            place = np.minimum((level[:, k] * len(values)).astype(np.int64), len(values) - 1)
            made.append(values[place])
        return np.stack(made, 1)


def _ranks(x: Rows) -> Rows:
    """Return the middle rank of each value as a level in (0, 1)."""
    filled = np.where(np.isnan(x), np.inf, x)
    ordered = np.sort(filled)
    first, after = np.searchsorted(ordered, filled, "left"), np.searchsorted(ordered, filled, "right")
    return (first + after) / (2 * len(x))


def of_rows(train: Rows, number: int, seed: int) -> Rows:
    """Fit the copula and draw from it."""
    return GaussianCopula.fit(train).sample(number, seed)
