"""Checkpoints: whole or refused, the newest and the best kept, old formats read, failed writes harmless."""

import errno
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from proxflow import GPFN, PointPredictor, TrainingConfig, fit
from proxflow.errors import CheckpointError, OutputError
from proxflow.runtime import checkpoints
from proxflow.runtime.checkpoints import Checkpoint, Checkpoints
from proxflow.runtime.processes import Processes

ALONE = Processes()
OLD = Path(__file__).parent / "samples" / "checkpoint-format1.safetensors"


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(5, 3, generator=generator),
        "step": torch.tensor(float(seed)),
        "empty": torch.zeros(0, 2),
    }


def write(folder, step=10, score=1.0, keep=2):
    held = Checkpoints(folder, keep, ALONE)
    held.save(step, state(step), {"step": step, "score": score})
    return held


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_round_trip(tmp_path):
    found = write(tmp_path).newest()
    assert found.progress == {"format": 2, "step": 10, "score": 1.0}
    filled = {name: torch.full_like(tensor, 7) for name, tensor in state().items()}
    found.fill(filled, ALONE)
    assert same(filled, state(10))


@pytest.mark.parametrize("name", ["state-00000-of-00001.safetensors", "progress.json", "manifest.json"])
def test_truncated_at_every_hundredth_is_detected(tmp_path, name):
    held = write(tmp_path)
    path = held.path(10) / name
    content = path.read_bytes()
    for hundredths in range(100):
        path.write_bytes(content[: len(content) * hundredths // 100])
        with pytest.raises(CheckpointError, match=r"step-00000010"):
            held.newest()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError):
        held.newest()
    path.unlink()
    with pytest.raises(CheckpointError):
        held.newest()
    path.write_bytes(content)
    assert held.newest().progress["step"] == 10


def test_the_old_file_truncated_at_every_hundredth_is_detected(tmp_path):
    content, path = OLD.read_bytes(), tmp_path / "checkpoint.safetensors"
    for hundredths in range(100):
        path.write_bytes(content[: len(content) * hundredths // 100])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            Checkpoints(tmp_path, 2, ALONE).newest()


def test_any_changed_byte_is_detected(tmp_path):
    held = write(tmp_path)
    for path in sorted(held.path(10).iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if path.name == "manifest.json":  # some of its bytes are only space, and its changes may change nothing
                try:
                    assert held.newest().progress["step"] == 10
                except CheckpointError:
                    continue
            else:
                with pytest.raises(CheckpointError, match="damaged"):
                    held.newest()
        path.write_bytes(content)


def test_a_damaged_checkpoint_names_the_one_before(tmp_path):
    write(tmp_path, 10)
    held = write(tmp_path, 20)
    (held.path(20) / "progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-00000020.*remove that folder to go on from step 10"):
        held.newest()
    shutil.rmtree(held.path(20))
    assert held.newest().progress["step"] == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=3), "format 3.*up to 2.*newer"),
        (lambda m: m.update(format="2"), "manifest of format 2"),
        (lambda m: m.update(files=[]), "manifest of format 2"),
        (lambda m: m["files"].update({"../../secret": {}}), "manifest of format 2"),
        (lambda m: m["files"].update({"state-00000-of-00001.safetensors": None}), "cannot be compared"),
        (lambda m: m["files"].pop("progress.json"), "manifest of format 2"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, change, message):
    held = write(tmp_path)
    path = held.path(10) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=message):
        held.newest()


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step, score in ((10, 5.0), (20, 1.0), (30, 3.0), (40, None), (50, 2.0)):
        held = write(tmp_path, step, score)
    assert held.steps() == [20, 40, 50]
    assert write(tmp_path, 60, 0.5, keep=1).steps() == [60]
    assert [path.name for path in held.folder.iterdir()] == ["step-00000060"]


def test_a_half_written_folder_is_none(tmp_path):
    held = write(tmp_path, 10)
    shutil.copytree(held.path(10), held.folder / ".step-00000020")
    (held.folder / ".step-00000020" / "manifest.json").unlink()
    (held.folder / "step-x").mkdir()
    assert held.newest().progress["step"] == 10
    write(tmp_path, 20)
    assert held.newest().progress["step"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("step"), "has 'step', which the model does not"),
        (lambda s: s.update(more=torch.zeros(1)), "lacks 'more'"),
        (lambda s: s.update(weight=torch.zeros(5, 4)), r"'weight' is \(5, 3\), the model's is \(5, 4\)"),
        (lambda s: s.update(step=torch.zeros(3)), r"'step' is \(\), the model's is \(3,\)"),
    ],
)
def test_another_architecture_is_named(tmp_path, change, message):
    held, wanted = write(tmp_path), state()
    change(wanted)
    with pytest.raises(CheckpointError, match=message):
        held.newest().fill(wanted, ALONE)


def test_values_that_are_not_finite_are_refused(tmp_path):
    held = Checkpoints(tmp_path, 2, ALONE)
    held.save(1, {"weight": torch.tensor([1.0, float("nan")])}, {"step": 1})
    with pytest.raises(CheckpointError, match="'weight' holds values that are not finite"):
        held.newest().fill({"weight": torch.zeros(2)}, ALONE)


# What cannot be written ---------------------------------------------------------------------------------------------


def fails_at(monkeypatch, owner, name, call, code):
    """Lets a function fail at one of its calls, as a system does."""
    real, calls = getattr(owner, name), []

    def function(*words, **named):
        calls.append(0)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))
        return real(*words, **named)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Path, "mkdir", 1),
        (os, "open", 1),
        (checkpoints, "save_file", 1),
        (os, "fsync", 1),
        (os, "fsync", 3),
        (os, "fsync", 4),
        (Path, "replace", 2),
        (Path, "write_text", 2),
        (Path, "rename", 1),
    ],
)
def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch, owner, name, call, code):
    held = write(tmp_path, 10)
    with monkeypatch.context() as patch:
        fails_at(patch, owner, name, call, code)
        with pytest.raises(OutputError, match=rf"{os.strerror(code)}.*the checkpoint of step 10 in .* is still good"):
            held.save(20, state(20), {"step": 20})
    assert held.steps() == [10]
    filled = state()
    held.newest().fill(filled, ALONE)
    assert same(filled, state(10))
    held.save(20, state(20), {"step": 20})
    assert held.newest().progress["step"] == 20


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    # No file may grow beyond 10,000 bytes: the system itself cuts the write off.
    held = write(tmp_path, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OutputError, match=r"cannot write .*step 10 in .* is still good"):
            held.save(20, {"weight": torch.randn(100, 100)}, {"step": 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in held.folder.iterdir()] == ["step-00000010"]
    assert held.newest().progress["step"] == 10


def test_training_says_which_checkpoint_is_still_good(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_disk(predictor, step):
        if step == 100:
            monkeypatch.setattr(checkpoints, "save_file", full)

    config = TrainingConfig(steps=200, batch_size=16, checkpoint_every=50)
    with pytest.raises(OutputError, match="No space left on device; the checkpoint of step 100 in"):
        fit(line(), GPFN(), DATA, config, folder=tmp_path, on_checkpoint=fill_disk)
    monkeypatch.undo()
    assert fit(line(), GPFN(), DATA, config, folder=tmp_path).losses == fit(line(), GPFN(), DATA, config).losses


# The format before --------------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, mean, t):
        return self.layer(torch.cat([mean, t[:, None]], dim=1))


def line():
    torch.manual_seed(0)
    return PointPredictor(Line(), GPFN(), clip=None, parameterisation="x")


DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
OLD_CONFIG = TrainingConfig(steps=150, batch_size=16, checkpoint_every=50, ema=0.9)


def test_a_checkpoint_of_format_1_still_loads(tmp_path):
    # The sample was written after step 100 of 150, with a recorded mean loss of 8.496 and 7.768 in its two stretches.
    shutil.copy(OLD, tmp_path / "checkpoint.safetensors")
    saved, steps = load_file(OLD), []

    class Spy(GPFN):
        def loss(self, predict, x, generator, t=None):
            if not steps:
                for name, tensor in predict.state_dict().items():
                    assert torch.equal(tensor, saved[f"predictor.{name}"])
            steps.append(0)
            return super().loss(predict, x, generator, t)

    result = fit(line(), Spy(), DATA, OLD_CONFIG, folder=tmp_path)
    assert len(steps) == 50
    assert result.losses[:2] == pytest.approx([8.496, 7.768], abs=1e-3)
    assert result.losses[2] < result.losses[1]
    assert (tmp_path / "checkpoints" / "step-00000150").is_dir()
    with pytest.raises(CheckpointError, match=r"ema = 0.9, not 0.5"):
        fit(line(), Spy(), DATA, replace(OLD_CONFIG, ema=0.5), folder=tmp_path)


@pytest.mark.parametrize("stretch", [7, [1.0], [[1.0]], [["a", 1.0]], [[1.0, 1.0]] * 31])
def test_what_is_no_record_of_steps_is_refused(tmp_path, stretch, monkeypatch):
    config, really = replace(OLD_CONFIG, steps=60, checkpoint_every=30, keep=1), Checkpoints.save

    def save(self, step, state, progress):
        assert len(progress["stretch"]) == step % 50 == 30
        really(self, step, state, {**progress, "stretch": stretch})
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(line(), GPFN(), DATA, config, folder=tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this library"):
        fit(line(), GPFN(), DATA, config, folder=tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of this library"):
        Checkpoint.of_file(tmp_path / "checkpoint.safetensors")
