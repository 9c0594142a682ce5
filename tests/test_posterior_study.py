"""The study of posterior sampling: its problems against closed forms, its scores, its pieces and its report."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import integrate

from proxflow.data import GaussianMixtureLaw
from proxflow.errors import ArgumentError
from proxflow.studies import trials
from proxflow.studies.posterior import problems, report, scores, study, systems
from proxflow.studies.posterior.problems import Normal, seeded
from proxflow.studies.presets import EXPERIMENTS, POSTERIOR_PRESETS, PosteriorPreset

TINY = PosteriorPreset(
    minutes="",
    problems={"4": {"4": 2}},
    observed=(1,),
    samples=64,
    dimensions=(2,),
    noises=(0.5,),
    draws=200,
    evaluations=3,
    few=2,
    limit=4,
    signal=16,
    signals=1,
    signal_samples=40,
    sweeps=80,
    pictures=2,
    picture_draws=3,
    picture_steps=(2,),
)
CPU = torch.device("cpu")


def test_the_mixture_is_one_of_gaussians():
    problem, _ = problems.mixture(4, 2, 3, seed=1)
    law = problem.predictor.law
    eye = torch.eye(4, dtype=torch.float64) / problem.scale**2
    whole = GaussianMixtureLaw(law.weights, law.means / problem.scale, eye.repeat(25, 1, 1))
    y, a, b = 0.4 * torch.randn(6, 4, generator=seeded(1)).double(), torch.rand(6, generator=seeded(2)).double(), 0.3
    torch.testing.assert_close(law.posterior_mean(y, a, b), whole.posterior_mean(y, a, b))
    torch.testing.assert_close(law.log_density(y, 0.1), whole.log_density(y, 0.1))
    torch.testing.assert_close(
        law.posterior_mean(y.float(), a, b).double(), whole.posterior_mean(y, a, b), rtol=1e-3, atol=1e-4
    )
    drawn = law.sample(4000, seeded(3), dtype=torch.float64)
    mean = law.weights @ law.means / problem.scale
    assert float((drawn.mean(0) - mean).abs().max()) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("observed", [1, 4])
def test_draws_from_the_mixture_given_an_observation_have_its_moments(observed):
    problem, draw = problems.mixture(4, observed, 0, seed=2)
    law, a, noise = problem.predictor.law, problem.operator.matrix.double() / problem.scale, problem.noise
    assert a.shape == (observed, 4)
    assert noise <= float(torch.linalg.svdvals(a)[0]) <= 1
    y, eye = problem.observation[0].double(), torch.eye(4, dtype=torch.float64)
    parts = [problems.conditioned(mean, eye, a, y, noise) for mean in law.means]
    seen = torch.distributions.MultivariateNormal(
        law.means @ a.mT, noise**2 * torch.eye(observed).double() + a @ a.mT
    )  # fmt: skip
    share = (law.weights.log() + seen.log_prob(y)).softmax(0)
    mean = sum(w * part.mean for w, part in zip(share, parts, strict=True))
    spread = sum(
        w * (part.covariance + torch.outer(part.mean - mean, part.mean - mean))
        for w, part in zip(share, parts, strict=True)
    )
    found = draw(20_000, seeded(4))
    assert bool(((found.mean(0) - mean).abs() < 4.5 * (spread.diagonal() / 20_000).sqrt()).all())
    assert scores.against_draws(found[:2000], draw(2000, seeded(5)), 0) < 1.5


def test_standard_scores_tell_draws_from_what_is_biased():
    _, posterior = problems.gaussian("correlated", 16, "few", 0.1, seed=3)
    factor = torch.linalg.cholesky(posterior.covariance)
    right = posterior.mean + torch.randn(20_000, 16, generator=seeded(1), dtype=torch.float64) @ factor.mT
    found = {name: value for name, (value, _) in scores.against_normal(right, posterior).items()}
    assert abs(found["mean"]) < 4
    assert abs(found["covariance"]) < 4
    assert found["bures"] < 0.05
    assert abs(found["coverage90"] - 0.9) < 0.005
    assert abs(found["coverage90-worst"] - 0.9) < 0.015
    moved = {name: v for name, (v, _) in scores.against_normal(right + 0.1, posterior).items()}
    assert moved["mean"] > 10
    assert moved["bures"] == pytest.approx(0.4, abs=0.02)
    narrow = posterior.mean + 0.5 * (right - posterior.mean)
    assert scores.against_normal(narrow, posterior)["coverage90"][0] == pytest.approx(0.589, abs=0.01)
    one = Normal(torch.zeros(1).double(), torch.eye(1).double())
    assert scores.against_normal(right[:, :1], one)["covariance"][0] > 100


@pytest.mark.parametrize("law", ["standard", "correlated"])
@pytest.mark.parametrize(
    ("d", "kind"), [(2, "few"), (2, "square"), (16, "deficient"), (16, "square"), (64, "square"), (64, "deficient")]
)
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_what_is_exact_is_within_three_standard_errors_at_20000_draws(law, d, kind, noise):
    problem, posterior = problems.gaussian(law, d, kind, noise, seed=3)
    setting = systems.OURS["flower-draw" if law == "standard" else "jfps-draw"]
    found = scores.against_normal(systems.ours(problem, setting, 20_000, 2, seed=8), posterior)
    assert abs(found["mean"][0]) < 3
    assert abs(found["covariance"][0]) < 3
    assert 0.885 < found["coverage90"][0] < 0.915
    assert 0.885 < found["coverage90-worst"][0] < 0.915


def test_signals_have_independent_increments():
    total = problems.running_sum(16)
    steps = torch.eye(16, dtype=torch.float64) - torch.diag(torch.ones(15, dtype=torch.float64), -1)
    torch.testing.assert_close(steps @ total @ total.mT @ steps.mT, torch.eye(16, dtype=torch.float64) / 16)
    fourier = problems.signal_operator("fourier", 64)
    torch.testing.assert_close(fourier @ fourier.mT, torch.eye(16, dtype=torch.float64))
    assert problems.signal_operator("sampling", 64).shape == (16, 64)
    kernel = problems.signal_operator("convolution", 64)
    torch.testing.assert_close(kernel.sum(1), torch.ones(64, dtype=torch.float64))


def quadrature(y, a, b):
    """Return log p(y) and E[x | y] of y = a x + b ε for a Laplace x of variance 1, by adaptive quadrature."""

    def part(x, power):
        return x**power * math.exp(-(((y - a * x) / b) ** 2) / 2 - math.sqrt(2) * abs(x))

    ends = sorted({-30.0, 0.0, min(max(y / a, -29.0), 29.0), 30.0})
    total, first = (
        sum(integrate.quad(part, *pair, args=(power,), epsabs=1e-13, limit=300)[0] for pair in pairwise(ends))
        for power in (0, 1)
    )
    return math.log(total / (2 * b * math.sqrt(math.pi))), first / total


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.02), (0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.01, 0.99), (0.002, 0.998)])
@pytest.mark.parametrize("y", [0.003, 0.3, -2.0])
def test_the_prediction_of_laplace_numbers_is_exact(y, a, b):
    law, at = problems.LaplaceLaw(1), torch.tensor([[y]], dtype=torch.float64)
    log_density, mean = quadrature(y, a, b)
    assert float(law.posterior_mean(at, a, b)) == pytest.approx(mean, abs=1e-6)
    found = law._condition(at, torch.full((1, 1), a).double(), torch.full((1, 1), b).double())[0]
    assert float(found) == pytest.approx(log_density, abs=2e-5)


def test_laplace_numbers_have_their_law():
    x = problems.LaplaceLaw(2).sample(50_000, seeded(1), dtype=torch.float64).flatten().abs()
    assert abs(float(x.square().mean()) - 1) < 5 * math.sqrt(5 / 100_000)
    for quantile in (0.1, 0.5, 0.9):
        assert abs(float((x < -math.log1p(-quantile) / math.sqrt(2)).double().mean()) - quantile) < 0.006


def test_gibbs_draws_from_the_posterior_of_laplace_numbers():
    """Against the density on a grid, with one direction that is seen well and one that is hardly seen."""
    a = torch.tensor([[1.0, 0.9], [0.1, -0.1]], dtype=torch.float64)
    y, noise = torch.tensor([1.2, 0.1], dtype=torch.float64), 0.2
    found = problems.gibbs(a, y, noise, 60, 800, seeded(2), burn=100).flatten(0, 1)
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = (-(y - grid @ a.mT).square().sum(1) / (2 * noise**2) - math.sqrt(2) * grid.abs().sum(1)).softmax(0)
    for k in range(2):
        below = density.reshape(1201, 1201).sum(1 - k).cumsum(0)
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            place = axis[int((below < level).sum())] + 0.005
            assert abs(float((found[:, k] < place).double().mean()) - level) < 0.015
    alone = problems.gibbs(torch.ones(1, 1).double(), torch.full((1,), 0.4).double(), 0.5, 300, 200, seeded(3), burn=50)
    assert float(alone.mean()) == pytest.approx(quadrature(0.4, 1.0, 0.5)[1], abs=0.01)


@pytest.mark.parametrize("law", problems.SIGNAL_LAWS)
def test_draws_from_the_posterior_of_a_signal_cover_it(law):
    given = problems.signal(law, "sampling", 16, 0, 1, 9, 1000)
    found = scores.of_intervals(given.draw(1000), given.below)
    assert found["coverage50"][0] == pytest.approx(0.5, abs=0.06)
    assert found["coverage90"][0] == pytest.approx(0.9, abs=0.04)
    seen = given.problem.operator.matrix @ torch.linalg.inv(given.back)
    torch.testing.assert_close(seen, problems.signal_operator("sampling", 16))


@pytest.mark.parametrize("method", ["diffpir", "mmps", "tmpd", "jfps"])
def test_azula_is_given_the_same_problem(method):
    """Whatever the schedule, on Gaussian data azula's last target is that of the same method here: both see one problem."""
    pytest.importorskip("azula.guidance")
    problem, posterior = problems.gaussian("correlated", 4, "few", 0.3, seed=5)
    setting = replace(systems.AZULA[method], eta=0.0, iterations=4, strength=1.0)
    found = systems.azula(problem, setting, 1000, 40, seed=1)
    assert found.shape == (1000, 4)
    gap = float((found.mean(0) - posterior.mean).norm() / posterior.std.norm())
    assert gap < (0.15 if method in ("mmps", "jfps") else 1.5)
    if method == "mmps":
        assert scores.against_normal(found, posterior)["bures"][0] < 0.2
    assert torch.equal(found, systems.azula(problem, setting, 1000, 40, seed=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("posterior"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "TASKS", ("lower half", "superres 4"))
        patch.setattr(study, "_PICTURES", ("flower", "mmps"))
        patch.setattr(study, "_PICTURES_AZULA", ("mmps",))
        patch.setattr(problems, "OPERATORS", ("few", "deficient"))
        patch.setattr(problems, "SIGNAL_OPERATORS", ("sampling", "fourier"))
        results = trials.reproduce(study.STUDY, "tiny", TINY, out, CPU, said.append)
        again = []
        assert trials.reproduce(study.STUDY, "tiny", TINY, out, CPU, again.append)["rows"] == results["rows"]
        assert not again
    return out, results, said


def test_rows_have_their_fixed_form(finished):
    out, results, said = finished
    assert json.loads((out / "results.json").read_text()) == results
    keys = {"benchmark", "system", "method", "dimension", "observed", "steps", "metric", "value", "error", "seconds"}
    assert all(keys <= set(row) for row in results["rows"])
    assert {row["benchmark"] for row in results["rows"]} == {"gaussian", "mixture", "increments", "images"}
    wanted = set(study.systems())
    assert {row["system"] for row in results["rows"]} == wanted
    mixture = [row for row in results["rows"] if row["benchmark"] == "mixture"]
    assert {row["method"] for row in mixture if row["system"] == "proxflow"} == {
        name for name in systems.OURS if not name.startswith("jfps")
    }
    assert all(row["problems"] == 2 and row["error"] is not None for row in mixture)
    assert results["pieces"] == {"done": len(said), "of": len(said)}
    exact = [row for row in results["rows"] if row["method"] == "jfps-draw" and row["metric"] == "mean"]
    assert exact
    assert all(abs(row["value"]) < 4 for row in exact)


def test_a_run_that_is_stopped_leaves_results_of_what_is_done(finished, monkeypatch, tmp_path):
    def piece(name, value):
        def rows():
            if value is None:
                raise KeyboardInterrupt
            return [{**finished[1]["rows"][0], "benchmark": "images", "value": value}]

        return study.Piece(name, rows)

    monkeypatch.setattr(
        study, "pieces", lambda *_: [piece("a", 1.0), piece("b", 2.0), piece("c", None), piece("d", 4.0)]
    )
    with pytest.raises(KeyboardInterrupt):
        trials.reproduce(study.STUDY, "tiny", TINY, tmp_path, CPU, lambda _: None)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["pieces"] == {"done": 2, "of": 4}
    assert [row["value"] for row in found["rows"]] == [1.0, 2.0]


def test_the_report_has_every_table_and_picture(finished):
    out, results, _ = finished
    files = {path.name for path in trials.write_report(out, CPU)}
    assert {"report.md", "report.html", "images-lower-half-all-methods-002.png"} <= files
    text = (out / "report.md").read_text()
    for word in (
        "particles-1024",
        "flower-draw",
        "PSNR, dB",
        "gaussian, fourier",
        "laplace, sampling",
        "4 | 1 | 4 | 2 |",
    ):
        assert word in text
    assert "### Preset tiny" in report.block([results])


def test_the_best_of_both_are_compared_within_their_error():
    def row(system, value, error, method="mmps"):
        return {"benchmark": "mixture", "system": system, "method": method, "dimension": 8, "observed": 1, "steps": 20,
                "metric": "sliced_wasserstein", "value": value, "error": error, "seconds": 1.0, "problems": 5}  # fmt: skip

    def verdict(ours, theirs):
        floors = [row("truth", 0.5, None)]
        return report.duels({"rows": [row("proxflow", *ours), *theirs], "floors": floors})[0].verdict

    assert verdict((1.0, 0.1), [row("azula", 2.0, 0.1), row("azula", None, None, "dps")]) == "lower"
    assert verdict((2.1, 0.1), [row("azula", 2.0, 0.1)]) == "within error"
    assert verdict((3.0, 0.1), [row("azula", 2.0, 0.1)]) == "higher"
    assert verdict((3.0, 0.1), []) == "–"


def test_without_azula_the_study_runs_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "has_azula", lambda: False)
    monkeypatch.setattr(study, "pieces", lambda *_: [])
    said = []
    trials.reproduce(study.STUDY, "tiny", TINY, tmp_path, CPU, said.append)
    assert "azula is not installed" in said[0]
    assert study.systems() == ("proxflow",)


def test_pictures_that_the_package_has_no_model_of_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="models of mnist and fashion-mnist: give --model one of letters"):
        trials.reproduce(study.STUDY, "tiny", TINY, tmp_path, CPU, print, "letters")
    assert not list(tmp_path.iterdir())


def test_clothes_are_restored_by_the_model_of_clothes_and_nothing_else_is_done(monkeypatch, tmp_path):
    done = []

    def restored(preset, seed, dataset, out, device, system, task, steps, name):
        done.append((preset.model, dataset))
        return []

    monkeypatch.setattr(study, "restored", restored)
    trials.reproduce(study.STUDY, "tiny", TINY, tmp_path, CPU, print, "fashion-mnist")
    assert set(done) == {("fashion-mnist-classes", "fashion-mnist")}
    methods = sum(map(len, (study._PICTURES, study._PICTURES_AZULA)[: len(study.systems())]))
    assert len(done) == methods * len(study.TASKS)
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "fashion-mnist-classes"


def test_presets_say_what_is_asked():
    assert EXPERIMENTS["posterior"] is POSTERIOR_PRESETS
    assert POSTERIOR_PRESETS["long"].problems == {steps: {"8": 20, "80": 20, "800": 20} for steps in ("20", "100")}
    for name in ("standard", "long"):
        preset = POSTERIOR_PRESETS[name]
        assert (preset.observed, preset.samples) == ((1, 2, 4), 2000)
        assert (preset.dimensions, preset.noises, preset.draws) == ((2, 16, 64), (0.01, 0.1, 1.0), 20_000)


def test_a_run_that_is_stopped_has_some_of_each_benchmark():
    order = [piece.name.split("-")[0] for piece in study.pieces(POSTERIOR_PRESETS["standard"], "mnist", Path("x"), CPU)]
    for share in (4, 2):
        begun = order[: len(order) // share]
        assert {name: round(begun.count(name) * share / order.count(name), 1) for name in set(order)} == pytest.approx(
            dict.fromkeys(set(order), 1.0), abs=0.3
        )
