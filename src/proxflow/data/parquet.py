"""Parquet files as columns of strings and back: each type as the string of a ``.csv`` cell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from proxflow.errors import ArgumentError, DataError
from proxflow.runtime.files import open_plain

_TYPE = re.compile(
    r"(?:(?P<word>bool|null|u?int(?:8|16|32|64)|halffloat|float|double|string|large_string|string_view|date32\[day\])"
    r"|timestamp\[(?P<unit>ms|us|ns)(?:, tz=(?P<zone>[A-Za-z0-9_+:/-]{1,64}))?\]"
    r"|decimal(?P<bits>32|64|128|256)\((?P<digits>\d{1,2}), (?P<scale>-?\d{1,2})\)"
    r"|dictionary<values=(?P<values>string|large_string|string_view), indices=(?P<indices>u?int(?:8|16|32|64)), "
    r"ordered=(?P<ordered>[01])>)(?P<full> not null)?"
)
"""The types that can be read and written, as Arrow names them; parquet has no other simple ones."""

_FLOATS = {"halffloat": np.float16, "float": np.float32, "double": np.float64}


def is_known(word: str) -> bool:
    """Return whether a string is a type of columns that can be read and written."""
    return _TYPE.fullmatch(word) is not None


def of_categories(word: str) -> bool:
    """Return whether columns of a type are always categorical."""
    return word.startswith(("dictionary", "bool"))


@dataclass(frozen=True)
class ParquetColumn:
    """A column of a parquet file.

    Args:
        name: Its name.
        type: Its type, see :func:`is_known`; others have no strings.
        texts: Its cells: nulls are empty, NaN is "nan", times with a zone are in UTC.
        dictionary: The strings of its dictionary in order, if it has one.
    """

    name: str
    type: str
    texts: list[str]
    dictionary: tuple[str, ...] = ()


def read(path: Path) -> tuple[list[ParquetColumn], str]:
    """Read the columns of a file, and the metadata of pandas, JSON; empty if there are none.

    Raises:
        ArgumentError: pyarrow is not installed.
        DataError: It cannot be read.
    """
    pyarrow, table = _table(path)
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        word = f"{field.type}{'' if field.nullable else ' not null'}"
        try:
            columns.append(ParquetColumn(field.name, word, *_texts(pyarrow, column, word)))
        except (ValueError, OverflowError, pyarrow.ArrowException) as error:  # as times before the year 1
            raise DataError(f"{path}: column {field.name}, of type {word}, cannot be read ({error!s:.200})") from error
    return columns, (table.schema.metadata or {}).get(b"pandas", b"").decode("utf-8", "replace")


def write(path: Path, columns: Sequence[ParquetColumn], missing: Sequence[str | None], pandas: str = "") -> None:
    """Write columns to a file, each with its type.

    Args:
        path: The file.
        columns: The columns.
        missing: The string of missing cells of each.
        pandas: The metadata of pandas in the original file, so that it reads these columns in the same way.

    Raises:
        ArgumentError: pyarrow is not installed.
    """
    pyarrow = _pyarrow()
    fields, arrays = [], []
    for column, gap in zip(columns, missing, strict=True):
        values = [None if text == gap else text for text in column.texts]
        kind = _TYPE.fullmatch(column.type)
        fields.append(pyarrow.field(column.name, _type(pyarrow, column.type), kind is None or kind["full"] is None))
        made = _array(pyarrow, values, column.type, column.dictionary)
        if column.type in _FLOATS and gap is not None and gap.lower() == "nan":  # not a null, but the number NaN
            made = made.fill_null(pyarrow.scalar(np.nan, made.type))
        arrays.append(made)
    schema = pyarrow.schema(fields, _pandas(pandas, [column.name for column in columns]))
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), path)


def _pandas(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """Return the metadata of pandas for some columns, for a schema; without numbers of rows, which differ."""
    try:
        held = json.loads(text)
        held["columns"] = [column for column in held["columns"] if column.get("field_name", column["name"]) in names]
        held["index_columns"] = [index for index in held["index_columns"] if index in names]
    except (ValueError, TypeError, LookupError, AttributeError):  # none, or not of pandas
        return None
    return {"pandas": json.dumps(held)}


def write_filled(source: Path, path: Path, texts: Mapping[tuple[int, str], str]) -> None:
    """Write a file again with replaced cells, by row and column name; the rest, including types, stays unchanged.

    Raises:
        ArgumentError: pyarrow is not installed.
        DataError: The file cannot be read, or a cell is invalid for its column.
    """
    pyarrow, table = _table(source)
    for k, field in enumerate(table.schema):
        places = {row: text for (row, name), text in texts.items() if name == field.name}
        if not places:
            continue
        column, mask = table.column(k).combine_chunks(), np.zeros(table.num_rows, bool)
        mask[list(places)] = True
        word, order = str(field.type), tuple[str, ...]()
        if word.startswith("dictionary"):
            held = {str(value).strip(): str(value) for value in column.dictionary.to_pylist()}
            places = {row: held.setdefault(text, text) for row, text in places.items()}
            order = tuple(held.values())
            column = column.dictionary_decode()
            word = str(column.type)
        try:
            made = _array(pyarrow, [places[row] for row in sorted(places)], word, exact=True)
            whole = pyarrow.compute.replace_with_mask(column, pyarrow.array(mask), made)
            if order:
                whole = _dictionary(pyarrow, whole.to_pylist(), str(field.type), order)
        except (ValueError, ArithmeticError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{source}: column {field.name} is of type {field.type}, in which a filled cell cannot be written "
                f"({error!s:.200}): give the column the type that it had in training"
            ) from error
        table = table.set_column(k, field, whole)
    pyarrow.parquet.write_table(table, path)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise ArgumentError(
            "parquet files need pyarrow: pip install 'proxflow[parquet]', or take a file .csv"
        ) from None
    return pyarrow


def _table(path: Path) -> tuple[Any, Any]:
    """Return pyarrow, and the table of a file."""
    pyarrow = _pyarrow()
    try:
        with open_plain(path) as file:
            # read_table refuses duplicate column names. Without threads: those of pyarrow abort processes that end soon.
            return pyarrow, pyarrow.parquet.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; expected a parquet file") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason:.200}); expected an intact parquet file") from error


def _texts(pyarrow: Any, column: Any, word: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the cells of a column as strings, and those of its dictionary."""
    kind = _TYPE.fullmatch(word)
    if kind is None:
        return [], ()
    order: tuple[str, ...] = ()
    if kind["indices"]:
        column = column.unify_dictionaries()
        if column.num_chunks:
            order = tuple(dict.fromkeys(str(value).strip() for value in column.chunk(0).dictionary.to_pylist()))
        column = column.cast(pyarrow.string())
    if kind["unit"]:
        # Python's times have microseconds, and a table seconds; with a zone, cast gives UTC.
        micro = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False).cast(pyarrow.timestamp("us"))
        moments: list[datetime | None] = micro.to_pylist()
        dates = all(moment is None or moment.time() == time() for moment in moments)
        return ["" if moment is None else (moment.date() if dates else moment).isoformat() for moment in moments], order
    values = column.to_pylist()
    if kind["word"] in _FLOATS:  # the shortest string of the number in its own precision
        exact = _FLOATS[kind["word"]]
        return ["" if value is None else str(exact(value)) for value in values], order
    if kind["bits"]:
        return ["" if value is None else f"{value:f}" for value in values], order
    return ["" if value is None else str(value).strip() for value in values], order


def _type(pyarrow: Any, word: str) -> Any:
    kind = _TYPE.fullmatch(word)
    if kind is None:
        raise ArgumentError(f"there is no type of columns {word!r:.80}")
    if kind["unit"]:
        return pyarrow.timestamp(kind["unit"], kind["zone"])
    if kind["bits"]:
        return getattr(pyarrow, f"decimal{kind['bits']}")(int(kind["digits"]), int(kind["scale"]))
    if kind["indices"]:
        values, indices = (_type(pyarrow, kind[part]) for part in ("values", "indices"))
        return pyarrow.dictionary(indices, values, kind["ordered"] == "1")
    return pyarrow.bool_() if kind["word"] == "bool" else pyarrow.type_for_alias(kind["word"].partition("[")[0])


def _array(
    pyarrow: Any, texts: Sequence[str | None], word: str, order: tuple[str, ...] = (), *, exact: bool = False
) -> Any:
    """Return strings, ``None`` for nulls, as an array of a type; unless ``exact``, numbers are clipped to its range.

    Raises:
        ValueError: A string is invalid for the type.
    """
    kind = _TYPE.fullmatch(word)
    if kind is None:
        raise ValueError(f"the type {word} holds no numbers, texts or dates")
    if kind["indices"]:
        return _dictionary(pyarrow, texts, word, order)
    name, wanted = kind["word"] or "", _type(pyarrow, word)
    values: list[Any] = [None if text is None else text for text in texts]
    if name == "bool":
        known = {"True": True, "False": False}
        values = [None if text is None else known.get(text) for text in texts]
        if values.count(None) > list(texts).count(None):
            raise ValueError(f"{next(text for text in texts if text not in known)!r:.40} is neither True nor False")
    elif "int" in name:
        # Rows are float64, in which the limits of the widest types are rounded to just beyond them.
        bits, least = int(name.strip("uint")), 0 if name.startswith("u") else 1
        low, high = -least * 2 ** (bits - 1), 2 ** (bits - least) - 1
        values = [None if text is None else Decimal(text) for text in texts]
        if exact and (wrong := [value for value in values if value is not None and value != int(value)]):
            raise ValueError(f"{wrong[0]} is no whole number")
        if exact and (wrong := [value for value in values if value is not None and not low <= value <= high]):
            raise ValueError(f"{wrong[0]} is out of range")
        values = [None if value is None else min(max(int(value), low), high) for value in values]
    elif name in _FLOATS:
        values = [None if text is None else _FLOATS[name](text) for text in texts]
    elif kind["bits"]:
        unit = Decimal(1).scaleb(-int(kind["scale"]))
        values = [None if text is None else Decimal(text).quantize(unit, context=Context(prec=76)) for text in texts]
    elif kind["unit"] or name.startswith("date"):
        moments = [None if text is None else datetime.fromisoformat(text) for text in texts]
        values = [moment and moment.date() for moment in moments] if name else list(moments)
    return pyarrow.array(values, wanted)


def _dictionary(pyarrow: Any, texts: Sequence[str | None], word: str, order: tuple[str, ...]) -> Any:
    kind = _TYPE.fullmatch(word)
    if kind is None:
        raise ValueError(f"the type {word} holds no texts")
    place = {text: k for k, text in enumerate(order)}
    indices = [None if text is None else place[text] for text in texts]
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(indices, _type(pyarrow, kind["indices"])),
        pyarrow.array(order, _type(pyarrow, kind["values"])),
        ordered=kind["ordered"] == "1",
    )
