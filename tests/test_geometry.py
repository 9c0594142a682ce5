"""The geometry study: schedules matched as they say, the whole experiment at a tiny size, verdicts from the numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from proxflow import data
from proxflow.beliefs import DiagonalGaussian
from proxflow.config import TrainingConfig
from proxflow.divergences import Wasserstein2
from proxflow.errors import CheckpointError, OutputError
from proxflow.flows import GPFN
from proxflow.models import load
from proxflow.paths import Linear
from proxflow.predictors import PointPredictor
from proxflow.studies import trials
from proxflow.studies.geometry import report, study
from proxflow.studies.geometry.study import (
    CAPACITIES,
    GEOMETRIES,
    fisher_capacity,
    gaussian_capacity,
    gaussian_flows,
    inverse_of,
    knots,
    linear_capacity,
    mean_path,
    pairs,
    schedule_of,
    schedule_of_capacity,
    simplex_flows,
)
from proxflow.studies.presets import GEOMETRY_PRESETS

CPU = torch.device("cpu")
TIMES = torch.linspace(0.04, 0.96, 9, dtype=torch.float64)
CLOSED = [name for name in GEOMETRIES if name != "renyi"]


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def pixels():
    return data.to_range(data.load("mnist", "test").images[:8]).double()


@pytest.fixture(scope="module")
def paths(pixels):
    return {name: mean_path(GEOMETRIES[name], pixels, knots()) for name in CLOSED}


# Matched schedules ----------------------------------------------------------------------------------------------------


def test_kl_moves_the_mean_by_its_precision_and_reverse_kl_as_wasserstein(paths):
    times = knots()
    ratio = 0.02**-2  # of the target's precision to the prior's
    expected = times * ratio / (1 - times + times * ratio)
    torch.testing.assert_close(tensor(paths["kl"].fraction), expected)
    torch.testing.assert_close(tensor(paths["reverse-kl"].fraction), times)
    assert max(*paths["kl"].unexplained, *paths["reverse-kl"].unexplained) < 1e-12
    assert schedule_of(paths["kl"]).log_odds == pytest.approx([math.log(ratio)] * len(times), abs=1e-8)


@pytest.mark.parametrize("name", ["fisher-rao", "anisotropic"])
def test_other_geometries_do_what_no_schedule_does(paths, name):
    assert max(paths[name].unexplained) > 0.05


@pytest.mark.parametrize("name", CLOSED)
def test_a_control_goes_as_far_as_its_flow(paths, pixels, name):
    schedule = schedule_of(paths[name])
    own = mean_path(GEOMETRIES[name], pixels, TIMES)
    control = mean_path(GPFN(Wasserstein2(), schedule), pixels, TIMES)
    assert control.fraction == pytest.approx(own.fraction, abs=1e-3)
    assert max(control.unexplained) < 1e-7


@pytest.mark.parametrize("name", CLOSED)
def test_a_matched_flow_goes_as_far_as_wasserstein(paths, pixels, name):
    flow = replace(GEOMETRIES[name], schedule=inverse_of(schedule_of(paths[name])))
    assert mean_path(flow, pixels, TIMES).fraction == pytest.approx(TIMES.tolist(), abs=3e-3)


def test_the_nearest_fraction_is_the_best_in_mean_square(pixels):
    flow = GEOMETRIES["fisher-rao"]
    found = mean_path(flow, pixels, tensor([0.2]))
    noise = flow.prior(pixels.shape, torch.Generator().manual_seed(0), pixels.dtype, CPU).mean
    mean = flow.belief(pixels, tensor(0.2).expand(len(pixels)), torch.Generator().manual_seed(0)).mean
    slope, _, _, _ = np.linalg.lstsq((pixels - noise).reshape(-1, 1), (mean - noise).flatten(), rcond=None)
    assert found.fraction[0] == pytest.approx(float(slope[0]), rel=1e-9)


@pytest.mark.parametrize(("name", "control"), [("reverse-kl", "w2"), ("kl", "w2-as-kl"), ("kl-rematched", "w2")])
def test_some_flows_ask_the_network_what_wasserstein_does(paths, name, control):
    flows = gaussian_flows({**paths, "renyi": paths["fisher-rao"]})
    flows["kl-rematched"] = replace(GEOMETRIES["kl"], schedule=inverse_of(schedule_of(paths["kl"])))
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1
    t = torch.linspace(0.05, 0.95, 6)
    ours, theirs = (flows[n].belief(x, t, torch.Generator().manual_seed(2)).mean for n in (name, control))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert torch.equal(flows[name].weight(t), flows["w2"].weight(t))


def test_tabulated_beliefs_are_those_of_simulated_steps(pixels):
    flow, x = GEOMETRIES["renyi"], pixels[:2]
    for t in (0.05, 0.3, 0.6, 0.9):
        times = tensor(t).expand(len(x))
        read = flow.belief(x, times, torch.Generator().manual_seed(3))
        simulated = GPFN.drawn(flow, x, times, torch.Generator().manual_seed(3), None)
        torch.testing.assert_close(read.mean, simulated.mean, rtol=0, atol=5e-3)
        torch.testing.assert_close(read.std, simulated.std, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", [*GEOMETRIES, "w2", "w2-as-kl", "w2-as-renyi", "fisher-rao-matched"])
def test_a_flow_and_its_control_weigh_the_same_errors_alike(paths, name):
    """By the loss itself: with one prediction for every belief it is ∑ (x̂ − x)² / (d max(1 − t, 0.3)²) for all of them."""
    flow = gaussian_flows({**paths, "renyi": paths["fisher-rao"]})[name]
    draws = torch.Generator().manual_seed(5)
    x, predicted = (torch.rand(6, 1, 28, 28, generator=draws, dtype=torch.float64) * 2 - 1 for _ in range(2))
    t = tensor([0.01, 0.2, 0.5, 0.65, 0.75, 0.99])
    loss = flow.loss(lambda belief, t: DiagonalGaussian(predicted, 0.02), x, torch.Generator().manual_seed(6), t)
    expected = [
        float(((p - y) ** 2).mean()) / max(1 - float(s), 0.3) ** 2 for p, y, s in zip(predicted, x, t, strict=True)
    ]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)


# Capacities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.01, 0.5, 4.0])
def test_the_capacity_of_a_bayesian_flow_by_quadrature(accuracy):
    # Beliefs are softmax(y) with y ~ N(β(2e − 1), 2β) in both classes: log-odds y₁ − y₂ ~ N(2β, 4β) for the first.
    def integrand(odds):
        return stats.norm.pdf(odds, 2 * accuracy, 2 * math.sqrt(accuracy)) * np.log1p(np.exp(-odds))

    width = 12 * math.sqrt(accuracy)
    lost, _ = integrate.quad(integrand, 2 * accuracy - 2 * width, 2 * accuracy + 2 * width, limit=200)
    assert float(gaussian_capacity(tensor([accuracy]))) == pytest.approx(math.log(2) - lost, abs=1e-6)


@pytest.mark.parametrize("name", CAPACITIES)
def test_the_capacity_of_simplex_flows_by_counting(name):
    flow, t = simplex_flows()[f"binary-{name}"], 0.3
    number, bins = 400_000, 200
    x = torch.arange(number) % 2
    belief = flow.belief(x[:, None], tensor(t).expand(number), torch.Generator().manual_seed(0))
    angle = torch.atan2(*(belief.probs[:, 0, k].sqrt() for k in (1, 0)))  # evenly fine toward both ends
    counts, _, _ = np.histogram2d(x, angle, bins=(2, bins))
    joint = counts / number
    information = stats.entropy(joint.sum(0)) + math.log(2) - stats.entropy(joint.flatten())
    assert float(CAPACITIES[name](tensor([t]))) == pytest.approx(information, abs=3e-3)


def test_all_classes_are_certain_half_way():
    for capacity in (linear_capacity, fisher_capacity):
        assert float(capacity(tensor([0.5]))) == pytest.approx(math.log(2), rel=1e-6)
        assert float(capacity(tensor([0.0]))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", CAPACITIES)
def test_a_matched_schedule_has_the_capacity_of_the_bayesian_flow(name):
    flows = simplex_flows()
    accuracies = flows["binary-bfn"].accuracies
    schedule = schedule_of_capacity(CAPACITIES[name], gaussian_capacity(accuracies.beta(knots())))
    assert schedule == flows[f"binary-{name}-matched"].schedule
    reached = CAPACITIES[name](schedule.fraction(TIMES).clamp(max=0.5))
    torch.testing.assert_close(reached, gaussian_capacity(accuracies.beta(TIMES)), rtol=0, atol=0.01 * math.log(2))
    assert isinstance(flows[f"binary-{name}"].schedule, Linear)


# The whole experiment -------------------------------------------------------------------------------------------------

TINY = replace(
    GEOMETRY_PRESETS["quick"],
    network="mlp:width=16,depth=1",  # what is counted and written is the same with any
    training=TrainingConfig(steps=2, batch_size=4),
    samples=16,
    nfes=(1, 2),
    further_seeds=(1,),
    likelihood_images=8,
    train_images=64,
)


def run(out, said=None):
    return trials.reproduce(study.STUDY, "tiny", TINY, out, CPU, said.append if said is not None else lambda _: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole experiment on 200 test images, with fewer geometries and shorter tables."""
    patch = pytest.MonkeyPatch()
    whole = data.load
    patch.setattr(data, "load", lambda name, split: data.ImageData(name, whole(name, "test").images[:200], None))
    patch.setattr(study, "KNOTS", 9)
    patch.setattr(study, "MATCHING_IMAGES", 2)
    patch.setattr(study, "DRAWS", 2)
    out = tmp_path_factory.mktemp("geometry")
    yield out, run(out)
    patch.undo()


def test_every_flow_stands_beside_its_control(finished):
    out, results = finished
    flows = {cell["flow"] for cell in results["cells"]}
    for pair in pairs():
        assert {pair.flow, pair.control} <= flows
    assert {"w2", "reverse-kl", "kl", "fisher-rao", "renyi", "anisotropic"} <= flows
    assert {"binary-bfn", "binary-linear", "binary-fisher"} <= flows
    assert json.loads((out / "results.json").read_text()) == results
    trained = [t["training"] for t in results["training"].values()]
    assert all({**t, "seed": 0} == {**trained[0], "seed": 0} for t in trained)
    assert {t["seed"] for t in trained} == {0, 1}
    for bound in results["likelihood"]:
        assert 100 < bound["nats"] < 5000
        assert bound["standard_error"] > 0
    assert {bound["flow"] for bound in results["likelihood"]} == {f for f in flows if f.startswith("binary")}


def test_flows_that_are_the_same_function_give_the_same_samples(finished):
    _, results = finished
    for pair in results["pairs"]:
        if pair["geometry"] in ("reverse-kl", "kl"):
            assert {entry["nfe"] for entry in pair["apart"]} == {1, 2}
            assert max(entry["pixels"] for entry in pair["apart"]) < 0.1, pair["flow"]
            assert pair["weights"] < 1e-3
    assert results["pairs"][0]["flow"] == "reverse-kl"
    assert results["pairs"][0]["weights"] == 0  # its beliefs are computed by the very same operations


def test_what_is_there_is_not_done_again(finished):
    out, results = finished
    said = []
    assert run(out, said) == results
    assert said == []
    (out / "cells" / "w2-deterministic-nfe002-seed0.json").unlink()
    (out / "likelihood" / "binary-fisher-seed0.json").unlink()
    again = run(out, said)
    assert len(said) == 2
    assert again["likelihood"] == results["likelihood"]
    with pytest.raises(OutputError, match="a geometry run with samples = 16, not 17"):
        trials.reproduce(study.STUDY, "tiny", replace(TINY, samples=17), out, CPU, said.append)


def test_its_models_are_not_taken_for_others(finished):
    out, _ = finished
    with pytest.raises(CheckpointError, match="expected a model configuration of format"):
        load(out / "models" / "fisher-rao-seed0")


def test_the_report_holds_verdicts_and_numbers(finished):
    out, _ = finished
    files = trials.write_report(out, CPU)  # from the folder alone
    assert all(file.stat().st_size > 0 for file in files)
    assert {"mean-paths.png", "frechet-against-nfe.png", "pairs.png", "report.md", "report.html"} == {
        file.name for file in files
    }
    text = (out / "report.md").read_text()
    for word in (
        "geometry's",
        "schedule",
        "fisher-rao against w2-as-fisher-rao",
        "Nats an image",
        "binary-linear-matched",
    ):
        assert word in text
    assert " nan " not in text


# Verdicts -------------------------------------------------------------------------------------------------------------


def fake(flow, control, unexplained, seeds, geometry="fisher-rao", matched=False):
    """Results with given Fréchet distances {name: (one a seed)} at 5 and 10 NFE."""
    cells = [
        {"flow": name, "sampler": "deterministic", "nfe": nfe, "seed": seed, "frechet": value}
        for name, values in seeds.items()
        for seed, value in enumerate(values)
        for nfe in (5, 10)
    ]
    pair = {"flow": flow, "control": control, "geometry": geometry, "matched": matched, "weights": 0.1, "apart": []}
    return {"cells": cells, "pairs": [pair], "paths": {geometry: {"unexplained": [0.0, unexplained]}}}


@pytest.mark.parametrize(
    ("unexplained", "distances", "expected"),
    [
        (0.08, {"f": (30.0,), "c": (20.0,), "w2": (10.0, 11.0)}, "worse at 5, 10 NFE. This part is the geometry's"),
        (0.08, {"f": (10.0,), "c": (20.0,), "w2": (10.0, 11.0)}, "better at 5, 10 NFE. This part is the geometry's"),
        (0.08, {"f": (20.5,), "c": (20.0,), "w2": (10.0, 11.0)}, "no difference beyond the noise (a factor of 1.10)"),
        (0.0, {"f": (20.5,), "c": (20.0,), "w2": (10.0, 11.0)}, "nothing is left to the geometry"),
        (0.0, {"f": (30.0,), "c": (20.0,), "w2": (10.0, 11.0)}, "not the geometry's doing"),
        (0.08, {"f": (30.0,), "c": (20.0,), "w2": (10.0,)}, "the noise is unknown"),
    ],
)
def test_a_verdict_follows_from_the_numbers(unexplained, distances, expected):
    (verdict,) = report.verdicts(fake("f", "c", unexplained, distances))
    assert expected in verdict.sentence
    assert "2.00 to 2.00 times that of w2" in verdict.sentence  # the control's 20 over the 10 of w2


def test_a_control_that_is_w2_has_no_schedule_of_its_own():
    results = fake("f", "w2", 0.1, {"f": (30.0,), "w2": (10.0, 11.0)})
    (verdict,) = report.verdicts(results)
    assert verdict.schedule == {}
    assert verdict.ratios == {5: pytest.approx(3), 10: pytest.approx(3)}
    assert "Its schedule alone" not in verdict.sentence


def test_bounds_are_told_apart_only_beyond_their_error():
    def bounds(**nats):
        flows = {"binary-bfn": 97.0, "binary-linear": nats["own"], "binary-linear-matched": nats["matched"]}
        common = {"seed": 0, "standard_error": 1.0, "images": 10, "draws": 2}
        return {"likelihood": [{"flow": flow, "nats": value, **common} for flow, value in flows.items()]}

    _, table, bullets = report._likelihood(bounds(own=112.0, matched=111.0))
    assert ("binary-linear", "112.00", "1.00", "0") in table.rows
    assert "-1.00 ± 1.41 nats, within the error" in bullets.items[0]
    assert "+14.00 ± 1.41 nats, the work of the geometry" in bullets.items[0]
    *_, bullets = report._likelihood(bounds(own=112.0, matched=106.0))
    assert "-6.00 ± 1.41 nats, the work of the schedule" in bullets.items[0]


def test_the_study_predicts_points(paths, tmp_path, monkeypatch):
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    setup = trials.Setup(GEOMETRY_PRESETS["quick"], tmp_path, CPU, lambda _: None, images, images)
    monkeypatch.setattr(study, "matched", lambda _: {**paths, "renyi": paths["kl"]})
    found = study.trials_of(setup)
    assert isinstance(found["w2"].build().predictor, PointPredictor)
    assert found["binary-bfn"].data.dtype == torch.int64
    assert found["binary-bfn"].to_images(torch.ones(1, 2, dtype=torch.int64)).tolist() == [[255, 255]]
