"""Models: building of named parts, files of both formats, samples in the data's own units, and packages of strangers."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stranger import stranger_package

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    CategoricalEndpoints,
    DiscreteBFN,
    DiscretisedBFN,
    GaussianEndpoints,
    Linear,
    NewtonSolver,
    ProductEndpoints,
    TargetEnergy,
    names,
)
from proxflow.data.kinds.image import Image
from proxflow.data.kinds.vector import Vector
from proxflow.errors import ArgumentError, CheckpointError, ProxflowError
from proxflow.examples import Examples
from proxflow.models import Part, build, load, save
from proxflow.models.outline import outlined

SAMPLES = Path(__file__).parent / "samples"
SMALL = "unet:channels=4,multipliers=1"


def fresh(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, folders), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Building


def test_words_and_objects_build_the_same_model():
    by_word = build((1, 8, 8), flow="gpfn-kl:schedule=linear:final=0.6", network=SMALL, seed=3)
    settings = {"channels": 4, "multipliers": (1,), "blocks": 1, "patch": 2}
    by_object = build(Image((1, 8, 8)), flow=GPFN(KL(), Linear(0.6)), network=Part("unet", settings), seed=3)
    assert by_word.spec == by_object.spec
    assert by_word.data == Image((1, 8, 8))
    for name, value in by_word.predictor.state_dict().items():
        assert torch.equal(value, by_object.predictor.state_dict()[name])


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, third = (build((1, 8, 8), network=SMALL, seed=k).predictor.network.stem.weight for k in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_are_those_of_the_data():
    images, rows = build((1, 8, 8)), build(torch.zeros(10, 3))
    assert (images.network.kind, images.predictor.clip) == ("unet", (-1.0, 1.0))
    assert images.network.settings["channels"] == 32
    assert images.network.settings["blocks"] == 1
    assert images.network.settings["patch"] == 2
    assert (rows.network.kind, rows.predictor.clip, rows.shape) == ("mlp", None, (3,))
    assert rows.data == Vector((3,), (0.0,) * 3, (1.0,) * 3)
    assert build(Examples(torch.zeros(2, 3, 8, 8))).shape == (3, 8, 8)
    assert build((3,), predictor="point:clip=-2,2").predictor.clip == (-2.0, 2.0)
    with pytest.raises(ArgumentError, match="expected the shape of an image"):
        build((3, 4))


def test_presets_bring_their_predictor():
    # As the library has had them: bfn is the reference's, bfn-tuned predicts the data.
    bfn, tuned = build((1, 8, 8), flow="bfn", network=SMALL), build((1, 8, 8), flow="bfn-tuned", network=SMALL)
    assert (bfn.flow.sigma1, bfn.predictor.parameterisation, bfn.predictor.clip_in_training) == (1e-3, "epsilon", True)
    assert tuned.flow.sigma1 == names.TUNED["bfn"]["sigma1"] > 0.1
    assert (tuned.predictor.parameterisation, tuned.predictor.clip_in_training) == ("x", False)
    assert bfn.predictor.clip == (-1.0, 1.0)
    assert build((1, 8, 8), flow="bfn", network=SMALL, predictor="point").predictor.parameterisation == "x"
    assert build((1, 8, 8), flow=BFN(), network=SMALL).predictor.parameterisation == "x"


MIXED = ProductEndpoints(((GaussianEndpoints(), 2), (CategoricalEndpoints(2), 1), (CategoricalEndpoints(5), 1)))


@pytest.mark.parametrize(
    ("flow", "shape", "network", "predictor", "kind"),
    [
        ("gpfn-w2", (2, 8, 8), SMALL, "draw", "draw"),
        ("gpfn-w2", (2, 8, 8), SMALL, "long-step", "long-step"),
        ("gpfn-w2", (3,), "mlp:width=8", "draw", "draw"),
        ("gpfn-w2", (3,), "mlp:width=8", "long-step", "long-step"),
        (DiscretisedBFN(16), (2, 8, 8), SMALL, None, "binned"),
        ("bfn-discrete:classes=2", (1, 8, 8), SMALL, None, "classes"),
        (DiscreteBFN(3), (2, 8, 8), SMALL, None, "classes"),
        (DiscreteBFN(3), (4,), "mlp:width=8", None, "classes"),
        (GPFN(KL(), endpoints=MIXED), (4,), "mlp:width=8", None, "product"),
        ("diffusion", (3,), "mlp:width=8", "point:parameterisation=v", "point"),
    ],
)
def test_networks_are_built_as_large_as_their_predictor_needs(flow, shape, network, predictor, kind):
    model = build(shape, flow=flow, network=network, predictor=predictor, seed=0)
    assert proxflow.models.describe(model.predictor)["kind"] == kind
    samples = model.sample(3, nfe=2, sampler="stochastic" if kind == "classes" else "deterministic", decode=False)
    assert samples.shape == (3, *shape)
    assert samples.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow": "banana"}, "no flow is called 'banana'"),
        ({"predictor": "banana"}, "no predictor is called 'banana'"),
        ({"network": Part("banana")}, "no network is called 'banana'"),
        ({"network": Part("unet", {"chanels": 3})}, "unet has no setting 'chanels'"),
        ({"flow": "bfn:final=0.5"}, "bfn has no setting 'final'"),
        ({"predictor": "classes"}, "the predictor classes does not fit GPFN.*: take point"),
        (
            {"flow": DiscreteBFN(3), "predictor": "point"},
            "the predictor point does not fit DiscreteBFN.*: take classes",
        ),
        ({"flow": "bfn", "predictor": "long-step"}, "long steps need means that move on straight lines"),
        ({"network": "unet:channels=0"}, "UNet needs channels ≥ 1, got 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        build((1, 8, 8), **settings)


# Files


@pytest.mark.parametrize("predictor", ["point:parameterisation=v,clip=none", "draw", "long-step"])
def test_a_file_gives_the_model_back(tmp_path, predictor):
    model = build(Image((1, 8, 8), classes=10), network=SMALL, predictor=predictor, seed=1)
    times = {"multistep2": {2: (0.0, 0.4)}}
    save(tmp_path, proxflow.models.Model(model.flow, model.network, model.predictor, model.data, {"steps": 3}, times))
    again = load(tmp_path)
    assert (again.spec, again.provenance, again.times) == (model.spec, {"steps": 3}, times)
    assert (again.flow, again.network, again.data) == (model.flow, model.network, model.data)
    assert torch.equal(model.sample(2, nfe=3, decode=False), again.sample(2, nfe=3, decode=False))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["format"] == 2
    assert content["data"] == {"kind": "image", "shape": [1, 8, 8], "classes": list("0123456789")}
    earlier = {**content, "data": {**content["data"], "classes": 10}}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert load(tmp_path).data == again.data


@pytest.mark.parametrize(
    ("name", "sampler", "flow", "predictor"),
    [
        (
            "gpfn",
            "deterministic",
            "gpfn-w2:schedule=(linear:final=0.8),coupling=ot",
            "point:parameterisation=x,clip=-1.0,1.0",
        ),
        ("bfn", "stochastic", "bfn", "point:parameterisation=epsilon,clip=-1.0,1.0,clip_in_training=true"),
        ("long-step", "deterministic", "gpfn-w2", "long-step:clip=-1.0,1.0"),
        ("draw", "stochastic", "bfn:sigma1=0.3", "draw:clip=-1.0,1.0"),
    ],
)
def test_files_of_format_1_still_give_their_samples(name, sampler, flow, predictor):
    folder = SAMPLES / f"format1-{name}"
    assert json.loads((folder / "config.json").read_text())["format"] == 1
    model = load(folder)
    assert proxflow.models.word(model.predictor) == predictor
    assert model.flow == proxflow.models.parse("flows", flow)
    assert model.provenance == {"steps": 0}
    drawn = model.sample(3, nfe=4, seed=5, sampler=sampler, decode=False)
    # Up to rounding: sums of another processor are in another order.
    torch.testing.assert_close(drawn, load_file(folder / "expected.safetensors")["samples"], rtol=0, atol=1e-5)


def test_the_shipped_model_is_the_one_that_format_1_described(tmp_path):
    for name in ("config.json", "model.safetensors"):
        source = SAMPLES / "mnist-format1.json" if name == "config.json" else proxflow.models.SHIPPED / "mnist" / name
        (tmp_path / name).write_bytes(source.read_bytes())
    old, new = load(tmp_path), load("mnist")
    assert (old.spec, old.provenance, old.times) == (new.spec, new.provenance, new.times)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"flow": "banana"}}, "flow must be one of"),
        ({"model": {"flow": "bfn", "coupling": "ot"}}, "bfn begins with one fixed belief"),
        ({"model": {"colour": 3}}, "settings of a model of format 1 .* got the unknown field 'colour'"),
        ({"shape": [1, 8]}, "data: image: images have a shape"),
        ({"shape": None}, "data: image: shape must be a list"),
        ({"provenance": 3}, "provenance must be an object"),
        ({"format": 3}, "has format 3, and this version reads up to 2: install a newer one"),
        ({"format": True}, "expected a model configuration of format 1 or 2"),
        ({"model": 3}, r"expected the settings of a model of format 1 \(flow, channels, .*\), got 3"),
        ({"format": "1"}, "expected a model configuration of format 1 or 2"),
    ],
)
def test_damaged_files_of_format_1_are_refused(tmp_path, change, message):
    folder = SAMPLES / "format1-gpfn"
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_part_without_a_name_is_not_saved(tmp_path):
    model = build((1, 8, 8), network=SMALL, flow=GPFN(energy=TargetEnergy(KL()), solver=NewtonSolver()))
    with pytest.raises(ArgumentError, match=r"gpfn: energy: .* no file can hold it"):
        save(tmp_path / "m", model)
    assert not (tmp_path / "m").exists()


def test_a_folder_named_as_a_shipped_model_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert load("mnist").shape == (1, 28, 28)  # the folder holds no model
    save(tmp_path / "mnist", build((1, 8, 8), network="unet:channels=8,multipliers=1,patch=4"))
    with pytest.raises(
        CheckpointError, match=r"'mnist' is a model of the package, and the folder mnist .*write \./mnist"
    ):
        load("mnist")
    assert load("./mnist").shape == load(Path("mnist")).shape == (1, 8, 8)


def test_loading_a_shipped_model_leaves_torchs_compiler_alone():
    # It takes more than a second to import, and drawing one sample a fraction of that.
    script = "import sys, proxflow\nproxflow.load('mnist').sample(1, nfe=1)\nassert 'torch._dynamo' not in sys.modules"
    done = fresh(script)
    assert done.returncode == 0, done.stderr


def test_an_outline_has_the_names_and_shapes_of_the_weights_and_draws_nothing():
    before = torch.get_rng_state()
    with outlined(10_000):
        outline = build((3, 9, 8), network="unet:channels=8,attention=1", predictor="long-step").predictor.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    real = build((3, 9, 8), network="unet:channels=8,attention=1", predictor="long-step").predictor.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in outline.items()} == {
        name: (value.shape, value.dtype) for name, value in real.items()
    }
    with outlined(10_000):
        huge = build((1, 8, 8), network=f"unet:channels={2**20}").predictor  # 10¹⁶ bytes
    assert sum(p.numel() for p in huge.parameters()) > 2**45


OUTLINE = """
import sys, torch
from torch import nn
from proxflow.models.outline import outlined
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(3, 4) * 0.02)
        self.table = nn.Embedding(5, 6, padding_idx=0)
        nn.init.trunc_normal_(self.table.weight, std=0.02)
        self.mix = nn.MultiheadAttention(8, 2)
        self.register_buffer("waves", torch.outer(torch.arange(3.0), torch.rand(4)).sin())
before = torch.get_rng_state()
with outlined(100):
    outline = {name: value.shape for name, value in Net().state_dict().items()}
assert torch.equal(before, torch.get_rng_state())
assert outline == {name: value.shape for name, value in Net().state_dict().items()}
assert "torch._dynamo" not in sys.modules
"""


def test_a_strangers_network_is_outlined_without_draws_or_compiler():
    done = fresh(OUTLINE)
    assert done.returncode == 0, done.stderr


# Samples and training


def test_samples_come_in_the_datas_own_units():
    images = build((1, 8, 8), network=SMALL, seed=0)
    assert images.sample(2, nfe=2).dtype == torch.uint8
    rows = build(Vector((2,), (100.0, -5.0), (10.0, 0.5)), network="mlp:width=8", seed=0)
    inner = rows.sample(5, nfe=2, decode=False)
    assert torch.allclose(rows.sample(5, nfe=2), inner.double() * torch.tensor([10, 0.5]) + torch.tensor([100.0, -5.0]))


def test_a_models_own_times_are_used_where_they_suit():
    model = load(SAMPLES / "format1-gpfn")
    times = (0.0, 0.2, 0.5, 0.8)
    assert model.times_of("multistep2", 4) == model.times_of(None, 4) == times
    assert model.times_of(proxflow.models.parse("samplers", "multistep2"), 4) == times
    assert model.times_of("multistep2", 5) is model.times_of("midpoint", 4) is None
    by_itself = model.sample(2, nfe=4, sampler="multistep2", decode=False)
    assert torch.equal(by_itself, model.sample(2, nfe=4, sampler="multistep2", times=times, decode=False))
    even = model.sample(2, nfe=4, sampler="multistep2", times=(0, 0.25, 0.5, 0.75), decode=False)
    assert not torch.equal(by_itself, even)


def test_fit_learns_the_law_of_rows_in_their_own_units():
    rows = torch.tensor([100.0, -5.0]) + torch.tensor([10.0, 0.5]) * torch.randn(
        4000, 2, generator=torch.Generator().manual_seed(0)
    )
    model = build(Vector((2,), (100.0, -5.0), (10.0, 0.5)), network="mlp:width=32,depth=2", seed=0)
    trained = model.fit(rows, steps=400, batch_size=256, learning_rate=5e-3, seed=1)
    drawn = trained.sample(2000, nfe=20)
    assert torch.allclose(drawn.mean(0), torch.tensor([100.0, -5.0]).double(), rtol=0.02)
    assert torch.allclose(drawn.std(0), torch.tensor([10.0, 0.5]).double(), rtol=0.15)
    assert trained.provenance["data"] == "4000 rows"
    assert trained.provenance["training"]["steps"] == 400
    with pytest.raises(ArgumentError, match="steps belongs to the configuration"):
        model.fit(rows, proxflow.TrainingConfig(), steps=3)


def test_fit_takes_the_loss_that_the_predictor_asks_for():
    model = build((2,), network="mlp:width=8", predictor="draw", seed=0)  # the flow's own loss gives it no noise
    trained = replace(model, times={"deterministic": {1: (0.0,)}}).fit(torch.randn(64, 2), steps=2, batch_size=16)
    assert trained.sample(3, nfe=1).shape == (3, 2)
    assert trained.times == {}  # they were of other weights


def test_fit_leaves_the_model_in_its_folder(tmp_path):
    rows = torch.randn(64, 2)
    trained = build((2,), network="mlp:width=8", seed=0).fit(rows, steps=3, batch_size=16, folder=tmp_path / "run")
    loaded = proxflow.load(tmp_path / "run")
    assert loaded.provenance == trained.provenance
    assert torch.equal(loaded.sample(4, nfe=2, seed=1), trained.sample(4, nfe=2, seed=1))


def test_a_model_without_a_name_is_trained_in_a_folder_that_then_holds_no_model(tmp_path):
    class Mine(Linear):
        pass

    model = build((2,), flow=GPFN(schedule=Mine()), network="mlp:width=8", seed=0)
    trained = model.fit(torch.randn(64, 2), steps=3, batch_size=16, folder=tmp_path / "run")
    assert trained.sample(4, nfe=2).shape == (4, 2)
    with pytest.raises(CheckpointError, match="holds checkpoints and no model"):
        proxflow.load(tmp_path / "run")


# Packages of strangers

USE = """
import torch
from pathlib import Path
from proxflow.data.kinds import kind_of_source
from proxflow.models import build, load, save, parse, restore, describe, word
folder = Path(FOLDER)
angles = parse("kinds", "angles:shape=1,turn=180")
model = build(angles, flow="gpfn:divergence=scaled:scale=2", network="labelled:labels=3", seed=0)
assert model.network.kind == "labelled" and model.predictor.clip is None
torch.nn.init.constant_(model.predictor.network.bias, 0.25)
save(folder, model)
again = load(folder)
assert again.spec == model.spec, again.spec
assert word(again.flow) == "gpfn:divergence=(scaled:scale=2.0)", word(again.flow)
asked = {"nfe": 3, "sampler": "early:power=3", "condition": torch.tensor([0, 2, 1, 1])}
assert torch.equal(again.sample(4, **asked), model.sample(4, **asked))
sampler = parse("samplers", "early:power=3")
assert restore("samplers", describe(sampler), "file") == sampler and word(sampler) == "early:power=3.0"
assert again.sample(2, nfe=3, sampler=sampler, decode=False).shape == (2, 1)
assert kind_of_source("some.angles").__name__ == "Angles"
"""


def test_what_a_package_adds_is_built_saved_loaded_and_sampled(tmp_path):
    package, folder = stranger_package(tmp_path / "package"), tmp_path / "model"
    broken = stranger_package(tmp_path / "b", "broken", "import nonesuch", {"divergences": {"torn": "Torn"}})
    done = fresh(USE.replace("FOLDER", repr(str(folder))), package, broken)
    assert done.returncode == 0, done.stderr
    # Without the package the file is refused by the name that it lacks.
    with pytest.raises(
        CheckpointError, match=r"no divergence is called 'scaled'.*a package adds one by an entry point"
    ):
        load(folder)


# What a user brings ---------------------------------------------------------------------------------------------------


def rows(number=400):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 2, generator=generator) * torch.tensor([1000.0, 0.01]) + torch.tensor([5000.0, 7.0])


def test_rows_are_learnt_in_their_own_units():
    model = build(rows(), network="mlp:width=32", seed=0)
    assert model.data.mean == pytest.approx((5000, 7), rel=0.02)
    trained = model.fit(rows(), steps=300, batch_size=128, learning_rate=5e-3)
    drawn = trained.sample(400, nfe=20)
    assert drawn.dtype == torch.float64
    assert float((drawn.mean(0) - rows().double().mean(0)).abs().div(rows().double().std(0)).max()) < 0.3
    # The density is that of the law in its own units: log N(x; (5000, 7), diag(1000², 0.01²)).
    law = torch.distributions.Normal(torch.tensor([5000.0, 7.0]).double(), torch.tensor([1000.0, 0.01]).double())
    with torch.no_grad():
        found = trained.log_prob(rows(50), steps=16).log_prob.mean()
    assert float(found) == pytest.approx(float(law.log_prob(rows(50).double()).sum(1).mean()), abs=0.5)


@pytest.mark.parametrize(
    ("brought", "message"),
    [
        (lambda: build(rows()[:0]), "at least one"),
        (lambda: build(rows() * math.nan), "finite numbers"),
        (lambda: build(rows()).fit(rows()[:, :1], steps=1), r"shape \(1,\), rows here have \(2,\)"),
        (lambda: build("rows"), "got str"),
        (lambda: build(rows()).fit("rows", steps=1), "got str"),
        (lambda: build((2,), flow="gpfn:divergence=jeffreys"), "no closed-form step .* gpfn:solver=newton"),
        (
            lambda: build((2,), flow="gpfn:divergence=mixture-w2"),
            "not defined between beliefs of DiagonalGaussian",
        ),
    ],
)
def test_what_does_not_fit_a_model_is_refused(brought, message):
    with pytest.raises(ProxflowError, match=message):
        brought()


def test_a_divergence_without_a_closed_form_is_built_with_a_solver():
    assert build((2,), flow="gpfn:divergence=jeffreys,solver=newton").flow.solver is not None
