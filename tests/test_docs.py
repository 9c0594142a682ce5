"""The documentation: its examples run, its generated parts are current, and its numbers and links agree with the files."""

import json
import re
import runpy
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import proxflow
from proxflow.cli.main import _parse
from proxflow.errors import DataError
from proxflow.studies.presets import PRESETS
from tools.docs import closed_forms_block, results_block, results_of, rewritten, with_block

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_readme_examples_run(tmp_path):
    code = "\n".join(blocks(README, "python"))
    assert "steps=2000" in code
    code = code.replace("steps=2000", "steps=2, batch_size=4").replace("(64, ", "(4, ")
    images = torch.randint(0, 256, (8, 3, 12, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "readme.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "readme.py"), {"images": images})
    assert names["samples"].shape == (16, 3, 12, 8)
    assert names["moved"].mean.tolist() == [[1.0] * 3]
    assert names["moved"].std.tolist() == [[0.75] * 3]


def test_the_readme_gives_the_time_of_the_preset():
    assert f"`quick`: {PRESETS['quick'].minutes}" in README


def test_training_on_own_data_takes_three_lines():
    (example,) = [block for block in blocks(README, "python") if "fit(" in block]
    assert example.count("\n") == 3


def test_the_readme_commands_parse():
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("proxflow ")]
    commands += [shlex.split(line.rpartition("bin/proxflow ")[2]) for line in lines if "bin/proxflow " in line]
    assert len(commands) >= 8
    assert {type(_parse(words)).__name__ for words in commands} >= {"Sample", "Train", "Evaluate", "Reproduce"}


def test_the_examples_of_likelihood_run(tmp_path):
    page = (ROOT / "docs" / "likelihood.md").read_text(encoding="utf-8")
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    runpy.run_path(str(tmp_path / "page.py"))


def test_the_examples_of_evaluation_run(tmp_path):
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (tmp_path / "evaluation.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "evaluation.py"))
    assert names["seen"].count == 500
    assert names["distance"] == pytest.approx(names["scores"].frechet, rel=1e-6)
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("proxflow ")]
    assert {type(_parse(words)).__name__ for words in commands} == {"Evaluate"}


def test_generated_parts_are_current():
    for path, text in rewritten(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m tools.docs"


def test_the_table_of_closed_forms_comes_from_the_registry():
    rows = {line.split(" | ")[0].lstrip("| "): line for line in closed_forms_block().splitlines()}
    assert rows["Wasserstein2"].count("closed form") == 2
    assert "solver" in rows["Jeffreys"]
    assert "closed form" not in rows["Jeffreys"]


def fake_run(preset, scale):
    cell = {"precision": 0.5, "recall": 0.5, "diversity": 0.9, "samples": 64, "seed": 0, "floor": 1.25}
    distances = {("gpfn-w2", "multistep2"): 2.0, ("bfn", "stochastic"): 30.0}
    return {
        "experiment": "mnist",
        "config": {"preset": preset, "dataset": "mnist", "training": {"steps": 1200, "batch_size": 64}},
        "hardware": {"processor": "Some Processor", "cores": 2},
        "versions": {"torch": "2.13.0"},
        "extractor": {"name": "mnist-classifier", "sha256": "0123456789abcdef", "dimension": 64},
        "reference": "10000 test images of mnist",
        "cells": [
            {**cell, "flow": flow, "sampler": sampler, "nfe": nfe, "frechet": scale * distance / nfe}
            for (flow, sampler), distance in distances.items()
            for nfe in (10, 20)
        ],
    }


def test_the_results_name_every_run_with_its_conditions():
    text = results_block([fake_run("quick", 20), fake_run("standard", 10)])
    standard, quick = text.split("### Preset quick")
    assert "### Preset standard" in standard
    assert "| gpfn-w2 | multistep2 | **2.00** | **1.00** |" in standard
    assert "| bfn | stochastic | 30.0 | 15.0 |" in standard
    assert "| real images | – | 1.25 | 1.25 |" in standard
    for part in (standard, quick):
        assert re.search(
            r"over that of gpfn-w2 \(multistep2, the default sampler\), 20 NFE \| 15\.0 \| ≥ [58] \| \*\*yes\*\*", part
        )
        for condition in ("1,200 training steps", "seed 0", "64 samples", "0123456789ab", "1.25", "Some Processor"):
            assert condition in part
    assert "| gpfn-w2 | multistep2 |" not in quick
    assert "No run" in results_block([])


def test_runs_are_read_in_the_order_of_the_presets(tmp_path):
    for preset in ("standard", "paper", "quick"):
        (tmp_path / f"mnist-{preset}").mkdir()
        (tmp_path / f"mnist-{preset}" / "results.json").write_text(json.dumps(fake_run(preset, 1)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")
    assert [run["config"]["preset"] for run in results_of(tmp_path)] == ["quick", "standard", "paper"]


def test_a_part_is_replaced_and_nothing_else():
    text = "a <!-- x -->\nold\n<!-- /x --> b"
    once = with_block(text, "x", "new")
    assert once == "a <!-- x -->\n\nnew\n\n<!-- /x --> b"
    assert with_block(once, "x", "new") == once
    with pytest.raises(DataError, match="<!-- y -->"):
        with_block(text, "y", "new")


def test_ci_runs_the_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    (expression,) = re.findall(r"sed -n '([^']*)' README.md", script.read_text())
    done = subprocess.run(["sed", "-n", expression, ROOT / "README.md"], capture_output=True, text=True, check=True)
    (command,) = done.stdout.splitlines()
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt")
    assert "-m pytest" in command
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == proxflow.__version__
    assert f"\nversion: {proxflow.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{proxflow.__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project["optional-dependencies"]
    needed = [Requirement(text) for text in [*project["dependencies"], *extras["dev"], *extras["peers"]]]
    for requirement in needed:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for package, rest in re.findall(r"python -m\s+(proxflow|tools|benchmarks)\.([\w.]*\w)", text):
        folder = ROOT / ("src/proxflow" if package == "proxflow" else package)
        assert (folder / (rest.replace(".", "/") + ".py")).exists(), f"{package}.{rest}"
