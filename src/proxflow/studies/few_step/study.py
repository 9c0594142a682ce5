"""Few steps: methods for good samples in one to twenty evaluations, with the same network and counted cost.

Cost is counted in network passes: a forward pass is one, a backward pass two, a sampling evaluation one. ``train_cost``
is that of training, including teachers, relative to plain training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from proxflow import models
from proxflow.config import TrainingConfig
from proxflow.flows import Flow
from proxflow.models import Model
from proxflow.predictors import LongStepPredictor
from proxflow.studies.few_step.report import outcome, pages
from proxflow.studies.presets import FEW_STEP_METHODS, FewStepPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Cell, Setup, Study, Trial, provenance, trained
from proxflow.training.objectives import LongStep
from proxflow.training.recipes import Recipe, recipe
from proxflow.training.reflow import make_pairs

PAIRS_SHARE = 0.3
"""Fraction of the network passes of a reflow round spent on its pairs."""

PAIR_STEPS = 10
"""Network evaluations per pair."""


def cells_of(preset: FewStepPreset) -> list[Cell]:
    """Return all cells of a preset. With one evaluation all samplers are the same."""
    return [
        Cell(method, sampler, nfe, seed)
        for seed in preset.seeds
        for method in preset.methods
        if FEW_STEP_METHODS[method].repeated or seed == preset.seeds[0]
        for nfe in preset.nfes
        for sampler in FEW_STEP_METHODS[method].samplers[: 1 if nfe == 1 else None]
    ]


def trials_of(setup: Setup[FewStepPreset]) -> dict[str, Trial]:
    """Return a trial for each method, with the trials it depends on."""
    trials: dict[str, Trial] = {}

    def taught(name: str, model: Model, training: TrainingConfig) -> tuple[Recipe, TrainingConfig]:
        method, seed = FEW_STEP_METHODS[name], training.seed
        budget = method.share * setup.preset.training.steps * Flow.passes
        teacher, weak = (
            None if other is None else trained(setup, other, trials[other], seed)
            for other in (method.teacher, method.weak)
        )
        if method.recipe == "reflow":
            folder, passes = setup.out / "pairs" / f"{name}-seed{seed}", budget * training.batch_size
            learning = _reflow(folder, model, cast(Model, teacher), passes, seed)
            budget *= 1 - PAIRS_SHARE
        elif method.recipe == "long-step":
            learning = _distilled(model, cast(Model, teacher))
        else:
            learning = recipe(method.recipe, model, teacher, weak, **method.settings)
        steps = round(budget / learning.objective.passes)
        return learning, replace(training, **{**method.training, "steps": steps})

    for name in setup.preset.methods:
        flow, predictor = FEW_STEP_METHODS[name].flow, FEW_STEP_METHODS[name].predictor
        build = partial(models.build, setup.shape, flow=flow, network=setup.preset.network, predictor=predictor)
        after = tuple(
            other for other in (FEW_STEP_METHODS[name].teacher, FEW_STEP_METHODS[name].weak) if other is not None
        )
        recipe_of = partial(taught, name)
        trials[name] = Trial(build, setup.images, setup.images, setup.test, recipe=recipe_of, after=after)
    return trials


def _reflow(folder: Path, model: Model, teacher: Model, budget: float, seed: int) -> Recipe:
    """Return a recipe that trains on pairs of a teacher's prior draws and samples."""
    pairs = round(PAIRS_SHARE * budget / PAIR_STEPS)
    # Far from the seeds of the scored samples.
    data = make_pairs(
        teacher.predictor, teacher.flow, pairs, model.shape, folder, nfe=PAIR_STEPS, seed=10**9 + seed, batch_size=256
    )
    model.predictor.load_state_dict(teacher.predictor.state_dict())
    return Recipe(model.flow, model.predictor, data=data)


def _distilled(model: Model, teacher: Model) -> Recipe:
    """Return a recipe that learns long steps from a teacher; the input of end times has no effect at first."""
    cast(LongStepPredictor, model.predictor).begin_from(teacher.predictor.state_dict())
    guide = teacher.predictor.requires_grad_(False)
    return Recipe(LongStep(cast(Any, model.flow), "consistency", teacher=guide), model.predictor)


def records_of(setup: Setup[FewStepPreset], trials: Mapping[str, Trial], results: Record) -> Record:
    """Return the cells with the costs of their methods.

    Each also has ``method``, the name in :data:`FEW_STEP_METHODS`; ``train_cost``; and ``parameters``, the number of the
    network's.
    """
    preset = setup.preset
    plain = preset.training.steps * Flow.passes
    costs = {method: train_cost(setup.out, method, preset.seeds[0], plain) for method in preset.methods}
    sizes = {method: sum(p.numel() for p in trials[method].build().predictor.parameters()) for method in costs}
    return {
        "cells": [
            {**cell, "method": cell["flow"], "train_cost": costs[cell["flow"]], "parameters": sizes[cell["flow"]]}
            for cell in results["cells"]
        ]
    }


def train_cost(out: Path, name: str, seed: int, plain: float) -> float:
    """Count the network passes of training a method and the models it needs, relative to plain training."""
    origin, method = provenance(out, name, seed), FEW_STEP_METHODS[name]
    own = origin["training"]["steps"] * origin["passes"] / plain
    if method.recipe == "reflow":
        own += method.share * PAIRS_SHARE
    before = sum(train_cost(out, other, seed, plain) for other in (method.teacher, method.weak) if other is not None)
    return float(round(own + before, 4))


STUDY = Study("few-step", cells_of, trials_of, pages, outcome, records_of)
