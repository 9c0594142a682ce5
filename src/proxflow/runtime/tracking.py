"""What a run says while it goes on: a log of JSON lines always, TensorBoard where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxflow.errors import ArgumentError, OutputError
from proxflow.runtime.files import writable_folder, write_text


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


class TensorBoard:
    """Writes numbers and pictures for TensorBoard.

    Args:
        folder: Where its event files go.

    Raises:
        ArgumentError: TensorBoard is not installed.
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ArgumentError("TensorBoard is not installed: pip install 'proxflow[tensorboard]'") from None
        self.writer = SummaryWriter(writable_folder(folder))

    def numbers(self, entry: dict[str, float]) -> None:
        """Write the numbers of an entry of the log."""
        for name, value in entry.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(entry["step"]))
        self.writer.flush()

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """Write a picture, (height, width, channels) of bytes."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")
        self.writer.flush()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
