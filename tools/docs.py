"""Rewrite the generated parts of the documentation: results, the table of closed forms, quoted source.

``python -m tools.docs``, in the root of the repository, after adding a run to ``results/``, registering a rule or
changing quoted source. A test fails while a page is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from proxflow import divergences, errors
from proxflow.divergences import table_of_closed_forms
from proxflow.errors import DataError, ProxflowError
from proxflow.runtime.files import read_json, write_text
from proxflow.studies import scoreboard
from proxflow.studies.emoji import report as emoji_report
from proxflow.studies.few_step import report as few_step_report
from proxflow.studies.guidance import report as guidance_report
from proxflow.studies.mnist import report as mnist_report
from proxflow.studies.pages import Block, Heading, Paragraph, Table, to_markdown
from proxflow.studies.posterior import report as posterior_report
from proxflow.studies.presets import PRESETS
from proxflow.studies.scoreboard import Scoreboard
from proxflow.studies.tables import report as tables_report
from proxflow.studies.text import report as text_report
from tools import peers


def results_of(folder: Path) -> list[dict[str, Any]]:
    """Read the runs under a folder, ``mnist-*/results.json``, in the order of the presets: the most thorough last.

    Of equal presets that on MNIST is the last.
    """
    runs = kept(folder, "mnist")
    order = {name: k for k, name in enumerate(PRESETS)}
    return sorted(
        runs, key=lambda run: (order.get(run["config"]["preset"], len(order)), run["config"]["dataset"] == "mnist")
    )


def kept(folder: Path, study: str) -> list[dict[str, Any]]:
    """Read the runs of a study under a folder, ``STUDY-*/results.json``, by the names of their folders."""
    return [read_json(path) for path in sorted(folder.glob(f"{study}-*/results.json"))]


def results_block(runs: list[dict[str, Any]]) -> str:
    """Return Markdown of the claims of every run, and of the Fréchet distances of the most thorough one on each data set."""
    if not runs:
        return "No run is kept under `results/` yet.\n"
    blocks: list[Block] = []
    told = set[str]()
    for run in reversed(runs):
        preset, dataset = run["config"]["preset"], run["config"]["dataset"]
        blocks.append(Heading(3, f"Preset {preset}" + ("" if dataset == "mnist" else f", {dataset}")))
        if dataset not in told:
            told.add(dataset)
            blocks += [
                Paragraph("Fréchet distance by network evaluations (NFE), lower is better:"),
                scoreboard.frechet_table(Scoreboard.of(run)),
                *scoreboard.on_second(run, Scoreboard.of(run)),
            ]
        blocks += [Paragraph(scoreboard.summary(run)), *mnist_report.outcome(run)]
    return to_markdown(blocks)


def closed_forms_block() -> str:
    """Return the registry as Markdown: which divergence has a value and a closed-form step on which belief family."""
    # Rules registered by a user's divergences are not part of this documentation.
    rules = [rule for rule in table_of_closed_forms() if hasattr(divergences, rule[0])]
    families = sorted({family for _, family, _ in rules})
    known = {(divergence, family): how for divergence, family, how in rules}
    names = sorted({divergence for divergence, _, _ in rules})
    rows = tuple((name, *(known.get((name, family), "–") for family in families)) for name in names)
    return to_markdown([Table(("Divergence", *families), rows, 1 + len(families))])


def errors_block() -> str:
    """Return a table of the intended errors: name, cause, and further base classes."""
    rows = ["| Error | When | Also |", "| :--- | :--- | :--- |"]
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, ProxflowError) and kind is not ProxflowError:
            also = ", ".join(f"`{base.__name__}`" for base in kind.__bases__ if base is not ProxflowError)
            rows.append(f"| `{name}` | {(kind.__doc__ or '').splitlines()[0].rstrip('.')} | {also} |")
    return "\n".join(rows)


def with_block(text: str, name: str, content: str) -> str:
    """Replace the part of a page between the comments ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        DataError: The page has no such part.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"the page has no part between {begin} and {end}: put both comments where the part belongs")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def definition(root: Path, path: str, name: str) -> list[str]:
    """Return the source of a function or class of the package, without its docstring.

    Args:
        root: Root of the repository.
        path: File below the package.
        name: Qualified name; nested functions are included.

    Raises:
        DataError: The file or the name does not exist.
    """
    try:
        text = (root / "src/proxflow" / path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"what is quoted of {path} cannot be read: {error}") from error
    node: ast.Module | ast.FunctionDef | ast.ClassDef = ast.parse(text)
    for part in name.split("."):
        inside = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n is not node]
        if part not in [n.name for n in inside]:
            raise DataError(f"{path} has no {name}: name what takes its place")
        node = next(n for n in inside if n.name == part)
    numbers = set(_lines(node))
    if ast.get_docstring(node):
        numbers -= set(_lines(node.body[0]))
    lines = text.splitlines()
    return textwrap.dedent("\n".join(lines[k - 1] for k in sorted(numbers))).splitlines()


def _lines(node: Any) -> range:
    """Return the numbers of the lines of a definition or statement."""
    return range(node.lineno, node.end_lineno + 1)


def quoted(root: Path, text: str) -> str:
    """Update the source lines that a page quotes.

    They are a block of code behind ``<!-- quote FILE NAME -->``: a function or class without its docstring; or behind
    ``<!-- quote FILE NAME from TEXT -->``, from the first line that begins with the text on.

    Raises:
        DataError: There is no such file, name or line.
    """

    def quote(found: re.Match[str]) -> str:
        marker, path, name, begin = found.groups()
        lines = definition(root, path, name)
        while begin and lines and not lines[0].lstrip().startswith(begin):
            del lines[0]
        if not lines:
            raise DataError(f"{path}: no line of {name} begins with {begin!r}: quote another")
        return f"{marker}\n```python\n" + textwrap.dedent("\n".join(lines)) + "\n```"

    form = r"(<!-- quote (\S+) (\S+?)(?: from (.+?))? -->)\n```python\n.*?^```$"
    return re.sub(form, quote, text, flags=re.DOTALL | re.MULTILINE)


def rewritten(root: Path) -> dict[Path, str]:
    """Return every page with generated parts, as it should be now.

    Raises:
        DataError: A page is missing or has no place for its part.
    """
    beside_peers = read_json(root / "results" / "peers" / "results.json")
    parts = [
        ("docs/results.md", "results", results_block(results_of(root / "results"))),
        ("docs/results.md", "emoji", emoji_report.block(kept(root / "results", "emoji"))),
        ("README.md", "peers", peers.summary_block(beside_peers)),
        ("docs/mathematics.md", "closed-forms", closed_forms_block()),
        ("docs/formats.md", "errors", errors_block()),
        ("docs/peers.md", "peers", peers.full_block(beside_peers)),
        ("docs/peers.md", "peers-emoji", peers.emoji_block(kept(root / "results", "peers"))),
        ("docs/few-step.md", "few-step", few_step_report.block(kept(root / "results", "few-step"))),
        ("docs/text.md", "text", text_report.block(kept(root / "results", "text"))),
        ("docs/tables.md", "tables", tables_report.block(kept(root / "results", "tables"))),
        ("docs/guidance.md", "guidance", guidance_report.block(kept(root / "results", "guidance"))),
        ("docs/posterior.md", "posterior", posterior_report.block(kept(root / "results", "posterior"))),
    ]
    pages: dict[Path, str] = {}
    for name, part, content in parts:
        page = root / name
        try:
            text = pages[page] if page in pages else page.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{page} cannot be read ({error}): run this in the root of the repository") from error
        pages[page] = with_block(text, part, content)
    quoting = [root / "docs" / name for name in ("architecture.md", "guidance.md")]
    texts = {page: pages[page] if page in pages else page.read_text(encoding="utf-8") for page in quoting}
    return {**pages, **{page: quoted(root, text) for page, text in texts.items()}}


FRONT = "docs/figures/beliefs.png"
"""The picture of the first page."""


def front_picture(root: Path) -> Image.Image:
    """Return the parts of gpfn-w2 and bfn of the long run's figure of beliefs, one below the other.

    Raises:
        DataError: The run does not exist.
    """
    path = root / "results" / "mnist-long" / "beliefs.png"
    try:
        with Image.open(path) as whole:
            part = round(0.248 * whole.height)  # of four equal parts, below a margin
            parts = [whole.crop((0, k * part + 8, whole.width, (k + 1) * part + 8)) for k in (0, 2)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    both = Image.new(parts[0].mode, (parts[0].width, 2 * part))
    for k, one in enumerate(parts):
        both.paste(one, (0, k * part))
    return both


def main() -> int:
    """Rewrite the pages of the repository in the working directory; return the exit status."""
    try:
        front_picture(Path()).save(FRONT, optimize=True)
        for path, text in rewritten(Path()).items():
            write_text(path, text)
    except ProxflowError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
