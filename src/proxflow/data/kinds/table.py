"""Tables: rows of real numbers, integers, dates and categories, any of which may be missing."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from proxflow.data import parquet, scatter
from proxflow.data.cells import Cells, is_missing, is_whole, mixed, number_in, read_cells
from proxflow.data.image_files import write_png
from proxflow.data.kinds.base import FARTHEST, Defaults, Kind, Loaded, Picture, split
from proxflow.data.parquet import ParquetColumn
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import Examples
from proxflow.random import SampleStreams, rand
from proxflow.runtime.files import writable_folder, write_atomically

Role = Literal["number", "integer", "date", "category", "constant"]
Numbers = Literal["auto", "standard", "quantiles"]

FEW_VALUES = 10
"""Integers with at most so many values are categories, if each occurs twice on average."""
MOST_CATEGORIES = 1000
"""Most categories of a column."""
_FEW = 20
"""Up to so many strings are categories for any number of rows; more must occur twice each on average."""
_SHARED = 0.8
"""Fraction of cells that share their value with another from which a column only takes values of training."""
_MOST_VALUES = 1000
"""Most values that are stored for such a column."""
LONG_TAIL = 20.0
"""Kurtosis above which numbers have a long tail: 3 for a normal distribution, 9 for an exponential."""
_KNOTS = 201
"""Most quantiles that describe a column."""
_LABELS = 0x7AB1E
"""Changes the seed of labels, so that they are independent of the noise of the rows."""
GAP = -float(2**1000)
"""Value of a missing number or date in stored form: finite, as training refuses NaN."""
_EPOCH = datetime(1970, 1, 1)
_DAY = timedelta(days=1)
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?:(?P<mark>[ T])\d\d:\d\d(?P<seconds>:\d\d(?:[.,]\d+)?)?(?: ?(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)
_CLOCKS = {
    " 10:00:00": (" ", "seconds"),
    "T10:00:00": ("T", "seconds"),
    " 10:00": (" ", "minutes"),
    "T10:00": ("T", "minutes"),
}
"""Formats of times of day after the date, by the example ten o'clock; and the arguments of ``isoformat``."""


@dataclass(frozen=True)
class Column:
    """A column of a table: the type of its cells, and all that is needed to write such cells.

    Args:
        name: Its name.
        role: Type of its cells: real numbers, integers, dates (as days since 1970), categories, or one value in all
            rows.
        categories: The strings of a category, or the single string of a constant.
        missing: The string of missing cells; ``None`` if none is missing.
        decimals: Decimals of numbers; −1 for as many as a number needs. For dates, 0 for dates alone, 1 for times of
            day in seconds.
        trimmed: Whether trailing zeros are left out, as with 23 and 21.6 in one column.
        width: Length of zero-padded integers that all have as many characters, as postcodes; 0 for others.
        least: The smallest number in training.
        most: The largest.
        mean: Mean of the numbers.
        std: Their standard deviation, > 0.
        step: Spacing of the values, in units of the last digit: 25 for integers that are multiples of 25; for dates in
            days, for times in seconds: 900 for quarters of an hour.
        knots: Equally spaced quantiles, from the smallest to the largest number, if numbers are encoded by these.
        values: The values in training, ascending, if four of five cells share theirs with another: only these are
            drawn.
        type: Its type in the parquet file it was read from, see :mod:`proxflow.data.parquet`; empty for a text file.
        dictionary: Strings of the dictionary of such a column, in order.
        significant: Most significant digits of real numbers, if their decimals differ or they have exponents; 0 for no
            limit.
        clock: Format of times of day after the date: ten o'clock as " 10:00:00", "T10:00:00", " 10:00" or "T10:00".

    Raises:
        ArgumentError: A value is out of range, or does not fit the role.
    """

    name: str
    role: Role
    categories: tuple[str, ...] = ()
    missing: str | None = None
    decimals: int = -1
    trimmed: bool = False
    width: int = 0
    least: float = 0.0
    most: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    step: int = 1
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    type: str = ""
    dictionary: tuple[str, ...] = ()
    significant: int = 0
    clock: str = " 10:00:00"

    def __post_init__(self) -> None:
        numbers = (self.least, self.most, self.mean, self.std, *self.knots, *self.values)
        ordered = self.least <= self.most and self.std > 0 and self.step >= 1 and self.decimals <= 30 >= self.width >= 0
        ordered = ordered and self.significant >= 0
        if not ordered or not all(map(math.isfinite, numbers)):
            raise ArgumentError(
                f"column {self.name!r:.80}: its range, mean and standard deviation are not those of numbers"
            )
        if any(a > b for a, b in zip(self.knots, self.knots[1:], strict=False)) or len(self.knots) == 1:
            raise ArgumentError(f"column {self.name!r:.80}: its quantiles must not fall")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ArgumentError(f"column {self.name!r:.80}: its values must rise")
        coded = self.type.startswith("dictionary")
        if (self.type and not parquet.is_known(self.type)) or (coded and not {*self.categories} <= {*self.dictionary}):
            raise ArgumentError(f"column {self.name!r:.80} cannot be written as {self.type!r:.80}")
        if self.clock not in _CLOCKS:
            raise ArgumentError(f"column {self.name!r:.80}: no time of day is written as {self.clock!r:.80}")
        least = {"category": 2 - (self.missing is not None), "constant": 1}.get(self.role, 0)
        if len(self.categories) < least or (self.categories and self.role not in ("category", "constant")):
            raise ArgumentError(f"column {self.name!r:.80} of role {self.role}: got {len(self.categories)} categories")

    @property
    def classes(self) -> int:
        """Number of its categories, including the missing one; 0 for numbers, dates and constants."""
        return len(self.categories) + (self.missing is not None) if self.role == "category" else 0

    @property
    def _units(self) -> float:
        """Number of units of the last digit in 1; for times, of seconds."""
        if self.role == "date":
            return 86400.0 if self.decimals else 1.0
        return float(10.0**self.decimals)

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers or dates."""
        return self.role in ("number", "integer", "date")

    def encode(self, x: Tensor) -> Tensor:
        """Return encoded numbers (rows,), float64: standardised, or as normal quantiles."""
        if not self.knots:
            return (x - self.mean) / self.std
        knots = torch.tensor(self.knots, dtype=torch.float64, device=x.device)
        last = len(knots) - 1
        x = x.clamp(self.knots[0], self.knots[-1])
        first, after = torch.searchsorted(knots, x), torch.searchsorted(knots, x, right=True)
        above, below = first.clamp(1, last), (first - 1).clamp(0, last - 1)
        gap = knots[above] - knots[below]
        between = below + torch.where(gap > 0, (x - knots[below]) / torch.where(gap > 0, gap, 1.0), 0.0)
        # A value shared by many rows gets the middle of its quantiles.
        level = torch.where(after > first, (first + after - 1) / 2, between)
        edge = 0.5 / len(knots)
        z: Tensor = torch.special.ndtri(edge + (1 - 2 * edge) * level / last)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return numbers (rows,) in their own units, within the column's range and with its decimals."""
        if self.knots:
            knots = torch.tensor(self.knots, dtype=torch.float64, device=z.device)
            last, edge = len(knots) - 1, 0.5 / len(knots)
            level = ((torch.special.ndtr(z) - edge) / (1 - 2 * edge) * last).clamp(0, last)
            below = level.floor().long().clamp_max(last - 1)
            x = torch.lerp(knots[below], knots[below + 1], level - below)
        else:
            x = z * self.std + self.mean
        x = x.clamp(self.least, self.most)
        if self.values:
            values = torch.tensor(self.values, dtype=torch.float64, device=x.device)
            return values[torch.bucketize(x, (values[1:] + values[:-1]) / 2)]
        if self.decimals < 0:
            return x.round() if self.role == "integer" else self._shortened(x)
        digit = self._units
        if self.step > 1:
            x = ((x - self.least) * digit / self.step).round() * self.step / digit + self.least
        if self.role == "date":
            return (x * digit).round() / digit
        digits = 0 if self.role == "integer" else self.decimals
        return self._shortened(torch.round(x, decimals=digits)).clamp(self.least, self.most)

    def _shortened(self, x: Tensor) -> Tensor:
        """Return numbers (rows,) rounded to the most significant digits found in training."""
        if not self.significant:
            return x
        last = self.significant - 1
        return torch.tensor([float(f"{value:.{last}e}") for value in x.tolist()], dtype=x.dtype, device=x.device)

    def text(self, x: float) -> str:
        """Return the cell of a value in stored form."""
        if self.role == "constant":
            return self.categories[0]
        if self.role == "category":
            return self.categories[int(x)] if x < len(self.categories) else self.missing or ""
        if x == GAP:
            return self.missing or ""
        if self.role == "date":
            moment = _EPOCH + timedelta(seconds=round(x * 86400))
            return moment.date().isoformat() if self.decimals == 0 else moment.isoformat(*_CLOCKS[self.clock])
        if self.decimals < 0:
            return repr(x)
        x += 0.0  # no −0
        # By the shortest string of the number: for 0.1, further decimals are zeros.
        shown = f"{Decimal(repr(x)) if self.decimals else x:.{self.decimals}f}".zfill(self.width)
        return shown.rstrip("0").rstrip(".") if self.trimmed and self.decimals else shown

    @property
    def written_as(self) -> str:
        """Its type in parquet files."""
        if self.type:
            return self.type
        if self.role == "date":
            return "date32[day]" if self.decimals == 0 else "timestamp[us]"
        if not self.numeric or self.width:
            return "string"
        return "int64" if self.role == "integer" and self.decimals <= 0 else "double"

    def stored(self, cell: str) -> float | None:
        """Return the stored form of a cell; ``None`` if it is invalid for the column."""
        if self.role == "constant":
            return 0.0 if cell == self.categories[0] or is_missing(cell) else None
        if self.role == "category":
            if cell in self.categories:
                return float(self.categories.index(cell))
            return float(len(self.categories)) if is_missing(cell) else None
        if is_missing(cell):
            return GAP
        found = _days(cell) if self.role == "date" else number_in(cell)
        return found if found is not None and math.isfinite(found) else None

    def describe(self) -> str:
        """Describe it in a few words."""
        if self.role == "category":
            return f"{self.name} ({len(self.categories)} categories)"
        return f"{self.name} ({self.role})"


@dataclass(frozen=True)
class Table(Kind):
    """Rows of a table, stored as float64 (number, columns): numbers in their units, dates in days, categories as indices.

    A missing number is :data:`GAP`, a missing category has the index after the last. An encoded row has its numbers,
    standardised or as normal quantiles, 0 if missing; then a 0/1 flag of missing cells for each column of numbers that
    has any; then the categories, grouped by number of classes. Constant columns and the target are left out.

    Args:
        shape: (encoded columns,).
        columns: The columns, in order.
        target: Name of the categorical column that rows are conditioned on; empty for none.
        shares: Frequency of each of the target's categories in training.
        pandas: The metadata of pandas in the parquet file it was read from, see :func:`proxflow.data.parquet.write`.

    Raises:
        ArgumentError: The columns do not fit the shape, two have the same name, or the target is not one of the
            categorical columns.
    """

    shape: tuple[int, ...]
    columns: tuple[Column, ...]
    target: str = ""
    shares: tuple[float, ...] = ()
    pandas: str = ""

    ending: ClassVar[str] = ".csv"
    examples_word: ClassVar[str] = "rows"
    sources: ClassVar[str] = (
        "a table in a file .csv, whose first line names the columns, or .parquet, of numbers, dates, categories and gaps"
    )
    defaults: ClassVar[Defaults] = Defaults(flow="gpfn", network="mlp", predictor="product")

    def __post_init__(self) -> None:
        made = tuple(Column(**column) if isinstance(column, Mapping) else column for column in self.columns)
        object.__setattr__(self, "columns", made)
        names = [column.name for column in made]
        if len(set(names)) < len(names):
            raise ArgumentError("two columns of a table have one name")
        if self.target and not any(c.name == self.target and c.role == "category" for c in made):
            raise ArgumentError(f"the target {self.target!r:.80} is none of the categories of this table")
        if len(self.shares) != len(self.classes) or not all(0 <= share <= 1 for share in self.shares):
            raise ArgumentError(f"a target of {len(self.classes)} categories has as many shares, got {self.shares}")
        wide = len(self._numbers) + len(self._gaps) + sum(len(group) for _, group in self._groups)
        if self.shape != (wide,) or not wide:
            raise ArgumentError(f"a table with these columns has the shape ({wide},), at least 1, got {self.shape}")

    # The layout of a row: indices of columns in the stored form, in the order of the encoded one.

    @property
    def _numbers(self) -> list[int]:
        return [k for k, column in enumerate(self.columns) if column.numeric]

    @property
    def _gaps(self) -> list[int]:
        return [k for k in self._numbers if self.columns[k].missing is not None]

    @property
    def _groups(self) -> list[tuple[int, list[int]]]:
        """Numbers of classes, and the columns with as many, without the target."""
        found: dict[int, list[int]] = {}
        for k, column in enumerate(self.columns):
            if column.classes and column.name != self.target:
                found.setdefault(column.classes, []).append(k)
        return list(found.items())

    @property
    def classes(self) -> tuple[str, ...]:
        """The target's categories; empty without a target."""
        return next((column.categories for column in self.columns if column.name == self.target), ())

    @property
    def layout(self) -> tuple[Any, ...]:
        """The meaning of encoded rows, except for units: a model can only continue with rows of the same layout."""
        told = tuple((c.name, c.role, c.categories, c.missing is not None) for c in self.columns)
        return (self.target, *told)

    @property
    def decides(self) -> Mapping[str, Any]:
        """The endpoints of a flow of such rows, and its divergence if the flow's name does not fix it."""
        parts: list[Any] = [[{"kind": "gaussian"}, len(self._numbers)]] if self._numbers else []
        if self._gaps:
            parts.append([{"kind": "categorical", "classes": 2}, len(self._gaps)])
        parts += [[{"kind": "categorical", "classes": classes}, len(places)] for classes, places in self._groups]
        each = [{"kind": "w2" if part["kind"] == "gaussian" else "reverse-kl"} for part, _ in parts]
        return {
            "endpoints": {"kind": "product", "parts": parts},
            "divergence": {"kind": "per-part", "parts": each},
        }

    @classmethod
    def takes(cls, source: str) -> bool:
        path = Path(source)
        if path.suffix.lower() == ".parquet":
            return path.is_file()
        return path.suffix.lower() == ".csv" and mixed(path)

    @classmethod
    def read(
        cls,
        source: str,
        *,
        held_out: float = 0.05,
        seed: int = 0,
        categories: Sequence[str] = (),
        ignore: Sequence[str] = (),
        target: str = "",
        numbers: Numbers = "auto",
        **settings: Any,
    ) -> Loaded:
        """Read a table, and infer the types of its columns.

        Cells that are empty or NA, N/A, #N/A, NaN, <NA>, null or ? are missing. A column is, by the first rule that
        applies: constant, if it has one value; categorical, if it is in ``categories`` or the target; integer, if all
        its numbers are, and categorical if these have at most 10 values, each twice on average; real; dates, written as
        2024-12-31, 2024-12-31 23:59:59 or 2024-12-31T23:59; else categorical.

        Args:
            source: A ``.csv`` file with column names in the first line, or a ``.parquet`` file.
            held_out: Fraction held out, in [0, 1).
            seed: Seed of the split.
            categories: Columns that are categorical in any case.
            ignore: Columns to leave out.
            target: Column to condition on, as categories.
            numbers: Encoding of numbers: "standard", with mean 0 and variance 1; "quantiles", mapped to normal ones; or
                "auto", quantiles for columns with a long tail and standard for others.
            **settings: There are none.

        Raises:
            ArgumentError: A fraction or setting is out of range, or a named column does not exist.
            DataError: There is no such source, it is damaged or of another form; the message names line and column.
        """
        if settings:
            raise ArgumentError(f"tables have no setting {next(iter(settings))}")
        if numbers not in ("auto", "standard", "quantiles"):
            raise ArgumentError(f"numbers of tables are taken as standard, by quantiles or auto, got {numbers!r:.80}")
        cells = _without(read_cells(Path(source)), ignore)
        cells.check()
        asked = [*categories, *([target] if target else [])]
        _known(cells, asked)
        found = [
            _found(cells, k, "--target" if name == target else "--categories" if name in categories else "")
            for k, name in enumerate(cells.names)
        ]
        stored = _stored(cells, found)
        _check_range(cells, found, stored)
        train, kept = split(Examples(stored), held_out, seed)
        measured = tuple(_measured(column, train.x[:, k], numbers) for k, column in enumerate(found))
        _check_distance(cells, measured, stored)
        shares: tuple[float, ...] = ()
        if target:
            place = cells.names.index(target)
            if measured[place].role != "category":
                raise DataError(
                    f"{source}: the target {target} has one value in all rows: it tells nothing, leave it out"
                )
            counts = torch.bincount(train.x[:, place].long(), minlength=measured[place].classes).double()
            counts = counts[: len(measured[place].categories)]
            shares = tuple((counts / counts.sum()).tolist())
        wide = sum(1 + (c.missing is not None) if c.numeric else c.role == "category" for c in measured) - bool(target)
        if not wide:
            raise DataError(f"{source}: no column is left to learn: each has one value in all rows, or is the target")
        kind = cls((wide,), measured, target, shares, cells.pandas)
        notes = [f"{source}: {_summary(kind)}"]
        notes += [
            f"{source}: column {c.name} has one value, {c.categories[0]!r:.40}, in all rows, and keeps it"
            for c in measured
            if c.role == "constant"
        ]
        hints = [_hint(cells, k, c) for k, c in enumerate(measured) if c.name not in asked]
        notes += [f"{source}: {hint}" for hint in hints if hint]
        columns = [(c, train.x[:, k]) for k, c in enumerate(measured) if c.numeric]
        tails = [c.name for c, x in columns if _long_tailed(x[x != GAP], c.mean, c.std)]
        if tails and numbers == "auto":
            notes.append(
                f"{source}: numbers with a long tail, which are learnt by their quantiles: {', '.join(tails):.200}"
            )
        elif tails and numbers == "standard":
            notes.append(
                f"{source}: numbers with a long tail: {', '.join(tails):.200}; as standard numbers too many are made at an "
                "end of their range: leave --numbers out"
            )
        if numbers == "auto" and not tails:
            numbers = "standard"  # the same, as in runs of earlier versions
        told = {"source": source, "held_out": held_out, "seed": seed, "ignore": list(ignore), "numbers": numbers}
        of = f"{len(train)} rows of {len(measured)} columns"
        return Loaded(kind, kind.with_labels(train), kept and kind.with_labels(kept), of, tuple(notes), told)

    def with_labels(self, rows: Examples) -> Examples:
        """Return rows with the labels of the target as their condition, −1 where it is missing."""
        if not self.target:
            return rows
        labels = rows.x[:, self._place(self.target)].long()
        return Examples(rows.x, torch.where(labels < len(self.classes), labels, -1))

    def drawn_labels(self, number: int, seed: int) -> Tensor:
        """Draw labels of the target, int64 (number,), with training frequencies; label i depends only on the seed and i."""
        streams = SampleStreams(seed ^ _LABELS, torch.arange(number), expected=1)
        at = rand(torch.Size([number]), streams, torch.float64, torch.device("cpu"))
        edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(edges, at.contiguous(), right=True).clamp_max(int((edges < 1 - 1e-12).sum()))

    def labelled(self, stored: Tensor, labels: Tensor) -> Tensor:
        """Return rows with the target's column set to labels (number,); unchanged without a target."""
        if not self.target:
            return stored
        stored = stored.clone()
        stored[:, self._place(self.target)] = labels.to(stored)
        return stored

    def _place(self, name: str) -> int:
        return next(k for k, column in enumerate(self.columns) if column.name == name)

    def rows(self, source: str) -> tuple[Tensor, Cells]:
        """Read rows of a file with these columns, in stored form; further columns are left out.

        Returns:
            The rows, and all cells of the file.

        Raises:
            DataError: A column is missing, or a cell is invalid for its column; the message names line and column.
        """
        cells = read_cells(Path(source))
        names = [column.name for column in self.columns]
        if lacking := [name for name in names if name not in cells.names]:
            raise DataError(
                f"{source}: has no column {lacking[0]!r:.80}, which the model knows: give the columns "
                f"{', '.join(names):.200}"
            )
        order = [cells.names.index(name) for name in names]
        own = cells.some(order)
        own.check()
        return _stored(own, self.columns), cells

    def missing(self, stored: Tensor) -> Tensor:
        """Return which cells are missing, bool (number, columns)."""
        last = [float(len(c.categories)) if c.role == "category" else math.inf for c in self.columns]
        return (stored == GAP) | (stored >= torch.tensor(last, dtype=torch.float64, device=stored.device))

    def outside(self, stored: Tensor) -> Tensor:
        """Return which numbers lie outside the range of training, bool (number, columns)."""
        inside = [
            (stored[:, k] >= column.least) & (stored[:, k] <= column.most)
            if column.numeric
            else torch.ones_like(stored[:, k], dtype=torch.bool)
            for k, column in enumerate(self.columns)
        ]
        return ~torch.stack(inside, dim=1) & ~self.missing(stored)

    def values(self, stored: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return rows as numbers with NaN for missing ones, and indices of categories, float64 (number, columns)."""
        return stored.detach().to("cpu", torch.float64).masked_fill(stored.cpu() == GAP, math.nan).numpy()

    def observed(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoded rows with cells to fill, and which entries are known.

        The flags that numbers are not missing are known for all rows.

        Returns:
            Encoded rows, and bool of the same shape, (number, *shape).
        """
        there = ~self.missing(stored)
        places = [k for _, group in self._groups for k in group]
        known = torch.cat([there[:, self._numbers], torch.ones_like(there[:, self._gaps]), there[:, places]], dim=1)
        encoded = torch.where(known, self.encode(stored), 0.0)
        encoded[:, len(self._numbers) : len(self._numbers) + len(self._gaps)] = 0.0
        return encoded, known

    def never(self) -> Tensor:
        """Return which encoded columns are categories whose last class means a missing cell, bool shape."""
        places = [k for _, group in self._groups for k in group]
        gaps = [self.columns[k].missing is not None for k in places]
        return torch.tensor([False] * (len(self._numbers) + len(self._gaps)) + gaps)

    def stored(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> Tensor:
        """Return rows of :meth:`values` in stored form."""
        return torch.from_numpy(values).nan_to_num(GAP)

    def encode(self, stored: Tensor) -> Tensor:
        """Return encoded rows, float32; see the class."""
        if stored.shape[1:] != (len(self.columns),):
            raise ArgumentError(
                f"these rows have the shape {tuple(stored.shape[1:])}, rows here have {(len(self.columns),)}"
            )
        x = stored.double()
        gap = x == GAP
        numbers = [
            self.columns[k].encode(x[:, k].masked_fill(gap[:, k], self.columns[k].mean)).masked_fill(gap[:, k], 0.0)
            for k in self._numbers
        ]
        gaps = [gap[:, k].double() for k in self._gaps]
        classes = [x[:, k] for _, places in self._groups for k in places]
        return torch.stack([*numbers, *gaps, *classes], dim=1).float()

    def decode(self, samples: Tensor) -> Tensor:
        """Return samples in stored form, float64, each column with its range and decimals in training.

        The target is missing: see :meth:`labelled`.
        """
        z = samples.double()
        stored = z.new_zeros(len(z), len(self.columns))
        for i, k in enumerate(self._numbers):
            stored[:, k] = self.columns[k].decode(z[:, i])
        for i, k in enumerate(self._gaps, len(self._numbers)):
            stored[:, k] = torch.where(z[:, i] > 0.5, GAP, stored[:, k])
        places = [k for _, group in self._groups for k in group]
        for i, k in enumerate(places, len(self._numbers) + len(self._gaps)):
            stored[:, k] = z[:, i].round()
        return self.labelled(stored, stored.new_full((len(z),), len(self.classes))) if self.target else stored

    def check_output(self, path: Path, number: int) -> None:
        if path.suffix.lower() not in (".csv", ".parquet", ".png"):
            raise ArgumentError(
                f"cannot tell from {str(path)!r} what to write: give a file ending in .csv or .parquet (the table), or .png "
                "(a plot)"
            )
        self._check_zones(path)
        writable_folder(path.parent)
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: it is a folder")

    def _check_zones(self, path: Path) -> None:
        zoned = [column.name for column in self.columns if "tz=" in column.type]
        if zoned and path.suffix.lower() == ".csv":
            raise ArgumentError(
                f"cannot write {path}: the times of column {zoned[0]} have a zone, which text would lose: give a file "
                "ending in .parquet"
            )

    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write rows with the names, types, categories and decimals of the original, or a plot of two columns (.png).

        Raises:
            ArgumentError: It is a text file, and times have a zone.
            OutputError: The path cannot be written.
        """
        path = Path(path)
        self._check_zones(path)
        if path.suffix.lower() == ".png":
            write_png(path, self.preview(stored))
            return
        rows, names = stored.detach().to("cpu", torch.float64).tolist(), tuple(column.name for column in self.columns)

        def put(temporary: Path) -> None:
            if path.suffix.lower() == ".parquet":
                made = [
                    ParquetColumn(c.name, c.written_as, [c.text(row[k]) for row in rows], c.dictionary)
                    for k, c in enumerate(self.columns)
                ]
                parquet.write(temporary, made, [c.missing for c in self.columns], self.pandas)
                return
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(names)
                writer.writerows([c.text(x) for c, x in zip(self.columns, row, strict=True)] for row in rows)

        write_atomically(path, put)

    def write_cells(self, path: Path, cells: Cells, texts: Mapping[tuple[int, int], str]) -> None:
        """Write cells of a file to a .csv or, if they are from one, a parquet file, replacing some of them.

        Args:
            path: The file to write.
            cells: All cells of the file.
            texts: The replacements, by row and column of the table.

        Raises:
            DataError: A replacement is invalid for the type of its column.
            OutputError: The path cannot be written.
        """
        if path.suffix.lower() == ".parquet":
            named = {(row, self.columns[k].name): text for (row, k), text in texts.items()}
            write_atomically(path, lambda temporary: parquet.write_filled(cells.path, temporary, named))
            return
        columns = [list(column) for column in cells.columns]
        for (row, k), text in texts.items():
            columns[cells.names.index(self.columns[k].name)][row] = text

        def put(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                lines = csv.writer(file, lineterminator=cells.newline)
                lines.writerows([cells.names, *zip(*columns, strict=True)])

        write_atomically(path, put)

    def preview(self, stored: Tensor) -> Picture:
        """Plot the first two columns of numbers against each other, or a histogram of the first column."""
        x = stored.detach().to("cpu", torch.float64)
        places = self._numbers[:2] or [next(k for k, c in enumerate(self.columns) if c.role != "constant")]
        titles = [f"{self.columns[k].name} (of {len(self.columns)} columns)" for k in places]
        rows = x[:, places].numpy()
        return scatter.histogram(rows[:, 0], titles[0]) if len(places) == 1 else scatter.scatter(rows, titles)


def _without(cells: Cells, ignore: Sequence[str]) -> Cells:
    """Return cells without the named columns."""
    _known(cells, ignore)
    return cells.some([k for k, name in enumerate(cells.names) if name not in ignore])


def _known(cells: Cells, names: Sequence[str]) -> None:
    for name in names:
        if name not in cells.names:
            raise ArgumentError(f"{cells.path} has no column {name!r:.80}: it has {', '.join(cells.names):.300}")


def _days(cell: str) -> float | None:
    """Return the days from 1970 to a date, or date and time, in ISO 8601; ``None`` for other strings."""
    form = _DATE.fullmatch(cell)
    if form is None or form["zone"]:
        return None
    try:
        return (datetime.fromisoformat(cell) - _EPOCH) / _DAY
    except ValueError:
        return None


def _has_zone(cell: str) -> bool:
    """Return whether a cell is a time of day with a zone."""
    form = _DATE.fullmatch(cell)
    return form is not None and form["zone"] is not None


def _clock(counts: Counter[str]) -> str:
    """Return the most common format of times of day among strings of dates; dates without time are midnights."""
    found = Counter[str]()
    for text, number in counts.items():
        if (form := _DATE.fullmatch(text)) and form["mark"]:
            found[f"{form['mark']}10:00{':00' if form['seconds'] else ''}"] += number
    return found.most_common(1)[0][0] if found else Column.clock


def _found(cells: Cells, k: int, asked: str) -> Column:
    """Return a column by the rules of :meth:`Table.read`, without statistics of its numbers.

    Args:
        cells: The table.
        k: The column's index.
        asked: The option that makes it categorical; empty for none.

    Raises:
        DataError: Its cells fit no type; the message names line and column.
    """
    found = _found_in(cells, k, asked, bool(asked) or _typed_categories(cells, k))
    return replace(found, type=cells.types[k], dictionary=cells.dictionaries[k]) if cells.types else found


def _typed_categories(cells: Cells, k: int) -> bool:
    return bool(cells.types) and parquet.of_categories(cells.types[k])


def _found_in(cells: Cells, k: int, asked: str, as_categories: bool) -> Column:
    """Return the type of a column by its cells."""
    name, texts = cells.names[k], cells.columns[k]
    present = [(row, text) for row, text in enumerate(texts) if not is_missing(text)]
    where = f"{cells.path}: column {name}"
    if not present:
        raise DataError(f"{where} has no value in any row: leave it out, --ignore {name}")
    gap = Counter(text for text in texts if is_missing(text)).most_common(1)
    missing = gap[0][0] if gap else None
    counts = Counter(text for _, text in present)
    if len(counts) == 1 and missing is None:
        return Column(name, "constant", (present[0][1],))
    if as_categories:
        return _category(where, name, counts, missing, len(present), asked)
    values = {text: number_in(text) for text in counts}
    numbers = sum(counts[text] for text, value in values.items() if value is not None)
    if numbers and numbers < len(present):
        if 2 * numbers < len(present):
            return _category(where, name, counts, missing, len(present))
        row, text = next((row, text) for row, text in present if values[text] is None)
        raise DataError(
            f"{cells.place(row, k)}: {text!r:.40} is no number, as {numbers} other cells of the column are: correct it, or "
            f"take them all as categories, --categories {name}"
        )
    if numbers:
        for row, text in present:
            if not math.isfinite(values[text] or 0.0):
                raise DataError(f"{cells.place(row, k)}: {text!r:.40} is infinite; expected a number or an empty cell")
        whole = all(value is not None and value == round(value) for value in values.values())
        if whole and len(counts) <= FEW_VALUES and 2 * len(counts) <= len(present):
            return _category(where, name, counts, missing, len(present))
        digits = {_decimals(text) for text in counts}
        return Column(
            name,
            "integer" if whole else "number",
            missing=missing,
            decimals=max(digits) if max(digits) <= _MOST_DECIMALS else -1,
            trimmed=len(digits) > 1,
            significant=_significant(counts) if len(digits) > 1 or any("e" in text.lower() for text in counts) else 0,
            width=_padded(counts) if whole else 0,
        )
    days = {text: _days(text) for text in counts}
    dates = sum(counts[text] for text, day in days.items() if day is not None)
    if dates == len(present):
        times = int(any(len(text) > 10 for text in counts))
        return Column(name, "date", missing=missing, decimals=times, clock=_clock(counts))
    if 2 * (dates + sum(counts[text] for text in counts if _has_zone(text))) >= len(present) > dates:
        zoned = next(((row, text) for row, text in present if _has_zone(text)), None)
        if zoned is not None:
            raise DataError(
                f"{cells.place(zoned[0], k)}: {zoned[1]!r:.40} is a time with a zone, which text does not keep: write it "
                f"without the zone, or give a .parquet file, whose type says it, or take them as categories, --categories "
                f"{name}"
            )
    if 2 * dates >= len(present):
        row, text = next((row, text) for row, text in present if days[text] is None)
        raise DataError(
            f"{cells.place(row, k)}: {text!r:.40} is no date, as {dates} other cells of the column are, written as "
            f"2024-12-31 or 2024-12-31 23:59:59: correct it, or take them all as categories, --categories {name}"
        )
    return _category(where, name, counts, missing, len(present))


_MOST_DECIMALS = 17


def _decimals(text: str) -> int:
    """Return the number of decimals of a number's string, written out without exponent."""
    front, _, exponent = text.lower().partition("e")
    return max(0, len(front.partition(".")[2]) - int(exponent or 0))


def _significant(texts: Iterable[str]) -> int:
    """Return the largest number of significant digits of numbers' strings, at most 17."""
    mantissas = (text.lower().partition("e")[0] for text in texts)
    return min(17, max(len(mantissa.lstrip("+-0.").replace(".", "")) for mantissa in mantissas) or 1)


def _padded(texts: Iterable[str]) -> int:
    """Return the length of integers that all have as many characters, if one has leading zeros; else 0."""
    lengths = {len(text) for text in texts}
    return lengths.pop() if len(lengths) == 1 and any(text[0] == "0" and len(text) > 1 for text in texts) else 0


_NEARLY = tuple(
    (what, re.compile(form, re.ASCII), mend)
    for what, form, mend in (
        ("percentages", r"[+-]?\d+(?:[.,]\d+)?\s?%", "write 12% as 12"),
        ("numbers in brackets", r"\(\d[\d.,]*\)", "write (51) as -51"),
        ("amounts of money", r"-?(?:[$€£¥]\s?-?\d[\d.,]*|\d[\d.,]*\s?[$€£¥])", "write $5.00 as 5.00"),
        ("numbers with commas", r"[+-]?\d+(?:,\d+)+(?:\.\d+)?", "write 1,000 as 1000 and 0,5 as 0.5"),
        ("dates", r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d\d)", "write them as 2024-12-31"),
        ("times of day", r"\d{1,2}:\d\d(?::\d\d)?", "write 10:30 as a number, 10.5 hours"),
    )
)
_MOST = 0.9
"""Fraction of a column's cells from which a hint says what they look like."""


def _nearly(counts: Counter[str]) -> tuple[int, str, str] | None:
    """Return how many strings look like what, and how to write them, if they are nearly all numbers or dates."""
    plain = sum(number for text, number in counts.items() if number_in(text) is not None)
    for what, form, mend in _NEARLY:
        found = sum(number for text, number in counts.items() if form.fullmatch(text))
        if found and found + plain >= _MOST * counts.total():
            return found, what, mend
    return None


def _hint(cells: Cells, k: int, column: Column) -> str:
    """Return a hint on what a column seems to be but is not read as, and how to change that; empty for others."""
    counts, name = Counter(text for text in cells.columns[k] if not is_missing(text)), column.name
    if column.role == "category" and not _typed_categories(cells, k) and (nearly := _nearly(counts)):
        found, what, mend = nearly
        return (
            f"column {name} is taken as categories, though {found} of {counts.total()} cells look like {what}: {mend} to "
            "have them learnt as numbers"
        )
    if column.role != "integer":
        return ""
    if all(map(_is_day, counts)):
        return (
            f"column {name} looks like dates written 20240131: write 2024-01-31, else days are made that do not exist"
        )
    padded = next((text for text in counts if re.match(r"[+-]?0\d", text)), None)
    if padded and not column.width:
        return (
            f"column {name} has numbers with zeros before them, as {padded!r:.40}, which are left out in what is made, as "
            f"not all are equally long: write all equally long, or take them as categories, --categories {name}"
        )
    return ""


def _is_day(text: str) -> bool:
    """Return whether a string is a day of a recent century without separators, 20240131."""
    return len(text) == 8 and text[:2] in ("19", "20") and _days(f"{text[:4]}-{text[4:6]}-{text[6:]}") is not None


def _long_tailed(x: Tensor, mean: float, std: float) -> bool:
    """Return whether a few numbers (number,) are so far from the others that these are close in standard units."""
    return float(((x - mean) / std).pow(4).mean()) > LONG_TAIL


def _category(where: str, name: str, counts: Counter[str], missing: str | None, rows: int, asked: str = "") -> Column:
    number = len(counts)
    if number > MOST_CATEGORIES or (number > _FEW and 2 * number > rows):
        most = f"(at most {MOST_CATEGORIES}, and half as many as rows)"
        if asked == "--target":
            raise DataError(
                f"{where} has {number} different values in {rows} rows, and a target must be of categories {most}: choose "
                "another --target, or write the values as a few classes"
            )
        if asked:
            mend = "take it out of --categories"
        elif nearly := _nearly(counts):
            mend = f"they look like {nearly[1]}, so {nearly[2]}"
        else:
            mend = "write numbers as 1000.5 and dates as 2024-12-31"
        example = next((text for text in counts if number_in(text) is None), next(iter(counts)))
        raise DataError(
            f"{where} has {number} different texts in {rows} rows, as {example!r:.40}, too many to learn as categories "
            f"{most}: {mend}, or leave the column out, --ignore {name}"
        )
    ordered = sorted(counts, key=lambda text: (number_in(text) is None, number_in(text) or 0.0, text))
    return Column(name, "category", tuple(ordered), missing)


def _stored(cells: Cells, columns: Sequence[Column]) -> Tensor:
    """Return cells in stored form.

    Raises:
        DataError: A cell is invalid for its column.
    """
    stored = torch.empty(len(cells.lines), len(columns), dtype=torch.float64)
    for k, column in enumerate(columns):
        known = {text: column.stored(text) for text in set(cells.columns[k])}
        if lacking := {text for text, value in known.items() if value is None}:
            row = next(row for row, text in enumerate(cells.columns[k]) if text in lacking)
            text = cells.columns[k][row]
            if column.role in ("category", "constant"):
                expected = f"one of {', '.join(column.categories):.200}"
            else:
                expected = "a date, as 2024-12-31, without a zone" if column.role == "date" else "a finite number"
            raise DataError(f"{cells.place(row, k)}: {text!r:.40} is not what the column holds; expected {expected}")
        stored[:, k] = torch.tensor([known[text] for text in cells.columns[k]], dtype=torch.float64)
    return stored


def _check_range(cells: Cells, columns: Sequence[Column], stored: Tensor) -> None:
    """Refuse numbers that overflow float64, or whose differences do, in any row.

    Raises:
        DataError: There is one; the message names line and column.
    """
    for k, column in enumerate(columns):
        x = stored[:, k][stored[:, k] != GAP]
        if column.numeric and not math.isfinite(float(x.max() - x.min())):
            row = int(stored[:, k].masked_fill(stored[:, k] == GAP, 0.0).abs().argmax())
            raise DataError(
                f"{cells.place(row, k)}: {cells.columns[k][row]!r:.40} is too large, as the column reaches from {x.min():g} "
                f"to {x.max():g}: correct it, or leave the column out, --ignore {column.name}"
            )
        if column.role != "integer" or not len(x) or float(x.abs().max()) <= 2**53:
            continue
        for row, (text, number) in enumerate(zip(cells.columns[k], stored[:, k].tolist(), strict=True)):
            if number != GAP and is_whole(text) and int(text) != int(number):
                raise DataError(
                    f"{cells.place(row, k)}: {text!r:.40} has more digits than a number keeps, about 15: take the column as "
                    f"categories, --categories {column.name}, or leave it out, --ignore {column.name}"
                )


def _check_distance(cells: Cells, columns: Sequence[Column], stored: Tensor) -> None:
    """Refuse numbers that would be encoded as infinite, in held-out rows, which do not determine the scale.

    Raises:
        DataError: There is one; the message names line and column.
    """
    for k, column in enumerate(columns):
        if not column.numeric:
            continue
        z = column.encode(stored[:, k]).masked_fill(stored[:, k] == GAP, 0.0).abs()
        if not float(z.max()) < FARTHEST:
            row = int(z.argmax())
            raise DataError(
                f"{cells.place(row, k)}: {cells.columns[k][row]!r:.40} lies {float(z.max()):.2g} standard deviations from "
                "the mean of the rows that are trained on: correct it, or give --numbers quantiles"
            )


def _measured(column: Column, x: Tensor, numbers: Numbers) -> Column:
    """Return a column of numbers with their range and moments in the training rows (number,)."""
    if not column.numeric:
        return column
    x = x[x != GAP]
    if not len(x):
        raise DataError(
            f"column {column.name} has no value in the training rows: leave it out, --ignore {column.name}, or hold out less"
        )
    least, most = float(x.min()), float(x.max())
    # Scaled first: squares of large or small numbers would overflow or underflow.
    unit = most - least or 1.0
    within = (x - least) / unit
    mean, std = least + float(within.mean()) * unit, float(within.std(correction=0)) * unit or 1.0
    knots: tuple[float, ...] = ()
    by_quantiles = numbers == "quantiles" or (numbers == "auto" and _long_tailed(x, mean, std))
    if by_quantiles and least < most:
        levels = torch.linspace(0, 1, min(_KNOTS, max(2, len(x))), dtype=torch.float64)
        knots = tuple(torch.quantile(x, levels).cummax(0).values.tolist())
    found, counts = torch.unique(x, return_counts=True)
    shared = len(found) <= _MOST_VALUES and float(counts[counts > 1].sum()) >= _SHARED * len(x)
    values = tuple(found.tolist()) if shared else ()
    step = _step(column, x)
    return replace(column, least=least, most=most, mean=mean, std=std, step=step, knots=knots, values=values)


def _step(column: Column, x: Tensor) -> int:
    """Return the greatest common divisor of the distances of a column's numbers (number,), in units of the last digit."""
    if column.decimals < 0:
        return 1
    digits = torch.unique((x * column._units).round())
    if float(digits.abs().max()) > 2**53:
        return 1
    shared = int(np.gcd.reduce(digits.diff().long().numpy())) if len(digits) > 1 else 0
    if column.role == "date" and column.decimals and (_CLOCKS[column.clock][1] == "minutes" or shared % 60 == 0):
        # Whole minutes are not by chance, however few; and if most times have no seconds, all are written so.
        return shared if shared and shared % 60 == 0 and len(digits) > FEW_VALUES else 60
    return max(1, shared) if len(digits) > FEW_VALUES else 1  # few numbers may have a common divisor by chance


def _summary(kind: Table) -> str:
    """Return a summary of the types of columns."""
    words = {"number": "numbers", "integer": "whole numbers", "date": "dates", "category": "categories"}
    said = []
    for role, word in words.items():
        names = [
            c.name + (f" ({len(c.categories)})" if role == "category" else "") for c in kind.columns if c.role == role
        ]
        if names:
            said.append(f"{word} {', '.join(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}")
    gaps = [c.name for c in kind.columns if c.missing is not None]
    if gaps:
        said.append(
            f"with missing cells {', '.join(gaps[:12])}{f' and {len(gaps) - 12} more' if len(gaps) > 12 else ''}"
        )
    return "; ".join(said) + (f"; target {kind.target}" if kind.target else "")
