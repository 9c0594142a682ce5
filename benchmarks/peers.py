"""Comparison of this library with its peers, with the same network, data order, optimiser, budget and metric code.

``python -m benchmarks.peers --out FILE.json [--preset quick] [--task emoji]``. Every system runs in its own processes,
together with this library if the two are timed in turns, and with its own interpreter if ``--python SYSTEM=PATH`` is
given. Systems that are not installed are left out, with a message. Pieces are saved in a folder; the same command
resumes with what is missing. docs/peers.md describes the settings of each system and what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.systems import SYSTEMS
from benchmarks.tasks import TASKS, Pictures
from proxflow.runtime.files import read_json, write_json
from proxflow.runtime.machine import hardware, versions, working_processes

ROOT = Path(__file__).parent.parent
OURS = "proxflow gpfn-w2"


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Args:
        steps: Training steps on each task.
        samples: Samples per cell on each task.
        seeds: Seeds on each task.
        far: Evaluations from which a system is only run with its best sampler at 20.
        most: Largest number of evaluations.
        screen: Samples on each task, of the first seed, to select one sampler for each system and number of
            evaluations; on other tasks all are run.
        processes: Processes in which training is timed, this library's and the other's in turns.
        turns: Turns of each within a process.
        chunk: Training steps per turn.
    """

    steps: dict[str, int]
    samples: dict[str, int]
    seeds: dict[str, tuple[int, ...]]
    far: int = 50
    most: int = 100
    screen: dict[str, int] = field(default_factory=dict)
    processes: int = 6
    turns: int = 24
    chunk: dict[str, int] = field(default_factory=lambda: {"mnist": 3, "toy": 100, "emoji": 3})


PRESETS = {
    "smoke": Preset(
        {"mnist": 2, "toy": 20, "emoji": 2},
        {"mnist": 96, "toy": 256, "emoji": 96},
        {"mnist": (0,), "toy": (0,), "emoji": (0,)},
        far=5,
        processes=2,
        turns=2,
        chunk={"mnist": 2, "toy": 5, "emoji": 2},
    ),
    "quick": Preset(
        {"mnist": 1000, "toy": 3000, "emoji": 3000},
        {"mnist": 384, "toy": 8192, "emoji": 1000},
        {"mnist": (0,), "toy": (0, 1, 2), "emoji": (0, 1, 2)},
    ),
    "standard": Preset(
        {"mnist": 2000, "toy": 3000, "emoji": 3000},
        {"mnist": 10_000, "toy": 8192, "emoji": 1000},
        {"mnist": (0, 1, 2), "toy": (0, 1, 2), "emoji": (0, 1, 2)},
        most=20,
        screen={"mnist": 1000},
    ),
}


@dataclass(frozen=True)
class Run:
    """Folder of the pieces, interpreters of the systems, and the systems themselves."""

    folder: Path
    preset: Preset
    pythons: dict[str, str]
    say: Callable[[str], None]
    systems: tuple[str, ...] = tuple(SYSTEMS)

    def command(self, job: dict[str, Any]) -> list[str]:
        python = self.pythons.get(job["system"], sys.executable)
        return [python, "-m", "benchmarks.worker", json.dumps(job)]

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}

    def work(self, **job: Any) -> dict[str, Any]:
        """Run a job in its own process, and return its answer."""
        done = subprocess.run(
            self.command(job), cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{job['system']}: {job['job']} on {job['task']} failed\n{done.stderr[-4000:]}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def piece(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a piece from its file, made first if missing."""
        path = self.folder / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, make())
        found: dict[str, Any] = read_json(path)
        return found


# Quality ------------------------------------------------------------------------------------------------------------


def weights(run: Run, task: str, seed: int, system: str) -> Path:
    """Return the trained weights of a system's objective, trained by the first system that has it."""
    objective = SYSTEMS[system].objective
    folder = run.folder / "models" / f"{task}-{objective.replace(' ', '_')}-seed{seed}"

    def train() -> dict[str, Any]:
        run.say(f"train: {objective} on {task}, seed {seed}")
        return run.work(
            job="train", system=system, task=task, seed=seed, steps=run.preset.steps[task], folder=str(folder)
        )

    folder.mkdir(parents=True, exist_ok=True)
    run.piece(f"models/{folder.name}/training", train)
    return folder / "weights.safetensors"


def samplers(run: Run, task: str, system: str) -> list[str]:
    """Return the names of a system's samplers."""
    found = run.piece(f"samplers/{system}", lambda: run.work(job="samplers", system=system, task=task, seed=0))
    names: list[str] = found["names"]
    return names


def cells(run: Run, task: str, seed: int, system: str) -> list[dict[str, Any]]:
    """Return all cells of one trained system: its samplers at few evaluations, and the best of these also at many.

    After a screening only its best sampler at a number of evaluations is run there, with all samples.
    """
    names, metric = samplers(run, task, system), TASKS[task].metric
    nfes = [nfe for nfe in TASKS[task].nfes if nfe <= run.preset.most]
    near, far = [nfe for nfe in nfes if nfe < run.preset.far], [nfe for nfe in nfes if nfe >= run.preset.far]

    def best(found: list[dict[str, Any]], nfe: int) -> str:
        at = [cell for cell in found if cell["nfe"] == nfe]
        return str(min(at, key=lambda cell: cell[metric])["sampler"])

    if task in run.preset.screen:
        first = drawn(run, task, run.preset.seeds[task][0], system, names, near, screening=True)
        chosen: dict[str, list[int]] = {}
        for nfe in sorted({cell["nfe"] for cell in first}):
            chosen.setdefault(best(first, nfe), []).append(nfe)
        chosen[best(first, near[-1])] += far
        return [cell for name, asked in chosen.items() for cell in drawn(run, task, seed, system, [name], asked)]
    found = drawn(run, task, seed, system, names, near)
    return found + drawn(run, task, seed, system, [best(found, near[-1])], far)


def drawn(
    run: Run, task: str, seed: int, system: str, names: list[str], nfes: list[int], screening: bool = False
) -> list[dict[str, Any]]:
    """Return cells of some samplers of a system; one with a twin among the systems uses the twin's samples."""
    by = twin if (twin := SYSTEMS[system].twin) in run.systems and twin is not None else system
    trained, folder = weights(run, task, seed, by), run.folder / ("screening" if screening else "cells")
    # Screened with other noise than the scores, so that no sampler is selected by the reported draws.
    how = (
        {"samples": run.preset.screen[task], "noise": 1000 + seed}
        if screening
        else {"samples": run.preset.samples[task]}
    )
    wanted = [
        {
            "sampler": name,
            "nfe": nfe,
            "path": str(folder / f"{task}-seed{seed}-{by}-{name}-{nfe}.json".replace(" ", "_")),
        }
        for name in names
        for nfe in nfes
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if not all(Path(cell["path"]).exists() for cell in wanted):
        run.say(f"{'screen' if screening else 'sample'}: {by} on {task}, seed {seed}, {', '.join(names)}")
        run.work(job="sample", system=by, task=task, seed=seed, weights=str(trained), cells=wanted, **how)
    return [{**read_json(Path(cell["path"])), "system": system} for cell in wanted if Path(cell["path"]).exists()]


def side_by_side(run: Run, task: str, processes: int) -> None:
    """Do the missing trainings, screenings and samplings, each kind in as many processes as are free.

    All of a kind are independent of each other; later steps find them done. Costs are measured afterwards, alone.
    """
    own = [system for system in run.systems if SYSTEMS[system].twin not in run.systems]
    first = {SYSTEMS[system].objective: system for system in reversed(own)}.values()
    seeds = run.preset.seeds[task]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda which: weights(run, task, *which), [(seed, system) for seed in seeds for system in first]))
        for asked in (seeds[:1], seeds[1:]):
            list(pool.map(lambda which: cells(run, task, *which), [(seed, system) for seed in asked for system in own]))


# Cost ---------------------------------------------------------------------------------------------------------------


def cost(run: Run, task: str, system: str) -> dict[str, Any]:
    """Return paired timings of a system and ours, in turns, its sampling loops over bare network calls, and its memory."""

    def measure() -> dict[str, Any]:
        run.say(f"time: {system} on {task}")
        ratios, chunk = [], run.preset.chunk[task]
        for number in range(run.preset.processes):
            # Two of ours if the system is ours, so that its ratio shows the scatter of such timings.
            systems = (OURS, system) if number % 2 == 0 else (system, OURS)  # in alternating order
            seconds = run.work(
                job="race", system=system, systems=systems, task=task, seed=0, chunk=chunk, turns=run.preset.turns
            )["seconds"]
            ours, theirs = seconds if number % 2 == 0 else reversed(seconds)
            ratios.append(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)))
        return {"train_steps_ratios": ratios}

    def overheads() -> dict[str, Any]:
        run.say(f"time the sampling loops: {system} on {task}")
        return {"overheads": run.work(job="overheads", system=system, task=task, seed=0, nfe=8)}

    def memory() -> dict[str, Any]:
        run.say(f"memory: {system} on {task}")
        answers = [run.work(job="memory", system=system, task=task, seed=0) for _ in range(2)]
        return {"bytes": [answer["bytes"] for answer in answers], "versions": answers[0]["versions"]}

    # In pieces, so that a further sampler or another release of a peer does not cost what it does not change.
    made = {"training": measure, "overheads": overheads, "memory": memory}
    return {
        name: part for kind, make in made.items() for name, part in run.piece(f"{kind}/{task}-{system}", make).items()
    }


def rows(run: Run, task: str) -> list[dict[str, Any]]:
    """Return every cell with its conditions and costs; the mean over seeds if there are several."""
    metric, preset = TASKS[task].metric, run.preset
    side_by_side(run, task, working_processes())
    found = {system: [cells(run, task, seed, system) for seed in preset.seeds[task]] for system in run.systems}
    floor = TASKS[task].floor(preset.samples[task])
    costs = {system: cost(run, task, system) for system in run.systems}
    least = min(costs[OURS]["bytes"])
    table = []
    for system, by_seed in found.items():
        measured: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for cell in (cell for cells_of_seed in by_seed for cell in cells_of_seed):
            measured.setdefault((cell["sampler"], cell["nfe"]), []).append(cell)
        for (sampler, nfe), group in measured.items():
            values, overhead = [cell[metric] for cell in group], costs[system]["overheads"][sampler]
            table.append(
                {
                    "system": system,
                    "sampler": sampler,
                    "nfe": nfe,
                    "evaluations": group[0]["evaluations"],
                    metric: statistics.mean(values),
                    "floor": floor,
                    "train_steps_ratio": statistics.median(costs[system]["train_steps_ratios"]),
                    "sampler_overhead": overhead["ratio"],
                    "peak_memory_ratio": least / min(costs[system]["bytes"]),
                    "runs": {
                        metric: values,
                        "seeds": [cell["seed"] for cell in group],
                        "train_steps_ratio": costs[system]["train_steps_ratios"],
                        "sampler_overhead": overhead["ratios"],
                        "peak_memory_bytes": costs[system]["bytes"],
                    },
                }
            )
    return table


def results(run: Run, name: str, task: str = "mnist") -> dict[str, Any]:
    """Return the whole comparison on a task of pictures, as written to the results file; mnist includes the plane."""
    parts = {"rows": rows(run, task), **({"toy_rows": rows(run, "toy")} if task == "mnist" else {})}
    pictures = TASKS[task]
    if not isinstance(pictures, Pictures):
        raise TypeError(f"{task} has no pictures")
    extractor, libraries = pictures.extractor, dict[str, str]()
    for system in run.systems:
        libraries |= cost(run, task, system)["versions"]
    return {
        "experiment": "peers",
        "config": {"preset": name, "task": task, **json.loads(json.dumps(asdict(run.preset)))},
        "objectives": {system: SYSTEMS[system].objective for system in run.systems},
        "left_out": [system for system in SYSTEMS if system not in run.systems],
        "hardware": {**hardware(torch.device("cpu")), "threads": 1},
        "versions": {**versions(), **libraries},
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "dimension": extractor.dimension},
        "reference": f"{len(pictures.test)} test images of {task}",
        **parts,
    }


def installed(pythons: dict[str, str]) -> tuple[str, ...]:
    """Return the names of the systems that are installed, or have their own interpreter."""
    return tuple(
        name for name, kind in SYSTEMS.items() if not kind.package or name in pythons or find_spec(kind.package)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument(
        "--task", choices=("mnist", "emoji"), default="mnist", help="mnist, with points in the plane, or emoji"
    )
    parser.add_argument("--work", type=Path, help="folder of the pieces (default: runs/peers-PRESET)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="SYSTEM=PATH", help="interpreter of one system; repeatable"
    )
    options = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in options.python)
    if unknown := set(pythons) - set(SYSTEMS):
        parser.error(f"unknown system {unknown.pop()!r}; known are {', '.join(SYSTEMS)}")

    def say(text: str) -> None:
        print(re.sub(r"\s+", " ", text), flush=True)

    torch.set_num_threads(1)
    folder = (options.work or Path("runs") / f"peers-{options.preset}").resolve()
    run = Run(folder, PRESETS[options.preset], pythons, say, installed(pythons))
    if absent := [system for system in SYSTEMS if system not in run.systems]:
        say(f"left out, as they are not installed: {', '.join(absent)}")
    write_json(options.out, results(run, options.preset, options.task))
    return 0


if __name__ == "__main__":
    sys.exit(main())
