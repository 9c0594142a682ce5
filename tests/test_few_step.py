"""The few-step study: its counted costs, its cells, its report."""

import json
from dataclasses import replace

import pytest
import torch

from proxflow import data
from proxflow.config import TrainingConfig
from proxflow.errors import OutputError
from proxflow.studies import trials
from proxflow.studies.few_step import report
from proxflow.studies.few_step import study as few_step
from proxflow.studies.presets import EXPERIMENTS, FEW_STEP_METHODS, FEW_STEP_PRESETS, FewStepPreset
from proxflow.studies.scoreboard import Scoreboard

TINY = FewStepPreset(
    network="mlp:width=16,depth=1",  # what is counted and written is the same with any
    training=TrainingConfig(steps=60, batch_size=8, checkpoint_every=100, warmup_steps=2),
    samples=48,
    minutes="",
    seeds=(0,),
    nfes=(1, 4, 20),
    train_images=256,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("ot")  # for the method with optimal transport
    out = tmp_path_factory.mktemp("few-step")
    load = data.load

    def first(source, split):
        whole = load(source, split)
        return data.ImageData(whole.name, whole.images[:300], None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", first)
        yield out, trials.reproduce(few_step.STUDY, "tiny", TINY, out, torch.device("cpu"), lambda line: None)


def test_every_method_has_its_cells_and_its_cost(finished):
    _, results = finished
    board = Scoreboard(tuple(results["cells"]))
    assert list(board.flows) == list(FEW_STEP_METHODS)
    cost = {cell["method"]: cell["train_cost"] for cell in results["cells"]}
    for name, method in FEW_STEP_METHODS.items():
        before = sum(cost[other] for other in (method.teacher, method.weak) if other is not None)
        assert cost[name] == pytest.approx(method.share + before, rel=0.02), name
        assert cost[name] <= 2.02
    # A step of distribution matching is 7 passes, a plain one 3.
    assert results["training"]["matched-seed0"]["training"]["steps"] == round(60 * 2 / 3 * 3 / 7)
    # Of guidance 5: two more forward passes. It pays for the model that it leads away from as well.
    assert results["training"]["guided-seed0"]["training"]["steps"] == round(60 * 0.25 * 3 / 5)
    assert cost["guided"] == pytest.approx(1 + 0.15 + 0.25, abs=0.02)
    sizes = {cell["method"]: cell["parameters"] for cell in results["cells"]}
    assert len({size for name, size in sizes.items() if name not in ("long-step", "draws")}) == 1


def test_what_is_not_repeated_has_the_first_seed_alone():
    cells = few_step.cells_of(replace(TINY, seeds=(3, 4)))
    for name, method in FEW_STEP_METHODS.items():
        assert {cell.seed for cell in cells if cell.flow == name} == ({3, 4} if method.repeated else {3})


def test_at_one_evaluation_there_is_one_cell_a_method_and_seed(finished):
    _, results = finished
    once = [(cell["method"], cell["seed"]) for cell in results["cells"] if cell["nfe"] == 1]
    assert len(once) == len(set(once))


def test_a_second_call_has_nothing_to_do(finished, monkeypatch):
    out, results = finished

    def fail(*_, **__):
        raise AssertionError("work was started")

    monkeypatch.setattr(trials, "fit", fail)
    monkeypatch.setattr(trials, "sample", fail)
    assert (
        trials.reproduce(few_step.STUDY, "tiny", TINY, out, torch.device("cpu"), lambda line: None)["cells"]
        == results["cells"]
    )
    with pytest.raises(OutputError, match="a few-step run with preset = tiny, not other"):
        trials.reproduce(few_step.STUDY, "other", TINY, out, torch.device("cpu"), lambda line: None)


def test_the_report_names_what_holds(finished):
    out, _ = finished
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    files = trials.write_report(out, torch.device("cpu"))
    assert all(path.stat().st_size > 0 for path in files)
    text = (out / "report.md").read_text(encoding="utf-8")
    for name in FEW_STEP_METHODS:
        assert name in text
    found = {claim.name: claim for claim in report.claims(results)}
    # Two and ten evaluations are not among the tiny ones.
    assert list(found) == ["4-of-20", "1-of-20", "4-of-best-20", "floor", "precision", "recall"]
    assert found["4-of-20"].threshold == 1.0
    board = Scoreboard(tuple(results["cells"]))
    method, sampler = report.best(board, 4)
    for seed, value in zip((0,), found["4-of-20"].values, strict=False):
        plain = board.one("plain", "deterministic", 20, seed)
        assert value == pytest.approx(board.one(method, sampler, 4, seed) / plain)


def test_every_preset_can_be_asked_for():
    assert EXPERIMENTS["few-step"] is FEW_STEP_PRESETS
    for preset in FEW_STEP_PRESETS.values():
        names = preset.methods
        for place, name in enumerate(names):
            for needed in (FEW_STEP_METHODS[name].teacher, FEW_STEP_METHODS[name].weak):
                assert needed is None or needed in names[:place]


def test_every_method_has_a_colour_of_its_own():
    colours = report._COLOURS
    assert list(colours) == list(FEW_STEP_METHODS)
    assert len(set(colours.values())) == len(colours)
