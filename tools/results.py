"""Find kept results that are older than the code they depend on.

    python -m tools.results          prints it
    python -m tools.results --write  also puts it into docs/results.md

A result depends on what its study imports, directly or indirectly, and on the names in its settings, but not on reports
and the command line. It is stale if one of these files has changed since the commit that made it, other than in
comments and docstrings. A result without a commit, or code that a commit has, is taken to be as new as the commit that
added it: it is at least that stale.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from proxflow.names import BUILT_IN
from proxflow.runtime.machine import code_of

_OTHERS = {"peers": ("benchmarks/peers.py", "benchmarks/worker.py"), "tuned": ("tools/tuned.py",)}
"""The sources of results that are not from studies."""

_SHOWS = re.compile(r"src/proxflow/(cli/.*|studies/(.*/report|charts|pages)|runtime/(progress|escape))\.py")


@dataclass(frozen=True)
class Kept:
    """A kept result.

    Args:
        path: Its ``results.json``, from the root of the repository.
        commit: The commit that made it, or that added it.
        made: Whether that commit made it.
        changed: The files it depends on that have changed since.
    """

    path: str
    commit: str
    made: bool
    changed: tuple[str, ...]


def kept(root: Path) -> list[Kept]:
    """Return all results below ``results/`` in a repository, with what has changed since."""
    found = []
    for file in sorted(root.glob("results/*/results.json")):
        record, path = json.loads(file.read_text(encoding="utf-8")), file.relative_to(root).as_posix()
        keeps = _git(root, "log", "-1", "--format=%H", "--", path).strip()
        if not keeps:
            continue
        made = _made_by(root, record.get("versions", {}), keeps)
        commit = made or keeps
        changed = [each for each in sorted(depends_on(root, record)) if _differs(root, commit, each)]
        found.append(Kept(path, commit, made is not None, tuple(changed)))
    return found


def _made_by(root: Path, versions: dict[str, str], keeps: str) -> str | None:
    """Return the commit that made a result; ``None`` if unknown."""
    commit = versions.get("commit")
    if commit is not None and _git(root, "cat-file", "-t", commit, missing="").strip() == "commit":
        return commit
    if "code" in versions:
        for each in _git(root, "log", "--format=%H", keeps, "--", "src/proxflow").split():
            if _code(root, each) == versions["code"]:
                return each
    return None


@cache
def _code(root: Path, commit: str) -> str:
    """Return :func:`code_of` of the package in a commit."""
    lines = (line.split(None, 3) for line in _git(root, "ls-tree", "-r", commit, "src/proxflow").splitlines())
    return code_of({name.removeprefix("src/proxflow/"): blob for _, _, blob, name in lines if name.endswith(".py")})


def depends_on(root: Path, record: dict[str, object]) -> set[str]:
    """Return the Python files that a result depends on, from the root of the repository."""
    study = str(record.get("experiment", ""))
    waiting = [*_OTHERS.get(study, (f"src/proxflow/studies/{study.replace('-', '_')}/study.py",))]
    words = set(re.findall(r"[A-Za-z0-9-]+", json.dumps(record.get("config", {}))))
    for names in BUILT_IN.values():
        modules = [entry.target.partition(":")[0] for name, entry in names.items() if name in words]
        waiting += [path for module in modules for path in _paths(module)]
    found = set[str]()
    while waiting:
        path = waiting.pop()
        if path not in found and (root / path).exists() and not _SHOWS.fullmatch(path):
            found.add(path)
            waiting += [other for module in _imported(root / path) for other in _paths(module)]
    return found


def _paths(module: str) -> list[str]:
    """Return the possible paths of a module and of its packages."""
    parts = module.split(".")
    base = "/".join((["src"] if parts[0] == "proxflow" else []) + parts)
    above = ["/".join((["src"] if parts[0] == "proxflow" else []) + parts[:k]) for k in range(1, len(parts))]
    return [f"{base}.py", *(f"{each}/__init__.py" for each in [base, *above])]


def _imported(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _differs(root: Path, commit: str, path: str) -> bool:
    before = _git(root, "show", f"{commit}:{path}", missing="")
    now = (root / path).read_text(encoding="utf-8")
    return before != now and (not before or _meaning(before) != _meaning(now))


def _meaning(source: str) -> str:
    """Return a module's syntax without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _git(root: Path, *words: str, missing: str | None = None) -> str:
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)  # noqa: S603, S607
    if done.returncode and missing is not None:
        return missing
    done.check_returncode()
    return done.stdout


def main(root: Path) -> list[str]:
    """Return a line for each kept result."""
    lines = []
    for each in kept(root):
        made = f"{'made' if each.made else 'kept'} by {each.commit[:10]}"
        shown = ", ".join(path.removeprefix("src/proxflow/") for path in each.changed[:3])
        more = f" and {len(each.changed) - 3} more" if len(each.changed) > 3 else ""
        state = f"stale, since {shown}{more} changed" if each.changed else "as the code stands"
        lines.append(f"{each.path.split('/')[1]}, {made}: {state}")
    return lines


def block(root: Path) -> str:
    """Return a table of the kept results in Markdown: the commit of each, and whether its code is unchanged."""
    rows = ["| Kept run | Made by | Its code |", "| :--- | :--- | :--- |"]
    for each in kept(root):
        day = _git(root, "log", "-1", "--format=%cs", each.commit).strip()
        made = f"{'' if each.made else 'at the latest '}`{each.commit[:10]}`, {day}"
        changed = (
            f"**older**: {len(each.changed)} module{'s' * (len(each.changed) > 1)} changed"
            if each.changed
            else "as it stands"
        )
        rows.append(f"| `{each.path.split('/')[1]}` | {made} | {changed} |")
    head = _git(root, "log", "-1", "--format=%h of %cs").strip()
    return "\n".join([*rows, "", f"As of commit {head}.", ""])


def write(root: Path) -> None:
    """Put the table between the marks ``kept`` of docs/results.md."""
    page = root / "docs" / "results.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- kept -->\n")
    after = rest.partition("<!-- /kept -->")[2]
    page.write_text(f"{before}<!-- kept -->\n{block(root)}<!-- /kept -->{after}", encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).parent.parent
    for line in main(here):
        print(line)  # noqa: T201
    if sys.argv[1:] == ["--write"]:
        write(here)
