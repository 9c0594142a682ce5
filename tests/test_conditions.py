"""Conditions: networks read them, training drops them at a rate, models and commands carry them."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import proxflow
from proxflow import GPFN, Examples, PointPredictor, TrainingConfig, fit
from proxflow.cli import main
from proxflow.data.kinds.image import Image
from proxflow.errors import ArgumentError
from proxflow.examples import without
from proxflow.nn import MLP, DiT, UNet
from proxflow.random import BatchRows
from proxflow.training.conditions import ConditionDropout, with_dropout

NAN = torch.nan


def unet(**settings):
    torch.manual_seed(0)
    net = UNet((1, 8, 8), channels=8, blocks=1, **settings).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def dit(**settings):
    torch.manual_seed(0)
    net = DiT((1, 8, 8), **{"width": 16, "depth": 2, "heads": 2, **settings}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def mlp(**settings):
    torch.manual_seed(0)
    net = MLP((3,), width=16, depth=1, **settings).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def inputs(net, number=4):
    torch.manual_seed(1)
    shape = (1, 8, 8) if isinstance(net, UNet | DiT) else (3,)
    return torch.randn(number, *shape).double(), torch.linspace(0.1, 0.9, number).double()


ALL = {
    "label": torch.tensor([0, 4, 2, 2]),
    "vector": torch.randn(4, 2, generator=torch.Generator().manual_seed(2)),
    "image": torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize(
    ("net", "condition"),
    [
        (lambda: unet(classes=5), ALL["label"]),
        (lambda: unet(vectors=2), ALL["vector"]),
        (lambda: unet(images=2, patch=2), ALL["image"]),
        (lambda: unet(classes=5, vectors=2, images=2), ALL),
        (lambda: dit(classes=5), ALL["label"]),
        (lambda: dit(vectors=2, tokens=3), ALL["vector"]),
        (lambda: dit(images=2, patch=3), ALL["image"]),
        (lambda: dit(classes=5, vectors=2, images=2, tokens=1), ALL),
        (lambda: mlp(classes=5), ALL["label"]),
        (lambda: mlp(vectors=2), {"vector": ALL["vector"]}),
        (lambda: mlp(classes=5, vectors=2), {"label": ALL["label"], "vector": ALL["vector"]}),
    ],
)
def test_a_network_reads_each_examples_own_condition_and_its_absence(net, condition):
    net = net()
    x, t = inputs(net)
    told, untold = net(x, t, condition=condition), net(x, t)
    for i in range(4):
        row = (
            {name: part[i : i + 1] for name, part in condition.items()}
            if isinstance(condition, dict)
            else condition[i : i + 1]
        )
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], condition=row), told[i : i + 1])
        assert not torch.allclose(told[i], untold[i])
    lost = torch.tensor([True, False, True, False])
    mixed = net(x, t, condition=without(condition, lost))
    torch.testing.assert_close(mixed, torch.where(lost.reshape(-1, *[1] * (x.ndim - 1)), untold, told))
    assert torch.equal(net(x, t, condition=without(condition, ~lost | lost)), untold)
    told.square().sum().backward()
    assert all(
        parameter.grad is not None for parameter in net.parameters()
    )  # several processes wait for every gradient
    net.conditions.check_condition(without(condition, lost))


def test_the_null_class_has_two_labels():
    net = unet(classes=5)
    x, t = inputs(net)
    none = [net(x, t, condition=torch.full((4,), label)) for label in (-1, 5)]
    assert torch.equal(*none)
    assert torch.equal(none[0], net(x, t))


@pytest.mark.parametrize("build", [lambda **s: UNet((1, 8, 8), channels=8, **s), lambda **s: MLP((3,), width=8, **s)])
def test_weights_without_conditions_serve_where_there_is_none(build):
    torch.manual_seed(0)
    plain = build(reads_end=True)
    torch.manual_seed(0)
    reader = build(reads_end=True, classes=5, vectors=2)
    own = plain.state_dict()
    assert not [name for name in own if "condition" in name]
    assert all(torch.equal(tensor, reader.state_dict()[name]) for name, tensor in own.items())
    x, t = inputs(plain)
    x, t = x.float(), t.float()
    torch.nn.init.normal_(plain.head[-1].weight)
    reader.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(reader(x, t), plain(x, t))


@pytest.mark.parametrize(
    ("settings", "condition", "message"),
    [
        ({}, ALL["label"], "reads no condition: build it with classes="),
        ({"classes": 5}, ALL["label"].double(), r"label does not fit .* whole number an example, .* got torch.float64"),
        ({"classes": 5}, {"text": ALL["label"]}, "the parts label, got 'text'"),
        ({"vectors": 3}, ALL["vector"], r"real numbers \(batch, 3\)"),
        ({"images": 1}, ALL["image"], r"real numbers \(batch, 1, height, width\)"),
        ({"images": 2}, ALL["image"][..., :4], r"must have the shape \(4, 2, 8, 8\)"),
        ({"classes": 5, "vectors": 2}, ALL["label"], "a dictionary of label, vector"),
    ],
)
def test_a_network_refuses_a_condition_of_another_form(settings, condition, message):
    net = unet(**settings)
    with pytest.raises(ArgumentError, match=message):
        net(*inputs(net), condition=condition)


def test_numbers_of_conditions_that_are_refused():
    with pytest.raises(ArgumentError, match="at least 0"):
        MLP((3,), classes=-1)


@pytest.mark.parametrize(
    ("settings", "condition", "message"),
    [
        ({"classes": 5}, torch.tensor([0, 5, 1, 1]), "label 5 is out of range: this network has 5 classes, 0 to 4"),
        ({"classes": 5}, torch.tensor([0, 6, 1, 1]), "label 6 is out of range: this network has 5 classes, 0 to 4"),
        ({"classes": 5}, torch.tensor([0, -2, 1, 1]), "label -2 is out of range"),
        ({"vectors": 2}, torch.tensor([[0.0, NAN]] * 4), "vector must be finite"),
        ({"vectors": 2}, torch.tensor([[0.0, torch.inf]] * 4), "vector must be finite"),
        ({"classes": 5}, torch.tensor([0, 1]), "one row an example, 4"),
    ],
)
def test_values_out_of_range_are_refused_before_any_work(settings, condition, message):
    flow, net = GPFN(), MLP((2,), width=8, **settings)
    predictor = PointPredictor(net, flow)
    x = torch.zeros(4, 2)
    net.forward = None  # no work may begin
    for work in (
        lambda: proxflow.sample(predictor, flow, (4, 2), nfe=2, condition=condition),
        lambda: proxflow.ode_log_likelihood(predictor, flow, x, condition=condition),
        lambda: (
            fit(predictor, flow, Examples(x, condition), TrainingConfig(steps=1)) if len(condition) == 4 else work_()
        ),
    ):
        with pytest.raises(ArgumentError, match=message):
            work()


def work_():
    raise ArgumentError("one row an example, 4")


def test_a_predictor_of_a_network_without_conditions_reads_none():
    flow = GPFN()
    assert "condition" not in PointPredictor(MLP((2,)), flow).reads
    assert "condition" in PointPredictor(MLP((2,), classes=3), flow).reads
    with pytest.raises(ArgumentError, match="PointPredictor of MLP reads none"):
        flow.loss(PointPredictor(MLP((2,)), flow), torch.zeros(4, 2), torch.Generator(), condition=ALL["label"])


# Training -------------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """An objective that keeps the conditions that it is told."""

    passes = 3.0

    def loss(self, predict, x, generator, t=None, *, condition=None, start=None):
        self.condition = condition
        return torch.zeros(len(x))


def test_conditions_are_dropped_at_their_rate_whatever_the_share_of_the_batch():
    number, seen = 4000, Seen()
    x = torch.zeros(number, 2)
    condition = {"label": torch.arange(number) % 10, "vector": torch.ones(number, 3)}
    dropping = ConditionDropout(seen, 0.2)
    dropping.loss(None, x, torch.Generator().manual_seed(5), condition=condition)
    whole, lost = seen.condition, seen.condition["label"] == -1
    assert float(lost.double().mean()) == pytest.approx(0.2, abs=4 * (0.16 / number) ** 0.5)
    assert torch.equal(lost, whole["vector"].isnan().all(1))
    assert torch.equal(whole["label"][~lost], condition["label"][~lost])
    labels = []
    for part in (range(1500), range(1500, number)):
        rows = BatchRows(torch.Generator().manual_seed(5), number, part)
        own = {name: value[part.start : part.stop] for name, value in condition.items()}
        dropping.loss(None, x[: len(part)], rows, condition=own)
        labels.append(seen.condition["label"])
    assert torch.equal(torch.cat(labels), whole["label"])
    dropping.loss(None, x, torch.Generator())
    assert seen.condition is None


def test_a_rate_out_of_range_or_without_conditions_is_refused():
    with pytest.raises(ArgumentError, match=r"lie in \[0, 1\], got 1.5"):
        ConditionDropout(GPFN(), 1.5)
    flow = GPFN()
    assert ConditionDropout(flow).flow is flow
    assert ConditionDropout(proxflow.LongStep(flow)).flow is flow
    with pytest.raises(ArgumentError, match="has none to drop"):
        with_dropout(flow, PointPredictor(MLP((2,)), flow), 0.1)
    assert with_dropout(flow, PointPredictor(MLP((2,)), flow)) is flow


def test_one_network_learns_both_with_and_without_its_label():
    # Each class is one point: with its label a network must say that point, and without one, at first, their mean.
    labels = torch.arange(300) % 3
    points = torch.tensor([[-1.0, 0.5], [0.0, -0.4], [1.0, 0.8]])
    model = proxflow.build((2,), network="mlp:width=32,depth=2,classes=3", predictor="point:clip=none", seed=0)
    trained = model.fit(
        Examples(points[labels], labels), steps=600, batch_size=64, learning_rate=5e-3, ema=0.95, drop=0.3
    )
    told = trained.sample(30, nfe=8, condition=torch.arange(30) % 3)
    torch.testing.assert_close(told.float(), points[torch.arange(30) % 3], atol=0.15, rtol=0)
    belief = GPFN().begin(torch.zeros(1, 2))
    untold = trained.predictor(belief, torch.zeros(1)).mean
    torch.testing.assert_close(untold, points.mean(0, keepdim=True), atol=0.15, rtol=0)
    assert trained.sample(30, nfe=4).std(0).min() > 0.3  # drawn without a class: of all of them


def test_training_is_the_same_however_the_batch_is_split():
    x, labels = torch.rand(64, 2) - 0.5, torch.arange(64) % 3
    found = []
    for accumulate in (1, 3):
        model = proxflow.build((2,), network="mlp:width=8,depth=1,classes=3", seed=0)
        trained = model.fit(Examples(x, labels), steps=3, batch_size=16, accumulate=accumulate, drop=0.4)
        found.append(trained.predictor.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-5, atol=1e-6)


# Models and commands --------------------------------------------------------------------------------------------------


def test_a_model_file_says_what_its_network_is_conditioned_on(tmp_path):
    model = proxflow.build((1, 8, 8), network="unet:channels=8,classes=3,vectors=2", seed=0)
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["network"]
    assert (told["classes"], told["vectors"], told["images"]) == (3, 2, 0)
    loaded = proxflow.load(tmp_path)
    assert "condition" in loaded.predictor.reads
    condition = {"label": torch.tensor([0, 2]), "vector": torch.zeros(2, 2)}
    assert torch.equal(loaded.sample(2, nfe=2, condition=condition), model.sample(2, nfe=2, condition=condition))
    with pytest.raises(ArgumentError, match="label 4 is out of range"):
        loaded.sample(2, nfe=2, condition={"label": torch.tensor([0, 4])})


@pytest.fixture
def labelled(tmp_path):
    """Writes 60 images with labels."""
    rng = np.random.default_rng(0)
    path = tmp_path / "labelled.npz"
    np.savez(path, images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), labels=np.arange(60) % 4)
    return path


def words(data, out, *more):
    network = "unet:channels=8,multipliers=1,patch=2"
    return ["train", "--data", str(data), "--out", str(out), "--network", network, "--steps", "20", "--warmup-steps", "1",
            "--batch-size", "16", "--grid", "4", "--device", "cpu", *more]  # fmt: skip


@pytest.mark.parametrize(("more", "drop"), [((), 0.1), (("--drop", "0.25"), 0.25)])
def test_the_command_trains_a_conditional_model(labelled, tmp_path, capsys, more, drop):
    out = tmp_path / "run"
    assert main(words(labelled, out, "--conditional", *more)) == 0
    model = proxflow.load(out)
    assert model.classes == ("0", "1", "2", "3")
    assert model.provenance["drop"] == drop
    drawn = [
        model.sample(4, nfe=2, condition=c, decode=False) for c in (torch.zeros(4).long(), torch.ones(4).long(), None)
    ]
    assert all(not torch.equal(a, b) for a, b in pairwise(drawn))
    assert main(words(labelled, out, "--conditional", "--drop", "0.5")) == 2
    assert "drop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--drop", "0.2"), "has none to drop"),
        (("--conditional", "--drop", "1.5"), "lie in [0, 1]"),
        (("--conditional", "--network", "unet:classes=7"), "has 4 classes"),
    ],
)
def test_what_the_command_refuses(labelled, tmp_path, capsys, more, message):
    assert main(words(labelled, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err


def test_the_command_refuses_classes_of_data_without_labels(tmp_path, capsys):
    np.savez(tmp_path / "bare.npz", images=np.zeros((20, 8, 8, 1), dtype=np.uint8))
    assert main(words(tmp_path / "bare.npz", tmp_path / "run", "--conditional")) == 2
    assert "has the keys images, and labels of images are read from the key labels" in capsys.readouterr().err


def test_given_weights_and_data_of_other_classes_are_refused(labelled, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(words(labelled, out, "--conditional")) == 0
    # The same words go on from its weights: --conditional gives the named network its classes here as well.
    assert main(words(labelled, tmp_path / "next", "--conditional", "--init", out)) == 0
    held = np.load(labelled)
    named = np.array(["w", "x", "y", "z"])[held["labels"]]
    np.savez(tmp_path / "other.npz", images=held["images"], labels=named)
    capsys.readouterr()
    assert main(words(tmp_path / "other.npz", tmp_path / "other", "--conditional", "--init", out)) == 2
    assert "the model has the classes 0, 1, 2, 3, and" in capsys.readouterr().err
    bare = str(tmp_path / "bare")
    assert main(words(labelled, bare)) == 0
    capsys.readouterr()
    begun = words(labelled, tmp_path / "no", "--conditional", "--init", bare)
    at = begun.index("--network")
    assert main(begun[:at] + begun[at + 2 :]) == 2
    assert f"--init {bare} was trained without classes" in capsys.readouterr().err


def test_a_number_is_a_name_where_names_are_numbers(tmp_path, capsys):
    for names, first in ((("3", "1", "2"), "3"), (("a", "b", "c"), "0")):
        model = proxflow.build(
            Image((1, 8, 8), classes=names), network="unet:channels=8,multipliers=1,patch=4,classes=3"
        )
        model.save_pretrained(tmp_path / "model")
        sampling = ["sample", str(tmp_path / "model"), "--n", "1", "--steps", "1", "--device", "cpu"]
        sampling += ["--out", str(tmp_path / "one.npz"), "--class"]
        assert main([*sampling, first]) == 0
        assert np.load(tmp_path / "one.npz")["labels"].tolist() == [0]
    model = proxflow.build(Image((1, 8, 8), classes=("3", "1", "2")), network="unet:channels=8,multipliers=1,classes=3")
    model.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert main([*sampling, "0"]) == 2
    assert "it has 3, 1, 2" in capsys.readouterr().err


def test_guidance_that_a_model_cannot_give_is_refused():
    taught = proxflow.build((2,), network="mlp:width=8,depth=1,classes=2", seed=0)
    labels = torch.tensor([0, 1])
    never = replace(taught, provenance={"drop": 0})
    with pytest.raises(ArgumentError, match="never lost its condition in training"):
        never.sample(2, nfe=2, condition=labels, guidance=2.0)
    never.sample(2, nfe=2, condition=labels, guidance=2.0, weak=taught)
    fixed = replace(taught, provenance={"drop": 0.1, "method": "distribution-matching", "guidance": 1.5})
    with pytest.raises(ArgumentError, match="learnt guidance of weight"):
        fixed.sample(2, condition=labels, guidance=2.0)
    for settings, said in (
        ({"guidance": torch.tensor([1.0, 2.0])}, "must be one number for all samples, got Tensor"),
        (
            {"guidance": 2.0, "weak": taught.predictor},
            "weak is a model, as proxflow.load returns it, got PointPredictor",
        ),
        ({"guidance": 2.0, "weak": "mnist"}, "weak is a model, as proxflow.load returns it, got str"),
    ):
        with pytest.raises(ArgumentError, match=said):
            taught.sample(2, nfe=2, condition=labels, **settings)
    digits, clothes = proxflow.load("mnist-classes"), proxflow.load("fashion-mnist-classes")
    with pytest.raises(ArgumentError, match=r"has the classes T-shirt/top.*this one 0, 1"):
        digits.guided(2.0, weak=clothes)


def test_classes_are_named_once_and_told_apart(labelled, tmp_path, capsys):
    common = ("--n", "2", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "x.npz"))
    for words, said in (
        (("7", "7"), "--class names 7 twice"),
        (("7", "all"), "--class all is all classes: give it alone"),
    ):
        assert main(["sample", "mnist-classes", "--class", *words, *common]) == 2
        assert said in capsys.readouterr().err
    assert main(["train", "--data", str(labelled), "--out", str(tmp_path / "m"), "--conditional", "--drop", "1"]) == 2
    assert "--drop 1 would take every condition away" in capsys.readouterr().err
