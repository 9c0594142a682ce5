"""Several processes that train, sample and evaluate together do what one does."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fleet import together
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from proxflow import GPFN, PointPredictor, TrainingConfig, fit, metrics, models
from proxflow.cli import _common, reproduce
from proxflow.data import image_files as imagefiles
from proxflow.data.kinds import read
from proxflow.errors import ArgumentError, OutputError
from proxflow.runtime.processes import Processes
from proxflow.studies import scoreboard

CONFIG = TrainingConfig(steps=30, batch_size=10, checkpoint_every=10, ema=0.9, warmup_steps=5)


@given(st.integers(0, 300), st.integers(1, 9), st.sampled_from([1, 16, 500]))
def test_shares_are_neighbours_and_cover_all(number, size, multiple):
    parts = [Processes(rank, size).part(number, multiple) for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(number))
    assert all(part.start % multiple == 0 for part in parts if part)
    assert max(map(len, parts)) - min(map(len, parts)) < 2 * multiple


# Training -----------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """Blocks in a list, as large networks have them, so that sharding finds them; sizes that no 2 or 3 divides."""

    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Linear(3, 7)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(7, 7), torch.nn.Linear(7, 5)])
        self.leave = torch.nn.Linear(5, 2)

    def forward(self, mean, t):
        x = self.enter(torch.cat([mean, t[:, None].to(mean.dtype)], dim=1))
        for block in self.blocks:
            x = block(torch.nn.functional.silu(x))
        return self.leave(x)


def points():
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Spoiled(GPFN):
    """The loss of one process alone is not finite at some steps; a clipped prediction keeps it from the gradient."""

    def loss(self, predict, x, generator, t=None):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        loss = super().loss(predict, x, generator, t)
        spoil = self.calls in (4, 9) and Processes.current().rank == Processes.current().size - 1
        return loss + math.nan if spoil else loss


class Stops(GPFN):
    """One process is told to stop."""

    def __repr__(self):  # it goes on as a plain flow
        return repr(GPFN())

    def loss(self, predict, x, generator, t=None):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if self.calls == 13 and Processes.current().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(predict, x, generator, t)


def train(config, folder=None, flow=GPFN, held_out=None):
    torch.manual_seed(Processes.current().rank)  # the first one's weights are everybody's
    predictor = PointPredictor(Net().double(), GPFN(), clip=None, parameterisation="x")
    result = fit(predictor, flow(), points(), config, folder=folder, held_out=held_out)
    weights = {name: tensor.numpy() for name, tensor in result.predictor.state_dict().items()}
    return weights, result.losses, result.skipped


def equal(found, wanted, rtol=1e-8):
    for name, tensor in wanted[0].items():
        np.testing.assert_allclose(found[0][name], tensor, rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    assert found[2] == wanted[2]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"parallel": "fsdp"}, {"parallel": "fsdp", "accumulate": 2}]
)
def test_many_processes_train_as_one(size, settings):
    # In double precision, so that only an error would tell them apart; 10 examples are 4, 3 and 3 on three processes.
    alone = train(CONFIG)
    for found in together(size, train, replace(CONFIG, **settings)):
        equal(found, alone)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_bad_step_of_one_process_is_left_out_by_all(parallel):
    alone = train(CONFIG, flow=Spoiled)
    assert alone[2] == 2
    for found in together(2, train, replace(CONFIG, parallel=parallel), None, Spoiled):
        equal(found, alone)


@pytest.mark.parametrize(
    ("first", "then"), [((3, "fsdp"), (2, "fsdp")), ((3, "fsdp"), (1, "ddp")), ((2, "ddp"), (3, "fsdp"))]
)
def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path, first, then):
    alone, held_out = train(CONFIG), points()[:7]
    for found in together(first[0], train, replace(CONFIG, parallel=first[1]), tmp_path, GPFN, held_out):
        equal(found, alone)
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000020").glob("state-*"))
    assert len(files) == first[0]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000030")
    config = replace(CONFIG, parallel=then[1])
    rest = (train, config, tmp_path, GPFN, held_out)
    ended = [train(*rest[1:])] if then[0] == 1 else together(then[0], *rest)
    for found in ended:
        equal(found, alone)


def test_processes_stop_together_and_go_on(tmp_path):
    assert together(2, train, CONFIG, tmp_path, Stops) == ["SystemExit: 143"] * 2
    assert newest(tmp_path) == "step-00000020"
    for found in together(2, train, CONFIG, tmp_path):
        equal(found, train(CONFIG))


def test_a_batch_too_small_for_the_processes_is_refused():
    for found in together(3, train, replace(CONFIG, batch_size=2)):
        assert found.startswith("ArgumentError: a batch of 2 is too small for 3 processes")


def measured(folder):
    """The held-out losses in a log."""
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry["held_out_loss"] for entry in entries if "held_out_loss" in entry]


@pytest.mark.parametrize(("size", "number", "parallel"), [(2, 7, "ddp"), (3, 1, "fsdp"), (2, 13, "fsdp")])
def test_held_out_losses_do_not_depend_on_the_number_of_processes(tmp_path, size, number, parallel):
    train(CONFIG, tmp_path / "one", GPFN, points()[:number])
    together(size, train, replace(CONFIG, parallel=parallel), tmp_path / "many", GPFN, points()[:number])
    np.testing.assert_allclose(measured(tmp_path / "many"), measured(tmp_path / "one"), rtol=1e-6)


def shares(path, text):
    found = [read(path, held_out=share) for share in (0.02, 0.05)] + [read(text, context=16, held_out=0.02)]
    return [(len(one.train), 0 if one.held_out is None else len(one.held_out)) for one in found]


def test_as_much_is_held_out_whatever_the_number_of_processes(arrays, tmp_path):
    (tmp_path / "a.txt").write_text("so it is, and so it was. " * 60)
    alone = shares(arrays, tmp_path / "a.txt")
    assert all(kept for _, kept in alone)
    assert together(3, shares, arrays, tmp_path / "a.txt") == [alone] * 3


def fail_in_one():
    processes = Processes.current()
    with processes.together():
        if processes.rank == 1:
            raise OutputError("the disk is full")


def test_all_fail_where_one_fails():
    assert together(2, fail_in_one) == [
        "ProxflowError: another process failed; its message says why",
        "OutputError: the disk is full",
    ]


# Sampling and evaluation ---------------------------------------------------------------------------------------------


def tiny_model(shape=(1, 28, 28)):
    torch.manual_seed(0)
    model = models.build(shape, network="unet:channels=8,multipliers=1,patch=4")
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def draw(n, sampler, batch_size):
    return _common.draw(tiny_model(), n, 3, sampler, 5, batch_size).numpy()


@pytest.mark.parametrize("sampler", ["stochastic", "multistep2"])
def test_images_do_not_depend_on_processes_or_batches(sampler):
    alone = draw(70, sampler, 128)
    assert len(np.unique(alone, axis=0)) == 70
    for size, batch_size in ((2, 128), (3, 16), (3, 1000)):
        for found in together(size, draw, 70, sampler, batch_size):
            assert (found == alone).all()
    # Up to rounding: a processor may work through a batch of fewer than 16 in another order.
    for found in (draw(5, sampler, 1), *together(3, draw, 5, sampler, 16)):  # two of the processes have nothing to draw
        assert np.abs(found.astype(int) - alone[:5]).max() <= 1


def features(seed):
    images = torch.randint(0, 256, (1100, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return scoreboard.features(metrics.mnist_features(), images).numpy()


def test_features_do_not_depend_on_processes():
    alone = features(0)
    assert alone.shape == (1100, 64)
    for found in together(2, features, 0):
        assert (found == alone).all()


# The launcher ---------------------------------------------------------------------------------------------------------

WORDS = (
    "--batch-size",
    16,
    "--checkpoint-every",
    20,
    "--network",
    "unet:channels=8,multipliers=1,patch=2",
    "--device",
    "cpu",
)


def launch(*words, restarts=0):
    """Starts the command line in two processes by torchrun."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    return subprocess.Popen(
        list(map(str, (*launcher, "--max-restarts", restarts, "-m", "--", "proxflow.cli", *words))),
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def command(*words):
    from proxflow.cli import main

    return main([str(word) for word in words])


def workers(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == process.pid:
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "own.npz"
    imagefiles.write(path, np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    return path


def newest(folder):
    return max((path.name for path in folder.glob("checkpoints/step-*")), default="")


@pytest.mark.timeout(900)
def test_a_killed_worker_comes_back_by_itself(arrays, tmp_path):
    """Once by default; PROXFLOW_WORKER_KILLS=10 for the full demonstration."""
    words = ("train", "--data", arrays, "--steps", 120, *WORDS)
    assert together(2, command, *words, "--out", tmp_path / "whole") == [0, 0]
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    chance = random.Random(0)
    for kill in range(int(os.environ.get("PROXFLOW_WORKER_KILLS", "1"))):
        out = tmp_path / f"killed{kill}"
        run = launch(*words, "--out", out, restarts=2)
        while not newest(out):
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        time.sleep(chance.random())
        os.kill(chance.choice(workers(run)), signal.SIGKILL)
        killed, before = time.monotonic(), newest(out)
        while newest(out) <= before and run.poll() is None:
            assert time.monotonic() - killed < 200, "it did not come back"
            time.sleep(0.05)
        print(f"back after {time.monotonic() - killed:.1f} s")  # noqa: T201 - shown by -s
        said = run.communicate(timeout=300)[0]
        assert run.returncode == 0, said
        assert "another process has gone" in said or "Sending process" in said
        found = load_file(out / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not [line for line in said.splitlines() if line.startswith("Traceback")]


def test_two_processes_sample_and_evaluate_as_one(tmp_path):
    models.save(tmp_path / "m", model := tiny_model(), model.predictor.state_dict(), {})
    data = tmp_path / "idx"
    data.mkdir()
    for name, count in (("train", 80), ("t10k", 60)):
        header = bytes((0, 0, 8, 3)) + np.array([count, 28, 28], ">u4").tobytes()
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes()
        (data / f"{name}-images-idx3-ubyte").write_bytes(header + pixels)
    words = ("evaluate", tmp_path / "m", "--data", data, "--n", 40, "--steps", 2, "--out", tmp_path / "two.json")
    run = launch(*words)
    said = run.communicate(timeout=200)[0]
    assert run.returncode == 0, said
    assert said.count("Fréchet distance") == 1
    assert command(*words[:-1], tmp_path / "one.json") == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["cells"][0] for name in ("one", "two"))
    assert one == two


def test_reproduce_is_for_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr(Processes, "current", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(ArgumentError, match="one process"):
        reproduce.run(reproduce.Reproduce(out=tmp_path), torch.device("cpu"))
