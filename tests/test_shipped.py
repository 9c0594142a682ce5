"""Conditional models that come with the package, and how they are put there."""

import json

import numpy as np
import pytest
import torch

import proxflow
from proxflow import metrics, models
from proxflow.errors import ArgumentError
from tools.ship import ship

NAMES = [name for name in models.shipped_models() if "classes" in name]


def test_conditional_models_come_with_the_package(run):
    assert "mnist-classes" in NAMES
    said = dict(line.split(maxsplit=1) for line in run("list", "models")[1].splitlines())
    assert all("of 10 classes" in said[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_they_draw_every_class_and_without_one(run, tmp_path, name):
    few, out = name.endswith("-few"), tmp_path / "x.npz"
    common = ("--n", 4, "--steps", 1 if few else 10, "--out", out, "--device", "cpu")
    assert run("sample", name, "--class", "all", *common)[::2] == (0, "")
    with np.load(out) as held:
        images, labels = held["images"], held["labels"]
    assert images.shape == (40, 28, 28, 1)
    assert labels.tolist() == [k for k in range(10) for _ in range(4)]
    drawn = torch.from_numpy(images).permute(0, 3, 1, 2)
    data = "fashion-mnist" if "fashion" in name else "mnist"
    hits = metrics.class_hits(metrics.load_classifier(data), drawn, torch.from_numpy(labels))
    assert hits.float().mean() > 0.8
    assert run("sample", name, *common)[::2] == (0, "")
    with np.load(out) as held:
        assert held["images"].shape == (4, 28, 28, 1)
        assert "labels" not in held


def test_shipped_weights_are_those_of_a_finished_run_at_half_precision(tmp_path):
    model = proxflow.build((1, 8, 8), network="unet:channels=8,multipliers=1,patch=4,classes=3", seed=0)
    models.save(tmp_path / "run", model, provenance={"training": {"steps": 4}, "steps": 4, "stages": []})
    made = ship(tmp_path / "run", "mine", "proxflow train", tmp_path)
    assert (made / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "run" / "model.safetensors").stat().st_size
    rounded = {key: value.half().float() for key, value in model.predictor.state_dict().items()}
    for key, value in proxflow.load(made).predictor.state_dict().items():
        assert torch.equal(value, rounded[key])
    known = json.loads((made / "config.json").read_text())["provenance"]
    assert (known["command"], known["steps"], "stages" in known) == ("proxflow train", 4, False)
    models.save(tmp_path / "half", model, provenance={"training": {"steps": 4}, "steps": 2})
    with pytest.raises(ArgumentError, match="2 of 4 steps"):
        ship(tmp_path / "half", "mine", "proxflow train", tmp_path)
