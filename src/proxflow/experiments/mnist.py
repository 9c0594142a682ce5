"""The paper's experiment on MNIST: GPFN-W2 against Bayesian Flow Networks, sampler by sampler, at equal evaluations.

The work is cut into pieces, each written to disk when done: a trained model for each flow and seed, then a cell for each
flow, sampler, NFE and seed. Given again, the command does what is missing.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import proxflow
from proxflow import data, metrics, models
from proxflow.checkpoints import remove_all
from proxflow.config import FlowName, SamplerName, read_json, to_dict
from proxflow.errors import OutputError
from proxflow.experiments.presets import Preset
from proxflow.files import writable_folder, write_atomically, write_json
from proxflow.models import Model
from proxflow.progress import bar
from proxflow.samplers import sample
from proxflow.training import fit

GRID = 64
"""Images kept of each cell, for the report."""


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Args:
        flow: Name of the flow.
        sampler: Name of the sampler.
        nfe: Network evaluations spent on each sample.
        seed: Seed of training and sampling.
    """

    flow: FlowName
    sampler: SamplerName
    nfe: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.flow}-{self.sampler}-nfe{self.nfe:03d}-seed{self.seed}"


def cells_of(preset: Preset) -> list[Cell]:
    """All cells of a preset, cheapest first within a flow."""
    return [
        Cell(flow, sampler, nfe, seed)
        for seed in preset.seeds
        for flow, samplers in preset.samplers.items()
        for sampler in samplers
        for nfe in preset.nfes
    ]


def reproduce(
    name: str, preset: Preset, out: Path, device: torch.device, say: Callable[[str], None], dataset: str = "mnist"
) -> dict[str, Any]:
    """Run the experiment, or what is missing of it, and write ``results.json``.

    Args:
        name: Name of the preset, for the record.
        preset: What to run.
        out: Folder for models, cells and results.
        device: Where to train and sample.
        say: Called with a line at each stage.
        dataset: ``mnist``, or a folder of IDX files.

    Returns:
        The content of ``results.json``.

    Raises:
        OutputError: The folder cannot be written, or holds a run of another configuration.
        DivergedError: Training broke down.
    """
    writable_folder(out)
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **asdict(preset)}))
    del config["minutes"]  # for the reader of --help; changes nothing of the result
    _claim(out / "config.json", config)
    training, test = data.load(dataset, "train"), data.load(dataset, "test")
    images = training.images[: preset.train_images]
    shape = tuple(images.shape[1:])

    for seed in preset.seeds:
        for flow in preset.samplers:
            train_one(out, preset, flow, seed, images, shape, device, say)

    results_path = out / "results.json"
    extractor = metrics.mnist_features(device)
    todo = [cell for cell in cells_of(preset) if not (out / "cells" / f"{cell.name}.json").exists()]
    if todo:
        say(f"evaluate: {len(todo)} cells of {preset.samples} samples")
        reference = metrics.Reference.of(extractor(test.images))
        floors = {seed: asdict(floor(reference, extractor, images, preset.samples, seed)) for seed in preset.seeds}
        with bar("evaluate", sum(cell.nfe for cell in todo) * preset.samples, "evaluations") as show:
            spent = 0
            for cell in todo:
                model = models.load(out / "models" / f"{cell.flow}-seed{cell.seed}", device)
                evaluate_cell(out, cell, model, preset, reference, extractor, floors[cell.seed])
                spent += cell.nfe * preset.samples
                show(spent)
    records = [read_json(out / "cells" / f"{cell.name}.json") for cell in cells_of(preset)]
    trained = {
        f"{flow}-seed{seed}": read_json(out / "models" / f"{flow}-seed{seed}" / "config.json")["provenance"]
        for seed in preset.seeds
        for flow in preset.samplers
    }
    results = {
        "experiment": "mnist",
        "config": config,
        "hardware": hardware(device),
        "versions": versions(),
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "dimension": extractor.dimension},
        "reference": f"{len(test.images)} test images of {dataset}",
        "training": trained,
        "cells": records,
    }
    write_json(results_path, results)
    return results


def _claim(path: Path, config: dict[str, Any]) -> None:
    """Write down what a folder holds, or refuse one that holds something else."""
    if path.exists():
        held = read_json(path)
        for key in config:
            if held.get(key) != config[key]:
                raise OutputError(
                    f"{path.parent} holds a run with other settings ({key} differs): choose another --out folder, or "
                    "remove this one"
                )
    else:
        write_json(path, config)


def train_one(
    out: Path,
    preset: Preset,
    flow: FlowName,
    seed: int,
    images: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Train one flow unless its model is there."""
    folder = out / "models" / f"{flow}-seed{seed}"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(seed)  # the same initial weights for every flow
    model = models.build(replace(preset.network, flow=flow), shape)
    training = replace(preset.training, seed=seed)
    say(f"train: {flow}, seed {seed}, {training.steps} steps of {training.batch_size} images")
    result = fit(model.flow, model.predictor, images, training, folder=folder, device=device, label=f"train {flow}")
    provenance = {
        "data": f"{len(images)} training images",
        "training": to_dict(training),
        "seconds": round(result.seconds, 1),
        "losses": [round(loss, 6) for loss in result.losses],
        "hardware": hardware(device),
        "versions": versions(),
    }
    models.save(folder, model, result.predictor.state_dict(), provenance)
    remove_all(folder)


def floor(
    reference: metrics.Reference, extractor: metrics.FeatureExtractor, images: Tensor, samples: int, seed: int
) -> metrics.Scores:
    """Scores of as many real training images, the ones that a seed picks."""
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples]
    return reference.score(extractor(images[picked]))


def evaluate_cell(
    out: Path,
    cell: Cell,
    model: Model,
    preset: Preset,
    reference: metrics.Reference,
    extractor: metrics.FeatureExtractor,
    floor_scores: dict[str, Any],
) -> None:
    """Sample and score one cell, and write its record and its first images."""
    started = time.monotonic()
    samples = sample(
        model.predictor,
        model.flow,
        (preset.samples, *model.shape),
        steps=cell.nfe,
        sampler=cell.sampler,
        seed=cell.seed,
        batch_size=256,
    )
    seconds = time.monotonic() - started
    images = data.to_bytes(samples).cpu()
    scores = reference.score(extractor(images))
    folder = writable_folder(out / "cells")
    write_atomically(
        folder / f"{cell.name}.npz", lambda path: np.savez_compressed(path, images=to_channels_last(images[:GRID]))
    )
    record = {
        **asdict(cell),
        **asdict(scores),
        "floor": floor_scores["frechet"],
        "floor_precision": floor_scores["precision"],
        "floor_recall": floor_scores["recall"],
        "extractor": f"{extractor.name} {extractor.sha256[:12]}",
        "sampling_seconds": round(seconds, 2),
    }
    write_json(folder / f"{cell.name}.json", record)


def to_channels_last(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, C, H, W) → (N, H, W, C) as a numpy array."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "proxflow": proxflow.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine a result comes from."""
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
