"""What is found out about the machine decides how much is done at a time."""

import os

import pytest
import torch

from proxflow.runtime import machine


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "_by_load", False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def pretend(monkeypatch, cores, load, allowed=None, quota="max 100000\n"):
    told = machine._told
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed or cores)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 99.0, 99.0), raising=False)
    monkeypatch.setattr(machine, "_told", lambda path: quota if path.endswith("cpu.max") else told(path))


@pytest.mark.parametrize(
    ("cores", "load", "allowed", "quota", "threads"),
    [
        (2, 0.1, None, "max 100000\n", 2),  # a free machine
        (2, 0.9, None, "max 100000\n", 1),  # one busy process beside
        (2, 7.0, None, "max 100000\n", 1),
        (8, 3.2, None, "max 100000\n", 5),
        (64, 20.0, 4, "max 100000\n", 4),  # kept to four cores of a machine that has more free
        (64, 63.0, 4, "max 100000\n", 1),
        (16, 0.0, None, "250000 100000\n", 2),  # a container
        (16, 0.0, None, "50000 100000\n", 1),
    ],
)
def test_as_many_threads_as_cores_are_free(monkeypatch, cores, load, allowed, quota, threads):
    pretend(monkeypatch, cores, load, allowed, quota)
    machine.take_free_cores()
    assert torch.get_num_threads() == threads


def test_a_person_decides_on_threads(monkeypatch):
    pretend(monkeypatch, 8, 0.0)
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.take_free_cores()
    machine.keep_threads(3)
    assert torch.get_num_threads() == 1


def test_a_training_goes_on_with_its_threads(monkeypatch):
    pretend(monkeypatch, 2, 1.0)
    machine.take_free_cores()
    machine.keep_threads(2)
    assert torch.get_num_threads() == 2


def test_there_is_a_process_for_each_core_with_memory_for_it(monkeypatch):
    pretend(monkeypatch, 8, 7.0)
    for free, processes in ((2**40, 8), (3 * 2**30 + 1, 3), (2**20, 1)):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert machine.working_processes() == processes
