"""The machine and software versions of a result, and its free memory, cores and devices."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import proxflow
from proxflow.errors import ArgumentError


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; for this package also its code, see :func:`code_of`."""
    commit = _commit()
    return {
        "proxflow": proxflow.__version__,
        **({} if commit is None else {"commit": commit}),
        "code": code_of(_files()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def code_of(blobs: Mapping[str, str]) -> str:
    """Return a checksum of Python files, given git's own checksum of each by its path in the package.

    It is the same for a checkout, a copy and an installed package, so that the commit of a result can be found.
    """
    lines = sorted(f"{path} {blob}\n" for path, blob in blobs.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


_PACKAGE = Path(proxflow.__file__).parent


@cache
def _files() -> Mapping[str, str]:
    found = {path.relative_to(_PACKAGE).as_posix(): path.read_bytes() for path in _PACKAGE.rglob("*.py")}
    return {path: hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest() for path, text in found.items()}  # noqa: S324


@cache
def _commit() -> str | None:
    """Return the commit that the package was checked out from, ``None`` if that is not its code or there is no git."""
    said = []
    for words in (
        ["ls-files", "--error-unmatch", "__init__.py"],
        ["status", "--porcelain", "."],
        ["rev-parse", "HEAD"],
    ):
        try:
            done = subprocess.run(["git", "-C", _PACKAGE, *words], capture_output=True, text=True, timeout=20)  # noqa: S603, S607
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        said.append(done.stdout.strip())
    return None if said[1] else said[2]


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine of a result."""
    described: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        described["accelerator"] = torch.cuda.get_device_name(device)
    return described


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on the CPU or a GPU."""
    # For CPU memory torch has no error class.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


SHARE = 0.25
"""Largest fraction of the free memory for which data are held in memory by default."""


def fits_in_memory(size: int, share: float = SHARE) -> bool:
    """Return whether so many bytes fit into a share of the free memory, in each process of this machine."""
    return size * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= share * free_memory()


def free_memory() -> int:
    """Return the bytes of memory still available to this process: of the machine, its control group and its limits."""
    free = [2**62]
    free += [1024 * int(n) for n in re.findall(r"MemAvailable:\s*(\d+)", _told("/proc/meminfo"))]
    limit = _told("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal():  # the file cache is freed when needed
        free.append(
            int(limit) - sum(map(int, re.findall(r"^anon (\d+)", _told("/sys/fs/cgroup/memory.stat"), re.MULTILINE)))
        )
    if sys.platform != "win32":
        import resource

        used = dict(re.findall(r"(VmSize|VmData):\s*(\d+)", _told("/proc/self/status")))
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft = resource.getrlimit(kind)[0]
            if soft != resource.RLIM_INFINITY:
                free.append(soft - 1024 * int(used.get(name, 0)))
    return max(0, min(free))


def reading_processes() -> int:
    """Return the default number of workers that read data: one for each further core per process of this machine."""
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def cores() -> int:
    """Return the number of cores available to this process, of the machine or by limits of it or its control group."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _told("/sys/fs/cgroup/cpu.max").partition(" ")  # microseconds in each period, or max
    if quota.isdecimal() and period.strip().isdecimal():
        found = min(found, max(1, int(quota) // int(period)))
    return found


def working_processes() -> int:
    """Return the default number of parallel processes: one per core, as far as memory allows."""
    return max(1, min(cores(), free_memory() // A_PROCESS))


A_PROCESS = 2**30
"""Memory in bytes of a process that trains or samples a small network."""


def take_free_cores() -> None:
    """Use as many threads as there are free cores, by the load of the last minute; an explicit number is kept.

    Threads wait for each other at every operation, so that one on a busy core delays all: then fewer are faster.
    """
    global _by_load
    _by_load = not any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if _by_load:
        torch.set_num_threads(free_cores())


_by_load = False
"""Whether the number of threads was chosen by load, not by the user."""


def keep_threads(threads: int) -> None:
    """Resume with a number of threads, unless the user chose another: rounding of gradients depends on it."""
    if _by_load:
        torch.set_num_threads(max(1, threads))


def free_cores() -> int:
    """Return how many of the available cores are not busy with other processes, at least 1."""
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(1, min(cores(), (os.cpu_count() or 1) - busy))


def _told(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device by its name.

    Raises:
        ArgumentError: There is no such device, or PyTorch cannot use it here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter if PyTorch was built without it
        raise ArgumentError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]:.80}): take 'cpu', or another that "
            "torch.device knows"
        ) from error
    return found
