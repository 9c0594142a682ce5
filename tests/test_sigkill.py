"""A training killed at any moment, also within the writing of a checkpoint, goes on to the same weights bit for bit."""

import multiprocessing
import os
import random
import time
from dataclasses import replace

import pytest
import torch
from fleet import start
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

from proxflow import GPFN, PointPredictor, TrainingConfig, fit

CONFIG = TrainingConfig(steps=60, batch_size=16, checkpoint_every=7, ema=0.9, keep=1)
KILLS = int(os.environ.get("PROXFLOW_KILLS", "20"))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 2)
        )

    def forward(self, mean, t):
        return self.layers(torch.cat([mean, t[:, None]], dim=1))


def train(folder, slow_disk, begun, workers=None):
    if slow_disk:  # so that most of the time is spent within the writing of checkpoints
        flush = os.fsync
        os.fsync = lambda handle: (time.sleep(0.003), flush(handle))[1]
    torch.manual_seed(0)
    predictor = PointPredictor(Net(), GPFN(), clip=None, parameterisation="x")
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    data, config = points, CONFIG
    if workers is not None:
        multiprocessing.current_process()._config["daemon"] = False  # so that it may have processes that read
        data, config = TensorDataset(points), replace(CONFIG, workers=workers)
    begun.send(None)
    result = fit(predictor, GPFN(), data, config, folder=folder)
    tensors = {f"averaged.{k}": v for k, v in result.predictor.state_dict().items()}
    tensors |= {f"predictor.{k}": v for k, v in predictor.state_dict().items()}
    tensors["losses"] = torch.tensor(result.losses, dtype=torch.float64)
    save_file(tensors, folder / "end.safetensors")
    begun.send(None)


def run(folder, slow_disk=False, kill_after=None, workers=None):
    """Seconds that a training took, or ``None`` where it was killed before it ended."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = start(train, folder, slow_disk, theirs, workers)
    theirs.close()
    mine.recv()
    started = time.monotonic()
    if kill_after is not None and not mine.poll(kill_after):
        process.kill()
        process.join()
        assert process.exitcode == -9
        return None
    mine.recv()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


@pytest.mark.timeout(1200)
def test_killed_at_random_moments_and_resumed_is_the_same_bit_for_bit(tmp_path):
    seconds = {}
    for slow in (False, True):
        (tmp_path / f"whole-{slow}").mkdir()
        seconds[slow] = run(tmp_path / f"whole-{slow}", slow)
    expected = load_file(tmp_path / "whole-False" / "end.safetensors")
    chance, killed, in_writes, resumed = random.Random(0), 0, 0, 0
    for attempt in range(4 * KILLS):
        folder, slow = tmp_path / f"killed-{attempt}", attempt % 2 == 0
        folder.mkdir()
        if run(folder, slow, kill_after=chance.uniform(0, seconds[slow])) is not None:
            continue  # it was done before
        killed += 1
        in_writes += any((folder / "checkpoints").glob(".step-*"))
        resumed += any((folder / "checkpoints").glob("step-*"))
        run(folder)
        found = load_file(folder / "end.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), attempt
        if killed == KILLS:
            break
    assert killed == KILLS
    print(f"{killed} killed, {in_writes} within writes, {resumed} after their first checkpoint")  # noqa: T201 - for -s
    assert in_writes >= KILLS // 10
    assert resumed >= KILLS // 4


@pytest.mark.timeout(600)
def test_killed_while_processes_read_it_goes_on_with_any_number_of_them(tmp_path):
    for name in ("memory", "read"):
        (tmp_path / name).mkdir()
    seconds = [run(tmp_path / "memory"), *[run(tmp_path / "read", workers=2)] * 2]
    expected = load_file(tmp_path / "memory" / "end.safetensors")
    chance, wanted = random.Random(1), max(1, KILLS // 20)
    for workers in (0, 1, 2):
        killed = 0
        for attempt in range(4 * wanted):
            folder = tmp_path / f"{workers}-{attempt}"
            folder.mkdir()
            if run(folder, kill_after=chance.uniform(0, seconds[workers]), workers=workers) is not None:
                continue  # it was done before
            killed += 1
            run(folder, workers=(workers + 1) % 3)  # at once, while those that read for the dead one may still be there
            found = load_file(folder / "end.safetensors")
            assert all(torch.equal(found[name], expected[name]) for name in expected), (workers, attempt)
            if killed == wanted:
                break
        assert killed
