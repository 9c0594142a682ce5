"""Kinds of data: what they read, how they show it to networks and make it of samples, and what they write."""

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import proxflow
from proxflow import names
from proxflow.data import image_files, kinds
from proxflow.data.kinds import Kind, kind_of_source
from proxflow.data.kinds.image import Binary, Image
from proxflow.data.kinds.latents import Latents
from proxflow.data.kinds.table import Table
from proxflow.data.kinds.text import Text
from proxflow.data.kinds.vector import Vector
from proxflow.errors import ArgumentError, DataError, OutputError


def images(number=10, shape=(5, 7, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def restored(kind):
    """What a model's file gives back."""
    fields = json.loads(json.dumps(dataclasses.asdict(kind), allow_nan=False))
    return type(kind)(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


# Choosing a kind ------------------------------------------------------------------------------------------------------


def test_a_source_has_its_kind(tmp_path):
    (tmp_path / "pictures" / "in").mkdir(parents=True)
    Pillow.new("L", (4, 4)).save(tmp_path / "pictures" / "in" / "a.png")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    for source in ("mnist", "fashion-mnist", str(tmp_path / "pictures"), str(tmp_path / "idx")):
        assert kind_of_source(source) is Image
    assert kind_of_source(npz(tmp_path / "a.npz", images=images(), x=np.zeros((2, 2)))) is Image
    assert kind_of_source(npz(tmp_path / "b.npz", rows=np.zeros((2, 2)), names=np.zeros(3))) is Vector
    assert kind_of_source(npz(tmp_path / "c.npz", x=np.zeros(3))) is Vector
    for name in ("a.npy", "a.csv", "A.CSV"):
        assert kind_of_source(str(tmp_path / name)) is Vector
    assert kind_of_source("mnist", "vector") is Vector


@pytest.mark.parametrize("source", ["nowhere", "x" * 5000, "a\0b", "a.tex", ""])
def test_a_source_without_a_kind_lists_what_there_is(source):
    with pytest.raises(DataError, match=r"no training data .*mnist, fashion-mnist.*IDX.*PNG.*\.npz.*\.csv"):
        kind_of_source(source)


@pytest.mark.parametrize("name", ["a.parquet", "a.PNG", "a.tar", "a.csv", "a.npz", "a.npy", "a.txt"])
def test_a_file_that_does_not_exist_is_said_not_to(tmp_path, name):
    source = str(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: does not exist; expected \D{{9,70}}$") as caught:
        kind_of_source(source).read(source)
    assert str(caught.value).startswith(source)
    with pytest.raises(DataError, match=r"^a\.parquet: does not exist"):
        kind_of_source("a.parquet")


def test_a_file_that_no_kind_reads_is_said_to_be_there(tmp_path):
    with pytest.raises(
        DataError, match=r"points\.dat: no kind of data is known by the ending .* \.dat: name it .*--kind"
    ):
        kind_of_source(text(tmp_path / "points.dat", "1,2\n"))


def test_missing_arrays_do_not_exist_and_numpys_advice_is_not_passed_on(tmp_path):
    for ending in (".npy", ".npz"):
        with pytest.raises(DataError, match=rf"nowhere{ending}: does not exist; expected an intact {ending} file"):
            Vector.read(str(tmp_path / f"nowhere{ending}"))
        with pytest.raises(DataError, match=rf"a{ending}: is no intact {ending} file") as caught:
            Vector.read(text(tmp_path / f"a{ending}", "no array"))
        assert "pickle" not in str(caught.value)


def test_an_empty_folder_and_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        kind_of_source(str(tmp_path))
    with pytest.raises(ArgumentError, match=r"no kind is called 'imgae'.*image"):
        kind_of_source("mnist", "imgae")


class Sounds(Image):
    sources = "sounds in a file .wav"

    @classmethod
    def takes(cls, source):
        return source.endswith(".wav")


def test_a_package_adds_a_kind_and_a_broken_one_harms_only_itself(monkeypatch):
    here = {
        "broken": names.Name("no_such_module_at_all:Kind", package="broken-package"),
        "other": names.Name("math:pi", package="other-package"),
        "sounds": names.Name(f"{__name__}:Sounds", package="good-package"),
    }
    monkeypatch.setattr(names, "added", lambda group: here if group == "kinds" else {})
    assert kind_of_source("a.wav").__name__ == "Sounds"
    assert kind_of_source("mnist") is Image
    with pytest.raises(DataError, match="sounds in a file"):
        kind_of_source("a.tex")
    with pytest.raises(ArgumentError, match="broken-package"):
        kind_of_source("a.wav", "broken")
    with pytest.raises(ArgumentError, match=r"is no class"):
        kind_of_source("a.wav", "other")


# Every kind -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["image", "vector"])
def source(request, tmp_path):
    if request.param == "image":
        return npz(tmp_path / "a.npz", images=images(40), labels=np.arange(40) % 3)
    rows = np.random.default_rng(0).normal([5.0, -2e6, 1e-3], [2.0, 3e5, 1e-5], (40, 3))
    return npz(tmp_path / "a.npz", x=rows)


def test_encoding_and_decoding_are_inverse(source):
    loaded = kind_of_source(source).read(source)
    encoded = loaded.kind.encode(loaded.train.x)
    assert encoded.shape == (38, *loaded.kind.shape)
    assert encoded.dtype == torch.float32
    decoded = loaded.kind.decode(encoded)
    assert decoded.dtype == loaded.train.x.dtype
    torch.testing.assert_close(decoded, loaded.train.x, rtol=1e-6, atol=0)


def test_a_kind_is_plain_values_and_comes_back_from_a_file(source):
    kind = kind_of_source(source).read(source).kind
    assert restored(kind) == kind
    assert isinstance(kind, Kind)


def test_the_log_scale_is_the_volume_of_the_encoding(source):
    kind = kind_of_source(source).read(source).kind
    ends = torch.zeros(2, math.prod(kind.shape), dtype=torch.float64)
    ends[1] = 1.0
    if isinstance(kind, Image):
        sides = 1 / (kind.encode(ends.to(torch.uint8).reshape(2, *kind.shape)).double().diff(dim=0))
    else:
        sides = kind.decode(ends).diff(dim=0)
    assert kind.log_scale == pytest.approx(sides.log().sum().item(), rel=1e-5)


def test_held_out_examples_are_drawn_by_seed_and_no_others_change_place(source):
    kind = kind_of_source(source)
    whole = kind.read(source, held_out=0)
    assert whole.held_out is None
    assert len(whole.train) == 40
    first, again, other = (kind.read(source, held_out=0.25, seed=seed) for seed in (3, 3, 4))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.held_out.x, whole.train.x[order[:10]])
    assert torch.equal(first.train.x, whole.train.x[order[10:].sort().values])
    assert torch.equal(first.held_out.x, again.held_out.x)
    assert not torch.equal(first.held_out.x, other.held_out.x)
    assert kind.read(source, held_out=0.02).held_out is None  # less than one
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ArgumentError, match=r"must lie in \[0, 1\)"):
            kind.read(source, held_out=share)


def test_settings_that_a_kind_has_not_are_refused(source):
    with pytest.raises(ArgumentError, match="nonesuch"):
        kind_of_source(source).read(source, nonesuch=1)


def test_what_is_written_is_read_again(source, tmp_path):
    loaded = kind_of_source(source).read(source, held_out=0)
    for name in ["again.npz", "AGAIN.NPZ"]:
        loaded.kind.check_output(tmp_path / name, 40)
        loaded.kind.write(str(tmp_path / name), loaded.train.x)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.lower() == "again.npz")
        found = kind_of_source(str(tmp_path / name)).read(str(tmp_path / name), held_out=0)
        assert torch.equal(found.train.x, loaded.train.x)
    with pytest.raises(ArgumentError, match="cannot tell"):
        loaded.kind.check_output(tmp_path / "a.pdf", 40)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        loaded.kind.check_output(tmp_path / "folder.npz", 40)
    picture = loaded.kind.preview(loaded.train.x[:4])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    loaded.kind.write(tmp_path / "a.png", loaded.train.x[:4])
    with Pillow.open(tmp_path / "a.png") as found:
        assert (np.asarray(found).reshape(picture.shape) == picture).all()


# Images ---------------------------------------------------------------------------------------------------------------


def test_mnist_holds_its_test_images_out_and_has_labels():
    loaded = Image.read("mnist")
    assert loaded.kind == Image((1, 28, 28), 10)
    assert (len(loaded.train), len(loaded.held_out)) == (60_000, 10_000)
    assert loaded.train.condition[:5].tolist() == [5, 0, 4, 1, 9]
    assert loaded.held_out.condition[:5].tolist() == [7, 2, 1, 0, 4]
    assert loaded.description == "60000 images of 28 x 28"
    assert Image.read("mnist", held_out=0).held_out is None


def test_labels_travel_with_their_images(tmp_path):
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((1, 4, 5, 1), np.uint8)
    path = npz(tmp_path / "a.npz", images=pixels, labels=np.arange(20, dtype=np.uint16))
    loaded = Image.read(path, held_out=0.25)
    for part in (loaded.train, loaded.held_out):
        assert part.condition.dtype == torch.int64
        assert torch.equal(part.x[:, 0, 0, 0].long(), part.condition)
    assert loaded.kind.classes == tuple(map(str, range(20)))
    assert Image.read(npz(tmp_path / "b.npz", images=pixels)).kind.classes == ()
    for labels, message in (
        (np.arange(20) - 1, "below 0"),
        (np.zeros(20), "float64"),
        (np.zeros(19, int), "one for each"),
    ):
        with pytest.raises(DataError, match=message):
            Image.read(npz(tmp_path / "c.npz", images=pixels, labels=labels))


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((3, 32, 32), (3, 32, 32)),  # PyTorch's order
        ((32, 32, 3), (3, 32, 32)),
        ((1, 28, 28), (1, 28, 28)),
        ((28, 1, 1), (1, 28, 1)),
        ((1, 28, 1), None),  # one pixel high, or one wide
        ((1, 28, 3), None),
        ((3, 3, 3), None),
        ((32, 32, 32), None),
        ((20, 30, 20), None),
        ((4, 4, 1), (1, 4, 4)),
        ((9, 8, 5), (5, 9, 8)),
        ((5, 9, 8), (5, 9, 8)),
        ((20, 64, 64), None),
    ],
)
def test_the_order_of_dimensions_is_recognised_or_refused(tmp_path, stored, shape):
    pixels = images(6, stored)
    path = npz(tmp_path / "a.npz", images=pixels)
    if shape is None:
        with pytest.raises(DataError, match=r"may be .*; expected the first, with 1 channel \(grey\) or 3 \(colour\)"):
            Image.read(path)
        return
    loaded = Image.read(path, held_out=0)
    assert loaded.kind.shape == shape
    expected = pixels if stored == shape else pixels.transpose(0, 3, 1, 2)
    assert (loaded.train.x.numpy() == expected).all()


def test_a_folder_of_pictures_says_what_is_read(tmp_path):
    image_files.write(tmp_path / "own", images(12, (80, 100, 3)))
    loaded = Image.read(str(tmp_path / "own"), held_out=0.25)
    assert loaded.kind == Image((3, 64, 80))
    assert (len(loaded.train), len(loaded.held_out)) == (9, 3)
    assert loaded.description == "9 images of 64 x 80"
    assert "12 colour pictures of 64 x 80, 0.2 MB in memory, scaled and cut from up to 80 x 100" in loaded.notes[0]
    assert Image.read(str(tmp_path / "own"), size=10).kind.shape == (3, 10, 10)
    for source in ("mnist", npz(tmp_path / "a.npz", images=images())):
        with pytest.raises(ArgumentError, match="size is for folders of pictures"):
            Image.read(source, size=10)


@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 0), ((0, 8, 8), 0), ((1, 8, 8), -1)])
def test_other_kinds_of_images_are_refused(shape, classes):
    with pytest.raises(ArgumentError, match=r"images have a shape|at least 0"):
        Image(shape, classes)


# Classes, layouts and levels ------------------------------------------------------------------------------------------


def grey(number=12, sides=(8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *sides), dtype=np.uint8)


def test_folders_of_folders_are_classes(tmp_path):
    for place, level in (("cats/1.png", 10), ("dogs/2.png", 20), ("cats/more/3.png", 30), ("ants/4.png", 40)):
        path = tmp_path / "in" / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image_files.write_png(path, np.full((4, 4, 1), level, np.uint8), "by hand")
    loaded = Image.read(str(tmp_path / "in"), held_out=0)  # the folder "data" holds all of them, so it is no class
    assert loaded.kind.classes == ("ants", "cats", "dogs")
    names = {
        int(x[0, 0, 0]): loaded.kind.classes[int(c)]
        for x, c in zip(loaded.train.x, loaded.train.condition, strict=True)
    }
    assert names == {10: "cats", 20: "dogs", 30: "cats", 40: "ants"}
    assert "4 grey pictures of 4 x 4" in loaded.notes[0]
    assert "3 classes (ants, cats, dogs)" in loaded.notes[0]


@pytest.mark.parametrize("place", ["data/loose.png", "loose.png"])
@pytest.mark.parametrize("workers", [None, 0])
def test_a_loose_picture_beside_classes_has_none_and_is_counted(tmp_path, place, workers):
    for k, name in enumerate(("data/cats/1.png", "data/dogs/2.png", place)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image_files.write_png(path, np.full((4, 4, 1), 10 * k, np.uint8), "by hand")
    loaded = Image.read(str(tmp_path), held_out=0, workers=workers)
    assert loaded.kind.classes == ("cats", "dogs")
    assert dict(zip(loaded.train.x[:, 0, 0, 0].tolist(), loaded.train.condition.tolist(), strict=True)) == {
        0: 0,
        10: 1,
        20: -1,
    }
    assert loaded.notes[0].endswith(f"left out: labels that are missing: 1 (as {place})")


def test_one_folder_is_no_class(tmp_path):
    (tmp_path / "a").mkdir()
    image_files.write(tmp_path / "a", np.zeros((3, 4, 4, 1), np.uint8))
    loaded = Image.read(str(tmp_path))
    assert loaded.train.condition is None
    assert loaded.kind.classes == ()
    assert "no classes" in loaded.notes[0]


@pytest.mark.parametrize(
    ("labels", "names", "places"),
    [
        (np.array([3, 7, 3, 9]), ("3", "7", "9"), [0, 1, 0, 2]),
        (np.array([3, 7, 3, 9], np.uint8), ("3", "7", "9"), [0, 1, 0, 2]),
        (np.array(["b", "a", "b", "ä"]), ("a", "b", "ä"), [1, 0, 1, 2]),
        (np.array([b"b", b"a", b"b", b"c"]), ("a", "b", "c"), [1, 0, 1, 2]),
        (np.array(["a\n", "b", "b", "b"]), (r"a\n", "b"), [0, 1, 1, 1]),
    ],
)
def test_labels_of_any_kind_are_classes_by_name(tmp_path, labels, names, places):
    loaded = Image.read(npz(tmp_path / "a.npz", images=grey(4), labels=labels), held_out=0)
    assert loaded.kind.classes == names
    assert loaded.train.condition.tolist() == places


@pytest.mark.parametrize(
    "labels",
    [np.zeros(3, int), np.zeros((4, 2), int), np.zeros(4), np.array([1, -1, 0, 0]), np.array([{}] * 4, object)],
)
def test_labels_that_are_none_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=grey(4), labels=labels, allow_pickle=True)
    with pytest.raises(DataError, match=r"one for each|below 0|Python objects"):
        Image.read(str(tmp_path / "a.npz"))


def test_idx_folders_have_classes_and_refuse_half_of_them(tmp_path):
    def idx(name, array):
        header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())

    idx("train-images-idx3-ubyte", grey(4))
    idx("train-labels-idx1-ubyte", np.array([5, 2, 2, 5], np.uint8))
    idx("t10k-images-idx3-ubyte", grey(3))
    with pytest.raises(DataError, match="only one of training and test images has labels"):
        Image.read(str(tmp_path))
    idx("t10k-labels-idx1-ubyte", np.array([2, 9, 5], np.uint8))
    loaded = Image.read(str(tmp_path))
    assert loaded.kind.classes == ("2", "5", "9")
    assert loaded.train.condition.tolist() == [1, 0, 0, 1]
    assert loaded.held_out.condition.tolist() == [0, 2, 1]
    idx("t10k-labels-idx1-ubyte", np.array([2, 9], np.uint8))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        Image.read(str(tmp_path))


@pytest.mark.parametrize(
    "names", [("a", "a"), ("",), ("a\n",), ("x" * 256,), ("\udce9",), tuple(map(str, range(2**16 + 1)))]
)
def test_names_of_classes_are_bounded_and_printable(names):
    with pytest.raises(ArgumentError, match="class"):
        Image((1, 8, 8), names)


LEVELS = np.array([[0, 1], [7, 250]])
STORED = [
    (LEVELS.astype(np.uint8), LEVELS),
    (LEVELS.astype(np.int64), LEVELS),
    (LEVELS.astype(np.float32), LEVELS),
    (LEVELS.astype(">u2"), LEVELS),
    (LEVELS.astype(np.uint16) * 16, LEVELS),  # 12 bits
    (LEVELS.astype(np.uint16) * 256, LEVELS),
    (LEVELS.astype(np.float64) * 256, LEVELS),
    (LEVELS / 255, LEVELS),
    ((LEVELS / 255).astype(np.float32), LEVELS),
    ((LEVELS / 255).astype(np.float16), LEVELS),
    (LEVELS / 127.5 - 1, LEVELS),
    ((LEVELS / 127.5 - 1).astype(">f4"), LEVELS),
    (LEVELS + 0.25, LEVELS),
    (LEVELS > 5, 255 * (LEVELS > 5)),
]


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize(("stored", "expected"), STORED, ids=[f"{a.dtype}-{a.max()}" for a, _ in STORED])
def test_levels_of_every_type_become_bytes_by_one_rule(tmp_path, name, stored, expected):
    pixels = np.stack([stored, stored[::-1]])
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, **{"arr" if name == "a.npy" else "images": pixels})
    loaded = kind_of_source(str(tmp_path / name)).read(str(tmp_path / name), held_out=0)
    assert loaded.kind == Image((1, 2, 2))
    assert loaded.train.x[:, 0].tolist() == [expected.tolist(), expected[::-1].tolist()]
    assert "evels" in loaded.record["levels"] or "false and true" in loaded.record["levels"]
    assert loaded.record["levels"] in loaded.notes[0]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.array([-2.1, 2.6]), r"has real levels from -2\.1 to 2\.6; expected 0 \(black\) to 1"),
        (np.array([0.0, 1.7]), "expected 0"),
        (np.array([0.0, np.nan]), "expected finite numbers"),
        (np.array([0.0, np.inf]), "expected finite numbers"),
        (np.array([-1, 200]), "has levels from -1 to 200; expected 0 to 65535"),
        (np.array([0, 70000]), "expected 0 to 65535"),
        (np.array([0, 1j]), "is complex128"),
        (np.array(["a", "b"]), "expected levels as uint8"),
    ],
)
def test_levels_of_arrays_without_a_rule_are_refused(tmp_path, levels, message):
    with pytest.raises(DataError, match=message):
        Image.read(npz(tmp_path / "a.npz", images=np.tile(levels, (6, 5, 4))))


@pytest.mark.parametrize(
    ("arrays", "images", "labels"),
    [
        ({"arr_0": grey(), "arr_1": np.arange(12) % 2}, "arr_0", "arr_1"),  # as diffusion models' scripts write them
        ({"x": grey()[..., None], "labels": np.arange(12) % 3}, "x", "labels"),
        ({"data": grey()}, "data", None),
    ],
)
def test_the_only_array_of_pictures_needs_no_name(tmp_path, arrays, images, labels):
    loaded = Image.read(npz(tmp_path / "a.npz", **arrays), held_out=0)
    assert kind_of_source(str(tmp_path / "a.npz")) is Image
    assert (loaded.train.x.numpy().reshape(12, 8, 8) == arrays[images].reshape(12, 8, 8)).all()
    found = loaded.train.condition
    assert (found is None) == (labels is None)
    assert labels is None or found.tolist() == arrays[labels].tolist()


def test_other_arrays_are_counted_and_two_of_pictures_refused(tmp_path):
    loaded = Image.read(npz(tmp_path / "a.npz", images=grey(), masks=grey(), note=np.zeros(3)))
    assert loaded.record["left_out"] == {"arrays of other names": {"number": 2, "example": "masks"}}
    assert "left out: arrays of other names: 2 (as masks)" in loaded.notes[0]
    with pytest.raises(DataError, match='expected the key "images", found x_train, x_test'):
        Image.read(npz(tmp_path / "b.npz", x_train=grey(), x_test=grey()))


@pytest.mark.parametrize("shape", [(12, 8, 3), (12, 8, 1), (12, 8, 4), (12,), (12, 0, 4), (2, 3, 4, 5, 6)])
def test_arrays_that_may_be_one_picture_are_refused(tmp_path, shape):
    with pytest.raises(DataError, match=r"expected uint8 of shape \(number, height, width, channels\)"):
        Image.read(npz(tmp_path / "a.npz", images=np.zeros(shape, np.uint8)))


def test_no_model_is_built_of_what_could_not_be_loaded():
    with pytest.raises(ArgumentError, match="larger than any use"):
        proxflow.build((1, 2**16, 2**15), network="unet:channels=8,multipliers=1")


# Vectors --------------------------------------------------------------------------------------------------------------


def text(path, content, encoding="utf-8"):
    path.write_text(content, encoding=encoding)
    return str(path)


def test_columns_are_standardised_over_the_training_rows(tmp_path):
    rows = np.random.default_rng(0).normal([4.0, 1e9, 1e-12], [1.5, 1.0, 1e-14], (500, 3))
    loaded = Vector.read(npz(tmp_path / "a.npz", x=rows), held_out=0.2)
    encoded = loaded.kind.encode(loaded.train.x).double()
    torch.testing.assert_close(encoded.mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(3).double(), atol=1e-6, rtol=0)
    assert loaded.kind.mean == pytest.approx(loaded.train.x.mean(0).tolist())
    assert loaded.kind.std == pytest.approx(loaded.train.x.std(0, correction=0).tolist(), rel=1e-4)
    assert loaded.description == "400 rows of 3 columns"
    assert loaded.notes == ()


def test_a_gaussians_density_is_in_the_datas_own_units(tmp_path):
    rows = np.random.default_rng(0).normal([4.0, 0.0], [1.5, 30.0], (20_000, 2))
    loaded = Vector.read(npz(tmp_path / "a.npz", x=rows), held_out=0)
    encoded = loaded.kind.encode(loaded.train.x).double()
    found = (-encoded.square() / 2 - math.log(2 * math.pi) / 2).sum(1) - loaded.kind.log_scale
    law = torch.distributions.Normal(torch.tensor([4.0, 0.0]).double(), torch.tensor([1.5, 30.0]).double())
    assert found.mean().item() == pytest.approx(law.log_prob(loaded.train.x).sum(1).mean().item(), abs=0.01)


def test_data_of_any_scale_are_learnt_with_the_kinds_own_network(tmp_path):
    rows = np.random.default_rng(0).normal([4.0, -2e5], [1.5, 3e4], (4000, 2))
    loaded = Vector.read(npz(tmp_path / "a.npz", x=rows), held_out=0)
    kind, flow = loaded.kind, proxflow.GPFN(weight_floor=0.1)
    torch.manual_seed(0)
    network = names.find("networks", kind.defaults.network).load()(kind.shape, width=64, depth=2)
    predictor = proxflow.PointPredictor(network, flow, clip=kind.defaults.clip, parameterisation="x")
    config = proxflow.TrainingConfig(steps=400, learning_rate=3e-3)
    trained = proxflow.fit(predictor, flow, kind.encode(loaded.train.x), config).predictor
    samples = kind.decode(proxflow.sample(trained, flow, (2000, 2), nfe=50, sampler="deterministic", batch_size=2000))
    assert samples.mean(0).tolist() == pytest.approx([4.0, -2e5], rel=0.05)
    assert samples.std(0).tolist() == pytest.approx([1.5, 3e4], rel=0.05)
    with torch.no_grad():
        encoded = kind.encode(loaded.train.x[:256])
        found = proxflow.ode_log_likelihood(trained, flow, encoded, steps=16).log_prob - kind.log_scale
    law = torch.distributions.Normal(torch.tensor([4.0, -2e5]).double(), torch.tensor([1.5, 3e4]).double())
    assert found.mean().item() == pytest.approx(law.log_prob(loaded.train.x[:256]).sum(1).mean().item(), abs=0.1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64", ">f8"])
def test_real_numbers_of_every_type_are_read(tmp_path, dtype):
    rows = np.arange(12).reshape(6, 2).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(rows))
    np.savez_compressed(tmp_path / "a.npz", other=np.zeros(3), only=rows)
    for name in ("a.npy", "a.npz"):
        found = Vector.read(str(tmp_path / name), held_out=0).train.x
        assert found.dtype == torch.float64
        assert found.tolist() == np.arange(12).reshape(6, 2).tolist()


def test_extreme_and_constant_columns(tmp_path):
    rows = np.array([[1e200, 1e-200, 0.1], [-1e200, 3e-200, 0.1], [0.0, 2e-200, 0.1]])
    loaded = Vector.read(npz(tmp_path / "a.npz", x=rows), held_out=0)
    assert loaded.kind.std == pytest.approx([1e200 * math.sqrt(2 / 3), 1e-200 * math.sqrt(2 / 3), 1.0])
    assert loaded.kind.mean[2] == 0.1
    assert "column 3 has one value" in loaded.notes[0]
    assert not loaded.kind.encode(loaded.train.x)[:, 2].any()
    with pytest.raises(DataError, match=r"column 1 reaches from -1e\+308 to 1e\+308; expected smaller"):
        Vector.read(npz(tmp_path / "b.npz", x=np.array([[1e308], [-1e308]])))
    numbers = np.linspace(0, 1, 20)[:, None]
    numbers[0] = 1e300
    held = [0 in torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:10] for seed in range(6)]
    assert set(held) == {True, False}
    for seed, wrong in enumerate(held):  # held out, it does not set the scale, and would be infinite
        source = npz(tmp_path / "c.npz", x=numbers)
        if wrong:
            with pytest.raises(DataError, match=r"row 1, column 1: 1e\+300 lies more than 1e\+15 standard deviations"):
                Vector.read(source, held_out=0.5, seed=seed)
        else:
            assert Vector.read(source, held_out=0.5, seed=seed).held_out is not None
    both = npz(tmp_path / "d.npz", x=np.array([[1e308], [-1e308], *([[0.5]] * 8)]))
    for seed in range(4):
        with pytest.raises(DataError, match="reaches from"):
            Vector.read(both, held_out=0.5, seed=seed)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("1,2\n3,4.5\n", ()),
        ("height,width\n1,2\n3,4.5\n", ("height", "width")),
        ('\ufeff"height, in m","w"\r\n1, 2\r\n\r\n3e0 ,+4.5\r\n', ("height, in m", "w")),
        ("1,2\n3,4.5", ()),
    ],
)
def test_tables_of_text_with_and_without_names(tmp_path, content, columns):
    loaded = Vector.read(text(tmp_path / "a.csv", content), held_out=0)
    assert loaded.train.x.tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert loaded.kind.columns == columns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("a,b\n", "holds no rows"),
        ("1,2\n3\n", "line 2 has 1 fields; expected 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields; expected 2"),
        ("a,b\n1,2\n1,x\n", "line 3, b, has 'x'; expected a finite number"),
        ("a,2\n1,2\n", "line 1, column 1, has 'a'"),
        ("1,2\n1,\n", "line 2, column 2, is empty"),
        ("1,2\n1,nan\n", "line 2, column 2, has 'nan'"),
        ("1,2\n-inf,1\n", "line 2, column 1, has '-inf'"),
        ("1,2\n1_0,1\n", "line 2, column 1, has '1_0'"),
        ("1;2\n3;4\n", "line 1: expected commas between the columns; this file has semicolons: save it with commas"),
        (
            "a;b\n1,5;2,5\n",
            "line 1: expected commas between the columns; this file has semicolons: save it with commas",
        ),
        ("1,2\n1j,1\n", "has '1j'"),
        (",a,b\n0,1,2\n", "column 1 has no name.*index=False"),
        ("1,2\n1,\0\n", "a.csv"),
    ],
)
def test_tables_of_text_are_refused_by_place(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        Vector.read(text(tmp_path / "a.csv", content))
    assert "a.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_of_another_encoding_or_no_text_is_refused(tmp_path):
    for path in (text(tmp_path / "a.csv", "é,b\n1,2\n", "latin-1"), str(tmp_path / "nowhere.csv"), str(tmp_path)):
        with pytest.raises(
            DataError, match=r"no UTF-8 text|cannot be read|nowhere.csv: does not exist|no rows of numbers"
        ):
            Vector.read(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\); expected \(rows, columns\).*reshape\(-1, 1\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 3)), "not empty"),
        (np.zeros((3, 0)), "not empty"),
        (np.float64(3.0), r"shape \(\)"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), bool), "bool"),
        (np.array([["1", "2"]]), "<U1"),
        (
            np.array([[{}, 1]]),
            "(is no intact .npy file|.x. is no intact array), or holds Python objects, which are not read$",
        ),  # would need a pickle
        (np.zeros((2, 2), [("a", float)]), "expected real numbers"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), r"nan at \[1, 1\]"),
        (np.array([[1.0, np.inf], [3.0, 0.0]]), r"inf at \[0, 1\]"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=message) as caught:
            Vector.read(str(tmp_path / name))
        assert name in str(caught.value)


def test_damaged_and_ambiguous_files_are_refused(tmp_path):
    whole = tmp_path / "a.npz"
    np.savez(whole, a=np.zeros((3, 2)), b=np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"expected the key x, or one array.*a \(3, 2\), b \(3, 4\)"):
        Vector.read(str(whole))
    np.savez(whole, x=np.zeros((300, 2)))
    content = whole.read_bytes()
    for cut in (0, 10, 100, len(content) // 2, len(content) - 1):
        whole.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\.npz"):
            Vector.read(str(whole))
    np.save(tmp_path / "b.npy", np.zeros((300, 2)))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"b\.npy: is no intact \.npy file"):
        Vector.read(str(tmp_path / "b.npy"))
    np.savez(tmp_path / "c", x=np.zeros((3, 2)))
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    with pytest.raises(DataError, match=r"c\.npy: holds several arrays"):
        Vector.read(str(tmp_path / "c.npy"))


@pytest.mark.parametrize("columns", [(), ("height, in m", "w")])
def test_rows_are_written_and_read_again_to_the_last_digit(tmp_path, columns):
    kind = Vector((2,), (0.0, 1.0), (1.0, 2.0), columns)
    rows = kind.decode(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    for name in ("a.npy", "a.npz", "a.csv", "B.CSV", "B.NPY"):
        kind.check_output(tmp_path / "new" / name, 30)
        kind.write(tmp_path / "new" / name, rows)
        found = Vector.read(str(tmp_path / "new" / name), held_out=0)
        assert torch.equal(found.train.x, rows)
        assert found.kind.columns == (columns if name.endswith(("csv", "CSV")) else ())
    with (tmp_path / "new" / "a.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 30 + bool(columns)
    assert sorted(os.listdir(tmp_path / "new")) == ["B.CSV", "B.NPY", "a.csv", "a.npy", "a.npz"]


def ink(picture):
    """Where points are: what is bluer than grey."""
    wide = picture.astype(int)
    return wide[..., 2] - wide[..., 0] > 40


def test_a_scatter_plot_shows_points_where_they_are():
    kind = Vector((2,), (0.0, 0.0), (1.0, 1.0), ("left to right", "up"))
    corners = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    one = ink(kind.preview(corners))
    rows, columns = np.nonzero(one)
    low, high = rows > one.shape[0] / 2, rows < one.shape[0] / 2
    assert columns[low].max() < one.shape[1] / 2 < columns[high].min()  # y points up
    more = ink(kind.preview(torch.cat([corners, torch.tensor([[5.0, 5.0], [math.nan, 1.0]])])))
    height, width = np.nonzero(more & ~one)
    assert height.mean() == pytest.approx((rows.min() + rows.max()) / 2, abs=2)
    assert width.mean() == pytest.approx((columns.min() + columns.max()) / 2, abs=2)


def test_plots_of_any_numbers(tmp_path):
    far = [[1e300, -1e-300], [2e300, 1e-300]]
    for rows in ([[1.0]], [[2.0], [3.0]], [[0.0, 0.0]], far, [[1.0, 2.0, 3.0]], [[math.nan] * 2]):
        columns = len(rows[0])
        kind = Vector((columns,), (0.0,) * columns, (1.0,) * columns, ("n" * 500,) * columns)
        assert kind.preview(torch.tensor(rows, dtype=torch.float64)).shape == (640, 640, 3)
    heights = ink(Vector((1,), (0.0,), (1.0,)).preview(torch.tensor([[0.0]] * 90 + [[1.0]] * 30))).sum(0)
    tall, short = heights[: len(heights) // 2].max(), heights[len(heights) // 2 :].max()
    assert tall / short == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        ((2, 2), (0.0, 0.0), (1.0, 1.0)),
        ((0,), (), ()),
        ((2,), (0.0,), (1.0, 1.0)),
        ((2,), (0.0, 0.0), (1.0, 0.0)),
        ((2,), (0.0, math.nan), (1.0, 1.0)),
        ((2,), (0.0, 0.0), (1.0, 1.0), ("a",)),
    ],
)
def test_other_kinds_of_rows_are_refused(fields):
    with pytest.raises(ArgumentError, match=r"rows of|finite"):
        Vector(*fields)


def test_rows_that_are_not_finite_are_counted():
    rows = torch.zeros(5, 2)
    rows[1, 0], rows[3] = torch.nan, torch.inf
    with pytest.raises(DataError, match="2 of 5 rows to learn from hold NaN or infinite values"):
        Vector.of(rows)


def test_the_names_are_those_of_the_table():
    assert {name: names.find("kinds", name).load() for name in names.BUILT_IN["kinds"]} == {
        "image": Image,
        "binary": Binary,
        "latents": Latents,
        "table": Table,
        "vector": Vector,
        "text": Text,
    }
    for kind in (Image, Latents, Vector, Text):
        assert kind.examples_word
        assert names.find("networks", kind.defaults.network)
    assert kinds.Defaults().clip is None


def test_what_lies_beside_the_rows_is_said_to_be_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(8.0).reshape(4, 2), labels=np.arange(4))
    assert "only x is read; left out: labels" in Vector.read(str(tmp_path / "a.npz")).notes[0]
