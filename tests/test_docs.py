"""The documentation: its examples run, its generated parts are current, and its numbers and links agree with the files."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image, ImageChops

import proxflow
from proxflow.cli.run import _parse, run
from proxflow.cli.train import Train
from proxflow.cli.train import _flow as flow_of
from proxflow.errors import DataError
from proxflow.models import parse
from proxflow.studies.presets import PRESETS
from tools.docs import (
    FRONT,
    closed_forms_block,
    definition,
    front_picture,
    quoted,
    results_block,
    results_of,
    rewritten,
    with_block,
)
from tools.site import gather, public

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_readme_examples_run(tmp_path):
    code = "\n".join(blocks(README, "python"))
    assert "steps=2000" in code
    for words, fewer in (
        ("steps=2000", "steps=2, batch_size=4"),
        ("sample(64, ", "sample(4, "),
        ("channels=64", "channels=8"),
        ("(8, 1, 28, 28), nfe=20", "(2, 1, 28, 28), nfe=2"),
    ):
        assert words in code
        code = code.replace(words, fewer)
    images = torch.randint(0, 256, (8, 3, 12, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "readme.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "readme.py"), {"images": images})
    assert names["samples"].shape == (4, 3, 12, 8)
    assert names["wholes"].shape == (2, 1, 28, 28)
    assert names["moved"].mean.tolist() == [[1.0] * 3]
    assert names["moved"].std.tolist() == [[0.75] * 3]


def test_the_readme_gives_the_time_of_the_preset():
    assert f"in {PRESETS['quick'].minutes} (data" in README


def test_training_on_own_data_takes_three_lines():
    (example,) = [block for block in blocks(README, "python") if "fit(" in block]
    assert "build(" in example
    assert len([line for line in example.splitlines() if line and not line.startswith("import ")]) == 3


def test_the_readme_is_short():
    assert README.count("\n") <= 120


@pytest.mark.parametrize("page", ["start", "concepts"])
def test_the_examples_of_the_first_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them saves a picture
    code = "\n".join(blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), "python"))
    for words, fewer in (
        ("steps=2000", "steps=2, batch_size=4"),
        ("sample(64, ", "sample(4, "),
        ("channels=64", "channels=8"),
    ):
        code = code.replace(words, fewer)
    images = torch.randint(0, 256, (8, 3, 12, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "page.py"), {"images": images, "torch": torch})
    if page == "start":
        assert names["samples"].shape == (16, 3, 12, 8)
    else:
        assert names["moved"].std.tolist() == [[0.75] * 3]


COMING = re.split(r"^## ", (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[2:]


@pytest.mark.parametrize("section", COMING, ids=[section.partition("\n")[0] for section in COMING])
def test_theirs_and_ours_both_run(section, tmp_path):
    found = blocks(section, "python")
    assert found
    for number, code in enumerate(found):
        for package in re.findall(r"^from (flow_matching|torchcfm|torchdiffeq|azula|diffusers)\b", code, re.MULTILINE):
            pytest.importorskip(package)
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))
        network = ByTime(layers)
        code = re.sub(r"\bsteps=100\b", "steps=3", code.replace("range(100)", "range(3)"))
        (tmp_path / f"{number}.py").write_text(code, encoding="utf-8")
        names = runpy.run_path(str(tmp_path / f"{number}.py"), {"network": network, "data": torch.randn(256, 2)})
        assert names["samples"].shape == (64, 2)
        assert names["samples"].isfinite().all()


class ByTime(torch.nn.Module):
    """A network of rows and times."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None].to(x)], 1))


def test_the_front_picture_is_that_of_the_standard_run():
    with Image.open(ROOT / FRONT) as shown:
        assert ImageChops.difference(shown.convert("RGB"), front_picture(ROOT).convert("RGB")).getbbox() is None


def test_the_site_gathers_every_page_and_leads_nowhere_wrong(tmp_path):
    gather(ROOT, tmp_path / "site")
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.md")}
    assert {"index.md", "contributing.md", "reference/python.md", "reference/command-line.md"} <= pages
    assert {f"studies/{path.parent.name}.md" for path in ROOT.glob("results/*/report.md")} <= pages
    titles = [path.read_text(encoding="utf-8").split("\n", 1)[0] for path in (tmp_path / "site/studies").glob("*.md")]
    assert len(set(titles)) == len(titles)
    reference = (tmp_path / "site/reference/python.md").read_text()
    assert all(f":: proxflow.{name}\n" in reference for _, name in public(ROOT))
    for page in pages:
        text = (tmp_path / "site" / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)(?:#[^)]*)?\)", text):
            place = (tmp_path / "site" / page).parent.joinpath(target)
            notebook = place.suffix == ".ipynb"  # made of a tutorial's text when that has run
            assert (place.with_suffix(".md") if notebook else place).exists(), f"{page}: {target}"


def test_the_readme_names_every_command():
    found = {words[0] for words in commands_of(README)}
    assert found >= {"sample", "train", "evaluate", "reproduce", "restore"}
    assert "bin/proxflow reproduce --preset quick" in README


def commands_of(page: str) -> list[list[str]]:
    """The words after ``proxflow`` of every command of a page, in blocks and within the text."""
    blocks = "\n".join(re.findall(r"^```(?:bash|text)\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    lines = [line for line in blocks.replace("\\\n", " ").splitlines() if not line.startswith("proxflow.")]
    lines = [line.partition("#")[0] for line in lines if re.search(r"(^|/|-m )proxflow(\.cli)? ", line)]
    inline = [text for text in re.findall(r"`(proxflow [^`]+)`", page) if " --" in text]
    return [shlex.split(re.split(r"proxflow(?:\.cli)? ", line)[-1]) for line in lines + inline]


# The changelog tells of commands as they were.
@pytest.mark.parametrize("page", [page.name for page in PAGES if page.name != "CHANGELOG.md"])
def test_every_command_parses(page):
    (path,) = (path for path in PAGES if path.name == page)
    for words in commands_of(path.read_text(encoding="utf-8")):
        if "--help" in words:
            continue
        if words[0] in ("train", "reflow") and "--out" not in words:  # within a sentence it may be left out
            words += ["--out", "somewhere"]
        options = _parse(words)
        if isinstance(options, Train) and options.teacher is None and page != "CONTRIBUTING.md":
            flow_of(options, options.flow or "gpfn-w2")
            for group in ("networks", "predictors"):
                text = getattr(options, group.removesuffix("s"))
                assert text is None or parse(group, text).kind == text.partition(":")[0]


def test_the_examples_of_likelihood_run(tmp_path):
    page = (ROOT / "docs" / "likelihood.md").read_text(encoding="utf-8")
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    runpy.run_path(str(tmp_path / "page.py"))


def test_the_example_of_guidance_runs(tmp_path):
    page = (ROOT / "docs" / "guidance.md").read_text(encoding="utf-8")
    code = next(block for block in blocks(page, "python") if "guidance=2.0" in block)
    assert "steps=2000" in code
    (tmp_path / "page.py").write_text(code.replace("steps=2000", "steps=2, batch_size=4"), encoding="utf-8")
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = runpy.run_path(str(tmp_path / "page.py"), {"images": images})
    assert names["drawn"].shape == names["anything"].shape == (12, 1, 8, 8)


@pytest.mark.parametrize("page", ["training", "few-step"])
def test_the_examples_of_training_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for seed, name in enumerate(["mine", "short"]):
        model = proxflow.build(images, network="unet:channels=8,multipliers=1", seed=seed)
        model.save_pretrained(f"runs/{name}")
    code = "\n".join(blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), "python"))
    for words, fewer in ("20_000", "16"), ("steps=2000", "steps=2, batch_size=4"), ("(1024, ", "(16, "):
        code = code.replace(words, fewer)
    Path("page.py").write_text(code, encoding="utf-8")
    config = proxflow.TrainingConfig(steps=2, batch_size=4)
    names = runpy.run_path("page.py", {"proxflow": proxflow, "images": images, "config": config})
    if page == "training":
        assert names["bend"] >= 0
        assert proxflow.load("to-share").shape == (1, 4, 4)
    else:
        assert names["student"].network is not names["teacher"].predictor.network


def test_the_example_of_tables_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{20 + k % 40},{['yes', 'no'][k % 2]},{'' if k % 7 == 0 else k * 0.25}" for k in range(60)]
    Path("people.csv").write_text("\n".join(["age,member,score", *lines]) + "\n", encoding="utf-8")
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    (tmp_path / "page.py").write_text(
        "\n".join(blocks(page, "python")).replace("steps=2000", "steps=20"), encoding="utf-8"
    )
    names = runpy.run_path(str(tmp_path / "page.py"))
    assert names["numbers"].shape == (1000, 3)
    assert names["categories"] == {"member": ("no", "yes")}
    assert Path("made.csv").read_text(encoding="utf-8").startswith("age,member,score\n")


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
    fashion = fake_run("long", 10)
    fashion["config"]["dataset"] = "fashion-mnist"
    both = results_block([fashion, fake_run("long", 10)])
    assert both.index("### Preset long\n") < both.index("### Preset long, fashion-mnist")
    assert both.count("| gpfn-w2 | multistep2 | **2.00** | **1.00** |") == 2  # a table of each data set


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
    needed = [
        Requirement(text) for text in [*project["dependencies"], *extras["dev"], *extras["peers"], *extras["docs"]]
    ]
    for requirement in needed:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_reference_has_title_authors_and_year(page):
    text = page.read_text(encoding="utf-8").partition("```bibtex")[0]
    numbers = set(re.findall(r"(?<![\d.])\d{4}\.\d{5}(?![\d.])", text))
    named = set(re.findall(r'"[^"]+"\s\([^()]+\s(?:19|20)\d\d\),\s+arXiv\s+(\d{4}\.\d{5})', text))
    assert numbers <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for package, rest in re.findall(r"python -m\s+(proxflow|tools|benchmarks)\.([\w.]*\w)", text):
        folder = ROOT / ("src/proxflow" if package == "proxflow" else package)
        assert (folder / (rest.replace(".", "/") + ".py")).exists(), f"{package}.{rest}"


# docs/architecture.md -------------------------------------------------------------------------------------------------

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SCREEN = 45
"""Lines that fit on one screen."""


def walk(name: str) -> list[tuple[str, list[str]]]:
    """The steps of a walk: a file, and the functions named there."""
    (text,) = re.findall(rf"<!-- walk {name} -->\n(.*?)<!-- /walk -->", ARCHITECTURE, re.DOTALL)
    steps = re.findall(r"^\d+\. `(\S+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text, re.MULTILINE)
    assert len(steps) == len(re.findall(r"^\d+\. ", text, re.MULTILINE))
    return [(path, re.findall(r"`([\w.]+)`", functions)) for path, functions in steps]


@pytest.mark.parametrize("section", ["One training batch", "One sample"])
def test_the_way_is_quoted_from_the_source_on_one_screen(section):
    # That the quotes are those of the source is tested with the other generated parts.
    (text,) = re.findall(rf"### {section}.*?(?=\n##)", ARCHITECTURE, re.DOTALL)
    quotes = re.findall(r"<!-- quote (\S+) [^>]* -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(quotes) >= 4
    assert len(quotes) == text.count("```python") == text.count("<!-- quote")
    assert sum(lines.count("\n") for _, lines in quotes) <= SCREEN
    files = {path for path, _ in walk({"One training batch": "batch", "One sample": "sample"}[section])}
    assert {path for path, _ in quotes} <= files


def test_quotes_follow_the_source(tmp_path):
    file = tmp_path / "src/proxflow/some.py"
    file.parent.mkdir(parents=True)
    page = "a\n<!-- quote some.py A.f -->\n```python\nold\n```\nb\n<!-- quote some.py A.f from y -->\n```python\n```\n"
    file.write_text('class A:\n    def f(self):\n        """Do."""\n        x = 1\n        y = 2\n')
    expected = "def f(self):\n    x = 1\n    y = 2\n"
    assert quoted(tmp_path, page) == page.replace("old\n", expected).replace("```python\n```", "```python\ny = 2\n```")
    for wrong, message in ("A.g", "no A.g"), ("A.f from z", "begins with 'z'"):
        with pytest.raises(DataError, match=message):
            quoted(tmp_path, page.replace("A.f -->", f"{wrong} -->"))
    with pytest.raises(DataError, match="cannot be read"):
        quoted(tmp_path, page.replace("some.py", "other.py"))


@pytest.mark.parametrize("name", ["batch", "sample", "train"])
def test_a_walk_enters_no_file_twice(name):
    steps = walk(name)
    assert len(steps) >= 10
    assert len({path for path, _ in steps}) == len(steps)
    for path, functions in steps:
        for function in functions:
            definition(ROOT, path, function)


def calls(work) -> list[tuple[str, str]]:
    """The functions of the package, (file, qualified name), in the order in which they are first called."""
    source, found = str(ROOT / "src/proxflow") + "/", {}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(source):
            found.setdefault((code.co_filename.removeprefix(source), code.co_qualname.replace(".<locals>", "")))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return list(found)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What is called, by the name of the walk."""
    folder, random = tmp_path_factory.mktemp("walk"), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 6, 6, 1), dtype=torch.uint8, generator=random)
    numpy.savez(folder / "images.npz", images=images.numpy())
    words = ["--data", folder / "images.npz", "--out", folder / "run", "--network", "unet:channels=8,multipliers=1"]
    few = ["--steps", 1, "--batch-size", 4, "--grid", 0]
    found = {"train": calls(lambda: run(["train", *map(str, words + few)]))}
    model = proxflow.load(folder / "run")
    config = proxflow.TrainingConfig(steps=1, batch_size=4)
    data = proxflow.Examples(images.permute(0, 3, 1, 2))
    found["batch"] = calls(lambda: proxflow.fit(model.predictor, model.flow, data, config, encode=model.data.encode))
    found["sample"] = calls(lambda: model.sample(2, nfe=2, sampler="deterministic"))
    return found


@pytest.mark.parametrize("name", ["batch", "sample", "train"])
def test_a_walk_is_what_runs(name, walked):
    seen = walked[name]
    entered = []
    for path, functions in walk(name):
        for function in functions:
            assert (path, function) in seen, f"{path}: {function} is not called"
        entered.append(seen.index((path, functions[0])))
    assert entered == sorted(entered)


def test_every_kept_run_says_which_code_made_it():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = page.partition("<!-- kept -->")[2].partition("<!-- /kept -->")[0]
    assert all(f"| `{path.parent.name}` |" in table for path in (ROOT / "results").glob("*/results.json"))
