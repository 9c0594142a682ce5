"""Malformed inputs by the thousand: each is refused by a typed error or accepted, without crash, hang or vast memory.

Mutated files of every kind that is read, configurations with any values, and command lines. The numbers below make 10,000
inputs; PROXFLOW_FUZZ multiplies them.
"""

import gzip
import json
import os
import random
import resource
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from proxflow import data, models
from proxflow.cli import evaluate, main, reproduce, train
from proxflow.cli import sample as sampling
from proxflow.config import TrainingConfig, from_dict
from proxflow.data import image_files as imagefiles
from proxflow.data.idx import read_idx
from proxflow.data.kinds import kind_of_source
from proxflow.errors import ProxflowError
from proxflow.models import spec
from proxflow.names import BUILT_IN
from proxflow.runtime.checkpoints import Checkpoint, Checkpoints, read_tensors
from proxflow.runtime.processes import Processes

TIMES = int(os.environ.get("PROXFLOW_FUZZ", "1"))


@contextmanager
def bounded():
    """At most 2 GiB more address space than now, and 20 seconds; what Python has no error for would end the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)

    def late(number, frame):
        raise AssertionError("hangs")

    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(content, chance):
    """A content with some bytes changed, cut out, doubled or put in, or cut off; also with lengths that lie."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        # The beginnings of files hold what is most worth to damage.
        place = min(place, chance.choice((8, 64, 512, len(changed))))
        match chance.randrange(7):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + chance.choice((1, 4, 100))]
            case 2:
                changed[place:place] = chance.randbytes(chance.choice((1, 4, 100)))
            case 3:
                changed[place : place + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\x10\0"))
            case 4:
                changed = changed[:place]
            case 5:
                changed[place:place] = changed[place : place + 64]
            case 6:
                digits = [i for i, byte in enumerate(changed[:2000]) if chr(byte).isdigit()]
                if digits:
                    at = chance.choice(digits)
                    changed[at : at + 1] = chance.choice(
                        (b"-1", b"99999999999", b"1e400", b"null", b'"x"', b"[]", b"{}")
                    )
    return bytes(changed)


def hammer(number, path, originals, read, seed=0):
    """Mutates contents, and reads each: that may raise a typed error, and nothing else."""
    chance = random.Random(seed)
    with bounded():
        for _ in range(number * TIMES):
            path.write_bytes(mutate(chance.choice(originals), chance))
            signal.alarm(20)
            with suppress(ProxflowError):
                read()


def test_idx_files(tmp_path):
    plain = bytes((0, 0, 8, 3)) + np.array([3, 5, 4], ">u4").tobytes() + bytes(range(60))

    def check(path):
        found = read_idx(path, 3)
        assert found.numel() <= path.stat().st_size * 1100  # as much as compression may hold, no more

    for path, original in ((tmp_path / "a-idx3-ubyte", plain), (tmp_path / "b.gz", gzip.compress(plain))):
        hammer(1000, path, [original], lambda path=path: check(path))


def pictures(folder):
    chance = np.random.default_rng(0)
    for name, mode in (("a.png", "L"), ("b.png", "RGBA"), ("c.png", "P"), ("d.bmp", "RGB"), ("e.jpg", "RGB")):
        Image.fromarray(chance.integers(0, 256, (6, 7, 3), dtype=np.uint8)).convert(mode).save(folder / name)
    for name in ("f.webp", "g.tif"):
        Image.fromarray(chance.integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(folder / name)
    return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pictures(tmp_path):
    (tmp_path / "whole").mkdir()
    for ending, original in pictures(tmp_path / "whole").items():
        folder = tmp_path / ending.removeprefix(".")
        folder.mkdir()

        def read(folder=folder):
            found = data.read_pictures(folder, 8)
            assert found.shape[2:] == (8, 8)

        hammer(300, folder / f"x{ending}", [original], read)


def test_arrays_and_png_folders(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3, 4, 1), np.uint8))
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((2, 3, 4, 3), np.uint8))
    originals = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz")]
    hammer(700, tmp_path / "x.npz", originals, lambda: imagefiles.read(tmp_path / "x.npz"))
    (tmp_path / "png").mkdir()
    Image.new("L", (5, 4)).save(tmp_path / "x.png")
    hammer(
        300, tmp_path / "png" / "0.png", [(tmp_path / "x.png").read_bytes()], lambda: imagefiles.read(tmp_path / "png")
    )


def test_tables_of_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((5, 3)))
    np.savez(tmp_path / "a.npz", x=np.ones((5, 3)))
    np.savez_compressed(tmp_path / "b.npz", rows=np.ones((5, 3), np.int8))
    (tmp_path / "a.csv").write_text('"a, b",c\n1,2.5\n-3e4,nan\n')
    for ending in ("npy", "npz", "csv"):
        path = tmp_path / f"x.{ending}"
        originals = [found.read_bytes() for found in sorted(tmp_path.glob(f"?.{ending}")) if found != path]
        hammer(500, path, originals, lambda path=path: kind_of_source(str(path)).read(str(path)))


def test_safetensors_files(tmp_path):
    original = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, {"progress": "{}"})
    path = tmp_path / "x.safetensors"
    hammer(1000, path, [original], lambda: read_tensors(path))
    hammer(300, path, [original], lambda: Checkpoint.of_file(path), seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    built = models.build((1, 8, 8), network="unet:channels=8,multipliers=1,patch=4")
    models.save(folder, built, provenance={"steps": 3})
    return folder


@pytest.mark.parametrize(("name", "number"), [("config.json", 700), ("model.safetensors", 150)])
def test_model_folders(model, tmp_path, name, number):
    shutil.copytree(model, tmp_path / "m")
    hammer(number, tmp_path / "m" / name, [(model / name).read_bytes()], lambda: models.load(tmp_path / "m"))


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "state-00000-of-00001.safetensors"])
def test_checkpoints(tmp_path, name):
    alone = Processes()
    held, state = Checkpoints(tmp_path, 2, alone), {"w": torch.zeros(3, 2), "s": torch.tensor(0.0)}
    held.save(5, state, {"step": 5, "score": None})
    path = held.path(5) / name

    def read():
        held.newest().fill(state, alone)

    hammer(300, path, [path.read_bytes()], read)


# Any JSON at all in the place of a value ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=700 * TIMES)
@given(st.data())
def test_training_configurations(draw):
    names = st.sampled_from(sorted(TrainingConfig.__dataclass_fields__)) | st.text(max_size=8)
    values = draw.draw(st.dictionaries(names, VALUES, max_size=4) | VALUES)
    with suppress(ProxflowError):
        assert isinstance(from_dict(TrainingConfig, values, "x.json"), TrainingConfig)


NAMED = [(group, kind) for group, found in BUILT_IN.items() for kind in found]


@settings(max_examples=700 * TIMES)
@given(st.sampled_from(NAMED), st.data())
def test_specifications(named, draw):
    group, kind = named
    names = st.sampled_from([*spec.fields(group, kind), "kind"]) | st.text(max_size=8)
    values = draw.draw(
        st.dictionaries(names, VALUES | st.sampled_from([{"kind": kind} for _, kind in NAMED]), max_size=4)
    )
    with suppress(ProxflowError):
        made = spec.restore(group, {"kind": kind, **values}, "x.json")
        assert spec.describe(spec.restore(group, spec.describe(made), "x.json")) == spec.describe(made)


@settings(max_examples=700 * TIMES)
@given(st.sampled_from(NAMED), st.data())
def test_words(named, draw):
    group, kind = named
    some = [*spec.fields(group, kind), *",=:()[]", "1", "0.5", "none", "w2", "linear", kind]
    piece = st.sampled_from(some) | st.text(max_size=3)
    text = draw.draw(st.sampled_from(["", f"{kind}:"])) + "".join(draw.draw(st.lists(piece, max_size=8)))
    with suppress(ProxflowError):
        made = spec.parse(group, text)
        assert spec.describe(spec.parse(group, spec.word(made))) == spec.describe(made)


@settings(max_examples=400 * TIMES)
@given(
    st.dictionaries(
        st.sampled_from(["format", "flow", "network", "predictor", "data", "model", "shape", "provenance", "times"]),
        VALUES,
        max_size=5,
    )
)
def test_model_configurations(model, values):
    folder = model.with_name("fuzzed")
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    content = json.loads((model / "config.json").read_text())
    for name, value in values.items():  # in the place of a part, or of some of its settings
        held = content.get(name)
        content[name] = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(content))
    with suppress(ProxflowError):
        assert isinstance(models.load(folder), models.Model)


# Command lines --------------------------------------------------------------------------------------------------------

WORDS = [
    "sample", "train", "evaluate", "reproduce", "--n", "--steps", "--seed", "--out", "--data", "--batch-size", "--flow",
    "--divergence", "--network", "--held-out", "--size", "--device", "--sampler", "--images", "--preset", "--parallel",
    "--accumulate", "--help", "--version", "--", "-x", "--no-compile", "--precision", "mnist", "gpfn-w2", "cpu", "fsdp",
    "kl", "unet:channels=8", "0", "1", "-1", "3.5", "nan", "inf", "1e400", "99999999999999999999", "", " ", "../..",
    "/", "/dev/null", "x.png", "x.npz", "\x00", "é", "a" * 300, "None", "True", "[]", "{}", "'", "$(true)", "*",
]  # fmt: skip


def test_command_lines(tmp_path, monkeypatch, capsys):
    """Words in any order; whatever of them would begin work finds it done."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    begun = []
    for command in (sampling, train, evaluate, reproduce):
        monkeypatch.setattr(command, "run", lambda options, device: begun.append(options))
    chance = random.Random(0)
    for index in range(500 * TIMES):
        command = [chance.choice(WORDS[:4])] if chance.random() < 0.9 else []
        words = command + chance.choices(WORDS, k=chance.randrange(6))
        signal.alarm(60)
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        signal.alarm(0)
        captured = capsys.readouterr()
        assert status in (0, 1, 2), (index, words)
        assert "Traceback" not in captured.err, words
        assert status == 0 or captured.err, words
    assert len(begun) > 10
    assert not list((tmp_path / "here").iterdir())


def test_arguments_that_would_begin_work(model, tmp_path, monkeypatch, capsys):
    """Options with any values, through all that is checked before work, writing nowhere but where they say."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(models.model, "sample", lambda model, flow, shape, **_: torch.zeros(shape))
    monkeypatch.setattr("proxflow.training.fit.fit", lambda *_, **__: (_ for _ in ()).throw(ProxflowError("stop here")))
    values = ["0", "1", "-1", "7", "nan", "inf", "1e400", "0.5", "99999999999", str(2**63), "x", "", "\x00", "../x"]
    values += [
        "unet:channels=0",
        "unet:multipliers=1,2,3",
        "unet:=",
        ":",
        "gpfn:divergence=(",
        "linear:final=nan",
        "bfn:sigma1=7",
    ]
    chance = random.Random(1)
    np.savez(tmp_path / "own.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    with bounded():
        for index in range(200 * TIMES):
            out = tmp_path / "out" / str(index) / chance.choice(("x.png", "x.npz", "x"))
            if chance.random() < 0.5:
                words = ["sample", str(model), "--n", "3", "--out", str(out)]
                options = ("--n", "--steps", "--seed", "--batch-size")
            else:
                words = [
                    "train",
                    "--out",
                    str(out),
                    "--data",
                    str(tmp_path / "own.npz"),
                    "--network",
                    "unet:channels=8",
                ]
                options = (
                    "--steps", "--batch-size", "--learning-rate", "--ema", "--network", "--flow", "--divergence",
                    "--schedule", "--predictor", "--parameterisation", "--kind", "--held-out", "--size", "--grid",
                    "--accumulate", "--keep", "--skip-limit", "--clip", "--warmup-steps",
                )  # fmt: skip
            for _ in range(chance.randrange(1, 3)):
                option, value = chance.choice(options), chance.choice(values)
                if option == "--n" and len(value) > 5:
                    continue  # so many images are a fair, if long, request
                words += [option, value]
            signal.alarm(60)
            try:
                status = main([*words, "--device", "cpu"])
            except SystemExit as stop:
                status = stop.code
            assert status in (0, 1, 2), words
            assert "Traceback" not in capsys.readouterr().err, words
    assert not list((tmp_path / "here").iterdir())
