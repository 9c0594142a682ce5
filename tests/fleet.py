"""Processes for tests: forked in milliseconds from a server that has torch and the library loaded already.

What is run in them is a function of a module, with arguments and a result that can be pickled.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "fleet",
        "proxflow.training.recipes",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "torch.nn.parallel",
        "torch._dynamo",
        "proxflow.cli.run",
        "proxflow.cli.train",
        "proxflow.training.fit",
        "proxflow.data.kinds",
        "proxflow.metrics",
        "tyro",
    ]
)


def start(function: Callable[..., None], *words: Any) -> Any:
    """A process that runs a function; it has the methods of :class:`multiprocessing.Process`."""
    process = _CONTEXT.Process(target=_alone, args=(function, words), daemon=True)
    process.start()
    return process


def _alone(function: Callable[..., None], words: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    function(*words)


def together(size: int, function: Callable[..., Any], *words: Any, seconds: float = 120) -> list[Any]:
    """The results of a function in each of several processes that are one gloo group; an error is given as its text."""
    with tempfile.TemporaryDirectory() as folder:
        results = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
        processes = [
            start(_member, Path(folder) / "store", rank, size, results[rank][1], function, words)
            for rank in range(size)
        ]
        found = []
        for (mine, theirs), process in zip(results, processes, strict=True):
            theirs.close()
            try:
                found.append(mine.recv() if mine.poll(seconds) else "hangs")
            except EOFError:
                process.join(seconds)
                found.append(f"died with {process.exitcode}")
        for process in processes:
            process.join(5)
            process.kill()
        return found


def _member(
    store: Path, rank: int, size: int, result: Any, function: Callable[..., Any], words: tuple[Any, ...]
) -> None:
    from torch import distributed

    from proxflow.errors import ProxflowError

    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        found = function(*words)
    except (ProxflowError, KeyboardInterrupt, SystemExit) as error:
        found = f"{type(error).__name__}: {error}"
    result.send(found)
    result.close()
