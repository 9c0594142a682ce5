"""Pictures that are read when they are needed: folders, CIFAR's binary form, shards, Arrow, prepared caches."""

import io
import json
import os
import pickle
import re
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from proxflow.cli import main
from proxflow.data import cifar, sources
from proxflow.data import prepared as prepared_module
from proxflow.data.arrow import Arrow
from proxflow.data.kinds.image import Image
from proxflow.data.prepared import MANIFEST, Prepared, prepare
from proxflow.data.shards import Shards
from proxflow.errors import ArgumentError, DataError, OutputError
from proxflow.examples import Examples, LazyExamples


def encoded(k, size=(10, 12), kind="PNG"):
    pixels = np.random.default_rng(k).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two classes."""
    for k in range(12):
        place = tmp_path / "pictures" / ("cat", "dog")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k:02d}.png").write_bytes(encoded(k))
    return tmp_path / "pictures"


def loaded(source, **settings):
    return Image.read(str(source), held_out=0.25, seed=1, **settings)


def test_a_folder_read_lazily_is_that_in_memory(folder):
    held, lazy = loaded(folder, size=8), loaded(folder, size=8, workers=0)
    assert isinstance(held.train, Examples)
    assert isinstance(lazy.train, LazyExamples)
    assert held.kind == lazy.kind
    assert lazy.kind.classes == ("cat", "dog")
    for one, other in ((held.train, lazy.train), (held.held_out, lazy.held_out)):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.condition, other.condition)
    assert "read as they are needed" in lazy.notes[0]
    (folder / "cat" / "00.png").write_bytes(encoded(99, (9, 9)))
    assert loaded(folder, size=8, workers=0).train.content != lazy.train.content


# Prepared caches ------------------------------------------------------------------------------------------------------


def prepared(folder, out, size=8, workers=0):
    return prepare(sources.pictures_of(str(folder), size, out), out, workers)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("proxflow.data.prepared.PART", 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_holds_the_same_pictures(folder, tmp_path, small_parts, workers):
    manifest = prepared(folder, tmp_path / "cache", workers=workers)
    assert manifest["parts"] == [5, 5, 2]
    wanted, held, mapped = loaded(folder, size=8), loaded(tmp_path / "cache"), loaded(tmp_path / "cache", workers=0)
    assert isinstance(held.train, Examples)
    assert isinstance(mapped.train, LazyExamples)
    for found in (held, mapped):
        assert found.kind == wanted.kind
        assert torch.equal(found.train.x, wanted.train.x)
        assert torch.equal(found.train.condition, wanted.train.condition)
        assert torch.equal(found.held_out.x, wanted.held_out.x)
    assert held.train.content == mapped.train.content != held.held_out.content  # a run goes on from either


def test_stopped_it_goes_on_and_what_cannot_be_read_is_counted(folder, tmp_path, small_parts, monkeypatch):
    (folder / "cat" / "04.png").write_bytes(encoded(4)[:60])
    out, pictures = tmp_path / "cache", sources.pictures_of(str(folder), 8)
    read, real = [], type(pictures).picture

    def picture(self, index):
        read.append(index)
        if len(read) == 8:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(type(pictures), "picture", picture)
    with pytest.raises(KeyboardInterrupt):
        prepare(pictures, out, 0)
    with pytest.raises(DataError, match="is not finished; give the same proxflow prepare command again"):
        loaded(out)
    manifest = prepare(pictures, out, 0)
    assert read[8] == 5  # the first part was there
    assert manifest["number"] == 11
    assert "04.png: cannot be read" in manifest["unread"][0]
    found = Prepared(out)
    assert found.labels.tolist() == [0] * 5 + [1] * 6
    assert found.left_out.record["pictures that cannot be read"]["number"] == 1
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    prepare(pictures, out, 0)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


def test_caches_of_other_pictures_sizes_and_damaged_ones_are_refused(folder, tmp_path, small_parts, monkeypatch):
    out = tmp_path / "cache"
    prepared(folder, out)
    with pytest.raises(OutputError, match=r"its shape is \[3, 8, 8\], not \[3, 16, 16\]; choose another --out"):
        prepared(folder, out, size=16)
    with pytest.raises(DataError, match="holds pictures of 8 x 8, not of size 16: prepare them anew"):
        loaded(out, size=16)
    part = out / "part-00001.bin"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"part-00001\.bin: has 959 bytes; expected 960: give the same proxflow"):
        loaded(out)
    prepared(folder, out)
    assert len(loaded(out).train) == 9
    (out / MANIFEST).write_text('{"form": 2}')
    with pytest.raises(DataError, match="is no manifest of prepared pictures"):
        loaded(out)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        prepared(folder, tmp_path / "full")


def flip_bytes(path, number=100):
    """Change bytes within a file, whose size stays."""
    data = bytearray(path.read_bytes())
    data[50 : 50 + number] = bytes(255 - byte for byte in data[50 : 50 + number])
    path.write_bytes(data)


def test_damaged_parts_are_named_and_made_anew(folder, tmp_path, small_parts, capsys):
    out = tmp_path / "cache"
    words = ["prepare", str(folder), "--size", "8", "--out", str(out), "--workers", "0"]
    assert main(words) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    flip_bytes(out / "part-00001.bin")
    assert main(["train", "--data", str(out), "--out", str(tmp_path / "run")]) == 2
    assert re.search(r"part-00001\.bin: is damaged, .* give the same proxflow prepare", capsys.readouterr().err)
    assert main(words) == 0
    assert "part-00001.bin: is damaged or missing, and is made anew" in capsys.readouterr().out
    for name in whole.keys() - {"checked.json"}:
        assert (out / name).read_bytes() == whole[name]
    for name, said in (("labels.npy", "labels.npy: is damaged"), ("part-00002.json", "a part cannot be read")):
        if name == "labels.npy":
            np.save(out / name, 1 - np.load(out / name))
        else:
            (out / name).unlink()
            (out / "checked.json").unlink()
        with pytest.raises(DataError, match=rf"{said}.*give the same proxflow prepare"):
            loaded(out)
        prepared(folder, out)
        assert len(loaded(out).train) == 9


def older(path, seconds=10):
    """Sets the time of a file's last change back, as of files that are not being written."""
    at = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(at, at))


@pytest.mark.parametrize("form", ["folder", "shards", "latents"])
def test_a_source_that_changed_unseen_is_refused_and_a_copy_serves(tmp_path, small_parts, monkeypatch, form):
    """Bitmaps: of the same names and sizes, whatever they show."""
    monkeypatch.setattr("proxflow.data.prepared.LATENTS_PART", 5)
    data = {f"{k:02d}.bmp": encoded(k, (8, 8), "BMP") for k in range(12)}
    out, place = tmp_path / "cache", tmp_path / "source"
    source = f"shards:{place}/a.tar" if form == "shards" else str(place)

    def written():
        place.mkdir(exist_ok=True)
        if form == "shards":
            with tarfile.open(place / "a.tar", "w") as tar:
                for name, found in data.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(found)
                    tar.addfile(member, io.BytesIO(found))
        else:
            for name, found in data.items():
                (place / name).write_bytes(found)
        for path in place.iterdir():
            older(path)

    def again():
        encoder = Halves() if form == "latents" else None
        return prepare(sources.pictures_of(source, None, out), out, 0, encoder=encoder)

    written()
    first = again()
    calls = []
    checksum = sources.pictures_of(source, None, out).__class__.checksum
    kind = type(sources.pictures_of(source, None, out))
    monkeypatch.setattr(kind, "checksum", lambda self, index: (calls.append(index), checksum(self, index))[1])
    assert again() == first
    assert not calls  # the times say enough
    for path in place.iterdir():
        older(path, 100)
    assert again() == first  # a copy of the same contents
    assert len(calls) == 12
    assert again() == first
    assert len(calls) == 12  # whose times are known now
    data["11.bmp"] = encoded(99, (8, 8), "BMP")
    (out / "part-00000.bin").write_bytes(b"damaged")
    written()
    with pytest.raises(OutputError, match=r"contents of the source changed .* among pictures 10 to 11; choose another"):
        again()
    assert (out / "part-00000.bin").read_bytes() == b"damaged"  # nothing is mixed
    for path in out.glob("part-*.json"):  # as they were made before
        told = json.loads(path.read_text())
        del told["source"]
        path.write_text(json.dumps(told))
    assert again()["number"] == 12


def test_what_differs_of_a_source_is_said_in_numbers(folder, tmp_path):
    prepared(folder, tmp_path / "cache")
    (folder / "cat" / "new.png").write_bytes(encoded(50))
    with pytest.raises(OutputError, match="of 12, and the source now has 13; choose"):
        prepared(folder, tmp_path / "cache")
    (folder / "cat" / "new.png").unlink()
    (folder / "cat" / "00.png").rename(folder / "cat" / "new.png")
    with pytest.raises(OutputError, match="the source has as many, but their names, sizes or rows have changed"):
        prepared(folder, tmp_path / "cache")


class Halves(torch.nn.Module):
    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2)


def test_a_part_is_compared_again_only_where_it_changed(folder, tmp_path, small_parts, monkeypatch):
    out, real, read = tmp_path / "cache", prepared_module._sha256, []
    prepared(folder, out)
    monkeypatch.setattr(prepared_module, "_sha256", lambda path: read.append(path.name) or real(path))
    parts = [f"part-{k:05d}.bin" for k in range(3)]
    loaded(out)
    assert read == [*parts, "labels.npy"]  # they changed just now, so that their times tell nothing yet
    settle(out)
    for wanted in ([*parts, "labels.npy"], ["labels.npy"]):
        read.clear()
        loaded(out)
        assert read == wanted
    os.utime(out / parts[1])
    read.clear()
    loaded(out)
    assert read == [parts[1], "labels.npy"]
    (out / "checked.json").write_text("[[1, 2], 3]")  # what is not understood is not trusted
    read.clear()
    loaded(out)
    assert read == [*parts, "labels.npy"]


def test_the_command_prepares_and_trains(folder, tmp_path, capsys):
    assert main(["prepare", str(folder), "--size", "8", "--out", str(tmp_path / "cache"), "--workers", "0"]) == 0
    assert "12 pictures, 2 classes, 0 could not be read; train with --data" in capsys.readouterr().out
    network = ["--network", "unet:channels=8,multipliers=1", "--conditional"]
    words = [*network, "--steps", "2", "--batch-size", "4", "--grid", "0", "--workers", "1", "--augment", "flip"]
    assert main(["train", "--data", str(tmp_path / "cache"), "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["prepare", "mnist", "--out", str(tmp_path / "other")]) == 2
    assert "mnist need not be prepared, or cannot" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_a_folder_of_pictures_is_not_made_a_cache(folder, capsys):
    before = sorted(folder.rglob("*"))
    for out in (folder, folder / "cat"):
        assert main(["prepare", str(folder), "--size", "8", "--out", str(out), "--workers", "0"]) == 2
        assert "holds pictures, which would count no more" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_all_that_is_damaged_is_left_out_at_once_and_counted(folder, tmp_path, capsys):
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "dog" / "text.jpg").write_bytes(b"no picture")
    whole = next(path for path in sorted(folder.rglob("*.png")) if path.stat().st_size)
    (folder / "cat" / "short.png").write_bytes(whole.read_bytes()[:-40])
    assert main(["prepare", str(folder), "--size", "8", "--out", str(tmp_path / "cache"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "pictures that cannot be read: 2" in said
    assert "12 pictures, 2 classes, 1 could not be read" in said
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text(encoding="utf-8"))
    assert [number for reason, number, _ in manifest["left_out"] if "cannot be read" in reason] == [3]


# CIFAR ----------------------------------------------------------------------------------------------------------------


def write_cifar(place, name):
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for files in cifar.FILES[name].values():
        for file in files:
            coarse = [generator.integers(0, 20, (4, 1), dtype=np.uint8)] if name == "cifar100" else []
            fine = generator.integers(0, 10, (4, 1), dtype=np.uint8)
            pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
            (place / file).write_bytes(np.concatenate([*coarse, fine, pixels], 1).tobytes())
    return pixels, fine


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_binary_form(tmp_path, name):
    inside = tmp_path / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[name]
    pixels, fine = write_cifar(inside, name)
    (inside / {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}[name]).write_text(
        "\n".join(f"thing {k}" for k in range(10 if name == "cifar10" else 100)) + "\n\n"
    )
    found = loaded(f"{name}:{tmp_path}")
    assert len(found.train) == (20 if name == "cifar10" else 4)
    assert torch.equal(found.held_out.x, torch.from_numpy(pixels.reshape(4, 3, 32, 32)))
    assert found.held_out.condition.tolist() == fine[:, 0].tolist()
    assert found.kind.classes[3] == "thing 3"
    assert Image.takes(f"{name}:{tmp_path}")


def test_other_forms_of_cifar_are_refused(tmp_path):
    write_cifar(tmp_path / "cut", "cifar10")
    (tmp_path / "cut" / "data_batch_2.bin").write_bytes(bytes(3074))
    with pytest.raises(DataError, match=r"data_batch_2\.bin: has 3074 bytes; expected a multiple of 3073"):
        loaded(f"cifar10:{tmp_path / 'cut'}")
    (tmp_path / "cut" / "data_batch_2.bin").write_bytes(b"\x0b" + bytes(3072))
    with pytest.raises(DataError, match="has the class 11; expected classes below 10"):
        loaded(f"cifar10:{tmp_path / 'cut'}")
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "data_batch_1").write_bytes(pickle.dumps({}))
    with pytest.raises(
        DataError, match=r"the pickled form, .* is not read: get the binary one, cifar-10-binary\.tar\.gz"
    ):
        loaded(f"cifar10:{tmp_path / 'python'}")
    with pytest.raises(DataError, match=r"holds no data_batch_1\.bin"):
        loaded(f"cifar10:{tmp_path}")


# Shards ---------------------------------------------------------------------------------------------------------------


def write_shard(path, keys, told=".cls"):
    with tarfile.open(path, "w") as tar:
        for k in keys:
            label = {".cls": str(k % 3), ".json": json.dumps({"label": k % 3}), "": None}[told]
            files = [(f"{k:04d}.png", encoded(k))]
            if label is not None and k != 5:
                files.append((f"{k:04d}{told}", label.encode()))
            files.append((f"{k:04d}.txt", b"a picture"))
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def settle(folder):
    """Make the files of a folder an hour old, as an index is kept of what did not just change."""
    for path in folder.iterdir():
        os.utime(path, ns=(path.stat().st_mtime_ns - 3600 * 10**9,) * 2)


def test_shards_are_indexed_once_and_read_at_any_place(tmp_path, monkeypatch):
    write_shard(tmp_path / "a-000.tar", range(4))
    write_shard(tmp_path / "a-001.tar", range(4, 9), ".json")
    settle(tmp_path)
    found = Shards(str(tmp_path / "a-{000..001}.tar"), 8)
    assert len(found) == 9
    assert found.labels.tolist() == [0, 1, 2, 0, 1, -1, 0, 1, 2]
    assert found.classes == ("0", "1", "2")
    assert "labels that are missing: 1" in found.left_out.text
    for k in (8, 0, 5):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "x.png").write_bytes(encoded(k))
        assert torch.equal(found.picture(k), Image.read(str(tmp_path / "one"), size=8, held_out=0).train.x[0])
    monkeypatch.setattr(tarfile, "open", None)  # its index is kept beside it
    again = Shards(str(tmp_path / "a-*.tar"), 8)
    assert again.content == found.content
    read = loaded(f"shards:{tmp_path}/a-{{000..001}}.tar", workers=0)
    assert isinstance(read.train, LazyExamples)
    assert read.kind.shape == (3, 10, 12)


@pytest.mark.parametrize("same_time", [False, True])
def test_a_shard_replaced_by_one_of_the_same_size_has_its_own_labels(tmp_path, same_time):
    path, kept = tmp_path / "a.tar", tmp_path / ".a.tar.index.json"
    write_shard(path, range(3))
    if not same_time:
        settle(tmp_path)
    before, found = path.stat(), Shards(str(path), 8)
    assert kept.exists() != same_time  # of a file that has just changed none is kept
    data = path.read_bytes()
    for old, new in ((b"0", b"x"), (b"2", b"0"), (b"x", b"2")):
        data = data.replace(old + bytes(511), new + bytes(511))
    path.write_bytes(data)
    if same_time:  # as where the clock of the file system is coarse
        os.utime(path, ns=(before.st_mtime_ns,) * 2)
    assert path.stat().st_size == before.st_size
    again = Shards(str(path), 8)
    assert (found.labels.tolist(), again.labels.tolist()) == ([0, 1, 2], [2, 1, 0])
    assert again.content != found.content


def test_an_index_of_the_former_form_is_made_anew(tmp_path):
    path, kept = tmp_path / "a.tar", tmp_path / ".a.tar.index.json"
    write_shard(path, range(3))
    settle(tmp_path)
    kept.write_text(json.dumps({"form": 1, "size": path.stat().st_size, "left_out": [], "members": []}))
    assert len(Shards(str(path), 8)) == 3
    assert json.loads(kept.read_text())["form"] == 2


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a-{3..0}.tar", r"the range \{3..0\} of .* counts down: give \{0..3\}"),
        ("a-{0..3}.tar", "a-2.tar is missing; the other 3 are there"),
        ("a-{0..5}.tar", "a-2.tar and 2 more are missing; the other 3 are there"),
        ("a-{0..9999999}.tar", "more than a million numbers"),
        ("http://host/a.tar", "addresses are not read: download the files"),
    ],
)
def test_names_of_shards_that_are_wrong_are_told_how(tmp_path, monkeypatch, pattern, said):
    monkeypatch.chdir(tmp_path)
    for k in (0, 1, 3):
        Path(f"a-{k}.tar").touch()
    with pytest.raises(DataError, match=said):
        Shards(pattern)


def test_shards_of_one_size_are_not_said_to_be_scaled(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k in range(3):
            member = tarfile.TarInfo(f"{k}.png")
            member.size = len(encoded(k, (8, 8)))
            tar.addfile(member, io.BytesIO(encoded(k, (8, 8))))
    assert not Shards(str(tmp_path / "a.tar")).scaling
    assert Shards(str(tmp_path / "a.tar"), 4).scaling == ", scaled and cut to 4 x 4"


def test_shards_cut_short_damaged_or_missing(tmp_path):
    write_shard(tmp_path / "a-0.tar", range(6))
    whole = (tmp_path / "a-0.tar").read_bytes()
    (tmp_path / "a-0.tar").write_bytes(whole[: len(whole) // 2])
    found = Shards(str(tmp_path / "a-0.tar"))
    assert 1 <= len(found) < 6
    assert "shards cut short: 1 (as a-0.tar)" in found.left_out.text
    with pytest.raises(DataError, match=r"a-1\.tar is missing; the other one is there"):
        Shards(str(tmp_path / "a-{0..1}.tar"))
    (tmp_path / "b.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(DataError, match=r"b\.tar: cannot be read as a tar file"):
        Shards(str(tmp_path / "b.tar"))
    write_shard(tmp_path / "c.tar", range(3))
    places = Shards(str(tmp_path / "c.tar"), 8)
    data = bytearray((tmp_path / "c.tar").read_bytes())
    start = int(places.places[1, 0])
    data[start : start + 40] = bytes(40)
    (tmp_path / "c.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"c\.tar, at byte \d+: cannot be read"):
        places.picture(1)
    x, left_out = LazyExamples(places).take(torch.arange(3))
    assert list(left_out) == [1]
    assert torch.equal(x.x[1], x.x[2])


# Arrow ----------------------------------------------------------------------------------------------------------------


class Table:
    """What this library asks of a Hugging Face data set."""

    def __init__(self, labels, names=None):
        image, label = type("Image", (), {})(), types.SimpleNamespace(names=names)
        self.features, self.labels = {"image": image, "label": label}, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.labels
        return {"image": {"bytes": encoded(key) if key != 2 else b"damaged", "path": None}, "label": self.labels[key]}


def test_arrow_tables_by_what_they_say_of_their_columns():
    found = Arrow(Table([0, 1, 0, None], ["cat", "dog"]), "table", 8)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1, 0, -1]
    assert found.picture(1).shape == (3, 8, 8)
    with pytest.raises(DataError, match="table, row 2: cannot be read"):
        found.picture(2)
    assert Arrow(Table([7, 5, 7, 5]), "table").classes == ("5", "7")
    table = Table([0])
    del table.features["image"]
    with pytest.raises(DataError, match="no column holds pictures; expected one of type Image, found label"):
        Arrow(table, "table")


def test_without_the_library_the_words_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ArgumentError, match=r"needs the library datasets: pip install \"proxflow\[datasets\]\""):
        loaded("hub:someone/pictures")
