"""The comparison with peers: each system does what it says, and the tables say what the file holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import worker
from benchmarks.peers import OURS, PRESETS, Run, cost, installed, results
from benchmarks.peers import cells as benchmark_cells
from benchmarks.sampler_overhead import Comparison, Scale
from benchmarks.systems import SYSTEMS
from benchmarks.tasks import TASKS
from proxflow import GPFN, PointPredictor, metrics
from proxflow.config import TrainingConfig
from proxflow.data import emoji
from proxflow.errors import ArgumentError
from proxflow.nn import UNet
from proxflow.samplers import Marginal
from tools import peers

ROOT = Path(__file__).parent.parent
NEEDS = {
    "flow_matching": "flow_matching",
    "torchcfm": "torchcfm",
    "torchcfm-ot": "torchcfm",
    "azula": "azula",
    "rectified-flow-pytorch": "rectified_flow_pytorch",
    "diffusers flow": "diffusers",
    "diffusers epsilon": "diffusers",
    "proxflow gpfn-w2-ot": "ot",
}
TOY = TASKS["toy"]


def system(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return SYSTEMS[name](TOY)


class Bent(torch.nn.Module):
    """A network in closed form that counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale, self.calls = torch.nn.Parameter(torch.tensor(0.7)), 0

    def forward(self, x, t):
        self.calls += 1
        return torch.sin(2 * self.scale * x + t.reshape(-1, 1))


def loss(name, count):
    made = system(name)
    torch.manual_seed(3)
    return made.loss(made.model(Bent()), TOY.data()[:count], torch.Generator(), torch.rand(count)).detach()


def test_systems_of_one_objective_minimise_the_same_number():
    assert {kind.objective for kind in SYSTEMS.values()} < set(SYSTEMS) | {"velocity", "velocity-ot"}
    flow_matching, torchcfm, diffusers = (loss(n, 4000) for n in ("flow_matching", "torchcfm", "diffusers flow"))
    torch.testing.assert_close(flow_matching, torchcfm)
    # The levels of the third are multiples of 1/1000.
    assert float(diffusers.mean()) == pytest.approx(float(flow_matching.mean()), rel=1e-3)
    assert float(loss("torchcfm-ot", 256).mean()) < 0.7 * float(loss("torchcfm", 256).mean())  # its ways are short


def test_transport_tells_this_library_more_of_the_data_as_well():
    apart, near = (loss(name, 256).mean() for name in ("proxflow gpfn-w2", "proxflow gpfn-w2-ot"))
    assert float(near) < 0.95 * float(apart)


@pytest.mark.parametrize("name", [name for name, kind in SYSTEMS.items() if kind.twin])
def test_twins_minimise_the_same_number(name):
    torch.testing.assert_close(loss(name, 400).mean(), loss(SYSTEMS[name].twin, 400).mean())


@pytest.mark.parametrize("name", [name for name, kind in SYSTEMS.items() if kind.twin])
@pytest.mark.parametrize("sampler", ["euler", "midpoint"])
def test_twins_draw_the_same_samples(name, sampler):
    one, other = (
        system(each).samplers()[sampler](Bent(), (5, 2), 8, torch.Generator().manual_seed(1)).detach()
        for each in (name, SYSTEMS[name].twin)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_no_sampler_spends_more_than_it_is_given(name):
    made = system(name)
    for sampler, draw in made.samplers().items():
        for nfe in (1, 2, 5, 20):
            network = Bent()
            model = made.model(network).eval()
            try:
                samples = draw(model, (3, 2), nfe, torch.Generator().manual_seed(1))
            except ArgumentError:
                assert nfe < 4, sampler
                continue
            assert nfe - 3 <= network.calls <= nfe, sampler
            assert samples.shape == (3, 2)
            assert samples.isfinite().all(), sampler


def test_eight_gaussians_are_scored_by_the_distance_of_what_moved():
    points = TOY.draw(4000, 2)
    assert TOY.score(points) == pytest.approx(0, abs=1e-6)  # they are the very points it compares with
    # A shift by v moves the projection on u by ⟨u, v⟩, whose square is on average |v|²/2.
    assert TOY.score(points + torch.tensor([0.3, 0.4])) == pytest.approx(0.5 / math.sqrt(2), rel=1e-5)
    assert 0 < TOY.floor(4000) < 0.1
    assert TOY.data().var(0).tolist() == pytest.approx([1.01, 1.01], rel=0.02)


def test_a_worker_trains_and_samples_what_it_is_told(tmp_path):
    job = {"system": "proxflow gpfn-w2", "task": "toy", "seed": 0}

    def work(**more):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", json.dumps({**job, **more})],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    assert work(job="train", steps=2, folder=str(tmp_path))["seconds"] > 0
    cells = [{"sampler": "multistep2", "nfe": 3, "path": str(tmp_path / "cell.json")}]
    work(job="sample", weights=str(tmp_path / "weights.safetensors"), samples=64, cells=cells)
    record = json.loads((tmp_path / "cell.json").read_text())
    assert (record["evaluations"], record["nfe"], record["sampler"]) == (3, 3, "multistep2")
    assert record["sliced_wasserstein"] > 0


def test_emoji_are_held_against_those_of_other_code_points():
    task = TASKS["emoji"]
    train, test = (set(emoji.code_points(split)) for split in ("train", "test"))
    assert (tuple(task.data().shape), tuple(task.test.shape)) == ((3547, 3, 32, 32), (379, 3, 32, 32))
    assert not train & test
    assert task.extractor.name == "emoji-classifier"
    assert task.nfes == (1, 2, 4, 10, 20)
    images = task.test[:300].float() / 127.5 - 1
    real, found = (task.extractor(part) for part in (task.test, task.test[:300]))
    distance = metrics.frechet_distance(*(metrics.GaussianStatistics.of(part, "x") for part in (found, real)))
    assert task.score(images) == pytest.approx(float(distance), rel=1e-6)
    assert task.floor(300) > 0
    output = task.network()(images[:2], torch.rand(2))
    assert output.shape == (2, 3, 32, 32)


def test_every_system_runs_on_emoji_by_one_command(tmp_path, monkeypatch):
    # In this process, as a process for each of their jobs would import everything anew; each with its cheapest sampler.
    def work(run, **job):
        if job["job"] == "memory":
            return {"bytes": 1, "versions": {}}
        if job["job"] == "samplers":
            return {"names": worker.samplers(job)["names"][:1]}
        if job["job"] == "overheads":
            made, model = worker.make(job)
            name = next(iter(made.samplers()))
            return {name: worker.overhead(made, model.eval(), name, 4, repeats=1)}
        return json.loads(json.dumps(worker.JOBS[job["job"]]({**job, "turns": 1})))

    monkeypatch.setattr(Run, "work", work)
    monkeypatch.setattr("benchmarks.peers.working_processes", lambda: 1)  # whose global generator they would share
    preset = replace(
        PRESETS["smoke"],
        steps={"emoji": 1},
        samples={"emoji": 12},
        seeds={"emoji": (0, 1)},
        processes=2,
        chunk={"emoji": 1},
    )
    monkeypatch.setattr(type(TASKS["emoji"]), "training", lambda task, steps, seed: TrainingConfig(steps, 4, seed=seed))
    small = {"channels": 8, "multipliers": (1,), "patch": 8}
    monkeypatch.setattr(type(TASKS["emoji"]), "network", lambda task: UNet(task.shape, **small))
    systems = installed({})
    found = results(Run(tmp_path, preset, {}, lambda line: None, systems), "smoke", "emoji")
    assert (found["experiment"], found["config"]["task"], found["extractor"]["name"]) == (
        "peers",
        "emoji",
        "emoji-classifier",
    )
    assert found["reference"] == "379 test images of emoji"
    assert {(row["system"], row["nfe"]) for row in found["rows"]} == {
        (s, n) for s in systems for n in (1, 2, 4, 10, 20)
    }
    assert found["left_out"] == [name for name in SYSTEMS if name not in systems]
    for row in found["rows"]:
        assert row["runs"]["seeds"] == [0, 1]
        assert row["frechet"] == pytest.approx(sum(row["runs"]["frechet"]) / 2)
        assert row["evaluations"] <= row["nfe"]
        assert row["train_steps_ratio"] > 0
    if "azula" in systems and "torchcfm" in systems and "flow_matching" in systems:
        by_system = {row["system"]: row["frechet"] for row in found["rows"]}
        assert by_system["torchcfm"] == by_system["flow_matching"]
        found["hardware"]["processor"] = "Abacus"
        text = peers.emoji_block([found])
        assert "1 training steps of 64 images" in text
        assert "| best here over best peer |" in text
        assert "12 samples an entry against 379 test images of emoji; features emoji-classifier" in text
        assert "perceptron" not in text


def test_screening_finds_each_systems_sampler_by_draws_that_are_not_scored(tmp_path, monkeypatch):
    jobs = []
    # What a sampler scores in the screening; euler would be better by the scores that follow.
    screened = {("euler", 1): 9.0, ("euler", 4): 2.0, ("heun2", 4): 3.0, ("euler", 20): 2.0, ("heun2", 20): 1.0}

    def work(run, **job):
        if job["job"] == "samplers":
            return {"names": ["euler", "heun2"] if job["system"] == "flow_matching" else ["euler"]}
        if job["job"] == "sample":
            jobs.append(job)
            for cell in job["cells"]:
                key = (cell["sampler"], cell["nfe"])
                value = screened.get(key) if "noise" in job else {"euler": 1.0, "heun2": 2.0}[cell["sampler"]]
                if value is not None:  # None: too few evaluations for a step of it
                    named = {"sampler": cell["sampler"], "nfe": cell["nfe"], "seed": job["seed"], "frechet": value}
                    Path(cell["path"]).write_text(json.dumps(named))
        return {}

    monkeypatch.setattr(Run, "work", work)
    monkeypatch.setattr(type(TASKS["mnist"]), "nfes", (1, 4, 20, 50, 100))
    preset = replace(PRESETS["smoke"], samples={"mnist": 96}, far=50, most=50, screen={"mnist": 8})
    run = Run(tmp_path, preset, {}, lambda line: None, ("flow_matching", "torchcfm"))
    found = [(cell["sampler"], cell["nfe"], cell["seed"]) for cell in benchmark_cells(run, "mnist", 1, "flow_matching")]
    assert found == [("euler", 1, 1), ("euler", 4, 1), ("heun2", 20, 1), ("heun2", 50, 1)]
    assert [(job["seed"], job["samples"], job.get("noise")) for job in jobs] == [
        (0, 8, 1000),
        (1, 96, None),
        (1, 96, None),
    ]
    # A system that draws as another does takes its draws, of the samplers that it has.
    others = benchmark_cells(run, "mnist", 1, "torchcfm")
    assert {(cell["system"], cell["sampler"]) for cell in others} == {("torchcfm", "euler")}
    assert [cell["nfe"] for cell in others] == [1, 4, 20, 50]


def test_a_system_that_is_not_installed_is_left_out_unless_it_has_an_interpreter(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.find_spec", lambda package: package != "azula" or None)
    assert set(SYSTEMS) - set(installed({})) == {"azula"}
    assert installed({"azula": "elsewhere/python"}) == tuple(SYSTEMS)


@pytest.mark.parametrize("streams", [False, True])
def test_the_loops_cost_is_what_lies_between_the_networks_calls(streams, monkeypatch):
    # A clock that ticks once a look, and three times in each of the three steps between four calls.
    ticks = iter(map(float, range(1000)))
    monkeypatch.setattr("time.process_time", lambda: next(ticks))

    class Slow(Marginal):
        def step(self, *given):
            next(ticks), next(ticks), next(ticks)
            return super().step(*given)

    predictor = PointPredictor(Scale(), GPFN(), parameterisation="x").eval()
    compared = Comparison(Slow(), predictor, GPFN(), (3, 2), 4, streams)
    assert compared.loop(2) == (9 / 4, [9 / 4, 9 / 4])
    assert compared.runs(2) == [10, 10]
    assert not predictor.network._forward_hooks


def fake_results():
    def row(name, sampler, nfe, frechet, ratio):
        return {
            "system": name, "sampler": sampler, "nfe": nfe, "evaluations": nfe, "frechet": frechet, "floor": 0.5,
            "sliced_wasserstein": frechet / 100, "train_steps_ratio": ratio, "sampler_overhead": 1.01,
            "peak_memory_ratio": 0.9, "runs": {
                "train_steps_ratio": [ratio - 0.1, ratio, ratio, ratio, ratio + 0.1],
                "frechet": [frechet * 1.1, frechet * (0.9 if name == "peer" else 0.99)],
            },
        }  # fmt: skip

    rows = [
        row(name, sampler, nfe, scale * worse / nfe, ratio)
        for name, scale, ratio in (("proxflow gpfn-w2", 40, 1.0), ("peer", 44, 0.83))
        for sampler, worse in (("plain", 2), ("better", 1))
        for nfe in (4, 10, 20)
    ]
    rows[-1]["frechet"] = 1.0  # the peer's better sampler wins at 20
    return {
        "config": {
            "preset": "quick",
            "steps": {"mnist": 1000, "toy": 3000},
            "samples": {"mnist": 384, "toy": 8192},
            "seeds": {"mnist": [0], "toy": [0, 1]},
        },
        "hardware": {"processor": "Some Processor"},
        "versions": {"torch": "2.13.0", "azula": "0.11.1"},
        "extractor": {"name": "mnist-classifier", "sha256": "0123456789abcdef"},
        "reference": "10000 test images of mnist",
        "rows": rows,
        "toy_rows": rows,
    }


def test_the_tables_name_winners_and_losses():
    text = peers.full_block(fake_results())
    assert "| proxflow gpfn-w2 | **10.0 better** | **4.00 better** | 2.00 better |" in text
    assert "| peer | 11.0 better | 4.40 better | **1.00 better** |" in text
    # By seeds: 11 over 12.1 and 9.9 over 9.9 at 4.
    assert "| best here over best peer | 0.91 (0.91–1.00) | 0.91 (0.91–1.00) | 2.00 (0.91–1.00) |" in text
    said = "is slower than peer, 0.830 (0.830–0.830); against itself it measures 1.000 (1.000–1.000)."
    assert f"Training the U-Net {said} Training the perceptron {said}" in text
    assert "costs +1.0% over its network calls" in text
    for condition in ("1,000 training steps", "384 samples", "0123456789ab", "azula 0.11.1", "Some Processor", "0.50"):
        assert condition in text
    assert "| peer | 0.830 (0.830–0.830) | 1.010–1.010 | 0.90 |" in text
    short = peers.summary_block(fake_results())
    assert "| best here over best peer | 0.91" in short
    assert "Training the U-Net is slower than peer" in short
    assert "| peer | 11.0 better |" in short


@pytest.mark.parametrize(
    ("above", "slower"), [(0, True), (1, True), (2, False), (4, False), (8, False)]
)  # 1 of 8 or fewer has probability 9/256, 2 or fewer 37/256
def test_slower_is_said_only_where_more_processes_show_it_than_chance(above, slower):
    results = fake_results()
    for row in results["rows"]:
        if row["system"] == "peer":
            row["runs"]["train_steps_ratio"] = [1.02] * above + [0.98] * (8 - above)
    text = peers.full_block(results)
    assert ("Training the U-Net is slower than peer, " in text) == slower
    assert ("Training the U-Net is no slower than any peer beyond chance (the lowest" in text) == (not slower)


def test_the_kept_results_have_what_the_table_needs():
    kept = json.loads((ROOT / "results" / "peers" / "results.json").read_text())
    for row in kept["rows"]:
        assert row["evaluations"] <= row["nfe"]
        costs = {"train_steps_ratio", "sampler_overhead", "peak_memory_ratio"}
        assert {"system", "sampler", "nfe", "frechet", "floor", "runs"} | costs <= set(row)
    assert {row["system"] for row in kept["rows"]} == set(SYSTEMS) - set(kept["left_out"])
    assert kept["hardware"]["processor"]


def test_the_ratio_is_their_time_over_ours_whichever_is_made_first(tmp_path, monkeypatch):
    seconds = {OURS: [1.0, 3.0], "torchcfm": [2.0, 6.0]}
    orders = []

    def work(run, **job):
        if job["job"] == "memory":
            return {"bytes": 1, "versions": {}}
        orders.append(job.get("systems"))
        return {"seconds": [seconds[name] for name in job["systems"]]} if job["job"] == "race" else {}

    monkeypatch.setattr(Run, "work", work)
    found = cost(Run(tmp_path, PRESETS["smoke"], {}, print), "toy", "torchcfm")
    assert found["train_steps_ratios"] == [2.0, 2.0]
    assert orders == [(OURS, "torchcfm"), ("torchcfm", OURS), None]
