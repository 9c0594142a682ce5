"""Tracking of a run: a log of JSON lines, and TensorBoard if requested."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from proxflow.errors import ArgumentError, OutputError
from proxflow.runtime.files import append_text, read_plain, writable_folder, write_text

_LARGEST_LOG = 2**30
"""Largest log in bytes with which a run resumes: more than a hundred million steps."""


class Log:
    """A file with one JSON object per line, each with its ``step``.

    Args:
        path: The file, created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            OutputError: The file cannot be written.
        """
        append_text(self.path, json.dumps(entry) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove lines written after the checkpoint that a run resumes from, and a line truncated by a kill.

        Raises:
            OutputError: It is not a regular file, or cannot be read or written.
        """
        if not os.path.lexists(self.path):
            return
        if self.path.is_symlink():
            raise OutputError(f"cannot write {self.path}: it is a link, and links are not written through")
        try:
            text = read_plain(self.path, _LARGEST_LOG).decode("utf-8", "replace")
        except OSError as error:
            raise OutputError(f"cannot go on with {self.path}: {error.strerror or error}") from error
        write_text(self.path, "".join(f"{line}\n" for line in text.splitlines() if _step(line) <= step))


class TensorBoard:
    """Writes numbers and pictures for TensorBoard.

    Args:
        folder: Folder of its event files.

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
