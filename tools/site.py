"""Build the site into ``site/``: ``python -m tools.site``, in the root of the repository, without a network.

The pages of ``docs/`` are combined with generated ones: the Python reference from the docstrings of the public names,
the command reference from its help, and the reports of the kept studies. Tutorials run while the site is built; outputs
of long ones are kept, see :mod:`tools.tutorials`; ``--keep`` runs all and saves them again. A warning is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from proxflow.errors import DataError
from proxflow.studies.presets import PresetName
from tools import tutorials

COMMANDS = ("sample", "train", "evaluate", "restore", "reproduce", "reflow", "times", "export", "page", "list")
"""Commands, in the order of their reference."""

ROOMS = {
    "Models": ("models", "data.kinds", "examples", "config", "errors"),
    "Beliefs": ("beliefs",),
    "Divergences and the proximal step": ("divergences", "energies", "proximal", "solvers"),
    "Flows": ("flows", "paths", "couplings"),
    "Predictors": ("predictors",),
    "Samplers": ("samplers",),
    "Training": ("training",),
    "Likelihood": ("likelihood",),
}
"""Headings of the Python reference, and the modules whose public names are below them."""

MODULES = {
    "Inverse problems": "proxflow.inverse",
    "Networks": "proxflow.nn",
    "Metrics": "proxflow.metrics",
    "Figures": "proxflow.plot",
    "Contracts": "proxflow.testing",
}
"""Further headings, each a module that lists its names."""


def public(root: Path) -> list[tuple[str, str]]:
    """Return the public names, (module below ``proxflow``, name), in their order.

    Raises:
        DataError: The list cannot be read.
    """
    try:
        text = (root / "src/proxflow/__init__.pyi").read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the list of public names cannot be read: {error}") from error
    found = re.findall(r"^from proxflow\.([\w.]+) import (\w+) as \2$", text, re.MULTILINE)
    return [(module, name) for module, name in found]


def python_reference(root: Path) -> str:
    """Return the page of the Python reference: a section for each heading, each public name once.

    Raises:
        DataError: A public name belongs to no section.
    """
    names, seen = public(root), set[str]()
    parts = ["# Python\n"]
    for heading, modules in ROOMS.items():
        own = [name for module, name in names if any(module == m or module.startswith(f"{m}.") for m in modules)]
        seen |= set(own)
        parts += [f"## {heading}\n", *map(_documented, own)]
    if missing := sorted({name for _, name in names} - seen):
        raise DataError(f"no part of the Python reference has {', '.join(missing)}: add their module to ROOMS")
    parts += [f"## {heading}\n\n{_rst(f'.. automodule:: {module}')}" for heading, module in MODULES.items()]
    return "\n".join(parts)


def _documented(name: str) -> str:
    import proxflow

    kind = "autoclass" if isinstance(getattr(proxflow, name), type) else "autofunction"
    return _rst(f".. {kind}:: proxflow.{name}")


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```\n"


def command_reference() -> str:
    """Return the page of the command line, from its help.

    Raises:
        DataError: A command has no help.
    """
    parts = ["# Command line\n"]
    for command in COMMANDS:
        plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "110"}
        words = [sys.executable, "-m", "proxflow.cli", command, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=plain)  # noqa: S603
        if done.returncode:
            raise DataError(f"proxflow {command} --help failed: {done.stderr:.200}")
        parts.append(f"## proxflow {command}\n\n```text\n{done.stdout.strip()}\n```\n")
    return "\n".join(parts)


def gather(root: Path, out: Path) -> None:
    """Write the pages of the site into a folder: those of ``docs/``, and generated ones.

    Raises:
        DataError: A link is broken, or a generated part cannot be made.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root / "docs", out, ignore=shutil.ignore_patterns("__pycache__"))
    for name, place in (("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changes.md")):
        shutil.copyfile(root / name, out / place)
    for report in _reports(root):
        folder = out / "studies" / report.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in report.parent.glob("*.*"):
            if file.suffix in (".png", ".gif"):
                shutil.copyfile(file, folder / file.name)
        text = re.sub(r"\]\((?!\w+:|/)([^)]+\.(?:png|gif))\)", rf"]({report.parent.name}/\1)", _page(report))
        (out / "studies" / f"{report.parent.name}.md").write_text(text, encoding="utf-8")
    (out / "reference").mkdir()
    (out / "reference" / "python.md").write_text(python_reference(root), encoding="utf-8")
    (out / "reference" / "command-line.md").write_text(command_reference(), encoding="utf-8")
    for page in sorted(out.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(_linked(text, page, root, out), encoding="utf-8")


def _reports(root: Path) -> Iterator[Path]:
    yield from sorted((root / "results").glob("*/report.md"))


def _page(report: Path) -> str:
    """Return a report, with the preset and data of its folder in the title: several have one title."""
    name, text = report.parent.name, report.read_text(encoding="utf-8")
    if not text.startswith("# "):
        return f"# {name}\n\n{text}"
    title, rest = text[2:].split("\n", 1)
    preset = next((preset for preset in get_args(PresetName) if f"-{preset}" in name), "")
    data = name.partition(f"-{preset}-")[2] if preset else ""
    told = ", ".join(filter(None, (title, preset, data if data not in title else "")))
    return f"# {told}\n{rest}"


def _linked(text: str, page: Path, root: Path, out: Path) -> str:
    """Point links out of ``docs/`` to their pages of the site; keep the text of those without one."""
    moved = {
        "CONTRIBUTING.md": out / "contributing.md",
        "CHANGELOG.md": out / "changes.md",
        **{str(r.relative_to(root)): out / "studies" / f"{r.parent.name}.md" for r in _reports(root)},
    }

    def at(words: str, place: Path, anchor: str | None) -> str:
        return f"[{words}]({os.path.relpath(place, page.parent)}{anchor or ''})"

    def notebook(place: Path) -> Path:  # the final form of a tutorial
        is_one = place.parent == out / "tutorials" and tutorials.checksum(place.read_text(encoding="utf-8"))
        return place.with_suffix(".ipynb") if is_one else place

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found.groups()
        for base in (page.parent, root / "docs" / page.relative_to(out).parent, root / "results" / page.stem, root):
            place = Path(os.path.normpath(base / target))
            if place.is_relative_to(out) and place.exists():
                return found[0] if notebook(place) == place else at(words, notebook(place), anchor)
            if place.exists() and place.is_relative_to(root):
                name = str(place.relative_to(root))
                if name.startswith("docs/"):
                    place = out / name.removeprefix("docs/")
                elif name in moved:
                    place = moved[name]
                else:
                    return f"{words} (`{name}`)" if name not in words else words
                return at(words, notebook(place), anchor)
        raise DataError(f"{page.name}: the link to {target} leads nowhere")

    prose = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # every second part is code
    prose[::2] = [re.sub(r"(?<!!)\[([^\]\[]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", link, part) for part in prose[::2]]
    return "".join(prose)


def main() -> int:
    """Build the site of the repository in the working directory; return the exit status."""
    root = Path.cwd()
    site = root / "site"
    if any(word != "--keep" for word in sys.argv[1:]):
        sys.stderr.write(f"error: expected --keep or nothing, got {' '.join(sys.argv[1:])}\n")
        return 2
    kept = root / "docs" / "tutorials" / "kept" if "--keep" in sys.argv else None
    # So that tutorials find the commands of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        gather(root, site / ".source")
        tutorials.notebooks(site / ".source" / "tutorials", site / ".cache", keep=kept)
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    words = ["-W", "--keep-going", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *words, "-d", site / ".doctrees", site / ".source", site / "html"]
    done = subprocess.run(list(map(str, command)), check=False)  # noqa: S603
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
