"""Progress bars with rate and time left: on a terminal, on standard error, or in a notebook; elsewhere nothing."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; the value is a function that sets how much is done.

    Args:
        label: Name shown before the bar.
        total: Amount of work.
        unit: What is counted, e.g. ``images``.
        done: Amount finished before, which does not count for the rate.
    """
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, the first one shows
    if first and "ipykernel" in sys.modules:
        with _in_notebook(label, total, unit, done) as show:
            yield show
        return
    if not (first and sys.stderr.isatty()):
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


@contextmanager
def _in_notebook(label: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar as an element of the cell's output, which goes when the block ends; no widgets are needed."""
    shown = import_module("IPython.display")

    start = last = time.monotonic()
    handle = shown.display(shown.HTML(""), display_id=True)

    def show(amount: int) -> None:
        nonlocal last
        now = time.monotonic()
        if handle is None or now - last < 0.2:
            return
        last = now
        rate = (amount - done) / (now - start)
        left = f" · {(total - amount) / rate:,.0f} s left" if rate > 0 else ""
        name, share = html.escape(label), f"{100 * amount / max(total, 1):.0f} %"
        element = f'<progress max="{total}" value="{amount}" aria-label="{name}"></progress>'
        handle.update(shown.HTML(f"{name} {element} {share} · {rate:,.0f} {html.escape(unit)}/s{left}"))

    try:
        yield show
    finally:
        if handle is not None:
            handle.update(shown.HTML(""))
