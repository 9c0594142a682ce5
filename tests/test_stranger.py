"""A package outside the repository adds a divergence, a sampler, a network and a kind of data: the files of CONTRIBUTING.md.

Everything runs in fresh processes, where the package is found by its metadata alone, as an installed one is.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from stranger import stranger_package

GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python (\S+\.py)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE))
METADATA = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)]
ADDED = {"divergences": "log-euclidean", "samplers": "settling", "networks": "labelled", "kinds": "bearings"}
"""By group, the name that the guide adds to it."""


def entries() -> dict[str, dict[str, str]]:
    """By module, its line of metadata as :func:`stranger.stranger_package` takes it."""
    found = {}
    for metadata in METADATA:
        ((group, names),) = metadata["project"]["entry-points"].items()
        ((name, value),) = names.items()
        module, _, attribute = value.partition(":")
        found[module] = {group.removeprefix("proxflow."): {name: attribute}}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the guide's files as installed packages, data of the stranger's kind, and images."""
    folder = tmp_path_factory.mktemp("stranger")
    for module, metadata in entries().items():
        stranger_package(folder / "installed", module, FILES[f"{module}.py"], metadata)
    for name, text in FILES.items():
        if name.startswith("test_"):
            (folder / name).write_text(text, encoding="utf-8")
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 40)
    np.savetxt(folder / "some.bearings", np.column_stack([90 * labels + random.normal(20, 5, 40), labels]), "%g")
    np.savez(folder / "some.npz", images=random.integers(0, 256, (40, 6, 5, 1), dtype=np.uint8))
    return folder


def python(place, *words, seconds=300):
    """Run Python in the stranger's folder with the packages installed."""
    path = os.pathsep.join([str(place / "installed"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=place, env=env, capture_output=True, text=True, timeout=seconds
    )


def proxflow_does(place, *words):
    done = python(place, "-m", "proxflow.cli", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_done(place, *commands):
    """What each of several commands prints, all of them in one process: importing torch anew takes seconds each time."""
    code = """
import contextlib, io, json, sys
from proxflow.cli import main
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0, words
    said.append(out.getvalue())
print(json.dumps(said))
"""
    done = python(place, "-c", code, json.dumps([[str(word) for word in words] for words in commands]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusals(place, *commands):
    """What each of several commands says in one line when it refuses its input, all of them in one process."""
    code = (
        "import json, sys; from proxflow.cli import main; sys.exit(sum(main(w) != 2 for w in json.loads(sys.argv[1])))"
    )
    done = python(place, "-c", code, json.dumps([[str(word) for word in words] for words in commands]))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands), done.stderr
    return lines


# The files ------------------------------------------------------------------------------------------------------------


def test_each_is_one_file_of_at_most_forty_lines_and_one_line_of_metadata():
    assert {next(iter(group)): next(iter(*group.values())) for group in entries().values()} == ADDED
    for module in entries():
        assert FILES[f"{module}.py"].count("\n") <= 40, module
        assert f"test_{module}.py" in FILES
    for block in re.findall(r"^```toml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
        assert len(block.splitlines()) == 2, "the table, and one line in it"


def test_all_that_the_files_use_is_public():
    for name, text in FILES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("proxflow"):
                assert node.module in ("proxflow", "proxflow.testing", "proxflow.data.kinds"), name
                assert {alias.name for alias in node.names} <= set(import_module(node.module).__all__), name


def test_they_meet_the_contracts(place):
    tests = sorted(path.name for path in place.glob("test_*.py"))
    assert len(tests) == 4
    done = python(place, "-m", "pytest", "-rp", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    # Counted by line: how much pytest says besides is for whoever runs it to set (PYTEST_ADDOPTS).
    assert sum(line.startswith("PASSED ") for line in done.stdout.splitlines()) == 4, done.stdout


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(place):
    """By group, the lines that list it."""
    said = all_done(place, *(["list", group] for group in ADDED))
    return {group: lines.splitlines() for group, lines in zip(ADDED, said, strict=True)}


@pytest.mark.parametrize("group", ADDED)
def test_they_are_listed_with_their_package(listed, group):
    (module,) = (m for m, metadata in entries().items() if group in metadata)
    lines = listed[group]
    (line,) = (line for line in lines if line.split()[0] == ADDED[group])
    words = re.search(r'"""(.+)$', FILES[f"{module}.py"].partition("\nclass ")[2], re.MULTILINE).group(1)
    assert words.removesuffix('"""') in line
    assert line.endswith(f" [{module}]")
    assert f"({module})" not in line
    assert line == lines[-1]


@pytest.fixture(scope="module")
def run(place):
    """The run that the stranger's divergence, network and kind of data made."""
    words = ["--network", "labelled:classes=3,width=8", "--steps", 4, "--batch-size", 8, "--grid", 4]
    said = proxflow_does(
        place,
        "train",
        "--divergence",
        "log-euclidean:weight=0.5",
        "--data",
        "some.bearings",
        "--out",
        "bearings",
        *words,
    )
    assert "38 bearings" in said
    assert "draw from it: proxflow sample bearings" in said
    return place / "bearings"


def test_data_of_a_kind_of_its_own_are_trained_on_and_drawn(place, run):
    config = json.loads((run / "config.json").read_text())
    assert config["flow"]["divergence"] == {"kind": "log-euclidean", "weight": 0.5}
    assert config["network"] == {"kind": "labelled", "classes": 3, "width": 8, "forget": 0.1}
    assert config["data"] == {"kind": "bearings", "shape": [2]}
    (picture,) = (run / "samples").glob("*.png")
    assert picture.stat().st_size > 0

    words = ["--sampler", "settling:until=0.3", "--n", 12, "--steps", 3]
    proxflow_does(place, "sample", "bearings", *words, "--out", "drawn.txt")
    drawn = np.loadtxt(place / "drawn.txt")
    assert drawn.shape == (12,)
    assert ((drawn >= 0) & (drawn < 360)).all()
    assert len(set(drawn)) == 12


def test_a_condition_is_learnt_and_asked_for(place, run):
    code = """
import torch, proxflow
from bearings import Bearings
data = Bearings.read("some.bearings").train
kind, flow = proxflow.load("bearings").data, "gpfn:divergence=log-euclidean"
model = proxflow.build(kind, flow=flow, network="labelled:classes=3", seed=0)
model = model.fit(data, steps=400, batch_size=32, learning_rate=1e-2, ema=0.9)
for label in range(3):
    drawn = model.sample(32, nfe=8, sampler="settling:until=0.2", condition=torch.full((32,), label))
    assert (drawn - (20 + 90 * label)).abs().median() < 15, (label, drawn)
"""
    done = python(place, "-c", code)
    assert done.returncode == 0, done.stderr


def test_images_are_trained_on_and_drawn(place):
    words = ["--network", "labelled:width=8", "--steps", 2, "--batch-size", 8, "--grid", 0]
    all_done(
        place,
        ["train", "--divergence", "log-euclidean", "--data", "some.npz", "--out", "images", *words],
        ["sample", "images", "--sampler", "settling", "--n", 3, "--steps", 2, "--out", "drawn.npz"],
        # Without a word for it the sampler is one that any divergence can take.
        ["sample", "images", "--n", 1, "--steps", 1, "--out", "drawn.png"],
    )
    assert np.load(place / "drawn.npz")["images"].shape == (3, 6, 5, 1)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_an_entry_point_that_fails_is_named_and_does_not_stop_the_rest(place, tmp_path):
    stranger_package(tmp_path / "installed", "torn", "import nonesuch", {"samplers": {"torn": "Torn"}})
    stranger_package(tmp_path / "installed", "settling", FILES["settling.py"], entries()["settling"])
    said, _ = all_done(
        tmp_path,
        ["list", "samplers"],
        ["sample", "--sampler", "settling", "--n", 1, "--steps", 2, "--out", "one.png"],
    )
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert "torn:Torn" in lines["torn"]
    assert "nonesuch" in lines["torn"]
    assert {"settling", "deterministic", "multistep2"} <= set(lines)
    (line,) = refusals(tmp_path, ["sample", "--sampler", "torn", "--n", 1])
    assert "the package torn adds" in line


def test_wrong_input_is_one_line_and_leaves_nothing(place, run):
    train = ["train", "--out", "other", "--steps", 1, "--data"]
    expected = [
        ([*train, "some.bearings", "--divergence", "log-euclidian"], "did you mean log-euclidean"),
        ([*train, "some.bearings", "--divergence", "log-euclidian"], "entry point of the group proxflow.divergences"),
        ([*train, "some.bearings", "--divergence", "log-euclidean:wait=2"], "its settings are weight"),
        ([*train, "some.bearings", "--network", "labelled:classes=some"], "classes must be a whole number"),
        ([*train, "some.bearings", "--size", 3], "--size is for folders of pictures"),
        ([*train, "none.bearings"], "cannot be read"),
        (
            [*train, "some.npz", "--network", "labelled", "--predictor", "draw"],
            "outputs=, which labelled does not take",
        ),
        (["sample", "bearings", "--sampler", "setling"], "did you mean settling"),
        (["sample", "bearings", "--n", 2, "--out", "drawn.csv"], "a file .txt"),
    ]
    for line, (words, message) in zip(refusals(place, *[words for words, _ in expected]), expected, strict=True):
        assert message in line, words
    assert not (place / "other").exists()


def test_a_model_file_may_name_no_import_path(place, run, tmp_path):
    paths = {"network": "labelled:Labelled", "data": "bearings:Bearings", "flow": "os:system"}
    for part, path in paths.items():
        folder = tmp_path / part
        folder.mkdir()
        config = json.loads((run / "config.json").read_text())
        config[part]["kind"] = path
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    commands = [["sample", tmp_path / part, "--n", 1] for part in paths]
    for line, path in zip(refusals(place, *commands), paths.values(), strict=True):
        assert f"is called '{path}'" in line


def test_without_the_package_its_model_says_what_is_missing(run, tmp_path):
    (line,) = refusals(tmp_path, ["sample", run, "--n", 1])
    assert "no divergence is called 'log-euclidean'" in line
    assert "proxflow.divergences" in line
