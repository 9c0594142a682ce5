"""The machine a result comes from, the versions of what it was made with, and whether its memory ran out."""

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
    """Return the versions of what a result depends on; of this package also its code, see :func:`code_of`."""
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

    It is the same of a checkout, a copy and an installed package, so that the repository can tell which commit a result
    comes from.
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
    """Return the commit that the package was checked out from, ``None`` where that is not its code or there is no git."""
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
    """Describe the machine a result comes from."""
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
    """Tell whether an error says that memory ran out, of the processor or of an accelerator."""
    # Of the processor's memory torch has no class of its own.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


SHARE = 0.25
"""Share of the free memory that data may take, so that they are held in it by default."""


def fits_in_memory(size: int, share: float = SHARE) -> bool:
    """Tell whether so many bytes take at most a share of the memory that is free, in each process of this machine."""
    return size * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= share * free_memory()


def free_memory() -> int:
    """Return the bytes of memory that this process may still take: the machine's, its control group's, by its limits."""
    free = [2**62]
    free += [1024 * int(n) for n in re.findall(r"MemAvailable:\s*(\d+)", _told("/proc/meminfo"))]
    limit = _told("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal():  # what files take is given back when it is needed
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
    """Return how many processes read data by default: one for each further core that a process of this machine has."""
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def cores() -> int:
    """Return how many cores this process may use: the machine's, or those that it or its control group is kept to."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _told("/sys/fs/cgroup/cpu.max").partition(" ")  # microseconds in each period, or max
    if quota.isdecimal() and period.strip().isdecimal():
        found = min(found, max(1, int(quota) // int(period)))
    return found


def working_processes() -> int:
    """Return how many processes work side by side by default: one a core, as far as there is memory for them."""
    return max(1, min(cores(), free_memory() // A_PROCESS))


A_PROCESS = 2**30
"""Bytes that a process takes that trains or samples a small network."""


def take_free_cores() -> None:
    """Compute on as many threads as cores are free, by the load of the last minute; an explicit number stays.

    Threads wait for each other at every operation, so that one on a busy core holds up all: then fewer are faster.
    """
    global _by_load
    _by_load = not any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if _by_load:
        torch.set_num_threads(free_cores())


_by_load = False
"""Whether the load decided on the number of threads, and no person."""


def keep_threads(threads: int) -> None:
    """Go on with a number of threads, unless a person decided on another: gradients round differently on more or fewer."""
    if _by_load:
        torch.set_num_threads(max(1, threads))


def free_cores() -> int:
    """Return how many of the cores that this process may use no other process keeps busy, at least 1."""
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
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without it
        raise ArgumentError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]:.80}): take 'cpu', or another that "
            "torch.device knows"
        ) from error
    return found
