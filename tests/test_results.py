"""Kept results say which code made them, and the repository which of them are older than what they depend on."""

import json
import shutil
import subprocess
from pathlib import Path

import proxflow
from proxflow.runtime import machine
from tools import results

STUDY = '"""A study."""\n\nfrom proxflow import engine\nfrom proxflow.studies.mnist import report\n'


def test_a_result_is_stale_where_code_that_it_depends_on_has_changed(tmp_path):
    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", "-C", tmp_path, *name, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def commit():
        git("add", "-A")
        git("commit", "-q", "-m", "x")
        return git("rev-parse", "HEAD")

    def keep(**versions):
        record = {"experiment": "mnist", "config": {"sampler": "multistep2"}, "versions": versions}
        write("results/a/results.json", json.dumps(record))

    def stale():
        (found,) = results.kept(tmp_path)
        return found.commit, found.made, found.changed

    source = "src/proxflow"
    git("init", "-q")
    write(f"{source}/__init__.py", "")
    write(f"{source}/engine.py", "x = 1\n")
    write(f"{source}/other.py", "x = 1\n")
    write(f"{source}/samplers/__init__.py", "from proxflow.samplers import multistep\n")
    write(f"{source}/samplers/multistep.py", "x = 1\n")
    write(f"{source}/samplers/midpoint.py", "x = 1\n")
    write(f"{source}/studies/mnist/study.py", STUDY)
    write(f"{source}/studies/mnist/report.py", "x = 1\n")
    first = commit()
    keep(commit=first)
    second = commit()
    assert stale() == (first, True, ())

    # What it does not depend on, what only shows it, comments and docstrings leave it as it is.
    for path in ("other", "samplers/midpoint", "studies/mnist/report"):
        write(f"{source}/{path}.py", "x = 2\n")
    write(f"{source}/engine.py", '"""An engine."""\n\nx = 1  # one\n')
    third = commit()
    assert stale() == (first, True, ())
    write(f"{source}/engine.py", "x = 2\n")
    assert stale() == (first, True, (f"{source}/engine.py",))
    write(f"{source}/samplers/multistep.py", "x = 2\n")  # named by a word of its settings
    assert stale() == (first, True, (f"{source}/engine.py", f"{source}/samplers/multistep.py"))

    # From a copy without git the checksum of the code leads to its commit; else there is the commit that keeps it.
    git("checkout", "-q", third, "--", source)
    blobs = [line.split() for line in git("ls-tree", "-r", third, source).splitlines()]
    keep(code=machine.code_of({path.removeprefix(f"{source}/"): blob for _, _, blob, path in blobs}))
    fourth = commit()
    assert stale() == (third, True, ())
    keep(code="0" * 16)
    fifth = commit()
    assert stale() == (fifth, False, ())

    write("docs/results.md", "Before.\n\n<!-- kept -->\nold\n<!-- /kept -->\n\nAfter.\n")
    write(f"{source}/engine.py", "x = 4\n")
    results.write(tmp_path)
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert page.startswith("Before.\n\n<!-- kept -->\n| Kept run")
    assert page.endswith("<!-- /kept -->\n\nAfter.\n")
    assert f"| `a` | at the latest `{fifth[:10]}`, " in page
    assert "**older**: 1 module changed |" in page
    assert len({first, second, third, fourth, fifth}) == 5


def test_the_code_of_a_package_is_that_which_git_has(tmp_path):
    package = Path(proxflow.__file__).parent
    shutil.copytree(
        package, tmp_path / "src/proxflow", ignore=lambda _, names: [n for n in names if "." in n and n[-3:] != ".py"]
    )
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    tree = subprocess.run(
        ["git", "-C", tmp_path, "write-tree"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert results._code(tmp_path, tree) == machine.versions()["code"]
    commit = machine.versions().get("commit")
    assert commit is None or len(commit) == 40
