"""The machine a result comes from, the versions of what it was made with, and whether its memory ran out."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import proxflow
from proxflow.errors import ArgumentError


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {
        "proxflow": proxflow.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


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
