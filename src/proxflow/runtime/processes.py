"""Distributed processes, as torchrun starts them; without it, a single process.

Everything here is the identity for one process, so that the code above reads the same for one and for many.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from proxflow.config import Parallel
from proxflow.errors import ArgumentError, ProxflowError

JOINING, PATIENCE = timedelta(minutes=1), timedelta(minutes=5)
"""How long a process waits for the others to join, and later to do their part, before it fails."""


@dataclass(frozen=True)
class Processes:
    """A group of processes, seen from one of them.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return the group that this process is in."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Return whether this process is the one that prints and writes."""
        return self.rank == 0

    def part(self, number: int, multiple: int = 1) -> range:
        """Return this process's share of ``number`` indices: a range that begins at a multiple of ``multiple``."""
        blocks = -(-number // multiple)
        start, stop = (min(number, multiple * (blocks * k // self.size)) for k in (self.rank, self.rank + 1))
        return range(start, stop)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def average(self, tensor: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return self.add_up(tensor) / self.size if self.size > 1 else tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; this waits for all processes, but not for their devices."""
        return bool(self.add_up(torch.tensor(int(flag)))) if self.size > 1 else flag

    def gather(self, rows: Tensor, number: int, multiple: int = 1) -> Tensor:
        """Return all rows, on the host, from each process's rows of its :meth:`part`."""
        if self.size == 1:
            return rows.cpu()
        parts = [Processes(rank, self.size).part(number, multiple) for rank in range(self.size)]
        padded = rows.new_zeros([max(map(len, parts)), *rows.shape[1:]], device="cpu")
        padded[: len(rows)] = rows.cpu()
        every = [torch.empty_like(padded) for _ in parts]
        distributed.all_gather(every, padded)
        return torch.cat([found[: len(part)] for found, part in zip(every, parts, strict=True)])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Fail in every process if the block fails in one, so that none waits in vain."""
        failure: ProxflowError | None = None
        try:
            yield
        except ProxflowError as error:
            failure = error
        if self.any(failure is not None):
            raise failure or ProxflowError("another process failed; its message says why")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for as long as the block runs.

    Args:
        device: Where to compute; with several CUDA devices, each process takes its own.

    Returns:
        This process's device.

    Raises:
        ProxflowError: The other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # communication of the host must not wait for the device
    try:
        distributed.init_process_group(backend, timeout=JOINING)
        distributed.distributed_c10d._set_pg_timeout(PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProxflowError(f"cannot join the other processes: {error}") from error
    try:
        yield device
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):  # gloo's own are of no class
            raise
        raise ProxflowError(f"another process has gone or does not answer: {str(error).splitlines()[0]}") from error
    distributed.destroy_process_group()  # not after an error: it could wait for a process that has gone


def broadcast_weights(module: nn.Module, processes: Processes) -> None:
    """Give every process the weights of the first."""
    if processes.size > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.detach(), 0)


def distribute(predictor: nn.Module, parallel: Parallel, processes: Processes, device: torch.device) -> nn.Module:
    """Return a module that computes what the predictor does, and whose gradients are means over the processes.

    Args:
        predictor: The predictor, which still owns the parameters.
        parallel: ``ddp`` keeps the whole network in each process; ``fsdp`` a shard of every parameter, of its gradient
            and of the optimiser's moments, and gathers a block of the network only while it is used.
        processes: The group.
        device: Device of the predictor.

    Raises:
        ArgumentError: The predictor has parameters outside of modules, which cannot be sharded.
    """
    if processes.size == 1:
        return predictor
    if parallel == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        # Buffers are equal from the start; PyTorch 2.13 deprecates this argument, and older versions have no other.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            return DistributedDataParallel(
                predictor, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
            )
    shard(predictor, processes, device)
    return predictor


def shard(predictor: nn.Module, processes: Processes, device: torch.device) -> None:
    """Shard every parameter (FSDP2), in place."""
    if list(predictor.parameters(recurse=False)):
        raise ArgumentError("a predictor with parameters of its own cannot be sharded: put them into a module")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of networks that return views, which is only harmful if the output is changed in place: none is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (processes.size,))
    for parameter in predictor.parameters():
        parameter.data = parameter.data.contiguous()  # shards are rows, in the usual layout
    # The predictor returns beliefs, which the hooks of the sharding do not handle: its children are sharded.
    for child in predictor.children():
        if any(True for _ in child.parameters()):
            for blocks in [m for m in child.modules() if isinstance(m, nn.ModuleList)]:
                for block in blocks:
                    if any(True for _ in block.parameters()):
                        fully_shard(block, mesh=mesh)
            fully_shard(child, mesh=mesh)


def no_sync(module: nn.Module, last: bool) -> Any:
    """Return a context for one of several backward passes of a step: only the last averages over the processes."""
    return nullcontext() if last else getattr(module, "no_sync", nullcontext)()


def local(tensor: Tensor) -> Tensor:
    """Return this process's rows of a sharded tensor; others unchanged."""
    found: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return found


def rows_of(tensor: Tensor, processes: Processes) -> range:
    """Return the rows of a sharded tensor's local part."""
    size = -(-tensor.shape[0] // processes.size)
    start = min(tensor.shape[0], processes.rank * size)
    return range(start, start + len(local(tensor)))


def whole(tensor: Tensor) -> Tensor:
    """Return all rows of a sharded tensor, in every process; others unchanged."""
    found: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return found


def plain_copy(module: nn.Module, like: nn.Module) -> nn.Module:
    """Return the weights of a sharded module in a copy of ``like``, which is not sharded."""
    copied = copy.deepcopy(like)
    copied.load_state_dict({name: whole(tensor) for name, tensor in module.state_dict().items()})
    return copied


# Until the training loop uses the new names.
