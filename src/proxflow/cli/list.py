"""``proxflow list``: every name that an option takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from proxflow import names
from proxflow.cli._common import Text, print_table
from proxflow.errors import ArgumentError
from proxflow.runtime.files import read_json

NAMED = (
    "flows", "divergences", "metrics", "schedules", "paths", "couplings", "endpoints", "solvers", "networks", "predictors",
    "samplers", "guidance", "kinds", "autoencoders",
)  # fmt: skip
GROUPS = (*NAMED, "models", "data")

DATA = {
    "mnist": "handwritten digits, 70,000 grey images of 28 x 28; they come with the package",
    "fashion-mnist": "clothes, 70,000 grey images of 28 x 28, from Debian's package dataset-fashion-mnist",
    "emoji": "emoji in nine groups, 3,926 colour images of 32 x 32; they come with the package",
    "bible": "text, the King James Version of the Bible, 4,139,037 characters; it comes with the package",
}
"""Data sets with a name; anything else is a file or folder."""

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class List:
    """List the names that options take, of this package and of those that extend it.

    Packages add divergences, samplers, networks and kinds of data through entry points; the package is shown beside such
    names. Settings follow a name: "unet:channels=64,multipliers=1,2,2", "alpha:a=0.5".

    For example:
        proxflow list
        proxflow list samplers
        proxflow list networks unet                         its settings and their defaults

    Args:
        group: Group of names; by default, all.
        name: One name of the group, to list its settings.
    """

    group: Annotated[
        Text,
        tyro.conf.Positional,
        tyro.conf.arg(metavar=f"[{{{','.join(GROUPS)}}}]", help_behavior_hint="(default: all)"),
    ] = None
    name: Annotated[Text, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = None


def run(options: List) -> None:
    """Print one name per line, with what it is."""
    if options.group is not None and options.group not in GROUPS:
        raise ArgumentError(f"there are no {options.group!r:.80} to list: choose one of {', '.join(GROUPS)}")
    if options.group in NAMED and options.name is not None:
        from proxflow.models.spec import settings_of

        settings = settings_of(options.group, options.name)
        sys.stdout.write("".join(f"{name}={value}\n" for name, value in settings.items()) or "no settings\n")
        return
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
    """Return for each name of a group what it is and the package that added it, empty for this one."""
    if group == "data":
        return {name: (line, "") for name, line in DATA.items()}
    if group == "models":
        return {path.parent.name: (_model(read_json(path)), "") for path in sorted(WEIGHTS.glob("*/config.json"))}
    return {name: (entry.says(), entry.package) for name, entry in names.known(group).items()}


def _model(content: Any) -> str:
    """Describe a model that comes with the package from its configuration."""
    student = content["provenance"].get("method") == "distribution-matching"
    shape = " x ".join(map(str, content["data"]["shape"]))
    classes = f", of {read} classes" if (read := content["network"].get("classes")) else ""
    student = ", a student that draws with one evaluation" if student else ""
    return f"{content['data']['kind']} of {shape}{classes}{student}"
