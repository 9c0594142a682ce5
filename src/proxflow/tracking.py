"""What a run tells while it goes on: a log of JSON lines always, TensorBoard where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxflow.errors import OutputError
from proxflow.files import write_text


class Log:
    """A file of one JSON object a line, each with its ``step``.

    Args:
        path: The file; it is made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def forget_after(self, step: int) -> None:
        """Drop what a run had written after the checkpoint that it goes on from, and a line torn off by a kill."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
