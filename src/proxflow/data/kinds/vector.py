"""Vectors: rows of real numbers, each column standardised for the models."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from proxflow.data import scatter
from proxflow.data.arrays import Array, holds_table, read_npy, read_npz, shapes_in
from proxflow.data.cells import check_commas, check_named, number_in, text_rows
from proxflow.data.image_files import write_png
from proxflow.data.kinds.base import FARTHEST, Defaults, Kind, Loaded, Picture, split
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import Examples
from proxflow.runtime.files import writable_folder, write_atomically

_ENDINGS = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class Vector(Kind):
    """Rows of real numbers, stored as float64 (number, columns) in their own units.

    Encoded, each column has mean 0 and standard deviation 1 over the training rows.

    Args:
        shape: (columns,).
        mean: Mean of each column.
        std: Standard deviation of each column, > 0; 1 for a column of one value.
        columns: Names of the columns; empty for none.

    Raises:
        ArgumentError: Their lengths differ, or a value is out of range.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    columns: tuple[str, ...] = ()

    examples_word: ClassVar[str] = "rows"
    sources: ClassVar[str] = "rows of numbers in a file .npy, .npz (key x, or one array of rows and columns) or .csv"
    defaults: ClassVar[Defaults] = Defaults(network="mlp", clip=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise ArgumentError(f"rows of numbers have a shape (columns,), at least 1, got {self.shape}")
        if not len(self.mean) == len(self.std) == self.shape[0] or len(self.columns) not in (0, self.shape[0]):
            raise ArgumentError(
                f"rows of {self.shape[0]} columns have as many means, standard deviations and names (or no names), got "
                f"{len(self.mean)}, {len(self.std)} and {len(self.columns)}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ArgumentError("means of columns must be finite numbers, and standard deviations finite and > 0")

    @classmethod
    def of(cls, rows: Tensor) -> Vector:
        """Return the kind of rows (number, columns), with the mean and standard deviation of their columns.

        Raises:
            DataError: There are no rows, or a number is not finite.
        """
        if not rows.numel():
            raise DataError(f"expected at least one row of numbers to learn from, got {tuple(rows.shape)}")
        if bad := int((~rows.isfinite()).flatten(1).any(1).sum()):
            raise DataError(
                f"{bad} of {len(rows)} rows to learn from hold NaN or infinite values; expected finite numbers: remove "
                "these rows, or learn them as a table, which has missing cells (docs/tables.md)"
            )
        mean, std, _ = _moments(rows.double(), "rows", ())
        return cls((rows.shape[1],), mean, std)

    @classmethod
    def takes(cls, source: str) -> bool:
        path = Path(source)
        ending = path.suffix.lower()
        if ending == ".npy":
            return len(shapes_in(path).get("", ())) not in (3, 4)
        return ending == ".csv" or (ending == ".npz" and holds_table(path))

    @classmethod
    def read(cls, source: str, *, held_out: float = 0.05, seed: int = 0, **settings: Any) -> Loaded:
        """Read rows of numbers.

        Args:
            source: File of rows: ``.npy``, ``.npz`` with the key ``x`` or a single array (rows, columns), or
                comma-separated ``.csv``, optionally with column names in the first line.
            held_out: Fraction held out, in [0, 1).
            seed: Seed of the split.
            **settings: There are none.

        Raises:
            ArgumentError: The fraction is out of range, or a setting is given.
            DataError: There is no such source, it is damaged or of another form, or a number is not finite; the message
                names its position.
        """
        if settings:
            raise ArgumentError(f"rows of numbers have no settings, got {', '.join(settings)}")
        path = Path(source)
        columns: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        match path.suffix.lower():
            case ".csv":
                rows, columns = _read_csv(path)
            case ".npy":
                rows = _checked(read_npy(path), str(path), "")
            case ".npz":
                key = _key(path)
                rows = _checked(read_npz(path, (key,))[key], f"{path}", key)
                if others := sorted(set(shapes_in(path)) - {key}):
                    notes = (f"{path}: only {key} is read; left out: {', '.join(others)}",)
            case _:
                raise DataError(f"no rows of numbers in {source!r}: expected {cls.sources}")
        _moments(torch.from_numpy(rows), path, columns)  # refuses values that are too large in any row
        train, kept = split(Examples(torch.from_numpy(rows)), held_out, seed)
        mean, std, constant = _moments(train.x, path, columns)
        if constant:
            called = ", ".join(_called(k, columns) for k in constant)
            notes += (f"{path}: {called} has one value in all rows that are trained on, and keeps its unit",)
        kind = cls((rows.shape[1],), mean, std, columns)
        far = ~(kind.encode(torch.from_numpy(rows)).abs() < FARTHEST)
        if bool(far.any()):
            row, column = far.nonzero()[0].tolist()
            raise DataError(
                f"{path}: row {row + 1}, {_called(column, columns)}: {rows[row, column]:g} lies more than {FARTHEST:g} "
                "standard deviations from the mean of the rows that are trained on: correct it or leave it out"
            )
        return Loaded(kind, train, kept, f"{len(train)} rows of {rows.shape[1]} columns", notes)

    def encode(self, stored: Tensor) -> Tensor:
        """Standardise rows, (x − mean) / std, in float64, and return float32."""
        if stored.shape[1:] != self.shape:
            raise ArgumentError(f"these rows have the shape {tuple(stored.shape[1:])}, rows here have {self.shape}")
        return ((stored.double() - self._of(self.mean, stored)) / self._of(self.std, stored)).float()

    def decode(self, samples: Tensor) -> Tensor:
        """Return samples in their own units, float64."""
        return samples.double() * self._of(self.std, samples) + self._of(self.mean, samples)

    def _of(self, numbers: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=like.device)

    @property
    def log_scale(self) -> float:
        """Σ log std."""
        return sum(map(math.log, self.std))

    def check_output(self, path: Path, number: int) -> None:
        if path.suffix.lower() not in (*_ENDINGS, ".png"):
            raise ArgumentError(
                f"cannot tell from {str(path)!r} what to write: give a file ending in .npy, .npz or .csv (numbers), or .png "
                "(a plot)"
            )
        writable_folder(path.parent)
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: it is a folder")

    def write(self, path: Path | str, stored: Tensor) -> None:
        """Write numbers (.npy; .npz, key x; .csv), or a plot of the first two columns (.png)."""
        path = Path(path)
        rows = stored.detach().to("cpu", torch.float64).numpy()

        if path.suffix.lower() == ".png":
            write_png(path, self.preview(stored))
            return

        def put(temporary: Path) -> None:
            match path.suffix.lower():
                case ".csv":
                    with temporary.open("w", newline="", encoding="utf-8") as file:
                        writer = csv.writer(file)
                        writer.writerows([self.columns] if self.columns else [])
                        writer.writerows([repr(number) for number in row] for row in rows.tolist())
                case ".npy":
                    with temporary.open("wb") as file:  # numpy would append a suffix to an upper-case name
                        np.save(file, rows)
                case _:
                    with temporary.open("wb") as file:
                        np.savez_compressed(file, x=rows)

        write_atomically(path, put)

    def preview(self, stored: Tensor) -> Picture:
        """Plot the first two columns against each other, or a histogram of a single column."""
        rows = stored.detach().to("cpu", torch.float64).numpy()
        more = f" (of {self.shape[0]} columns)" if self.shape[0] > 2 else ""
        titles = [_called(k, self.columns) + more for k in range(min(2, self.shape[0]))]
        return scatter.histogram(rows[:, 0], titles[0]) if len(titles) == 1 else scatter.scatter(rows[:, :2], titles)


def _called(column: int, columns: Sequence[str]) -> str:
    return columns[column] if columns else f"column {column + 1}"


def _key(path: Path) -> str:
    """Return the key of an ``.npz`` file's rows: ``x``, or that of its only array of two dimensions."""
    shapes = shapes_in(path)
    tables = ["x"] if "x" in shapes else [key for key, shape in shapes.items() if len(shape) == 2]
    if shapes and len(tables) != 1:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DataError(f"{path}: expected the key x, or one array (rows, columns); found {found}")
    return tables[0] if tables else "x"  # for a damaged file, which is refused when read


def _checked(array: Array, path: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return an array as float64 (rows, columns), or refuse it."""
    named = f'{path}: "{key}"' if key else f"{path}: the array"
    if array.dtype.kind not in "fiu":
        raise DataError(f"{named} is {array.dtype}; expected real numbers, float or int")
    if array.ndim != 2 or 0 in array.shape:
        hint = ": of one column it is reshape(-1, 1)" if array.ndim == 1 and array.size else ""
        raise DataError(f"{named} has shape {array.shape}; expected (rows, columns), not empty{hint}")
    rows = np.ascontiguousarray(array, np.float64)
    if len(places := np.argwhere(~np.isfinite(rows))):
        row, column = map(int, places[0])
        raise DataError(f"{named} has {rows[row, column]} at [{row}, {column}]; expected finite numbers")
    return rows


def _read_csv(path: Path) -> tuple[np.ndarray[Any, np.dtype[np.float64]], tuple[str, ...]]:
    """Read the rows of a ``.csv`` file, and the names of its columns if its first line has them."""
    columns: tuple[str, ...] = ()
    rows: list[list[float]] = []
    width = 0
    for line, fields in text_rows(path, "a text file of numbers between commas"):
        check_commas(path, line, fields)
        if not width:
            width = len(fields)
            if all(number_in(field) is None for field in fields):
                columns = tuple(fields)
                check_named(path, columns)
                continue
        if len(fields) != width:
            raise DataError(f"{path}: line {line} has {len(fields)} fields; expected {width}")
        row = [number_in(field) for field in fields]
        for k, value in enumerate(row):
            if value is None or not math.isfinite(value):
                wrong = f"has {fields[k]!r:.40}" if fields[k] else "is empty"
                tables = "" if columns else "; a table of more than numbers has a line of names above its rows"
                raise DataError(
                    f"{path}: line {line}, {_called(k, columns)}, {wrong}; expected a finite number, and commas between the "
                    f"columns{tables}"
                )
        rows.append([value for value in row if value is not None])
    if not rows:
        raise DataError(f"{path}: holds no rows; expected lines of numbers, or of a table's cells, between commas")
    return np.array(rows, np.float64), columns


def _moments(
    x: Tensor, path: Path | str, columns: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...], list[int]]:
    """Return mean and standard deviation of each column of float64 (rows, columns), and which columns are constant."""
    least, most = x.amin(0), x.amax(0)
    spread = most - least
    if not bool(spread.isfinite().all()):
        column = _called(int((~spread.isfinite()).nonzero()[0]), columns)
        raise DataError(f"{path}: {column} reaches from {least.min():g} to {most.max():g}; expected smaller numbers")
    constant = spread == 0
    # Scaled first: squares of large or small numbers would overflow or underflow.
    unit = torch.where(constant, 1.0, spread)
    within = (x - least) / unit
    mean = least + within.mean(0) * unit
    std = torch.where(constant, 1.0, within.std(0, correction=0) * unit)
    return tuple(mean.tolist()), tuple(std.tolist()), constant.nonzero()[:, 0].tolist()
