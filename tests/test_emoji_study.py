"""The study of emoji: cells with what is memorised, found by hand as well; its report in colour."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import proxflow
from proxflow import data, metrics
from proxflow.cli import main
from proxflow.config import TrainingConfig
from proxflow.errors import ArgumentError
from proxflow.studies import charts, trials
from proxflow.studies.emoji import report
from proxflow.studies.emoji.study import STUDY, cells_of, further
from proxflow.studies.presets import EMOJI_PRESETS, EXPERIMENTS, EmojiPreset

TINY = EmojiPreset(
    network="unet:channels=8,multipliers=1,patch=4",
    training=TrainingConfig(steps=6, batch_size=8, checkpoint_every=100, warmup_steps=2),
    student_steps=2,
    samples=200,
    minutes="",
    nfes=(2, 3),
    samplers=("multistep2",),
    train_images=1200,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("emoji")
    return out, trials.reproduce(STUDY, "tiny", TINY, out, CPU, lambda line: None, "emoji")


def setup_of(out):
    training, test = data.load("emoji", "train"), data.load("emoji", "test")
    images, labels = training.images[: TINY.train_images], training.labels[: TINY.train_images]
    return trials.Setup(TINY, out, CPU, lambda line: None, images, test.images, labels, test.labels)


def test_cells_have_all_scores_and_what_is_memorised(finished):
    _, results = finished
    assert [(c["flow"], c["nfe"]) for c in results["cells"]] == [("flow", 2), ("flow", 3), ("few", 1)]
    assert results["extractor"]["name"] == "emoji-classifier"
    assert results["second_extractor"]["name"] == "emoji-principal"
    assert results["classes"] == list(data.CLASSES["emoji"])
    assert results["training"]["few-seed0"]["training"]["steps"] == 2
    names = ("memorised", "memorised_floor", "memorised_features", "memorised_features_floor")
    for cell in results["cells"]:
        for name in (
            "frechet",
            "second_frechet",
            "precision",
            "recall",
            "class_accuracy",
            "floor",
            "second_floor",
            *names,
        ):
            assert math.isfinite(cell[name])
        for name in names:
            low, high = cell["intervals"][name]
            assert low <= cell[name] <= high
            assert cell["errors"][name] >= 0
        assert cell["memorised_floor"] == cell["memorised_features_floor"] == 19 / 379  # ⌈0.05 · 379⌉ of them
        assert cell["errors"]["memorised_floor"] == pytest.approx(math.sqrt(19 / 379 * 360 / 379 / 378))


def test_what_is_memorised_is_so_by_hand(finished):
    out, results = finished
    model, cell = proxflow.load(out / "models" / "few-seed0"), results["cells"][-1]
    assert model.of_one_evaluation
    assert model.classes == data.CLASSES["emoji"]
    setup = setup_of(out)
    labels = metrics.labels_in_proportion(setup.test_labels, TINY.samples)
    images = model.sample(TINY.samples, nfe=1, batch_size=256, condition=labels)

    def distances(pictures):
        x, y = (part.double().flatten(1) / 127.5 for part in (pictures, setup.images))
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").amin(1)

    bound = float(distances(setup.test).sort().values[18])
    share = float((distances(images) <= bound * (1 + 1e-6)).double().mean())
    assert cell["memorised"] == pytest.approx(share, abs=2.5 / TINY.samples)  # another batch rounds otherwise


def test_copies_count_and_held_out_pictures_score_the_floor(tmp_path):
    setup = setup_of(tmp_path)
    extractors = trials.extractors_of("emoji", CPU)
    measure = further(setup, extractors)
    copies, features = setup.images[::40], extractors[0](setup.images[::40])
    found = measure(copies, features)
    assert found["memorised"].value == found["memorised_features"].value == 1.0
    held = measure(setup.test, extractors[0](setup.test))
    assert held["memorised"].value == held["memorised_floor"].value
    assert held["memorised_features"].value == held["memorised_features_floor"].value
    slight = (copies.int() + torch.tensor([3, -3]).repeat(16)).clamp(0, 255).to(torch.uint8)
    assert measure(slight, extractors[0](slight))["memorised"].value > 0.9
    noise = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert measure(noise, extractors[0](noise))["memorised"].value == 0.0


def test_evaluate_takes_the_features_of_emoji(finished, capsys):
    out, results = finished
    words = ["evaluate", str(out / "models" / "few-seed0"), "--data", "emoji", "--n", "200", "--device", "cpu"]
    assert main([*words, "--out", str(out / "scores.json")]) == 0
    assert "features: emoji-classifier, 64 dimensions" in capsys.readouterr().out
    (found,) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["cells"]
    assert (found["nfe"], found["classes"]) == (1, list(range(9)))
    assert found["classifier"].startswith("emoji-classifier")
    assert found["frechet"] == pytest.approx(results["cells"][-1]["frechet"], rel=1e-2)  # the same samples
    assert main([*words, "--extractor", "emoji-principal"]) == 0
    assert "features: emoji-principal, 64 dimensions" in capsys.readouterr().out


def test_nearest_training_pictures_are_found():
    draw = np.random.default_rng(0)
    training = draw.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    samples = np.stack([training[7], training[21]])
    samples[1, 0, 0, 0] ^= 16
    pictures, distances = report.nearest(training, samples)
    assert (pictures == training[[7, 21]]).all()
    assert distances == pytest.approx([0.0, 16 / 127.5], abs=1e-6)


def test_the_report_shows_colour_and_says_what_is_memorised(finished):
    out, _ = finished
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    files = {path.name: path for path in trials.write_report(out, CPU)}
    assert set(files) == {"nearest.png", "classes.png", "report.md", "report.html"}
    text = files["report.md"].read_text(encoding="utf-8")
    for word in ("memorised, pixels", "held-out pictures", "5.0 %", "emoji-principal", "flow 6; few 2"):
        assert word in text
    shown = np.asarray(Image.open(files["classes.png"]))
    assert shown.ndim == 3
    assert (shown[..., 0] != shown[..., 2]).any()  # not grey
    block = report.block([results])
    assert "emoji, preset tiny" in block
    assert "few: 2 training steps of 8 images, 13 network passes each" in block
    assert report.block([]).startswith("No run is kept")


def test_grids_are_grey_without_colours():
    grey, colour = np.zeros((3, 4, 4), np.uint8), np.full((3, 4, 4, 3), 9, np.uint8)
    assert charts.tile(colour, 2, 4).shape == (9, 9, 3)
    rows = tuple(charts.Row("a", (charts.tile(images, 3, 8),)) for images in (grey, colour))
    assert charts.labelled([charts.Section("", ("",), rows[:1])], 10).mode == "L"
    assert charts.labelled([charts.Section("", ("",), rows)], 10).mode == "RGB"


def test_claims_hold_the_student_to_the_flow_and_both_to_the_floor():
    floors = {"memorised_floor": 0.05, "memorised_features_floor": 0.05}

    def cell(flow, nfe, frechet, pixels, features):
        scores = {"frechet": frechet, "memorised": pixels, "memorised_features": features}
        return {"flow": flow, "sampler": "deterministic", "nfe": nfe, "seed": 0, **scores, **floors}

    results = {
        "cells": [cell("flow", 4, 4.0, 0.01, 0.01), cell("flow", 20, 2.0, 0.2, 0.05), cell("few", 1, 3.0, 0.1, 0.0)]
    }
    found = {claim.name: claim for claim in report.claims(results)}
    assert found["few-4"].values == (0.75,)
    assert found["few-20"].values == (1.5,)
    assert found["memorised-flow"].values == pytest.approx((4.0,))
    assert (found["memorised-flow"].holds, found["memorised-few"].holds) == (False, True)
    assert found["memorised_features-flow"].holds
    assert found["few-20"].threshold is None


def test_presets_are_listed_and_their_cells_have_names():
    assert EXPERIMENTS["emoji"] is EMOJI_PRESETS
    assert set(EMOJI_PRESETS) == {"quick", "standard"}
    for preset in EMOJI_PRESETS.values():
        names = [cell.name for cell in cells_of(preset)]
        assert len(set(names)) == len(names)
        assert preset.samples <= len(data.load("emoji", "train").images)  # the floor has as many


def test_pictures_without_classes_are_refused(tmp_path, monkeypatch):
    load = data.load
    monkeypatch.setattr(data, "load", lambda *source: replace(load(*source), labels=None))
    with pytest.raises(ArgumentError, match="the images have no labels"):
        trials.reproduce(STUDY, "tiny", TINY, tmp_path, CPU, lambda line: None, "emoji")
