"""Progress bars with rate and time left, on standard error; nothing where that is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; the value is a function that sets how much is done.

    Args:
        label: Name shown before the bar.
        total: Amount of work.
        unit: What is counted, e.g. ``images``.
        done: Amount finished before, which does not count for the rate.
    """
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":  # of torchrun's processes, the first one shows
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text
    except ImportError:  # work goes on without a bar
        yield lambda _: None
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "", style="cyan")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda amount: progress.update(task, completed=amount)
