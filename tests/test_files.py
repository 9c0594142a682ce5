"""Writing and reading so that nothing is lost: what the other tests of files do not reach."""

import json
import os
import re
import signal
import socket
import stat
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from proxflow import data, models
from proxflow.data import image_files
from proxflow.data.arrays import read_npy, read_npz
from proxflow.data.idx import read_idx
from proxflow.data.kinds import kind_of_source
from proxflow.data.kinds.vector import Vector
from proxflow.errors import CheckpointError, DataError, OutputError, ProxflowError
from proxflow.metrics.features import read_classifier
from proxflow.metrics.inception import inception_features
from proxflow.runtime import files
from proxflow.runtime.checkpoints import load_weights, read_tensors, write_tensors
from proxflow.runtime.files import (
    append_text,
    open_plain,
    read_json,
    uninterrupted,
    writable_folder,
    write_atomically,
    write_json,
)
from proxflow.runtime.tracking import Log


@pytest.fixture(autouse=True)
def interruptible():
    # Whoever started the tests in the background had interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []

    @uninterrupted()
    def work():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("work")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["work"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_is_raised_and_an_error_comes_through():
    with pytest.raises(ValueError, match="mine"), uninterrupted():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Reading ----------------------------------------------------------------------------------------------------------------


def make(path, what):
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        listening = socket.socket(socket.AF_UNIX)
        before = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            listening.bind(path.name)
        finally:
            os.chdir(before)
            listening.close()
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


READERS = {
    "config.json": (read_json, "x/config.json"),
    "weights": (read_tensors, "x/model.safetensors"),
    "weights of a module": (lambda path: load_weights(torch.nn.Linear(1, 1), path), "x/model.safetensors"),
    "model": (lambda path: models.load(path.parent), "x/config.json"),
    "npz": (lambda path: read_npz(path, ("images",)), "x/a.npz"),
    "npy": (read_npy, "x/a.npy"),
    "kind of an npz": (lambda path: kind_of_source(str(path)).read(str(path)), "x/a.npz"),
    "csv": (lambda path: Vector.read(str(path)), "x/a.csv"),
    "idx": (lambda path: read_idx(path, 3), "x/train-images-idx3-ubyte"),
    "packed idx": (lambda path: data.load(path.parent, "train"), "x/train-images-idx3-ubyte.gz"),
    "picture": (lambda path: data.read_pictures(path.parent), "x/a.png"),
    "images": (image_files.read_images, "x/a.npz"),
    "classifier": (lambda path: read_classifier(path, "0" * 64), "x/c.safetensors"),
    "inception": (inception_features, "x/inception.safetensors"),
    "log": (lambda path: Log(path).forget_after(3), "x/log.jsonl"),
    "line of a log": (lambda path: Log(path).write({"step": 1}), "x/log.jsonl"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, reader, what):
    read, name = READERS[reader]
    (tmp_path / "x").mkdir()
    make(tmp_path / name, what)
    started = time.monotonic()
    with pytest.raises(ProxflowError) as caught:
        read(tmp_path / name)
    assert time.monotonic() - started < 20
    if what == "folder" and reader in ("picture", "kind of an npz", "images"):
        return  # a folder with such a name is a folder like any other, and is empty here
    assert re.search("not a plain file|is a link|No such device|Is a directory|expected a folder", str(caught.value))


def test_texts_have_a_largest_size(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", list(range(100)))
    monkeypatch.setattr(files, "LARGEST_TEXT", 50)
    assert files.read_plain(tmp_path / "a.json", 1000)
    with pytest.raises(files.NotPlainError, match="larger than"):
        files.read_plain(tmp_path / "a.json", 50)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**26 + 1)  # takes no room on the disk
    with pytest.raises(CheckpointError, match="it is larger than 64 MiB"):
        read_json(tmp_path / "large.json")


def test_plain_files_are_read_also_through_links(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "b").symlink_to("a")
    with open_plain(tmp_path / "b") as file:
        assert file.read() == b"text"


# Writing ----------------------------------------------------------------------------------------------------------------


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


WRITERS = {
    "json": lambda path: write_json(path, {"a": 1}),
    "tensors": lambda path: write_tensors(path, {"a": torch.zeros(2)}),
    "log": lambda path: Log(path).write({"step": 1}),
    "npz": lambda path: image_files.write(path.with_suffix(".npz"), np.zeros((2, 4, 4, 1), np.uint8)),
    "grid": lambda path: image_files.write(path.with_suffix(".png"), np.zeros((2, 4, 4, 1), np.uint8)),
    "folder": lambda path: image_files.write(path.with_suffix(""), np.zeros((2, 4, 4, 3), np.uint8)),
    "rows": lambda path: Vector((1,), (0.0,), (1.0,)).write(path.with_suffix(".csv"), torch.zeros(3, 1)),
    "plot": lambda path: Vector((1,), (0.0,), (1.0,)).write(path.with_suffix(".png"), torch.zeros(3, 1)),
}


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_umask_decides_who_reads(tmp_path, writer, mask, mode):
    with umask(mask):
        WRITERS[writer](tmp_path / "out.json")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}


@pytest.mark.parametrize("name", ["00000.png", "out.npz", "out.json", "log.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    (tmp_path / "mine").write_bytes(b"precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "mine")
    if name == "log.jsonl":
        for write in (lambda: Log(out / name).write({"step": 1}), lambda: Log(out / name).forget_after(0)):
            with pytest.raises(OutputError, match="it is a link"):
                write()
    elif name == "out.json":
        write_json(out / name, 1)
    elif name == "out.npz":
        image_files.write(out / name, np.zeros((2, 4, 4, 1), np.uint8))
    else:
        image_files.write(out, np.zeros((2, 4, 4, 1), np.uint8))
    assert (tmp_path / "mine").read_bytes() == b"precious"
    assert name == "log.jsonl" or not (out / name).is_symlink()


def test_temporary_names_cannot_be_known_and_are_made_anew(tmp_path, monkeypatch):
    seen = []

    def write(temporary):
        seen.append(temporary.name)
        assert stat.S_ISREG(os.lstat(temporary).st_mode)  # there before, so that no link can be put there
        temporary.write_text("a")

    for _ in range(2):
        write_atomically(tmp_path / "a.txt", write)
    assert len(set(seen)) == 2
    assert not any(str(os.getpid()) in name.split(".") for name in seen)
    (tmp_path / "mine").write_text("precious")
    monkeypatch.setattr(files, "_token", lambda: "known")
    (tmp_path / ".a.known.txt").symlink_to("mine")
    (tmp_path / ".probe.known").symlink_to("mine")
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / "a.txt", write)
    with pytest.raises(OutputError, match="cannot write"):
        writable_folder(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_writer_that_leaves_a_link_or_fails_leaves_the_former_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "mine").write_text("precious")

    def link(temporary):
        temporary.unlink()
        temporary.symlink_to(tmp_path / "mine")

    def fail(temporary):
        temporary.write_text("half")
        raise ValueError("mine")

    with pytest.raises(OutputError):
        write_atomically(tmp_path / "a.json", link)
    with pytest.raises(ValueError, match="mine"):
        write_atomically(tmp_path / "a.json", fail)
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "mine"]


def test_names_of_any_length_and_texts_of_any_kind(tmp_path):
    write_json(tmp_path / f"{'ä' * 120}.json", 1)
    with pytest.raises(OutputError, match="cannot write"):
        files.write_text(tmp_path / "a.txt", "\udce9")
    append_text(tmp_path / "b.txt", "ä\n")
    append_text(tmp_path / "b.txt", "b\n")
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "ä\nb\n"
    assert len(list(tmp_path.iterdir())) == 2


# Unpacking --------------------------------------------------------------------------------------------------------------


def bomb(path, mebibytes):
    """A small file that unpacks to zeros."""
    import gzip
    import struct
    import zipfile

    block = bytes(2**24)
    if path.suffix == ".gz":
        with gzip.open(path, "wb", 1) as file:
            file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", mebibytes, 2**10, 2**10))
            for _ in range(4):  # the rest is claimed alone
                file.write(block)
        return
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as entry,
    ):
        shape = (mebibytes, 2**10, 2**10, 1)
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(mebibytes // 16):
            entry.write(block)


@pytest.mark.parametrize("name", ["a.npz", "train-images-idx3-ubyte.gz"])
def test_bombs_are_not_unpacked(tmp_path, name, monkeypatch):
    bomb(tmp_path / name, 256)
    monkeypatch.setenv("PROXFLOW_UNPACK_GIB", "0.125")
    source = str(tmp_path / name) if name == "a.npz" else str(tmp_path)
    with pytest.raises(DataError, match=r"would unpack to .* at most 0\.125 GiB .* set PROXFLOW_UNPACK_GIB="):
        kind_of_source(source).read(source)
    for value in ("none", "-1", "nan"):
        monkeypatch.setenv("PROXFLOW_UNPACK_GIB", value)
        with pytest.raises(ProxflowError, match="must be a number above 0"):
            kind_of_source(source).read(source)


@pytest.mark.parametrize("content", ["claims", "text", "objects", "short"])
@pytest.mark.parametrize("key", ["images", "labels"])
def test_members_that_are_no_arrays_are_one_sentence(tmp_path, content, key):
    import io
    import zipfile

    good = io.BytesIO()
    np.save(good, np.zeros((6, 4, 4, 1), np.uint8) if key == "labels" else np.zeros(6, np.int64))
    bad = io.BytesIO()
    if content == "claims":
        np.lib.format.write_array_header_1_0(bad, {"descr": "|u1", "fortran_order": False, "shape": (2**70,)})
    elif content == "text":
        bad.write(b"no array")
    elif content == "objects":
        np.save(bad, np.array([{}], object), allow_pickle=True)
    else:
        np.save(bad, np.zeros((6, 4, 4), np.uint8))
        bad = io.BytesIO(bad.getvalue()[:-5])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(f"{key}.npy", bad.getvalue())
        archive.writestr(f"{'labels' if key == 'images' else 'images'}.npy", good.getvalue())
    for read in (lambda path: kind_of_source(str(path)).read(str(path)), image_files.read_images):
        with pytest.raises(DataError, match=rf'a\.npz: "{key}" (is no intact array|claims shape)') as caught:
            read(tmp_path / "a.npz")
        assert "\n" not in str(caught.value)


def test_an_eps_named_as_a_picture_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **told: started.append(words))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "EPS"  # by its content
    for read in (data.read_pictures, image_files.read_images):
        with pytest.raises(DataError, match=r"a\.png: cannot be read as BMP, JPEG, PNG, TIFF, WEBP"):
            read(tmp_path)
    assert not started
