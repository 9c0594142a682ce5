"""Cells of a table, a comma-separated file with column names or a parquet file, as columns of strings."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from proxflow.data import parquet
from proxflow.errors import DataError
from proxflow.runtime.files import open_plain

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "<na>", "null", "?"})
"""Cells that mean a missing value, in lower case."""

T = TypeVar("T")

_LINES = re.compile(r"\r\n|\r|\n")
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Cells:
    """The cells of a table as stripped strings.

    Args:
        path: The file.
        names: Names of the columns.
        columns: The cells of each column.
        lines: The line in which each row begins, or the row number in a parquet file, from 1.
        newline: The file's line ending.
        types: For a parquet file, the types of the columns, see :mod:`proxflow.data.parquet`.
        dictionaries: For a parquet file, the strings of each column's dictionary, if it has one.
        pandas: The metadata of pandas in such a file, see :func:`proxflow.data.parquet.write`.
    """

    path: Path
    names: tuple[str, ...]
    columns: tuple[list[str], ...]
    lines: list[int]
    newline: str = "\n"
    types: tuple[str, ...] = ()
    dictionaries: tuple[tuple[str, ...], ...] = ()
    pandas: str = ""

    def row(self, row: int) -> str:
        """Return a description of the position of a row, for messages."""
        return f"{self.path}: {'row' if self.types else 'line'} {self.lines[row]}"

    def place(self, row: int, column: int) -> str:
        """Return a description of the position of a cell, for messages."""
        return f"{self.row(row)}, column {self.names[column]}"

    def some(self, columns: Sequence[int]) -> Cells:
        """Return some of the columns."""

        def of(values: Sequence[T]) -> tuple[T, ...]:
            return tuple(values[k] for k in columns) if values else ()

        return replace(
            self,
            names=of(self.names),
            columns=of(self.columns),
            types=of(self.types),
            dictionaries=of(self.dictionaries),
        )

    def check(self) -> None:
        """Refuse columns of a type without a string form.

        Raises:
            DataError: There is one; the message names it.
        """
        for name, word in zip(self.names, self.types, strict=bool(self.types)):
            if not parquet.is_known(word):
                pictures = " (if these are pictures, give arrow:PATH)" if "binary" in word else ""
                raise DataError(
                    f"{self.path}: column {name} is of type {word:.80}; expected numbers, texts, dates, times of days, or "
                    f"true and false: leave it out, --ignore {name}{pictures}"
                )


def is_missing(cell: str) -> bool:
    """Return whether a cell is missing."""
    return cell.lower() in MISSING


def number_in(cell: str) -> float | None:
    """Return the number in a cell, possibly infinite; ``None`` if it is not a number."""
    try:
        return None if "_" in cell else float(cell)  # Python takes 1_000 for a number
    except ValueError:
        return None


def is_whole(cell: str) -> bool:
    """Return whether a cell is written as an integer."""
    return _WHOLE.fullmatch(cell) is not None


def mixed(path: Path) -> bool:
    """Return whether a text file is a table of more than real numbers; raise nothing.

    It is one if its first line only has names, and below it a cell is not a number, or a column only has integers.
    """
    try:
        lines = text_rows(path)
        _, names = next(lines)
        if any(number_in(name) is not None for name in names):
            return False
        if _is_separator(names):
            return True  # which is refused when read
        whole, rows = [True] * len(names), 0
        for _, cells in lines:
            if len(cells) != len(names) or any(";" in cell for cell in cells):
                return False
            if any(number_in(cell) is None for cell in cells):
                return True
            whole = [before and is_whole(cell) for before, cell in zip(whole, cells, strict=True)]
            rows += 1
        return rows > 0 and any(whole)
    except (DataError, StopIteration):
        return False


def read_cells(path: Path) -> Cells:
    """Read a table.

    Raises:
        DataError: It cannot be read, has no rows or no names, a name twice, or a row of another length; the message
            names the line. Columns of a parquet file without a string form are refused by :meth:`Cells.check`.
        ArgumentError: It is a parquet file, and pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    lines = text_rows(path)
    try:
        first, names = next(lines)
    except StopIteration:
        raise DataError(f"{path}: is empty; expected a line of names and rows of cells between commas") from None
    if _is_separator(names):
        raise DataError(
            f"{path}: line {first} is {names[0]!r:.20}, which Excel writes; expected names of columns: remove the line"
        )
    check_commas(path, first, names)
    for k, name in enumerate(names):
        if number_in(name) is not None:
            raise DataError(
                f"{path}: line {first} holds the number {name} in column {k + 1}; expected the names of the columns: put a "
                "line of names above the rows"
            )
    _check_names(path, names)
    columns: tuple[list[str], ...] = tuple([] for _ in names)
    numbers = []
    for line, cells in lines:
        if len(cells) != len(names):
            count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
            raise DataError(f"{path}: line {line} has {count}; expected {len(names)}, one for each name")
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
        numbers.append(line)
    if not numbers:
        raise DataError(f"{path}: holds names and no rows; expected rows of cells between commas below them")
    return Cells(path, tuple(names), columns, numbers, _newline(path))


def _newline(path: Path) -> str:
    with open_plain(path) as file:
        return "\r\n" if file.readline(2**20).endswith(b"\r\n") else "\n"


def _is_separator(names: Sequence[str]) -> bool:
    """Return whether a first line is not of names, but tells Excel the separator."""
    return names[0].lower().startswith("sep=")


def check_commas(path: Path, line: int, cells: Sequence[str]) -> None:
    """Refuse a line of a text file with another separator than commas.

    Raises:
        DataError: There is such a separator in a cell.
    """
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if any(mark in cell for cell in cells):
            raise DataError(
                f"{path}: line {line}: expected commas between the columns; this file has {word}: save it with commas, and "
                "numbers as 1.5"
            )


def check_named(path: Path, names: Sequence[str]) -> None:
    """Refuse columns without a name.

    Raises:
        DataError: There is one; the message says how this happens.
    """
    for k, name in enumerate(names):
        if name and not name.startswith("__index_level_"):  # the name that pandas gives an index in parquet files
            continue
        if name or not k:
            mend = "if these are numbers of rows, as pandas writes them, leave them out (index=False), or else name it"
        elif not any(names[k:]):
            mend = "the first line ends in a comma: remove the commas at the ends of all lines, or name the column"
        else:
            mend = "name it in the first line"
        raise DataError(f"{path}: column {k + 1} has no name: {mend}")


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse columns without a name, or with the name of another."""
    check_named(path, names)
    for k, name in enumerate(names):
        if (before := names.index(name)) < k:
            raise DataError(f"{path}: columns {before + 1} and {k + 1} are both named {name!r:.80}: rename one of them")


_TABLE = "a text file of a table, cells between commas"


def text_rows(path: Path, expected: str = _TABLE) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-empty rows of a text file, each with its first line number, from 1.

    Args:
        path: The file.
        expected: Description of the expected file, for messages.

    Raises:
        DataError: It cannot be read, or a quote is not closed; the message names the line.
    """
    begins, ended = 1, False
    try:
        with io.TextIOWrapper(open_plain(path), "utf-8-sig", newline="") as file:

            def told() -> Iterator[str]:
                nonlocal ended
                yield from file
                ended = True
                yield ""  # if a row extends to here, its last cell contains the end of the file

            lines = csv.reader(told())
            try:
                for cells in lines:
                    if ended and cells:
                        # Lines of the cell as the file's reader counts them; str.splitlines has further line ends.
                        first, *more = _LINES.split(cells[-1].removesuffix("\n").removesuffix("\r"))
                        raise DataError(
                            f"{path}: line {lines.line_num - 1 - len(more)}: the quote before {first[:40]!r} is not closed: "
                            "close or remove it"
                        )
                    if cells:
                        yield begins, [cell.strip() for cell in cells]
                    begins = lines.line_num + 1
            except csv.Error as error:
                if lines.line_num == begins:
                    raise
                raise DataError(
                    f"{path}: line {begins}: the quote that opens a cell of this row is not closed within "
                    f"{csv.field_size_limit()} characters: close or remove it"
                ) from error
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; expected {expected}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no UTF-8 text (there is a byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {expected}") from error


def _read_parquet(path: Path) -> Cells:
    held, pandas = parquet.read(path)
    names = [column.name for column in held]
    _check_names(path, names)
    number = max((len(column.texts) for column in held), default=0)
    if not number and (not held or any(parquet.is_known(column.type) for column in held)):
        raise DataError(f"{path}: holds no rows; expected a table")
    types, dictionaries = tuple(column.type for column in held), tuple(column.dictionary for column in held)
    columns = tuple(column.texts for column in held)
    rows = list(range(1, number + 1))
    return Cells(path, tuple(names), columns, rows, types=types, dictionaries=dictionaries, pandas=pandas)
