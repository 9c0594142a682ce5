"""``proxflow list``: every name that an option takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro

from proxflow import names
from proxflow.cli._common import print_table
from proxflow.errors import ArgumentError

GROUPS = (
    "divergences",
    "schedules",
    "couplings",
    "samplers",
    "networks",
    "predictors",
    "flows",
    "kinds",
    "models",
    "data",
)


@dataclass(frozen=True)
class List:
    """List the names that options take, of this package and of those that add to it.

    A package adds divergences, samplers, networks and kinds of data through entry points; such names have the package's
    beside them. Settings follow a name: "unet:channels=64,multipliers=1,2,2", "alpha:order=0.5".

    For example:
        proxflow list
        proxflow list samplers

    Args:
        group: Which names; without it, all of them.
    """

    group: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar=f"[{{{','.join(GROUPS)}}}]")] = None


def run(options: List) -> None:
    """Print one name a line, with what it is."""
    if options.group is not None and options.group not in GROUPS:
        raise ArgumentError(f"there are no {options.group!r:.80} to list: choose one of {', '.join(GROUPS)}")
    for group in GROUPS if options.group is None else (options.group,):
        found = lines(group)
        if options.group is None:
            sys.stdout.write(f"{group}\n")
        if sys.stdout.isatty():
            headings = ("name", "what it is", "added by")
            print_table(headings, [(name, *rest) for name, rest in found.items()], left=headings)
            continue
        width = max(map(len, found), default=0)
        for name, (line, package) in found.items():
            sys.stdout.write(f"{name:{width}}  {line}{f' [{package}]' if package else ''}\n")
        if options.group is None:
            sys.stdout.write("\n")


def lines(group: str) -> Mapping[str, tuple[str, str]]:
    """Return what each name of a group is, in a line, and the package that added it; empty where it is this one."""
    return {name: (described(entry), entry.package) for name, entry in names.known(group).items()}


def described(entry: names.Name) -> str:
    """Return an entry's line; of another package's the first of its docstring, or why it cannot be imported."""
    if not entry.package:
        return entry.line
    try:
        return (entry.load().__doc__ or "").strip().partition("\n")[0]
    except ArgumentError as error:
        return str(error)
