"""Few steps: ways to good samples in one to twenty evaluations, at equal network and counted cost.

Cost is counted in network passes: a forward pass is one, a backward pass two, a sampling evaluation one. ``train_cost`` is
that of training, a teacher's included, over that of plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from proxflow import data, models
from proxflow.config import SamplerName, TrainingConfig
from proxflow.flows import Flow
from proxflow.models import Model
from proxflow.predictors import LongStepPredictor
from proxflow.runtime.files import read_json, write_json
from proxflow.studies import mnist
from proxflow.studies.mnist import Cell, Contender
from proxflow.studies.presets import FEW_STEP_METHODS, FewStepPreset
from proxflow.training.objectives import LongStep
from proxflow.training.recipes import Lesson, lesson
from proxflow.training.reflow import make_pairs

PAIRS_SHARE = 0.3
"""Share of the network passes of a round of reflow that go into its pairs."""

PAIR_STEPS = 10
"""Network evaluations a pair."""


def reproduce(
    name: str,
    preset: FewStepPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str = "mnist",
) -> dict[str, Any]:
    """Run the study, or what is missing of it, and write ``results.json``.

    Args:
        name: Name of the preset, for the record.
        preset: What to run.
        out: Folder for models, cells and results.
        device: Where to train and sample.
        say: Called with a line at each stage.
        dataset: As :func:`proxflow.data.load` takes it.

    Returns:
        The content of ``results.json``. Each record of ``cells`` also has ``method``, the name of :data:`FEW_STEP_METHODS`;
        ``train_cost``; and ``parameters``, the number of the network's.

    Raises:
        OutputError: The folder cannot be written, or holds a run of another configuration.
        DivergedError: Training broke down.
    """
    methods = {method: asdict(FEW_STEP_METHODS[method]) for method in preset.methods}
    config = mnist.claim(out, {"preset": name, "dataset": dataset, **asdict(preset), "methods": methods})
    training, test = data.load(dataset, "train"), data.load(dataset, "test")
    contenders = contenders_of(preset, training.images[: preset.train_images], test.images)
    features = data.recognise(test.images) or "mnist"
    found = mnist.run(out, contenders, cells_of(preset), preset.training, preset.samples, device, say, features)
    plain = preset.training.steps * Flow.passes
    costs = {method: train_cost(out, method, preset.seeds[0], plain) for method in preset.methods}
    sizes = {method: sum(p.numel() for p in contenders[method].build().predictor.parameters()) for method in costs}
    results = {
        "experiment": "few-step",
        "config": config,
        **found,
        "cells": [
            {**cell, "method": cell["flow"], "train_cost": costs[cell["flow"]], "parameters": sizes[cell["flow"]]}
            for cell in found["cells"]
        ],
        "reference": f"{len(test.images)} test images of {dataset}",
    }
    write_json(out / "results.json", results)
    return results


def cells_of(preset: FewStepPreset) -> list[Cell]:
    """All cells of a preset. With one evaluation all samplers are one."""

    def samplers(method: str, nfe: int) -> tuple[SamplerName, ...]:
        chosen = FEW_STEP_METHODS[method].samplers
        return chosen[:1] if nfe == 1 else chosen

    return [
        Cell(method, sampler, nfe, seed)
        for seed in preset.seeds
        for method in preset.methods
        if FEW_STEP_METHODS[method].repeated or seed == preset.seeds[0]
        for nfe in preset.nfes
        for sampler in samplers(method, nfe)
    ]


def contenders_of(preset: FewStepPreset, images: torch.Tensor, test: torch.Tensor) -> dict[str, Contender]:
    """Every method with its network and its data.

    Args:
        preset: Gives the network.
        images: Training images of bytes.
        test: Test images of bytes.
    """
    shape = tuple(images.shape[1:])
    contenders: dict[str, Contender] = {}

    def contender(name: str) -> Contender:
        method = FEW_STEP_METHODS[name]

        def teach(
            out: Path, model: Model, training: TrainingConfig, device: torch.device
        ) -> tuple[Lesson, TrainingConfig]:
            budget, seed = method.share * preset.training.steps * Flow.passes, training.seed
            teacher = None
            if method.teacher is not None:
                teacher = mnist.trained(out, method.teacher, seed, contenders[method.teacher], device)
            if method.lesson == "reflow":
                learning = _reflow(
                    out / "pairs" / f"{name}-seed{seed}",
                    model,
                    cast(Model, teacher),
                    budget * training.batch_size,
                    seed,
                )
                budget *= 1 - PAIRS_SHARE
            elif method.lesson == "long-step":
                learning = _distilled(model, cast(Model, teacher))
            else:
                worse = None
                if method.worse is not None:
                    worse = mnist.trained(out, method.worse, seed, contenders[method.worse], device)
                learning = lesson(method.lesson, model, teacher, worse, **method.settings)
            return learning, replace(
                training, **{**method.training, "steps": round(budget / learning.objective.passes)}
            )

        config = replace(preset.network, **method.network)
        return Contender(lambda: models.build(config, shape), images, images, test, teach=teach)

    for name in preset.methods:
        contenders[name] = contender(name)
    return contenders


def _reflow(folder: Path, model: Model, teacher: Model, budget: float, seed: int) -> Lesson:
    """Pairs of a teacher's prior draws and samples, to train its own network on."""
    pairs = round(PAIRS_SHARE * budget / PAIR_STEPS)
    # Far from the seeds of the samples that are scored.
    data = make_pairs(
        teacher.predictor, teacher.flow, pairs, model.shape, folder, nfe=PAIR_STEPS, seed=10**9 + seed, batch_size=256
    )
    model.predictor.load_state_dict(teacher.predictor.state_dict())
    return Lesson(model.flow, model.predictor, lambda module: module, data)


def _distilled(model: Model, teacher: Model) -> Lesson:
    """Long steps from a teacher's predictions, beginning as the teacher: what reads a step's end begins with no effect."""
    cast(LongStepPredictor, model.predictor).begin_from(teacher.predictor.state_dict())
    guide = teacher.predictor.requires_grad_(False)
    return Lesson(LongStep(cast(Any, model.flow), "consistency", teacher=guide), model.predictor, lambda module: module)


def train_cost(out: Path, name: str, seed: int, plain: float) -> float:
    """Network passes of a method's training and that of the models it needs, over those of plain training, as spent."""
    origin = read_json(out / "models" / f"{name}-seed{seed}" / "config.json")["provenance"]
    own = origin["training"]["steps"] * origin["passes"] / plain
    method = FEW_STEP_METHODS[name]
    if method.lesson == "reflow":
        own += method.share * PAIRS_SHARE
    before = sum(train_cost(out, other, seed, plain) for other in (method.teacher, method.worse) if other is not None)
    return float(round(own + before, 4))
