"""The MNIST experiment: whole, resumable, repeatable."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import first_images

from proxflow import data, metrics
from proxflow.config import TrainingConfig
from proxflow.errors import ArgumentError, OutputError
from proxflow.models import parse
from proxflow.studies import pages, scoreboard, trials
from proxflow.studies.mnist.report import _own_sampler, claims
from proxflow.studies.mnist.study import STUDY, cells_of
from proxflow.studies.presets import NFES, PRESETS
from proxflow.studies.trials import Cell, Setup, reproduce

TINY = replace(
    PRESETS["quick"],
    network="unet:channels=8,patch=4",
    training=TrainingConfig(steps=3, batch_size=8),
    samples=20,
    nfes=(1, 3),
    train_images=100,
    samplers={"gpfn-w2": ("deterministic", "multistep2"), "bfn": ("deterministic", "stochastic")},
)
CPU = torch.device("cpu")


def run(out, said=None, processes=1):
    say = said.append if said is not None else lambda _: None
    return reproduce(STUDY, "tiny", TINY, out, CPU, say, processes=processes)


@pytest.fixture(autouse=True, scope="module")
def few():
    """The first images alone: preparing all test images to score a few takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", first_images(300))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run(out)


def without_times(results):
    text = json.loads(json.dumps(results))
    for cell in text["cells"]:
        cell.pop("sampling_seconds")
    for training in text["training"].values():
        training.pop("seconds")
    return text


def test_every_cell_has_the_promised_fields(finished):
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    promised = {
        "flow", "sampler", "nfe", "frechet", "floor", "precision", "recall", "diversity", "samples", "seed", "extractor",
    }  # fmt: skip
    assert len(results["cells"]) == len(cells_of(TINY)) == 8
    for cell in results["cells"]:
        assert promised <= set(cell)
        assert cell["samples"] == 20
        assert cell["floor"] > 0
        kept = np.load(Cell(cell["flow"], cell["sampler"], cell["nfe"], 0).file(out, "npz"))["images"]
        assert kept.shape == (20, 28, 28, 1)
        assert kept.dtype == np.uint8
        assert cell["second_frechet"] != cell["frechet"]
        assert cell["second_extractor"] == f"mnist-mixer {metrics.CLASSIFIERS['mnist-mixer'].sha256[:12]}"
    assert {"config", "hardware", "versions"} <= set(results)
    assert results["config"]["training"]["steps"] == 3
    assert results["hardware"]["cores"] >= 1


def test_the_second_extractor_scores_the_same_images(finished):
    out, results = finished
    first, extract = results["cells"][0], metrics.classifier_features("mnist-mixer")
    kept = np.load(Cell(first["flow"], first["sampler"], first["nfe"], 0).file(out, "npz"))["images"]
    tested = data.load("mnist", "test").images
    expected = metrics.Reference.of(extract(tested)).score(extract(torch.from_numpy(kept).permute(0, 3, 1, 2)))
    assert (first["second_frechet"], first["second_precision"]) == pytest.approx((expected.frechet, expected.precision))
    assert results["second_extractor"]["sha256"] == extract.sha256
    (told, table) = scoreboard.on_second(results, scoreboard.Scoreboard.of(results))
    assert "mnist-mixer" in told.text
    assert [row[:2] for row in table.rows][-1] == ("real images", "–")
    assert table.rows[0][2] in (text := f"{first['second_frechet']:.0f}", pages.Strong(text))


def test_flows_share_network_data_steps_and_seed(finished):
    _, results = finished
    gpfn, bfn = results["training"]["gpfn-w2-seed0"], results["training"]["bfn-seed0"]
    assert gpfn["training"] == bfn["training"]
    assert gpfn["data"] == bfn["data"]


def test_an_interrupted_run_goes_on(finished, tmp_path, monkeypatch):
    _, whole = finished
    original, calls = trials.evaluate_cell, []

    def interrupt(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        original(*arguments)

    monkeypatch.setattr(trials, "evaluate_cell", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(trials, "evaluate_cell", original)
    said = []
    resumed = run(tmp_path, said)
    assert not any("train" in line for line in said)
    assert "5 cells" in said[-1]
    assert without_times(resumed) == without_times(whole)


def test_processes_side_by_side_have_the_same_results(finished, tmp_path):
    out, whole = finished
    said = []
    assert without_times(run(tmp_path, said, processes=2)) == without_times(whole)
    assert said[0] == "2 trainings and 8 cells of 20 samples, on 2 processes side by side"
    for path in out.glob("*/*"):
        if path.suffix == ".npz":
            assert (np.load(path)["images"] == np.load(tmp_path / path.relative_to(out))["images"]).all()
    for path in out.glob("models/*/model.safetensors"):
        assert path.read_bytes() == (tmp_path / path.relative_to(out)).read_bytes()


def test_a_folder_of_another_run_is_refused(finished):
    out, _ = finished
    with pytest.raises(OutputError, match=r"a mnist run with samples = 20, not 21"):
        reproduce(STUDY, "tiny", replace(TINY, samples=21), out, CPU, lambda _: None)


def test_fashion_mnist_is_scored_by_its_own_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "recognise", lambda images: "fashion-mnist")  # whatever its images
    weights = metrics.CLASSIFIERS["fashion-mnist"]
    one = replace(TINY, nfes=(1,), samplers={"gpfn-w2": ("deterministic", "multistep2")})
    results = reproduce(STUDY, "tiny", one, tmp_path, CPU, lambda _: None)
    assert results["extractor"] == {"name": "fashion-mnist-classifier", "sha256": weights.sha256, "dimension": 64}
    assert {cell["extractor"] for cell in results["cells"]} == {f"fashion-mnist-classifier {weights.sha256[:12]}"}

    # A folder holds cells of one extractor, and nothing is trained for one that is not known.
    cells = cells_of(one)
    cells[1].file(tmp_path).unlink()
    images = torch.zeros(0, 1, 28, 28, dtype=torch.uint8)
    fixed = (STUDY, Setup(one, tmp_path, CPU, lambda _: None, images, images), {}, cells)
    with pytest.raises(OutputError, match=r"scored on fashion-mnist-classifier .* and fashion-.*, not on mnist-"):
        trials.evaluate(*fixed, "mnist")
    with pytest.raises(ArgumentError, match="'letters'"):
        trials.evaluate(*fixed, "letters")


def test_the_long_preset_gives_both_families_the_same():
    long = PRESETS["long"]
    assert (long.training.steps, long.training.batch_size, long.samples, long.seeds) == (24_000, 64, 10_000, (0, 1, 2))
    assert long.nfes == (1, 2, 4, 10, 20, 50)
    assert list(long.samplers) == ["gpfn-w2", "gpfn-w2-tuned", "bfn", "bfn-tuned"]
    for flow, samplers in long.samplers.items():
        assert samplers == (_own_sampler(flow), "unipc", "sde-bfn-solver2")
    assert len(cells_of(long)) == 3 * 4 * 3 * 6


def test_a_tiny_long_run_answers_what_it_asks(tmp_path):
    sizes = {"network": "unet:channels=8,multipliers=1,patch=4", "samples": 20, "nfes": (1, 2, 20), "train_images": 100}
    tiny = replace(PRESETS["long"], **sizes, training=TrainingConfig(steps=2, batch_size=8), seeds=(0,))
    results = reproduce(STUDY, "long", tiny, tmp_path, CPU, lambda _: None)
    assert len(results["cells"]) == 4 * 3 * 3
    flows = {flow: parse("flows", word) for flow, word in results["flows"].items()}
    assert flows == {flow: parse("flows", flow) for flow in tiny.samplers}
    assert not any("tuned" in word for word in results["flows"].values())  # which another version may read otherwise
    asked = {claim.name for claim in claims(results)}
    leads = {f"lead-{nfe}" for nfe in (2, 20)}
    assert "lead-1" not in asked  # where all samplers are one, and no flow knows more than the mean
    assert asked >= {"advantage-deterministic", "real-frechet", "real-second_frechet", "real-precision", *leads}
    *pictures, markdown, _ = trials.write_report(tmp_path, CPU)
    text = markdown.read_text(encoding="utf-8")
    assert "The best gpfn-w2 is ahead of the best bfn" in text
    for row in ("| gpfn-w2-tuned | gpfn-w2:schedule=", "| bfn-tuned | bfn:sigma1=", "| gpfn-w2-tuned | unipc |"):
        assert row in text
    assert {"grid-gpfn-w2-tuned.png", "beliefs.gif"} <= {path.name for path in pictures}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "long"])
def test_presets_compare_equals(name):
    preset = PRESETS[name]
    assert preset.nfes == (NFES[:6] if name == "quick" else NFES)
    assert NFES == (1, 2, 4, 5, 10, 20, 50, 100)
    assert {"deterministic", "stochastic", "multistep2"} <= set(preset.samplers["gpfn-w2"])
    assert {"deterministic", "stochastic"} <= set(preset.samplers["bfn"])


def test_the_paper_preset_is_of_the_papers_size():
    paper = PRESETS["paper"]
    assert paper.samples == 10_000
    assert len(paper.seeds) == 3
    assert paper.train_images == 60_000
    assert paper.training.steps * paper.training.batch_size >= 100 * 60_000
