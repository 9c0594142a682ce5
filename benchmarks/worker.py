"""One job in its own process: ``python -m benchmarks.worker JOB``, JOB a JSON object; called by benchmarks.peers.

The answer is one line of JSON. Times are CPU times of this process, which has one thread: other programs on the machine
hardly change them.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.systems import SYSTEMS, System
from benchmarks.tasks import TASKS
from proxflow import fit
from proxflow.errors import ArgumentError
from proxflow.runtime.files import write_atomically, write_json

BATCH = 64
PACKAGES = ("flow-matching", "torchcfm", "torchdiffeq", "azula", "diffusers", "rectified-flow-pytorch")


def make(job: dict[str, Any]) -> tuple[System, nn.Module]:
    task = TASKS[job["task"]]
    system = SYSTEMS[job["system"]](task)
    torch.manual_seed(job["seed"])  # the same initial weights for every system
    return system, system.model(task.network())


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train with the library's own loop, so that data order, optimiser, averaging and budget are the same."""
    system, model = make(job)
    folder = Path(job["folder"])
    config = system.task.training(job["steps"], job["seed"])
    result = fit(model, system, system.task.data(), config, folder=folder, label=system.objective)  # type: ignore[arg-type]
    tensors = {name: tensor.contiguous() for name, tensor in result.predictor.state_dict().items()}
    write_atomically(folder / "weights.safetensors", lambda path: save_file(tensors, path))
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return {"seconds": result.seconds, "losses": result.losses}


@torch.no_grad()
def sample(job: dict[str, Any]) -> dict[str, Any]:
    """Sample and score each missing cell."""
    system, model = make(job)
    model.load_state_dict(load_file(job["weights"]))
    model.eval()
    calls = [0]
    network = next(m for m in model.modules() if type(m) is type(system.task.network()))
    network.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for cell in job["cells"]:
        path, count = Path(cell["path"]), job["samples"]
        if path.exists():
            continue
        noise = job.get("noise", job["seed"] + 1)
        draw, generator = system.samplers()[cell["sampler"]], torch.Generator().manual_seed(noise)
        torch.manual_seed(noise)
        sizes = [min(256, count - k) for k in range(0, count, 256)] if len(system.task.shape) > 1 else [count]
        calls[0], started = 0, time.monotonic()
        try:
            samples = [draw(model, (size, *system.task.shape), cell["nfe"], generator) for size in sizes]
        except ArgumentError:
            continue  # too few evaluations for one step
        evaluations = calls[0] // len(sizes)
        if evaluations > cell["nfe"]:
            raise RuntimeError(f"{system.name} {cell['sampler']} spent {evaluations} evaluations, not {cell['nfe']}")
        record = {
            "system": system.name,
            "sampler": cell["sampler"],
            "nfe": cell["nfe"],
            "evaluations": evaluations,
            "seed": job["seed"],
            system.task.metric: system.task.score(torch.cat(samples)),
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(path, record)
    return {}


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Return the largest resident set of the process after a few training steps and a sampling run, in bytes."""
    system, model = make(job)
    fit(model, system, system.task.data(), system.task.training(10, 0))  # type: ignore[arg-type]
    with torch.no_grad():
        next(iter(system.samplers().values()))(model.eval(), (BATCH, *system.task.shape), 4, torch.Generator())
    installed = {package: version(package) for package in PACKAGES if package.replace("-", "_") in sys.modules}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "versions": installed}


def samplers(job: dict[str, Any]) -> dict[str, Any]:
    """Return the names of a system's samplers."""
    return {"names": list(make(job)[0].samplers())}


def race(job: dict[str, Any]) -> dict[str, Any]:
    """Train two systems in turns within this one process: the seconds of each turn of both.

    Each turn trains a new copy, so that all do the same work, independent of memory placement.
    """
    runners = [make({**job, "system": name}) for name in job["systems"]]
    data, config = TASKS[job["task"]].data(), TASKS[job["task"]].training(job["chunk"], job["seed"])
    seconds: list[list[float]] = [[], []]
    for turn in range(1 + job["turns"]):  # the first allocates memory, and does not count
        for side in (0, 1) if turn % 2 else (1, 0):  # in alternating order
            system, model = runners[side]
            fresh, started = copy.deepcopy(model), time.process_time()
            fit(fresh, system, data, config)  # type: ignore[arg-type]
            if turn:
                seconds[side].append(time.process_time() - started)
    return {"seconds": seconds}


def overheads(job: dict[str, Any]) -> dict[str, Any]:
    """Return the time of every sampler relative to as many bare calls of the network."""
    system, model = make(job)
    return {name: overhead(system, model.eval(), name, job["nfe"]) for name in system.samplers()}


@torch.no_grad()
def overhead(system: System, model: nn.Module, sampler: str, nfe: int, repeats: int = 5) -> dict[str, Any]:
    """Return the time of a sampler relative to as many bare calls, interleaved: the median ratio and all of them."""
    network = next(m for m in model.modules() if type(m) is type(system.task.network()))
    draw, shape = system.samplers()[sampler], (BATCH, *system.task.shape)
    x, t, generator = torch.randn(shape), torch.full((BATCH,), 0.5), torch.Generator().manual_seed(0)
    ratios, calls = [], [0]
    hook = network.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    draw(model, shape, nfe, generator)
    evaluations = calls[0]
    hook.remove()
    for _ in range(repeats):
        started = time.process_time()
        draw(model, shape, nfe, generator)
        between = time.process_time()
        for _ in range(evaluations):
            network(x, t)
        ratios.append((between - started) / (time.process_time() - between))
    return {"ratio": statistics.median(ratios), "ratios": ratios, "evaluations": evaluations}


JOBS = {"train": train, "sample": sample, "samplers": samplers, "memory": memory, "race": race, "overheads": overheads}


def main() -> int:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    answer = JOBS[job["job"]](job)
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
