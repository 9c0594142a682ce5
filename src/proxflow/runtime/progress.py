"""Progress bars with rate and remaining time: on standard error if it is a terminal, or in a notebook; else none."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_report: Callable[[float], None] | None = None
_EVERY = 0.5
"""Seconds between reports."""


def report_to(report: Callable[[float], None]) -> None:
    """Show no bars in this process from here on, and report the finished fraction instead, twice a second."""
    global _report
    _report = report


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; yield a function that sets the amount done.

    Args:
        label: Name shown before the bar.
        total: Amount of work.
        unit: What is counted, e.g. ``images``.
        done: Amount finished before, which does not count for the rate.
    """
    if _report is not None:
        yield _reported(_report, total)
        return
    if "ipykernel" in sys.modules and os.environ.get("RANK", "0") == "0":
        with _in_notebook(label, total, unit, done) as show:
            yield show
        return
    shown = _progress(unit)
    if shown is None:
        yield lambda _: None
        return
    with shown:
        task = shown.add_task(label, total=total, completed=done)
        yield lambda amount: shown.update(task, completed=amount)


def _reported(report: Callable[[float], None], total: int) -> Callable[[int], None]:
    last = -_EVERY

    def show(amount: int) -> None:
        nonlocal last
        if time.monotonic() >= last + _EVERY:
            last = time.monotonic()
            report(amount / total)

    return show


@contextmanager
def bars(total: float, say: Callable[[str], None]) -> Iterator[Callable[[float, Mapping[str, float]], None]]:
    """Show the total progress, and a bar for each running piece.

    Yield a function of the amount of work done, and of the finished fraction of each piece by name. If standard error
    is not a terminal, a line is printed for each tenth.

    Args:
        total: Amount of work.
        say: Called with each line.
    """
    shown = _progress("")
    if shown is None:
        yield _told(total, say)
        return
    with shown:
        whole = shown.add_task("all", total=total)
        tasks = dict[str, Any]()

        def show(amount: float, running: Mapping[str, float]) -> None:
            shown.update(whole, completed=amount)
            for name in [name for name in tasks if name not in running]:
                shown.remove_task(tasks.pop(name))
            for name, share in running.items():
                if name not in tasks:
                    tasks[name] = shown.add_task(f"  {name}", total=1.0)
                shown.update(tasks[name], completed=share)

        yield show


def _told(total: float, say: Callable[[str], None]) -> Callable[[float, Mapping[str, float]], None]:
    began, tenths = time.monotonic(), 0

    def show(amount: float, running: Mapping[str, float]) -> None:
        nonlocal tenths
        share = amount / total
        if int(10 * share + 1e-9) > tenths:
            tenths = int(10 * share + 1e-9)
            left = (time.monotonic() - began) * (1 / share - 1)
            say(f"{10 * tenths} % done" + (f", about {left / 60:.1f} minutes left" if tenths < 10 else ""))

    return show


def _progress(unit: str) -> Any:
    """Return rich's display with rate, if there is a unit, and remaining time; ``None`` if nothing is to be shown."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":  # with torchrun only the first process shows it
        return None
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
    except ImportError:  # work continues without a bar
        return None

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed and unit else "", style="cyan")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=120,
    )


@contextmanager
def _in_notebook(label: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar in the cell's output, which is removed when the block ends; no widgets are needed."""
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
