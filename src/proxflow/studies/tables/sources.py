"""Data sets inside scikit-learn, written as .csv files for the study."""

from __future__ import annotations

import csv
import gzip
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxflow.errors import ArgumentError, DataError
from proxflow.runtime.files import writable_folder, write_atomically


@dataclass(frozen=True)
class Source:
    """A data set.

    Args:
        target: The column that forests predict.
        loader: Name of the function of ``sklearn.datasets`` that loads it; empty for a file.
        file: Its .arff.gz file among the tests of scikit-learn, with missing cells and mixed columns.
        ignore: Columns left out, as names of people.
    """

    target: str
    loader: str = ""
    file: str = ""
    ignore: tuple[str, ...] = ()


SOURCES: dict[str, Source] = {
    "iris": Source("class", "load_iris"),
    "wine": Source("class", "load_wine"),
    "diabetes": Source("progression", "load_diabetes"),
    "penguins": Source("species", file="id_42585/data-v1-dl-21854866.arff.gz"),
    "titanic": Source(
        "survived",
        file="id_40945/data-v1-dl-16826755.arff.gz",
        ignore=("name", "ticket", "cabin", "boat", "body", "home.dest"),
    ),
}
"""The data sets by name."""


def write(folder: Path, name: str) -> Path:
    """Write a data set into a folder as NAME.csv unless it is there, and return the file.

    Raises:
        ArgumentError: scikit-learn is not installed.
        DataError: The installed scikit-learn does not contain the data set.
    """
    path = folder / f"{name}.csv"
    if path.exists():
        return path
    source = SOURCES[name]
    names, rows = _loaded(source) if source.loader else _arff(source.file)
    writable_folder(folder)

    def put(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])

    write_atomically(path, put)
    return path


def _datasets() -> Any:
    try:
        return importlib.import_module("sklearn.datasets")
    except ImportError:
        raise ArgumentError("the study of tables needs scikit-learn: pip install 'proxflow[tables]'") from None


def _loaded(source: Source) -> tuple[list[str], list[list[str]]]:
    settings = {"scaled": False} if source.loader == "load_diabetes" else {}
    found = getattr(_datasets(), source.loader)(**settings)
    classes = getattr(found, "target_names", None)
    targets = [f"{y:g}" if classes is None else str(classes[y]) for y in found.target]
    names = [re.sub(r"\W+", "_", str(name)).strip("_") for name in found.feature_names]
    rows = [[*(f"{float(x):.10g}" for x in row), y] for row, y in zip(found.data, targets, strict=True)]
    return [*names, source.target], rows


def _arff(file: str) -> tuple[list[str], list[list[str]]]:
    path = Path(str(_datasets().__file__)).parent / "tests" / "data" / "openml" / file
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected scikit-learn with its tests") from error
    head, _, body = re.split(r"(?im)^(@data)\s*$", text, maxsplit=1)
    names = [a or b for a, b in re.findall(r"(?im)^@attribute\s+(?:'([^']+)'|(\S+))", head)]
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith("%")]
    return names, [[cell.strip() for cell in row] for row in csv.reader(lines)]
