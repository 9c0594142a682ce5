"""Scores of synthetic tables against held-out real rows: of single columns, pairs of columns and whole rows."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from proxflow.errors import ArgumentError

Rows = np.ndarray[Any, np.dtype[np.float64]]

LEAST = 20
"""Least rows for scores: each of five folds then has four."""

_FOLDS, _TREES, _AT_ONCE = 5, 100, 512
_TIMES, _MOST = 10, 10_000


@dataclass(frozen=True)
class TableScores:
    """How far synthetic rows are from real ones.

    Args:
        marginals: Mean distance of the columns' distributions, in [0, 1]: Kolmogorov–Smirnov for numbers, total
            variation for categories. Missing cells count as a value.
        correlations: Mean difference of the pairwise dependence of columns, in [0, 1]: Pearson's correlation for
            numbers, Cramér's V for categories, the correlation ratio for one of each. With many synthetic rows it is
            the mean over groups as large as the set of real rows, since V and the ratio have an upward bias that falls
            with the number of rows.
        told_apart: Area under the ROC curve of a random forest that tells synthetic rows from real ones, in
            cross-validation; 0.5 is chance.
        made_to_real: Score on real rows of a random forest that learns the target from synthetic rows, at most as many
            as the training rows: accuracy for categories, R² for numbers.
        nearest: Median distance of synthetic rows to the nearest training row, in standard deviations and differing
            categories.
        repeats: Fraction of synthetic rows that equal a training row.
    """

    marginals: float
    correlations: float
    told_apart: float
    made_to_real: float
    nearest: float
    repeats: float

    def as_floor(self) -> dict[str, float]:
        """Return the scores by their names as a floor."""
        return {f"floor_{name}": value for name, value in asdict(self).items()}


def rows_to_make(real: int) -> int:
    """Return how many rows to generate for scores against real ones: ten times as many, at most 10,000.

    The generator's distribution is evaluated, not one draw from it: with as many rows as the real ones, sampling noise
    of the synthetic rows would add as much to the distances as that of the real ones.
    """
    return max(real, min(_TIMES * real, _MOST))


def table_scores(
    made: Rows, train: Rows, test: Rows, classes: Sequence[int], target: int, seed: int = 0
) -> TableScores:
    """Score synthetic rows against real ones.

    Args:
        made: Synthetic rows (number, columns), float64: numbers, NaN for missing ones, and categories as indices.
        train: Rows that the generator was trained on.
        test: Held-out real rows.
        classes: Number of categories of each column, 0 for columns of numbers.
        target: The column that a forest learns to predict from the others.
        seed: Seed of the forests, and of the choice of rows if there are more synthetic rows than others.

    Raises:
        ArgumentError: Fewer than 20 synthetic or test rows, columns that differ, or scikit-learn is not installed.
    """
    for rows in (made, train, test):
        if rows.ndim != 2 or rows.shape[1] != len(classes):
            raise ArgumentError(f"rows of tables here have {len(classes)} columns, got {rows.shape}")
    if min(len(made), len(test)) < LEAST:
        raise ArgumentError(
            f"scores of tables need at least {LEAST} rows, made and real, got {len(made)} and {len(test)}"
        )
    scale = Scale(train, classes)
    return TableScores(
        marginals(made, test, classes),
        correlations(made, test, classes),
        told_apart(scale(made), scale(test), seed),
        made_to_real(made[: len(train)], test, classes, target, scale, seed),
        float(np.median(nearest(scale(made), scale(train)))),
        repeats(made, train),
    )


def floor_scores(train: Rows, test: Rows, classes: Sequence[int], target: int, seed: int = 0) -> TableScores:
    """Score real rows instead of synthetic ones: the training rows, and the test rows for distances to training rows.

    A generator with the distribution of the training rows reaches this floor; only one that knows more than these rows
    can do better. Arguments are as in :func:`table_scores`.
    """
    real = table_scores(train, train, test, classes, target, seed)
    scale = Scale(train, classes)
    return TableScores(
        **{
            **asdict(real),
            "nearest": float(np.median(nearest(scale(test), scale(train)))),
            "repeats": repeats(test, train),
        }
    )


def marginals(made: Rows, real: Rows, classes: Sequence[int]) -> float:
    """Return the mean distance of the columns' distributions; see :class:`TableScores`."""
    return float(np.mean([_distance(made[:, k], real[:, k], number) for k, number in enumerate(classes)]))


def _distance(made: Rows, real: Rows, classes: int) -> float:
    if classes:
        return float(np.abs(_shares(made, classes) - _shares(real, classes)).sum()) / 2
    gaps = np.isnan(made).mean(), np.isnan(real).mean()
    own, other = (np.sort(x[~np.isnan(x)]) for x in (made, real))
    if not len(own) or not len(other):
        return float(abs(gaps[0] - gaps[1]))
    at = np.concatenate([own, other])
    # Missing values are above all numbers: with equally many, the distance is that of the numbers times their share.
    below = np.searchsorted(own, at, "right") / len(made) - np.searchsorted(other, at, "right") / len(real)
    return float(np.abs(below).max())


def _shares(x: Rows, classes: int) -> Rows:
    return np.bincount(x.astype(np.int64), minlength=classes) / len(x)


def correlations(made: Rows, real: Rows, classes: Sequence[int]) -> float:
    """Return the mean difference over all pairs of columns; 0 for a single column. See :class:`TableScores`."""
    pairs = [(i, j) for i in range(len(classes)) for j in range(i)]
    if not pairs:
        return 0.0
    groups = np.array_split(made, max(1, len(made) // len(real)))
    gaps = [
        abs(float(np.mean([dependence(group, i, j, classes) for group in groups])) - dependence(real, i, j, classes))
        for i, j in pairs
    ]
    return float(np.mean(gaps)) / 2 if not any(classes) else float(np.mean(gaps))


def dependence(rows: Rows, i: int, j: int, classes: Sequence[int]) -> float:
    """Return the dependence of two columns: Pearson's correlation, Cramér's V or the correlation ratio.

    It is 0 if a column is constant. Rows with a missing number are left out.
    """
    x, y = rows[:, i], rows[:, j]
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if len(x) < 2:
        return 0.0
    if not classes[i] and not classes[j]:
        spread = float(x.std() * y.std())
        return float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else 0.0
    if classes[i] and classes[j]:
        return _cramer(x, y, classes[i], classes[j])
    return _ratio(x, y, classes[i]) if classes[i] else _ratio(y, x, classes[j])


def _cramer(x: Rows, y: Rows, first: int, second: int) -> float:
    """Return √(χ²/n / (min(rows, columns) − 1)) of the contingency table of two categories."""
    table = np.zeros((first, second))
    np.add.at(table, (x.astype(np.int64), y.astype(np.int64)), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    least = min(table.shape) - 1
    if least == 0:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / len(x)
    return math.sqrt(float(((table - expected) ** 2 / expected).sum()) / len(x) / least)


def _ratio(groups: Rows, y: Rows, classes: int) -> float:
    """Return the root of the fraction of a number's variance that is between the categories."""
    whole = float(y.var())
    if whole == 0:
        return 0.0
    at = groups.astype(np.int64)
    counts = np.bincount(at, minlength=classes)
    means = np.bincount(at, y, minlength=classes) / np.maximum(counts, 1)
    return math.sqrt(min(1.0, float((counts * (means - y.mean()) ** 2).sum()) / len(y) / whole))


class Scale:
    """Map from rows to points: standardised numbers, categories as corners at distance 1, flags for missing cells."""

    def __init__(self, train: Rows, classes: Sequence[int]) -> None:
        self.classes = tuple(classes)
        numbers = [k for k, number in enumerate(classes) if not number]
        self.mean, self.std = np.zeros(len(classes)), np.ones(len(classes))
        for k in numbers:
            x = train[~np.isnan(train[:, k]), k]
            if len(x):
                self.mean[k], self.std[k] = x.mean(), x.std() or 1.0

    def __call__(self, rows: Rows, without: int | None = None) -> Rows:
        found = []
        for k, number in enumerate(self.classes):
            if k == without:
                continue
            if number:
                found.append(np.eye(number)[rows[:, k].astype(np.int64)] / math.sqrt(2))
            else:
                gap = np.isnan(rows[:, k])
                x = np.where(gap, 0.0, (rows[:, k] - self.mean[k]) / self.std[k])
                found.append(np.stack([x, gap], 1))
        return np.concatenate(found, 1)


def nearest(points: Rows, train: Rows) -> Rows:
    """Return the distance of each point to the nearest training point, (number,)."""
    squares = (train**2).sum(1)
    found = []
    for k in range(0, len(points), _AT_ONCE):
        part = points[k : k + _AT_ONCE]
        near = ((part**2).sum(1)[:, None] + squares - 2 * part @ train.T).argmin(1)
        found.append(np.sqrt(((part - train[near]) ** 2).sum(1)))  # exactly 0 for a repeated row
    return np.concatenate(found)


def repeats(made: Rows, train: Rows) -> float:
    """Return the fraction of synthetic rows that equal a training row in every cell."""
    held = {row.tobytes() for row in _comparable(train)}
    return sum(row.tobytes() in held for row in _comparable(made)) / len(made)


def _comparable(rows: Rows) -> Rows:
    """Return rows in which equal numbers have equal bytes: one NaN, one zero, and no rounding of decimals."""
    rounded = np.array([[float(f"{x:.10g}") for x in row] for row in rows.tolist()])
    return np.where(np.isnan(rounded), np.nan, rounded + 0.0)


def told_apart(made: Rows, real: Rows, seed: int = 0) -> float:
    """Return the area under the ROC curve of a random forest that tells synthetic points from as many real ones.

    Args:
        made: Points (number, features).
        real: Real points, likewise.
        seed: Seed of forest and folds.
    """
    ensemble, selection, scores = (_sklearn(f"sklearn.{name}") for name in ("ensemble", "model_selection", "metrics"))
    choice, number = np.random.default_rng(seed), min(len(made), len(real))
    made, real = (x[choice.permutation(len(x))[:number]] for x in (made, real))
    x, y = np.concatenate([made, real]), np.repeat([1, 0], number)
    forest = ensemble.RandomForestClassifier(_TREES, min_samples_leaf=2, random_state=seed)
    folds = selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    guessed = selection.cross_val_predict(forest, x, y, cv=folds, method="predict_proba")[:, 1]
    return float(scores.roc_auc_score(y, guessed))


def made_to_real(made: Rows, test: Rows, classes: Sequence[int], target: int, scale: Scale, seed: int = 0) -> float:
    """Return the score on real rows of a forest trained on synthetic ones; see :class:`TableScores`."""
    ensemble = _sklearn("sklearn.ensemble")
    learn, asked = made[~np.isnan(made[:, target])], test[~np.isnan(test[:, target])]
    x, y, at, wanted = scale(learn, target), learn[:, target], scale(asked, target), asked[:, target]
    if classes[target]:
        forest = ensemble.RandomForestClassifier(_TREES, random_state=seed).fit(x, y.astype(np.int64))
    else:
        forest = ensemble.RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=seed).fit(x, y)
    return float(forest.score(at, wanted))


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ArgumentError("scores of tables need scikit-learn: pip install 'proxflow[tables]'") from None
