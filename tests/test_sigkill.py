"""A training killed at any moment, also within the writing of a checkpoint, goes on to the same weights bit for bit.

So does one of two processes, of which one or both are killed; with another number of them it does up to rounding.
"""

import multiprocessing
import os
import random
import tempfile
import time
from dataclasses import replace

import pytest
import torch
from fleet import start
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.utils.data import TensorDataset

from proxflow import GPFN, PointPredictor, TrainingConfig, fit

CONFIG = TrainingConfig(steps=60, batch_size=16, checkpoint_every=7, ema=0.9, keep=1)
KILLS = int(os.environ.get("PROXFLOW_KILLS", "20"))


GONE = 3
"""Exit status of a process that finds another one of its group gone."""


class Net(torch.nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Dropout(dropout), torch.nn.Linear(32, 2)
        )

    def forward(self, mean, t):
        return self.layers(torch.cat([mean, t[:, None].to(mean.dtype)], dim=1))


def train(folder, begun, slow_disk, workers, exact, group):
    if slow_disk:  # so that most of the time is spent within the writing of checkpoints
        flush = os.fsync
        os.fsync = lambda handle: (time.sleep(0.003), flush(handle))[1]
    torch.manual_seed(0)
    # Dropout differs by the number of processes, and so does rounding, which double precision makes small.
    predictor = PointPredictor(Net(0.2 if exact else 0.0), GPFN(), clip=None, parameterisation="x")
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictor, points = (predictor, points.float()) if exact else (predictor.double(), points)
    data, config = points, CONFIG
    if workers is not None:
        multiprocessing.current_process()._config["daemon"] = False  # so that it may have processes that read
        # As in a command. From a server of its own they would outlive it, and take long to start.
        multiprocessing.set_start_method("fork", force=True)
        data, config = TensorDataset(points), replace(CONFIG, workers=workers)
    if group is not None:
        store, rank, size = group
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    begun.send(None)
    try:
        result = fit(predictor, GPFN(), data, config, folder=folder)
    except RuntimeError as error:
        if group is None or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        os._exit(GONE)  # as a command would end; what Python does at its end would wait for the others
    tensors = {f"averaged.{k}": v for k, v in result.predictor.state_dict().items()}
    tensors |= {f"predictor.{k}": v for k, v in predictor.state_dict().items()}
    tensors["losses"] = torch.tensor(result.losses, dtype=torch.float64)
    if group is None or group[1] == 0:
        save_file(tensors, folder / "end.safetensors")
    begun.send(None)


def run(folder, slow_disk=False, kill_after=None, workers=None, processes=1, victims=(0,), exact=True):
    """Seconds that a training took, or ``None`` where it was killed before it ended."""
    with tempfile.TemporaryDirectory() as place:
        pipes, members = [], []
        for rank in range(processes):
            mine, theirs = multiprocessing.Pipe(duplex=False)
            group = None if processes == 1 else (f"{place}/store", rank, processes)
            members.append(start(train, folder, theirs, slow_disk, workers, exact, group))
            pipes.append(mine)
            theirs.close()
        for mine in pipes:
            mine.recv()
        started = time.monotonic()
        if kill_after is not None and not pipes[0].poll(kill_after):
            for rank in victims:
                members[rank].kill()
            for rank, member in enumerate(members):
                member.join(120)
                # One that was not killed finds that the other has gone, unless all was done before.
                assert member.exitcode in ((-9,) if rank in victims else (GONE, 0)), (rank, member.exitcode)
            return None
        for mine, member in zip(pipes, members, strict=True):
            mine.recv()
            member.join()
            assert member.exitcode == 0
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
    assert resumed >= KILLS // 10


def any_victims(chance, processes):
    return chance.choice([(0,), (1,), (0, 1)]) if processes == 2 else (0,)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_processes_read_it_goes_on_with_any_number_of_them(tmp_path, processes):
    for name in ("memory", "read"):
        (tmp_path / name).mkdir()
    seconds = [run(tmp_path / name, workers=n, processes=processes) for name, n in (("memory", None), ("read", 2))]
    expected = load_file(tmp_path / "memory" / "end.safetensors")
    chance, wanted, counts = random.Random(processes), max(1, KILLS // 20), {}
    for workers in (0, 1, 2):
        killed = resumed = 0
        for attempt in range(4 * wanted):
            folder, victims = tmp_path / f"{workers}-{attempt}", any_victims(chance, processes)
            folder.mkdir()
            moment = chance.uniform(0, seconds[min(workers, 1)])
            if run(folder, kill_after=moment, workers=workers, processes=processes, victims=victims) is not None:
                continue  # it was done before
            killed += 1
            resumed += any((folder / "checkpoints").glob("step-*"))
            # At once, while those that read for the dead one may still be there.
            run(folder, workers=(workers + 1) % 3, processes=processes)
            found = load_file(folder / "end.safetensors")
            assert all(torch.equal(found[name], expected[name]) for name in expected), (workers, attempt, victims)
            if killed == wanted:
                break
        assert killed
        counts[workers] = f"{killed} killed, {resumed} after their first checkpoint"
    print(f"{processes} processes, by those that read: {counts}")  # noqa: T201 - for -s


@pytest.mark.timeout(1800)
def test_two_processes_that_are_killed_go_on_as_one_and_one_as_two_up_to_rounding(tmp_path):
    (tmp_path / "whole").mkdir()
    seconds = run(tmp_path / "whole", exact=False)
    expected = load_file(tmp_path / "whole" / "end.safetensors")
    chance, wanted = random.Random(2), max(1, KILLS // 20)
    for before, after in ((2, 1), (1, 2)):
        killed = 0
        for attempt in range(4 * wanted):
            folder = tmp_path / f"{before}-{attempt}"
            folder.mkdir()
            told = {"processes": before, "victims": any_victims(chance, before), "exact": False}
            if run(folder, kill_after=chance.uniform(0, seconds), **told) is not None:
                continue
            killed += 1
            run(folder, processes=after, exact=False)
            found = load_file(folder / "end.safetensors")
            for name, tensor in expected.items():
                near = (1e-5, 1e-6) if name == "losses" else (1e-8, 1e-10)  # losses are kept in single precision
                torch.testing.assert_close(found[name], tensor, rtol=near[0], atol=near[1])
            if killed == wanted:
                break
        assert killed
        print(f"{killed} killed of {before}, gone on with by {after}")  # noqa: T201 - for -s
