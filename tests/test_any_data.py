"""Data sets drawn at random: each is read as what it holds, or refused by a sentence that names the fault."""

import csv
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from test_sources import Gaussian

import proxflow
from proxflow import GPFN, PointPredictor, TrainingConfig
from proxflow.cli import main
from proxflow.data import labelled
from proxflow.data.kinds import kind_of_source
from proxflow.errors import ArgumentError, DataError

FEW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def fresh(place):
    return Path(tempfile.mkdtemp(dir=place))


def loaded(source, **options):
    return kind_of_source(str(source)).read(str(source), **options)


def all_of(read):
    parts = [read.train.x, *([] if read.held_out is None else [read.held_out.x])]
    return torch.cat(parts)


def refuses(source, *named):
    """Assert that the data are refused by one sentence that names what it is about."""
    with pytest.raises((DataError, ArgumentError)) as caught:
        loaded(source)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in named), (named, message)


def in_some_order(rows):
    return np.array(sorted(map(tuple, np.asarray(rows, np.float64).reshape(len(rows), -1).tolist())))


# Tables

WHOLE = ("int8", "int16", "int32", "int64", "uint16", "uint32")
REAL = ("float16", "float32", "float64", ">f4", ">f8")


@st.composite
def tables(draw):
    rows, columns = draw(st.integers(3, 40)), draw(st.integers(1, 5))
    scale, offset = 10.0 ** draw(st.floats(-3, 6)), draw(st.sampled_from([0.0, 1.0, -3.0, 100.0]))
    values = np.random.default_rng(draw(st.integers(0, 2**32))).normal(offset, 1, (rows, columns)) * scale
    dtype = draw(st.sampled_from(REAL + WHOLE))
    if dtype in WHOLE:
        limits = np.iinfo(dtype)
        values = values.clip(limits.min, limits.max).round()
    elif dtype == "float16":
        values = values.clip(-6e4, 6e4)
    order = draw(st.sampled_from(["C", "F"]))
    return np.asarray(values.astype(dtype), order=order)


@given(
    table=tables(),
    form=st.sampled_from(["npy", "npz x", "npz single", "csv", "csv named"]),
    held_out=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=400, **FEW)
def test_tables_keep_their_numbers_and_units(place, table, form, held_out):
    ending, _, more = form.partition(" ")
    path = fresh(place) / f"table.{ending}"
    match ending:
        case "npy":
            np.save(path, table)
        case "npz":
            np.savez(path, **{"x" if more == "x" else "arr": table})
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                if more:
                    writer.writerow([f"column {k}" for k in range(table.shape[1])])
                writer.writerows([[repr(float(value)) for value in row] for row in table])
    read = loaded(path, held_out=held_out, seed=1)
    kind, found = read.kind, all_of(read)
    expected = table.astype(np.float64)
    np.testing.assert_array_equal(in_some_order(found), in_some_order(expected))

    train = read.train.x.double().numpy()
    encoded = kind.encode(read.train.x).double().numpy()
    spread = train.std(0)
    varied = spread > 1e-9 * np.abs(train).max(0)
    np.testing.assert_allclose(encoded[:, varied].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(encoded[:, varied].std(0), 1, atol=1e-3)
    again = kind.decode(kind.encode(read.train.x)).numpy()
    np.testing.assert_allclose(
        again, train, atol=1e-5 * max(spread.max(), np.abs(train).max() * 1e-3, 1e-300), rtol=1e-5
    )

    # Exact predictions of standardised data: samples in the data's own units have their place and spread.
    flow = GPFN()
    samples = kind.decode(proxflow.sample(Gaussian(flow, 0.0, 1.0), flow, (96, *kind.shape), nfe=8)).numpy()
    unit = np.where(varied, spread, 1.0)
    assert (np.abs(samples.mean(0) - train.mean(0))[varied] < 0.7 * unit[varied]).all()
    assert (np.abs(samples.std(0) / unit - 1)[varied] < 0.5).all()


FAULTS = ("nan", "inf", "cut", "text", "ragged", "empty", "object", "complex")


@given(table=tables(), fault=st.sampled_from(FAULTS), ending=st.sampled_from(["npy", "npz", "csv"]), where=st.randoms())
@settings(max_examples=200, **FEW)
def test_damaged_tables_are_refused_by_name(place, table, fault, ending, where):
    path = fresh(place) / f"table.{ending}"
    table = table.astype(np.float64)
    if fault in ("nan", "inf"):
        table[where.randrange(len(table)), where.randrange(table.shape[1])] = np.nan if fault == "nan" else -np.inf
    elif fault == "empty":
        table = table[:0]
    if ending == "csv":
        lines = [",".join(map(repr, map(float, row))) for row in table]
        if fault in ("text", "object", "complex"):
            lines[where.randrange(1, len(lines))] = ",".join(["word"] * table.shape[1])
        elif fault in ("ragged", "cut"):
            lines[where.randrange(1, len(lines))] += ",1.0"
        path.write_text("\n".join(lines))
    else:
        if fault in ("text", "ragged"):
            table = table.astype(str)
        elif fault == "object":
            table = table.astype(object)
        elif fault == "complex":
            table = table.astype(complex)
        (np.save if ending == "npy" else np.savez)(path, table)
        if fault == "cut":
            content = path.read_bytes()
            path.write_bytes(content[: where.randrange(1, len(content) - 8)])
    refuses(path, "table.")


# Arrays of pictures


@st.composite
def stacks(draw):
    """Draw bytes (number, height, width, channels), and the array that says them in another type and layout."""
    number, channels = draw(st.integers(2, 12)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(5, 9)), draw(st.integers(5, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = random.integers(0, 256, (number, height, width, channels), dtype=np.uint8)
    levels.flat[:2] = 0, 255
    dtype = draw(st.sampled_from(["uint8", "int32", "int64", "uint16", "bool", "unit", "signed", "0..255", "16 bits"]))
    if dtype == "bool":
        levels = np.where(levels > 127, 255, 0).astype(np.uint8)
    array = {
        "bool": lambda: levels > 127,
        "unit": lambda: (levels / 255).astype(draw(st.sampled_from(["float32", "float64"]))),
        "signed": lambda: (levels / 127.5 - 1).astype("float32"),
        "0..255": lambda: levels.astype("float64"),
        "16 bits": lambda: levels.astype("uint16") * 256 + 7,
    }.get(dtype, lambda: levels.astype(dtype))()
    layout = draw(st.sampled_from(["NHWC", "NCHW"] + ["NHW"] * (channels == 1)))
    if layout == "NCHW":
        array = array.transpose(0, 3, 1, 2)
    elif layout == "NHW":
        array = array[..., 0]
    return levels, np.asarray(array, order=draw(st.sampled_from(["C", "F"])))


LABELS = st.sampled_from(["none", "whole", "text"])


@given(stack=stacks(), labels=LABELS, form=st.sampled_from(["npz", "npz single", "npy"]))
@settings(max_examples=400, **FEW)
def test_arrays_of_pictures_keep_their_pixels_and_labels(place, stack, labels, form):
    levels, array = stack
    ending, _, single = form.partition(" ")
    path = fresh(place) / f"own.{ending}"
    classes = np.arange(len(levels)) % 3
    if ending == "npy":
        np.save(path, array)
        labels = "none"
    else:
        told = {
            "none": {},
            "whole": {"labels": classes * 10},
            "text": {"labels": np.array(["cat", "dog", "owl"])[classes]},
        }
        np.savez(path, **({"images": array} if not single else {"arr": array}), **told[labels])
    read = loaded(path, held_out=0.0)
    np.testing.assert_array_equal(read.train.x.numpy(), levels.transpose(0, 3, 1, 2))
    back = read.kind.decode(read.kind.encode(read.train.x))
    assert torch.equal(back, read.train.x)
    names = read.kind.classes
    if labels == "none":
        assert read.train.condition is None
        assert names == ()
    else:
        wanted = [{"whole": ["0", "10", "20"], "text": ["cat", "dog", "owl"]}[labels][k] for k in classes]
        assert [names[k] for k in read.train.condition.tolist()] == wanted


@given(
    stack=stacks(),
    fault=st.sampled_from(["cut", "labels", "negative", "too deep", "nan", "text", "flat", "objects"]),
    where=st.randoms(),
)
@settings(max_examples=200, **FEW)
def test_arrays_that_are_no_pictures_are_refused_by_name(place, stack, fault, where):
    levels, array = stack
    path, told = fresh(place) / "own.npz", {}
    array = {
        "negative": lambda: levels.astype("int32") - 300,
        "too deep": lambda: levels.astype("int64") * 300 + 1,
        "nan": lambda: np.where(levels == levels.max(), np.nan, levels / 255),
        "text": lambda: levels.astype(str),
        "flat": lambda: levels.reshape(-1),
        "objects": lambda: levels.astype(object),
    }.get(fault, lambda: array)()
    if fault == "labels":
        told = {"labels": np.zeros(len(levels) + 1, int)}
    np.savez(path, images=array, **told)
    if fault == "cut":
        content = path.read_bytes()
        path.write_bytes(content[: where.randrange(1, len(content) - 8)])
    refuses(path, "own.npz")


# Folders of pictures

SAVED = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}


def saved(path, levels):
    picture = Pictures.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    picture.save(path, SAVED[path.suffix], **({"lossless": True} if path.suffix == ".webp" else {}))


@st.composite
def folders(draw):
    """Draw the parts of a folder: pictures by their places, and what else lies there."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.sampled_from([1, 3]))
    endings = draw(
        st.lists(st.sampled_from([".png", ".bmp", ".tif"] + [".webp"] * (channels == 3)), min_size=2, max_size=6)
    )
    inner = draw(st.sampled_from(["", "class"]))
    places = [f"{'cats' if k % 2 else 'dogs'}/{k}{end}" if inner else f"{k}{end}" for k, end in enumerate(endings)]
    pictures = {place: random.integers(0, 256, (7, 6, channels), dtype=np.uint8) for place in places}
    for levels in pictures.values():
        levels.flat[:3] = 0, 128, 255  # so that no colour picture is grey by chance
    more = draw(
        st.sets(st.sampled_from(["text", "hidden", "link", "second link", "loop", "broken link", "run", "grid"]))
    )
    return pictures, more


@given(folder=folders(), size=st.sampled_from([None, 4]))
@settings(max_examples=350, **FEW)
def test_folders_give_every_intact_picture_and_count_the_rest(place, folder, size):
    pictures, more = folder
    root = fresh(place) / "pictures"
    root.mkdir()
    for name, levels in pictures.items():
        (root / name).parent.mkdir(exist_ok=True)
        saved(root / name, levels)
    left, first = 0, next(iter(pictures))
    if "text" in more:
        (root / "notes.txt").write_text("not a picture")
        left += 1
    if "hidden" in more:
        saved(root / ".hidden.png", pictures[first])
        left += 1
    if "second link" in more:
        os.symlink(root / first, (root / first).parent / f"zz{Path(first).suffix}")
        left += 1
    if "loop" in more:
        os.symlink(root, root / "zloop")
        left += 1
    if "run" in more:
        (root / "zrun" / "samples").mkdir(parents=True)
        (root / "zrun" / "run.json").write_text("{}")
        saved(root / "zrun" / "samples" / "1.png", pictures[first])
        left += 1
    if "grid" in more:
        (root / "zrun2").mkdir()
        (root / "zrun2" / "model.safetensors").write_bytes(b"")
        left += 1
    if "link" in more:  # a picture that lies elsewhere, as in caches of data sets
        outside = root.parent / f"blob{Path(first).suffix}"
        saved(outside, pictures[first][::-1].copy())
        name = str(Path(first).parent / f"y{Path(first).suffix}")
        os.symlink(outside, root / name)
        pictures = {**pictures, name: pictures[first][::-1]}
    if "broken link" in more:
        os.symlink(root / "nowhere.png", root / "zbroken.png")
        refuses(root, "zbroken.png")
        return
    read = loaded(root, held_out=0.0, **({} if size is None else {"size": size}))
    assert len(read.train.x) == len(pictures)
    counted = sum(reason["number"] for reason in read.record["left_out"].values())
    assert counted == left, read.record
    assert f"{len(pictures)} " in read.notes[0]
    if size is None:
        wanted = sorted(levels.transpose(2, 0, 1).tobytes() for levels in pictures.values())
        assert sorted(x.numpy().tobytes() for x in read.train.x) == wanted
    else:
        assert read.train.x.shape[2:] == (4, 4)
    if "/" in first and len({name.split("/")[0] for name in pictures}) == 2:
        names = read.kind.classes
        by_pixels = {levels.transpose(2, 0, 1).tobytes(): name.split("/")[0] for name, levels in pictures.items()}
        if size is None:
            told = [names[k] for k in read.train.condition.tolist()]
            assert told == [by_pixels[x.numpy().tobytes()] for x in read.train.x]


@given(folder=folders(), fault=st.sampled_from(["cut", "eps", "pipe", "empty", "noise", "folder"]), where=st.randoms())
@settings(max_examples=150, **FEW)
def test_a_damaged_picture_is_refused_by_name(place, folder, fault, where):
    pictures, _ = folder
    root = fresh(place)
    for name, levels in pictures.items():
        (root / name).parent.mkdir(exist_ok=True)
        saved(root / name, levels)
    bad = root / "bad.png"
    if fault == "cut":
        whole = io.BytesIO()
        Pictures.fromarray(np.random.default_rng(0).integers(0, 256, (7, 6), dtype=np.uint8)).save(whole, "PNG")
        bad.write_bytes(whole.getvalue()[: where.randrange(1, whole.tell() - 24)])
    elif fault == "eps":
        bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 7\nshowpage\n")
    elif fault == "pipe":
        os.mkfifo(bad)
    elif fault == "empty":
        bad.write_bytes(b"")
    elif fault == "noise":
        bad.write_bytes(where.randbytes(200))
    elif fault == "folder":
        bad.mkdir()
        assert len(loaded(root, held_out=0.0).train.x) == len(pictures)  # a folder of this name, with nothing in it
        return
    refuses(root, "bad.png")


# Python


class Linear(torch.nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.layer = torch.nn.Linear(columns, columns)

    def forward(self, x, t):
        return self.layer(x)


@given(
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64, torch.int16, torch.int32, torch.int64]),
    scale=st.floats(-3, 6),
    offset=st.floats(-100, 100),
    columns=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, **FEW)
def test_tensors_are_learnt_in_their_place_and_scale_or_refused(dtype, scale, offset, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    data = (torch.randn(60, columns, generator=generator, dtype=torch.float64) + offset) * 10**scale
    if not dtype.is_floating_point:
        data = data.round().clamp(-3e4, 3e4)
    elif dtype == torch.float16:
        data = data.clamp(-6e4, 6e4)
    data, flow = data.to(dtype), GPFN()
    predictor = PointPredictor(Linear(columns), flow)
    mean, std = data.double().mean(0), data.double().std(0, correction=0)
    far = (std < 1 / 11) & (std > 0) | (std > 11) | (mean.abs() > 110 * std.clamp_min(1))
    if bool(far.any()):
        with pytest.raises(ArgumentError, match=r"proxflow\.build\(data\)\.fit\(data\)"):
            proxflow.fit(predictor, flow, data, TrainingConfig(steps=1, batch_size=8))
        return
    proxflow.fit(predictor, flow, data, TrainingConfig(steps=1, batch_size=8))
    torch.testing.assert_close(torch.tensor(predictor.mean).double(), mean, rtol=1e-4, atol=1e-3)
    varied = std > 0
    torch.testing.assert_close(torch.tensor(predictor.std).double()[varied], std[varied], rtol=1e-4, atol=1e-4)
    # The weights do nothing yet: what is predicted is the posterior mean of Gaussian data of these moments.
    torch.nn.init.zeros_(predictor.network.layer.weight)
    torch.nn.init.zeros_(predictor.network.layer.bias)
    samples = proxflow.sample(predictor, flow, (96, columns), nfe=20).double()
    assert bool(((samples.mean(0) - mean).abs() < 0.6 * std + 1e-3 * (1 + mean.abs())).all())
    assert bool(((samples.std(0) / std - 1).abs()[varied] < 0.5).all())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cifar-10-batches-bin", "holds cifar10 in its binary form: give cifar10:cifar-10-batches-bin"),
        ("cifar10", "cifar10 lacks its folder, .*: give cifar10:FOLDER"),
        ("cifar100:", "cifar100: lacks its folder, .*: give cifar100:FOLDER"),
        ("cifar10:nowhere", "there is no folder nowhere; expected the one that cifar-10-binary.tar.gz unpacks to"),
        ("shards", r"holds tar files: give 'shards:shards/\*.tar'"),
        ("shards/a.tar", "is a tar file: give shards:shards/a.tar"),
    ],
)
def test_a_source_without_the_word_that_reads_it_is_told_the_word(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    cifar, shards = tmp_path / "cifar-10-batches-bin", tmp_path / "shards"
    cifar.mkdir()
    shards.mkdir()
    (cifar / "data_batch_1.bin").write_bytes(bytes(3073))
    (cifar / "batches.meta.txt").write_text("airplane\nautomobile\n")
    (shards / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(DataError, match=said):
        loaded(source)


def test_names_of_classes_are_drawn_in_letters_that_the_font_has():
    """A letter that a font lacks is a box, the same for each of them."""

    def drawn(name):
        images, labels = np.zeros((1, 16, 16, 1), np.uint8), np.zeros(1, np.int64)
        return labelled.rows(images, labels, [name]).tobytes()

    assert drawn("grüße") != drawn("gräßé")
    assert drawn("Łódź Ж") != drawn("Łódż Ф")
    assert drawn("grüße 猫") == drawn("犬") == drawn("0")  # the number of the class


def test_augmentation_that_does_not_fit_is_refused_before_training_is_announced(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 3)))
    words = ["train", "--data", str(tmp_path / "rows.npy"), "--augment", "flip", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "augment" in said.err
    assert "train: " not in said.out


def test_labels_under_another_key_are_told_the_key(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "y.npz", x_train=images, y_train=np.arange(20) % 2)
    words = ["train", "--data", str(tmp_path / "y.npz"), "--conditional", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "has the keys x_train, y_train, and labels of images are read from the key labels" in capsys.readouterr().err
