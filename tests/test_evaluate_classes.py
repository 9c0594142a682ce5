"""Conditional models as ``proxflow evaluate`` measures them: drawn in the data's proportions, scored within classes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import proxflow
from proxflow import metrics, models
from proxflow.cli import evaluate, main
from proxflow.data.kinds.image import Image

NETWORK = "unet:channels=8,multipliers=1,patch=4"
PROPORTIONS = {3: 24, 5: 12, 8: 4}
"""Test images of each class."""


def write_idx(folder):
    """Write digits of three classes as IDX files: training images, four times as many as test images, with labels."""
    folder.mkdir()
    for prefix, split, times in (("train", "train", 4), ("t10k", "test", 1)):
        whole = proxflow.data.load("mnist", split)
        rows = torch.cat([(whole.labels == k).nonzero()[: n * times, 0] for k, n in PROPORTIONS.items()])
        images, labels = whole.images[rows, 0].numpy(), whole.labels[rows].to(torch.uint8).numpy()
        head = bytes((0, 0, 8, 3)) + np.array(images.shape, ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = bytes((0, 0, 8, 1)) + np.array(labels.shape, ">u4").tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def save_model(folder, names):
    """Save a model whose classes have these names, with weights by which they differ."""
    network = f"{NETWORK},classes={len(names)}" if names else NETWORK
    model = models.build(Image((1, 28, 28), names), network=network, seed=0)
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder.mkdir()
    models.save(folder, model)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    # In another order than the labels of the data, and with a class that these have not.
    return write_idx(root / "idx"), save_model(root / "model", ("8", "1", "5", "3"))


@pytest.fixture
def run(capsys, places, tmp_path):
    """Runs the command: (status, what it said, standard error, the records written)."""

    def call(*words):
        out = tmp_path / "scores.json"
        fixed = ("--data", places[0], "--device", "cpu", "--steps", 2, "--out", out)
        status = main([str(word) for word in ("evaluate", *words, *fixed)])
        captured = capsys.readouterr()
        cells = json.loads(out.read_text())["cells"] if status == 0 else []
        return status, captured.out, captured.err, cells

    return call


def test_labels_keep_proportions():
    labels = torch.tensor([7, 2, 2, 2, 2, 7, 5, 5, 2, 5])
    assert metrics.labels_in_proportion(labels, 10).tolist() == labels.sort().values.tolist()
    assert metrics.labels_in_proportion(labels, 20).tolist() == [2] * 10 + [5] * 6 + [7] * 4
    # Shares of 2.5, 1.5 and 1: both halves are lost, and the first takes what is missing.
    assert metrics.labels_in_proportion(labels, 5).tolist() == [2, 2, 2, 5, 7]
    assert metrics.labels_in_proportion(labels, 0).tolist() == []


def test_classes_are_drawn_as_the_reference_has_them_and_scored_within(run, places):
    data, folder = places
    status, said, err, (cell,) = run(folder, "--n", 40, "--seed", 2)
    assert (status, err) == (0, "")
    assert "drawn of 3 classes, in the proportions of the test images" in said
    assert "recall within classes" in said
    assert (cell["samples"], cell["nfe"], cell["classes"]) == (40, 2, [3, 5, 8])
    # The same by hand: the model numbers these classes 3, 2 and 0.
    model, test = proxflow.load(folder), proxflow.data.load(data, "test")
    numbers, labels = (
        torch.tensor(rows).repeat_interleave(torch.tensor([24, 12, 4])) for rows in ([3, 2, 0], [3, 5, 8])
    )
    images = model.sample(40, nfe=2, seed=2, batch_size=128, condition=numbers)
    extract = metrics.mnist_features()
    wanted = metrics.class_scores(extract(test.images), test.labels, extract(images), labels)
    assert cell["frechet_per_class"] == pytest.approx(wanted.frechet, rel=1e-3)
    assert cell["class_frechet"] == pytest.approx(wanted.mean_frechet, rel=1e-3)
    assert cell["class_recall"] == pytest.approx(wanted.mean_recall)
    hits = metrics.class_hits(metrics.load_classifier("mnist"), images, labels)
    assert cell["accuracy"] == pytest.approx(float(hits.double().mean()))
    assert 0 < cell["floor_class_frechet"] < cell["class_frechet"]
    assert cell["floor_class_recall"] > 0


def test_guidance_is_counted_and_named(run, places):
    words = (places[1], "--n", 40, "--guidance", 3, "--guidance-rule", "projected")
    status, said, _, (cell,) = run(*words)
    assert status == 0
    assert "4 evaluations, guidance 3" in said
    assert (cell["nfe"], cell["weight"], cell["interval"], cell["rule"]) == (4, 3.0, [0.0, 1.0], "projected")
    (plain,) = run(places[1], "--n", 40)[-1]
    assert plain["frechet"] != cell["frechet"]
    (once,) = run(*words, "--guidance-interval", 0, 0.2)[-1]
    assert once["nfe"] == 3


def test_a_class_alone_is_compared_with_its_own_images(run, places):
    status, said, _, (cell,) = run(places[1], "--class", "5", "--n", 12)
    assert status == 0
    assert cell["reference"] == f"12 test images of {places[0]}, class 5"
    assert cell["classes"] == [5]
    assert cell["frechet_per_class"] == pytest.approx([cell["frechet"]], rel=1e-9)
    assert "12 images, and 12 real training images, against 12 test images" in said


def test_classes_that_the_reference_has_not_are_not_asked_for(run, places, tmp_path):
    other = save_model(tmp_path / "other", ("shoe", "5", "8"))
    status, said, _, (cell,) = run(other, "--n", 40)
    assert status == 0
    assert "drawn without a class" in said
    assert cell["accuracy"] is None
    assert "class_frechet" not in cell
    # Too few of a class for its balls: said, and the other scores are there.
    status, said, _, (cell,) = run(places[1], "--n", 12)
    assert status == 0
    assert "no scores within classes: they need 4 images of each class, and there are 1 of one" in said
    assert cell["accuracy"] is not None


def test_what_evaluate_refuses_of_classes(run, places, tmp_path):
    bare = save_model(tmp_path / "bare", ())
    np.savez(tmp_path / "x.npz", images=np.zeros((20, 28, 28, 1), np.uint8))
    for words, expected in (
        ((bare, "--class", "5"), "has no classes"),
        ((bare, "--guidance", "2"), "away from a model"),
        ((places[1], "--class", "9"), "knows no such class"),
        ((places[1], "--class", "1"), "has no images of 1"),
        ((places[1], "--guidance-rule", "linear"), "give --guidance"),
        ((tmp_path / "x.npz", "--guidance", "2"), "holds images"),
        ((tmp_path / "x.npz", "--class", "5"), "holds images"),
    ):
        status, _, err, _ = run(*words, "--n", 12)
        assert status == 2
        assert err.count("\n") == 1
        assert expected in err, err


def test_an_image_without_a_class_stands_for_one_that_is_drawn_without():
    classes = {0: "cat", 1: "dog"}
    reference = evaluate._Reference(None, None, "a", "b", None, False, (torch.tensor([0]), torch.tensor([1])), classes)
    numbers = reference.numbers_for(SimpleNamespace(classes=("ant", "cat", "dog")))
    assert numbers[torch.tensor([0, 1, -1])].tolist() == [1, 2, -1]
    assert reference.numbers_for(SimpleNamespace(classes=("cat",))) is None
