"""Tutorials as notebooks with outputs: run, or with outputs kept for the same code.

A tutorial is a text file in ``docs/tutorials`` in the form of MyST notebooks. Outputs of slow ones are kept in the
repository, ``docs/tutorials/kept/NAME.ipynb``; those of the others in a cache. Both are identified by a checksum of the
code, so that changes of the text keep the outputs.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from proxflow.errors import DataError

LONG = 45.0
"""Seconds on a free core beyond which outputs are kept in the repository."""

_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def checksum(text: str) -> str:
    """Return the checksum of a tutorial's code; empty if it has none."""
    cells = [cell.strip() for cell in _CELL.findall(text)]
    return hashlib.sha256("\n\n".join(cells).encode()).hexdigest() if cells else ""


def stale(folder: Path) -> list[str]:
    """Return the names of kept outputs whose tutorial has other code, or does not exist."""
    names = []
    for kept in sorted((folder / "kept").glob("*.ipynb")):
        page = folder / f"{kept.stem}.md"
        if not page.is_file() or _outputs(kept, checksum(page.read_text(encoding="utf-8"))) is None:
            names.append(kept.stem)
    return names


def notebooks(folder: Path, cache: Path, *, keep: Path | None = None) -> None:
    """Turn the tutorials in a folder into notebooks with outputs, each replacing its text.

    Args:
        folder: Their texts, and ``kept`` within.
        cache: Folder of outputs of earlier builds.
        keep: Run all, and save the outputs of slow ones in this folder; ``None`` runs those without outputs.

    Raises:
        DataError: A tutorial's code fails.
    """
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if not (code := checksum(text)):
            continue
        book = _read(text)
        found = (
            None
            if keep
            else _outputs(folder / "kept" / f"{page.stem}.ipynb", code) or _outputs(cache / page.stem, code)
        )
        if found is None:
            start = time.monotonic()
            _run(book, page.name)
            seconds = time.monotonic() - start
            print(f"{page.stem}: ran in {seconds:.0f} s", flush=True)  # noqa: T201
            _write(cache / page.stem, book, code)
            if keep is not None:
                place = keep / f"{page.stem}.ipynb"
                if seconds > LONG:
                    _write(place, book, code)
                else:
                    place.unlink(missing_ok=True)
        else:
            for cell, outputs in zip(_code(book), found, strict=True):
                cell["outputs"] = [import_module("nbformat").from_dict(output) for output in outputs]
        _write(page.with_suffix(".ipynb"), book, code)
        page.unlink()


def _read(text: str) -> Any:
    return import_module("myst_nb.core.read").read_myst_markdown_notebook(text)


def _run(book: Any, name: str) -> None:
    client = import_module("nbclient")  # of the extra docs, which type checks do not need
    with tempfile.TemporaryDirectory() as place:
        try:
            resources = {"metadata": {"path": place}}
            client.NotebookClient(book, timeout=1200, kernel_name="python3", resources=resources).execute()
        except client.exceptions.CellExecutionError as error:
            raise DataError(f"{name}: {error}") from error


def _code(book: Any) -> list[Any]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def _outputs(path: Path, code: str) -> list[Any] | None:
    """Return the outputs of each cell in a file, if they are of this code."""
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        return [cell["outputs"] for cell in _code(book)] if book["metadata"]["code"] == code else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, book: Any, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book["metadata"]["code"] = code
    book["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for k, cell in enumerate(book["cells"]):
        cell["metadata"].pop("execution", None)  # times of the run, which differ each time
        cell["id"] = str(k)
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
            for output in cell["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = None
    path.write_text(import_module("nbformat").writes(book, version=4) + "\n", encoding="utf-8")
