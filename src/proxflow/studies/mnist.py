"""The paper's experiment on MNIST: GPFN-W2 against Bayesian Flow Networks, sampler by sampler, at equal evaluations.

The work is cut into pieces, each written to disk when done: a trained model for each flow and seed, then a cell for each
flow, sampler, NFE and seed. Given again, the command does what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from proxflow import data, metrics, models
from proxflow.config import FlowName, ModelConfig, SamplerName, TrainingConfig, to_dict
from proxflow.data import to_bytes
from proxflow.errors import DataError, OutputError
from proxflow.models import Model
from proxflow.runtime.checkpoints import load_weights, remove_all
from proxflow.runtime.files import read_json, writable_folder, write_atomically, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.progress import bar
from proxflow.samplers import sample
from proxflow.studies.presets import Preset
from proxflow.training.fit import fit
from proxflow.training.recipes import Lesson, lesson

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

    flow: str
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
        dataset: As :func:`proxflow.data.load` takes it. Fashion-MNIST, wherever it was read from, is scored on the features
            of its own classifier, everything else on those of MNIST's.

    Returns:
        The content of ``results.json``.

    Raises:
        OutputError: The folder cannot be written, or holds a run of another configuration.
        DivergedError: Training broke down.
    """
    config = claim(out, {"preset": name, "dataset": dataset, **asdict(preset)})
    training, test = data.load(dataset, "train"), data.load(dataset, "test")
    images = training.images[: preset.train_images]
    shape = tuple(images.shape[1:])

    def contender(flow: FlowName) -> Contender:
        return Contender(lambda: models.build(replace(preset.network, flow=flow), shape), images, images, test.images)

    contenders: dict[str, Contender] = {flow: contender(flow) for flow in preset.samplers}
    recognised = data.recognise(test.images)
    records = {
        "experiment": "mnist",
        "config": config,
        **run(out, contenders, cells_of(preset), preset.training, preset.samples, device, say, recognised or "mnist"),
        "reference": f"{len(test.images)} test images of {recognised or dataset}",
    }
    write_json(out / "results.json", records)
    return records


@dataclass(frozen=True)
class Contender:
    """A flow under trial: its model, what it learns from and what its samples are held against.

    Args:
        build: Makes the untrained model; initial weights come from torch's global generator.
        data: What it is trained on, as :func:`proxflow.fit` takes it.
        images: The same as images of bytes: the floor scores some of them.
        test: Images of bytes that samples are compared with; contenders that are compared share one tensor.
        to_images: From samples to images of bytes.
        teach: Given the folder of the run, the untrained model, settings with the seed and the device: what it is trained
            with, and the settings to use; ``None`` for the flow's own loss and those given.
    """

    build: Callable[[], Model]
    data: Tensor
    images: Tensor
    test: Tensor
    to_images: Callable[[Tensor], Tensor] = to_bytes
    teach: Callable[[Path, Model, TrainingConfig, torch.device], tuple[Lesson, TrainingConfig]] | None = None


def claim(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write down what a folder holds, or refuse one that holds something else.

    Args:
        out: The folder; made where there is none.
        config: Name and settings of the preset.

    Returns:
        The settings as plain JSON values, without those that change nothing of the result.
    """
    writable_folder(out)
    plain: dict[str, Any] = json.loads(json.dumps(config))
    del plain["minutes"]  # for the reader of --help
    path = out / "config.json"
    if path.exists():
        held = read_json(path)
        for key, kind in (("network", ModelConfig), ("training", TrainingConfig)):
            # What was added later had its default.
            held[key] = {**to_dict(kind()), **held.get(key, {})}
        for key in plain:
            if held.get(key) != plain[key]:
                raise OutputError(
                    f"{out} holds a run with other settings ({key} differs): choose another --out folder, or "
                    "remove this one"
                )
    else:
        write_json(path, plain)
    return plain


def run(
    out: Path,
    contenders: Mapping[str, Contender],
    cells: Sequence[Cell],
    training: TrainingConfig,
    samples: int,
    device: torch.device,
    say: Callable[[str], None],
    features: str = "mnist",
) -> dict[str, Any]:
    """Train and evaluate what is missing of an experiment.

    Args:
        out: Folder for models and cells.
        contenders: The flows by name.
        cells: What to evaluate; a flow is trained with every seed that it has cells of.
        training: Steps and rate, the same for all; its ``seed`` is replaced.
        samples: Samples a cell.
        device: Where to train and sample.
        say: Called with a line at each stage.
        features: The data set whose classifier's features all cells are scored on, as
            :func:`proxflow.metrics.classifier_features` takes it.

    Returns:
        The records of all cells and trainings, with the conditions that they share.

    Raises:
        ArgumentError: There is no classifier of such a data set.
        OutputError: The folder holds cells that were scored on other features.
    """
    extractor = metrics.classifier_features(features, device)
    held = [cell for cell in cells if (out / "cells" / f"{cell.name}.json").exists()]
    for path in (out / "cells" / f"{cell.name}.json" for cell in held):
        found = read_json(path).get("extractor")
        if found != _title(extractor):
            raise OutputError(
                f"{path} was scored on {found}, not on {_title(extractor)}: choose another folder, or remove its cells to "
                "score them again"
            )
    trials = list(dict.fromkeys((cell.flow, cell.seed) for cell in cells))
    for flow, seed in trials:
        train_one(out, flow, contenders[flow], replace(training, seed=seed), device, say)
    todo = [cell for cell in cells if cell not in held]
    if todo:
        say(f"evaluate: {len(todo)} cells of {samples} samples")
        references: dict[int, metrics.Reference] = {}
        judges: dict[tuple[int, int], tuple[metrics.Reference, dict[str, Any]]] = {}
        with bar("evaluate", sum(cell.nfe for cell in todo) * samples, "evaluations") as show:
            spent = 0
            for cell in todo:
                contender = contenders[cell.flow]
                key = (id(contender.test), cell.seed)
                if key not in judges:
                    if key[0] not in references:
                        references[key[0]] = metrics.Reference.of(extractor(contender.test))
                    reference = references[key[0]]
                    real = floor(reference, extractor, contender.images, samples, cell.seed)
                    judges[key] = reference, real.as_floor()
                evaluate_cell(out, cell, contender, samples, extractor, *judges[key], device)
                spent += cell.nfe * samples
                show(spent)
    return {
        "hardware": hardware(device),
        "versions": versions(),
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "dimension": extractor.dimension},
        "training": {
            f"{flow}-seed{seed}": read_json(out / "models" / f"{flow}-seed{seed}" / "config.json")["provenance"]
            for flow, seed in trials
        },
        "cells": [read_json(out / "cells" / f"{cell.name}.json") for cell in cells],
    }


def train_one(
    out: Path,
    flow: str,
    contender: Contender,
    training: TrainingConfig,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Train one flow unless its model is there."""
    folder = out / "models" / f"{flow}-seed{training.seed}"
    if (folder / "config.json").exists():
        return
    torch.manual_seed(training.seed)  # the same initial weights for every flow
    model = contender.build()
    learning = lesson("flow", model)
    if contender.teach is not None:
        learning, training = contender.teach(out, model, training, device)
    say(f"train: {flow}, seed {training.seed}, {training.steps} steps of {training.batch_size} images")
    examples = contender.data if learning.data is None else learning.data
    result = fit(
        learning.module, learning.objective, examples, training, folder=folder, device=device, label=f"train {flow}"
    )
    provenance = {
        "data": f"{len(examples)} training {'images' if learning.data is None else 'pairs'}",
        "training": to_dict(training),
        "passes": learning.objective.passes,
        "seconds": round(result.seconds, 1),
        "losses": [round(loss, 6) for loss in result.losses],
        "hardware": hardware(device),
        "versions": versions(),
    }
    models.save(folder, model, learning.kept(result.predictor).state_dict(), provenance)
    remove_all(folder)


def trained(out: Path, flow: str, seed: int, contender: Contender, device: torch.device) -> Model:
    """The model of a flow as :func:`train_one` left it.

    Raises:
        CheckpointError: It is missing or corrupt.
    """
    model = contender.build()
    load_weights(model.predictor, out / "models" / f"{flow}-seed{seed}" / "model.safetensors")
    model.predictor.eval().to(device)
    return model


def floor(
    reference: metrics.Reference, extractor: metrics.FeatureExtractor, images: Tensor, samples: int, seed: int
) -> metrics.Scores:
    """Scores of as many real training images, the ones that a seed picks."""
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples]
    return reference.score(extractor(images[picked]))


def evaluate_cell(
    out: Path,
    cell: Cell,
    contender: Contender,
    number: int,
    extractor: metrics.FeatureExtractor,
    reference: metrics.Reference,
    floor_scores: dict[str, Any],
    device: torch.device,
) -> None:
    """Sample and score one cell, and write its record and its first images."""
    model = trained(out, cell.flow, cell.seed, contender, device)
    started = time.monotonic()
    samples = sample(
        model.predictor,
        model.flow,
        (number, *model.shape),
        nfe=cell.nfe,
        sampler=cell.sampler,
        seed=cell.seed,
        batch_size=256,
    )
    seconds = time.monotonic() - started
    images = contender.to_images(samples).cpu()
    scores = reference.score(extractor(images))
    folder = writable_folder(out / "cells")
    write_atomically(
        folder / f"{cell.name}.npz", lambda path: np.savez_compressed(path, images=to_channels_last(images[:GRID]))
    )
    record = {
        **asdict(cell),
        **asdict(scores),
        **floor_scores,
        "extractor": _title(extractor),
        "sampling_seconds": round(seconds, 2),
    }
    write_json(folder / f"{cell.name}.json", record)


def _title(extractor: metrics.FeatureExtractor) -> str:
    return f"{extractor.name} {extractor.sha256[:12]}"


def kept_images(out: Path, cell: Cell) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The images kept of a cell, (N, H, W)."""
    path = out / "cells" / f"{cell.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as content:
            images: np.ndarray[Any, np.dtype[np.uint8]] = content["images"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} does not hold the images of this cell ({error}): remove {cell.name}.json beside it and run the "
            "experiment again, which makes both anew"
        ) from error
    return images[..., 0]


def to_channels_last(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, C, H, W) → (N, H, W, C) as a numpy array."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
