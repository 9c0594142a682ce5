"""Data that are read as they are needed: the same training as from memory, whoever reads, however often it is stopped."""

import hashlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from proxflow import GPFN, Examples, PointPredictor, TrainingConfig, fit
from proxflow.data.augment import Augmentation, refuse_mirrored
from proxflow.data.prepared import FORM, PART
from proxflow.errors import ArgumentError, DataError
from proxflow.examples import LazyExamples, examples_of
from proxflow.nn import UNet
from proxflow.runtime import machine

IMAGES = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
CONFIG = TrainingConfig(steps=9, batch_size=10, checkpoint_every=4, warmup_steps=0, ema=0.5)


class Pictures(Dataset):
    """Pictures, some of which cannot be read."""

    def __init__(self, damaged=(), labels=True):
        self.damaged, self.told = damaged, labels

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index in self.damaged:
            raise DataError(f"{index}.png: cannot be read")
        return (IMAGES[index], int(LABELS[index])) if self.told else IMAGES[index]


class Jittered(Pictures):
    """Pictures that are changed by all three global generators."""

    def __getitem__(self, index):
        shift = int(torch.randint(3, ())) + int(np.random.randint(3)) + random.randrange(3)  # noqa: NPY002
        return IMAGES[index].roll(shift, -1), int(LABELS[index])


def untrained(classes=3):
    torch.manual_seed(0)
    return PointPredictor(UNet((1, 8, 8), channels=8, multipliers=(1,), blocks=1, dropout=0.1, classes=classes), GPFN())


def trained(data, folder=None, classes=3, **changes):
    return fit(untrained(classes), GPFN(), data, TrainingConfig(**{**vars(CONFIG), **changes}), folder=folder)


def same(one, other):
    pairs = zip(one.predictor.state_dict().values(), other.predictor.state_dict().values(), strict=True)
    return one.losses == other.losses and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def from_memory():
    return {augment: trained(Examples(IMAGES, LABELS), augment=augment) for augment in ("", "flip,crop,zoom")}


@pytest.mark.parametrize(("workers", "augment"), [(0, ""), (0, "flip,crop,zoom"), (1, "flip,crop,zoom"), (2, "")])
def test_whoever_reads_it_is_the_training_from_memory(from_memory, workers, augment):
    assert same(trained(Pictures(), workers=workers, augment=augment), from_memory[augment])


def test_parts_of_a_batch_are_read_one_by_one():
    changes = {"accumulate": 3, "augment": "flip,crop"}
    assert same(trained(Pictures(), workers=1, **changes), trained(Examples(IMAGES, LABELS), **changes))


def test_stopped_it_goes_on_with_any_number_of_readers(tmp_path):
    whole = trained(Jittered(), workers=0)
    for workers, stop in ((1, 4), (0, 7)):
        config = TrainingConfig(**{**vars(CONFIG), "checkpoint_every": 1, "workers": workers})
        with pytest.raises(_Stopped):
            fit(untrained(), GPFN(), Jittered(), config, folder=tmp_path, on_checkpoint=_stop_at(stop))
    assert same(trained(Jittered(), tmp_path, workers=2), whole)


class _Stopped(Exception):  # noqa: N818
    pass


def _stop_at(step):
    def stop(_, done):
        if done == step:
            raise _Stopped

    return stop


def test_what_a_data_set_draws_follows_the_step_and_disturbs_nobody():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    lazy = LazyExamples(Jittered())
    assert lazy.random
    assert not LazyExamples(Pictures()).random
    first, second = (lazy.take(torch.arange(24), key)[0].x for key in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(lazy.take(torch.arange(5, 9), 1, 5)[0].x, first[5:9])  # by its place in the batch
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()  # noqa: NPY002
    assert lazy.content == LazyExamples(Jittered()).content


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_left_out_and_named(workers, tmp_path):
    result = trained(Pictures(damaged=(7,)), tmp_path, workers=workers)
    assert result.left_out == ("7.png: cannot be read",)
    mended = torch.cat([IMAGES[:7], IMAGES[8:9], IMAGES[8:]])
    labels = torch.cat([LABELS[:7], LABELS[8:9], LABELS[8:]])
    assert same(result, trained(Examples(mended, labels)))
    assert '"left_out": "7.png: cannot be read"' in (tmp_path / "log.jsonl").read_text()
    with pytest.raises(DataError, match=r"1\d of 24 examples cannot be read, the last because .*png: cannot be read"):
        trained(Pictures(damaged=range(0, 24, 2)), workers=workers)
    with pytest.raises(DataError, match="24 training examples in a row cannot be read"):
        LazyExamples(Pictures(damaged=range(24))).take(torch.arange(1))


class Deadly(Pictures):
    """Reading example 3 ends the process, the first so many times."""

    def __init__(self, folder, times):
        super().__init__()
        self.folder, self.times = folder, times

    def __getitem__(self, index):
        if index == 3 and torch.utils.data.get_worker_info() is not None:
            for k in range(self.times):
                if not (self.folder / str(k)).exists():
                    (self.folder / str(k)).touch()
                    os._exit(9)
        return super().__getitem__(index)


def test_a_reader_that_dies_is_replaced_and_nothing_is_lost(from_memory, tmp_path):
    (tmp_path / "once").mkdir(), (tmp_path / "often").mkdir()
    assert same(trained(Deadly(tmp_path / "once", 1), workers=2), from_memory[""])
    with pytest.raises(
        DataError, match=r"2 processes that read the data died 3 times at step .*: give --workers 1 or 0"
    ):
        trained(Deadly(tmp_path / "often", 99), workers=2)


class Endless(Dataset):
    """A million large pictures, made as they are asked for."""

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        return torch.full((3, 256, 256), index % 256, dtype=torch.uint8)


def test_what_is_larger_than_memory_is_not_read_into_it():
    lazy = examples_of(DataLoader(Endless(), 4), "training")
    assert isinstance(lazy, LazyExamples)
    assert lazy.size == 10**6 * 3 * 256**2
    assert lazy[999_990:][3:5].x[:, 0, 0, 0].tolist() == [999_993 % 256, 999_994 % 256]
    with pytest.raises(DataError, match="take 2e\\+02 GB, more than there is memory for"):
        lazy.x  # noqa: B018
    assert isinstance(examples_of(Pictures(), "training"), Examples)  # it fits
    assert isinstance(examples_of(Pictures(), "training", workers=0), LazyExamples)
    assert isinstance(examples_of(Jittered(), "training"), LazyExamples)  # each time it is another


def test_free_memory_is_that_of_limits():
    resource = pytest.importorskip("resource")
    before, limits = machine.free_memory(), resource.getrlimit(resource.RLIMIT_DATA)
    assert 2**20 < before < 2**50
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (2**40 if limits[1] < 0 else limits[1], limits[1]))
        used = machine.free_memory()
        assert used <= before
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def test_labels_that_come_with_the_data_are_checked_as_they_come():
    with pytest.raises(ArgumentError, match="the label 2 is out of range: this network has 2 classes"):
        trained(Pictures(), classes=2, workers=1)


MANY = """
import resource, sys
import torch
from proxflow import GPFN, PointPredictor, TrainingConfig, fit
from proxflow.data.prepared import Prepared
from proxflow.errors import DataError
from proxflow.examples import LazyExamples, examples_of
from proxflow.nn import MLP

def train(data):
    torch.manual_seed(0)
    config = TrainingConfig(steps=8, batch_size=8)
    predictor = PointPredictor(MLP((3, 64, 64), width=8, depth=1), GPFN(), parameterisation="x")
    return fit(predictor, GPFN(), data, config).losses

train(torch.zeros(8, 3, 64, 64, dtype=torch.uint8))
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
room = 32 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (used + room, resource.RLIM_INFINITY))
pictures = Prepared(__import__("pathlib").Path(sys.argv[1]))
assert len(pictures) * 3 * 64 * 64 > 20 * room
data = examples_of(pictures, "training")
assert isinstance(data, LazyExamples)
train(data)
try:
    data.held()
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are counted otherwise")
def test_a_set_twenty_times_larger_than_the_memory_trains_within_it(tmp_path):
    number = 56_000
    parts = [PART] * (number // PART) + [number % PART]
    black = {size: hashlib.sha256(bytes(size * 3 * 64 * 64)).hexdigest() for size in set(parts)}
    for k, size in enumerate(parts):
        with (tmp_path / f"part-{k:05d}.bin").open("wb") as file:
            file.truncate(size * 3 * 64 * 64)  # takes no place on the disk
        (tmp_path / f"part-{k:05d}.json").write_text(json.dumps({"sha256": black[size]}))
    told = {
        "form": FORM,
        "shape": [3, 64, 64],
        "parts": parts,
        "classes": [],
        "labels": False,
        "left_out": [],
        "sha256": hashlib.sha256("".join(black[size] for size in parts).encode()).hexdigest(),
    }
    (tmp_path / "manifest.json").write_text(json.dumps({**told, "levels": []}))
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "more than there is memory for" in done.stdout


# Augmentation --------------------------------------------------------------------------------------------------------


def test_each_change_is_what_it_says_and_follows_seed_and_place():
    x = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(200, 1, 8, 8).contiguous()
    flip, crop, zoom = (Augmentation.of(word) for word in ("flip", "crop", "zoom"))
    flipped = flip(x, 1, range(200))
    as_it_was, mirrored = (flipped == x).flatten(1).all(1), (flipped == x.flip(-1)).flatten(1).all(1)
    assert (as_it_was ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130
    moved = {tuple(image.flatten().tolist()) for image in crop(x, 1, range(200))}
    assert len(moved) == 9  # by −1, 0, 1 along each side of 8
    assert tuple(x[0].flatten().tolist()) in moved
    down = torch.cat([x[0, 0, 1:], x[0, 0, 6:7]])  # the last row, and that before it mirrored
    assert tuple(down.flatten().tolist()) in moved
    near = zoom(x, 1, range(200))
    assert (near.amax((1, 2, 3)) - near.amin((1, 2, 3)) < 64).all()  # parts have less contrast than the whole
    for change in (flip, crop, zoom):
        assert torch.equal(change(x[50:60], 1, range(50, 60)), change(x, 1, range(200))[50:60])
        assert not torch.equal(change(x, 2, range(200)), change(x, 1, range(200)))
    assert Augmentation.of(" crop, flip") == Augmentation(("flip", "crop"))
    assert torch.equal(Augmentation.of("flip,crop")(x, 1, range(200)), crop(flipped, 1, range(200)))


def test_changes_that_are_unknown_or_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match=r"augment takes flip, crop, zoom, binarise, with commas .* got 'turn'"):
        trained(Examples(IMAGES, LABELS), augment="flip,turn")
    with pytest.raises(ArgumentError, match=r"augment is for images of bytes .* got torch.float32 \(1, 1, 8, 8\)"):
        trained(Examples(IMAGES.float() / 255, LABELS), augment="flip")
    refuse_mirrored("flip", "fashion-mnist"), refuse_mirrored("flip!,crop", "mnist"), refuse_mirrored("flip", None)
    with pytest.raises(ArgumentError, match="mnist has digits and letters, which mirrored are others: leave flip"):
        refuse_mirrored("crop, flip", "mnist")
    assert Augmentation.of("flip!") == Augmentation(("flip",))
    with pytest.raises(ArgumentError, match="workers must not be negative, got -1"):
        TrainingConfig(workers=-1)
