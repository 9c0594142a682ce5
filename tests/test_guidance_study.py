"""The guidance study: its counted evaluations, its cells within classes, its report; and what presets say."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

import proxflow
from proxflow import data, metrics
from proxflow.cli import main
from proxflow.config import TrainingConfig
from proxflow.data.kinds import Loaded
from proxflow.data.kinds.image import Image as ImageKind
from proxflow.errors import ArgumentError, OutputError
from proxflow.studies import trials
from proxflow.studies.guidance import report
from proxflow.studies.guidance.cells import CONDITIONAL, UNCONDITIONAL, WEAK, GuidedCell, spent
from proxflow.studies.guidance.study import STUDY, cells_of
from proxflow.studies.presets import EXPERIMENTS, FEW_STEP_METHODS, FEW_STEP_PRESETS, GUIDANCE_PRESETS, GuidancePreset

TINY = GuidancePreset(
    network="mlp:width=16,depth=1",  # what is counted and written is the same with any
    training=TrainingConfig(steps=20, batch_size=8, checkpoint_every=100, warmup_steps=2),
    samples=60,
    minutes="",
    nfes=(4, 5),
    weights=(2.0,),
    samplers=("multistep2",),
    rules={"linear": ("multistep2", "sde-bfn-solver2"), "projected": ("multistep2",)},
    weak_share=0.5,
    train_images=256,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Makes data the first few of them, for the module."""
    load = data.load

    def first(source, split):
        whole = load(source, split)
        return data.ImageData(whole.name, whole.images[:300], whole.labels[:300])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", first)
        yield


@pytest.fixture(scope="module")
def finished(some, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("guidance"), []
    return out, trials.reproduce(STUDY, "tiny", TINY, out, CPU, said.append), said


def test_every_setting_has_its_cells(finished):
    _, results, _ = finished
    cells = results["cells"]
    settings = {(c["flow"], c["weight"], tuple(c["interval"]), c["rule"], c["weak"], c["sampler"]) for c in cells}
    every, some = (0.0, 1.0), TINY.intervals[1]
    fast, slow = "multistep2", "sde-bfn-solver2"
    assert settings == {
        (UNCONDITIONAL, 1.0, every, "linear", None, fast),
        (CONDITIONAL, 1.0, every, "linear", None, fast),
        *((CONDITIONAL, 2.0, times, "linear", None, sampler) for times in (every, some) for sampler in (fast, slow)),
        *((CONDITIONAL, 2.0, times, "projected", None, fast) for times in (every, some)),
        *((CONDITIONAL, 2.0, every, "linear", WEAK, sampler) for sampler in (fast, slow)),
    }
    assert len(cells) == 2 * len(settings)
    assert len({GuidedCell(**{k: c[k] for k in ("flow", "sampler", "nfe", "seed", "weight", "rule", "weak")},
                           interval=tuple(c["interval"])).name for c in cells}) == len(cells)  # fmt: skip


def test_no_sample_costs_more_than_its_evaluations(finished):
    _, results, _ = finished
    for cell in results["cells"]:
        assert cell["evaluations"] <= cell["nfe"]
        if cell["weight"] == 1:
            assert cell["predictions"] == cell["evaluations"] == cell["nfe"]
        elif cell["interval"] == [0.0, 1.0]:
            assert cell["predictions"] == cell["nfe"] // 2
        else:
            assert cell["nfe"] // 2 <= cell["predictions"] < cell["nfe"]
        assert cell["train_cost"] == (1.5 if cell["weak"] else 1.0)


def test_one_more_prediction_would_cost_too_much():
    model = proxflow.build((1, 8, 8), flow=TINY.flow, network="unet:channels=8,multipliers=1,classes=3")
    for interval in ((0.0, 1.0), (0.1, 0.7), (0.5, 0.5)):
        for nfe in (1, 2, 3, 4, 10, 20):
            cell = GuidedCell(CONDITIONAL, "multistep2", nfe, 0, 2.0, interval)
            _, predictor, predictions = cell.prepared(lambda name: model)
            assert spent(model, predictor, "multistep2", predictions) <= max(nfe, 2)
            assert predictions == nfe or spent(model, predictor, "multistep2", predictions + 1) > nfe


def test_scores_within_classes_are_those_of_the_samples(finished):
    out, results, _ = finished
    _, test = data.load("mnist", "train"), data.load("mnist", "test")
    labels = metrics.labels_in_proportion(test.labels, TINY.samples)
    for record in results["cells"]:
        if record["flow"] == UNCONDITIONAL:
            assert record["class_accuracy"] is record["frechet_per_class"] is None
            continue
        assert 0 <= record["class_accuracy"] == record["accuracy"] <= 1
        assert all(map(math.isfinite, record["frechet_per_class"]))
        assert record["class_frechet"] == pytest.approx(sum(record["frechet_per_class"]) / 10)
    # One cell by hand, from the model's folder, which draws like any other.
    model = proxflow.load(out / "models" / f"{CONDITIONAL}-seed0")
    assert model.classes == tuple("0123456789")
    record = next(c for c in results["cells"] if c["rule"] == "projected" and c["interval"] != [0, 1] and c["nfe"] == 5)
    images = model.sample(60, nfe=record["predictions"], sampler="multistep2", batch_size=256, condition=labels,
                          guidance=2.0, interval=TINY.intervals[1], rule="projected")  # fmt: skip
    extract = metrics.mnist_features()
    wanted = metrics.class_scores(extract(test.images), test.labels, extract(images), labels)
    assert record["frechet_per_class"] == pytest.approx(wanted.frechet, rel=1e-3)
    kept = trials.kept_classes(out, GuidedCell(CONDITIONAL, "multistep2", 5, 0, 2.0, TINY.intervals[1], "projected"))
    assert sorted(kept) == list(range(10))
    for label, shown in kept.items():
        assert (shown == images[labels == label, 0].numpy()[:10]).all()


def test_the_models_share_data_size_and_steps(finished):
    _, results, _ = finished
    assert set(results["training"]) == {f"{name}-seed0" for name in (UNCONDITIONAL, CONDITIONAL, WEAK)}
    plain, told = (results["training"][f"{name}-seed0"] for name in (UNCONDITIONAL, CONDITIONAL))
    assert plain["training"] == told["training"]
    assert plain["data"] == told["data"]
    assert results["training"][f"{WEAK}-seed0"]["training"]["steps"] == 10
    sizes = {cell["flow"]: cell["parameters"] for cell in results["cells"]}
    assert sizes[UNCONDITIONAL] < sizes[CONDITIONAL] < 1.1 * sizes[UNCONDITIONAL]


def test_a_model_that_the_command_trained_is_taken_and_another_refused(some, finished, tmp_path, monkeypatch):
    out, told = finished[0], data.load("mnist", "train")
    examples = proxflow.Examples(told.images[:256], told.labels[:256])
    kind = ImageKind((1, 28, 28), tuple("0123456789"))
    monkeypatch.setattr(ImageKind, "read", lambda source, **_: Loaded(kind, examples, None, "a few"))
    words = ["train", "--conditional", "--network", TINY.network, "--schedule", "linear:final=0.8", "--batch-size", "8",
             "--warmup-steps", "2", "--grid", "0", "--device", "cpu"]  # fmt: skip
    setup = trials.Setup(
        TINY, tmp_path, CPU, lambda line: None, examples.x, told.images, examples.condition, told.labels
    )
    made = STUDY.trials(setup)
    ours = tmp_path / "models"
    assert main([*words, "--steps", "20", "--out", str(ours / f"{CONDITIONAL}-seed0")]) == 0
    assert main([*words, "--steps", "10", "--out", str(ours / f"{WEAK}-seed0")]) == 0
    for name in (CONDITIONAL, WEAK):
        assert trials.present(setup, name, made[name], 0)  # taken as they are
        theirs, own = (proxflow.load(path / f"{name}-seed0").predictor for path in (out / "models", ours))
        assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), own.parameters(), strict=True))
    shutil.copytree(ours / f"{WEAK}-seed0", ours / f"{CONDITIONAL}-seed1")
    with pytest.raises(OutputError, match=r"steps 10, not 20: remove it"):
        trials.present(setup, CONDITIONAL, made[CONDITIONAL], 1)
    shutil.copytree(ours / f"{CONDITIONAL}-seed0", ours / f"{CONDITIONAL}-seed2")
    with pytest.raises(OutputError, match="seed 0, not 2"):
        trials.present(setup, CONDITIONAL, made[CONDITIONAL], 2)
    fewer = replace(made[CONDITIONAL], data=examples[:100])
    with pytest.raises(OutputError, match="data "):
        trials.present(setup, CONDITIONAL, fewer, 0)


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    out, results, _ = finished

    def fail(*_, **__):
        raise AssertionError("work was started")

    monkeypatch.setattr(trials, "fit", fail)
    monkeypatch.setattr(trials, "sample", fail)
    assert trials.reproduce(STUDY, "tiny", TINY, out, CPU, lambda line: None)["cells"] == results["cells"]


def test_the_report_shows_settings_tradeoff_and_classes(finished):
    out, _, _ = finished
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    files = {path.name: path for path in trials.write_report(out, CPU)}
    assert set(files) == {"frechet-against-recall.png", "classes.png", "report.md", "report.html"}
    text = files["report.md"].read_text(encoding="utf-8")
    for word in ("w = 2, projected, 0.1 to 0.7", "w = 2, linear, away from weak", "Class accuracy", "At 5 network"):
        assert word in text
    shown = Image.open(files["classes.png"])
    assert shown.height > 10 * 56  # ten rows of digits of twice their size
    assert shown.width > 10 * 56
    assert "Guidance on MNIST" in report.block([results]) or "MNIST, preset tiny" in report.block([results])


def test_claims_are_about_one_setting():
    def cell(flow, weight, seed, frechet, recall, accuracy):
        led = {"weight": weight, "interval": [0, 1], "rule": "linear", "weak": None}
        scores = {"frechet": frechet, "recall": recall, "class_accuracy": accuracy, "floor": 0.5, "floor_recall": 0.8}
        return {"flow": flow, "sampler": "multistep2", "nfe": 20, "seed": seed, **led, **scores}

    cells = [
        cell(flow, weight, seed, frechet + seed / 8, recall, accuracy)
        for seed in (0, 1)
        for flow, weight, frechet, recall, accuracy in (
            ("unconditional", 1, 2.0, 0.7, None),
            ("conditional", 1, 1.0, 0.8, 0.97),
            ("conditional", 2, 0.5, 0.6, 0.995),
            ("conditional", 3, 3.0, 0.2, 1.0),
        )
    ]
    results = {"cells": cells, "config": {"preset": "long"}, "reference": "10000 test images of mnist"}
    found = {claim.name: claim for claim in report.claims(results)}
    assert found["unconditional-20"].values == (0.25, 0.625 / 2.125)
    assert found["accuracy"].values == (0.995, 0.995)
    assert found["recall"].values == pytest.approx((0.75, 0.75))
    assert (found["recall"].holds, found["accuracy"].holds) == (False, True)
    assert found["frechet"].threshold == 0.21
    assert found["floor"].values == (1.0, 1.25)
    clothes = {**results, "config": {"preset": "quick"}, "reference": "10000 test images of fashion-mnist"}
    found = {claim.name: claim for claim in report.claims(clothes)}
    assert (found["accuracy"].threshold, found["recall"].threshold, found["frechet"].threshold) == (None, 0.75, None)


def test_the_long_preset_has_the_steps_of_the_few_step_study():
    ours, theirs = GUIDANCE_PRESETS["long"], FEW_STEP_PRESETS["long"]
    assert (ours.training, ours.samples, ours.seeds[0]) == (theirs.training, theirs.samples, theirs.seeds[0])
    assert ours.flow == FEW_STEP_METHODS["late"].flow
    assert ours.weak_share == FEW_STEP_METHODS["short"].share
    assert EXPERIMENTS["guidance"] is GUIDANCE_PRESETS
    for preset in GUIDANCE_PRESETS.values():
        names = [cell.name for cell in cells_of(preset)]
        assert len(set(names)) == len(names)
        assert preset.nfes == (4, 10, 20)


def test_images_without_classes_are_refused(some, tmp_path, monkeypatch):
    load = data.load
    monkeypatch.setattr(data, "load", lambda *source: replace(load(*source), labels=None))
    with pytest.raises(ArgumentError, match="needs images with labels from 0 to 9"):
        trials.reproduce(STUDY, "tiny", TINY, tmp_path, CPU, lambda line: None)
