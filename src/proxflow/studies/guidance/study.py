"""Guidance: weight by interval by rule on one conditional model, against the unconditional one of equal size and budget.

A guided prediction counts as two evaluations. So a cell makes as many predictions as its number of network evaluations
allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

from proxflow import models
from proxflow.data.kinds.image import Image
from proxflow.errors import ArgumentError
from proxflow.examples import Examples
from proxflow.models import spec
from proxflow.studies.guidance.cells import CONDITIONAL, UNCONDITIONAL, WEAK, GuidedCell, spent
from proxflow.studies.guidance.report import outcome, pages
from proxflow.studies.presets import GuidancePreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Cell, Setup, Study, Trial, provenance

CLASSES = 10
"""Largest number of classes, that of the small classifiers."""


def cells_of(preset: GuidancePreset) -> list[Cell]:
    """Return all cells of a preset: without guidance, then each weight with each interval and rule, then the weak model."""
    ways = [partial(GuidedCell, flow, sampler) for flow in (UNCONDITIONAL, CONDITIONAL) for sampler in preset.samplers]
    ways += [
        partial(GuidedCell, CONDITIONAL, sampler, weight=weight, interval=interval, rule=rule)
        for rule, samplers in preset.rules.items()
        for interval in preset.intervals
        for weight in preset.weights
        for sampler in samplers
    ]
    if preset.weak_share:
        ways += [
            partial(GuidedCell, CONDITIONAL, sampler, weight=weight, weak=WEAK)
            for weight in preset.weights
            for sampler in preset.rules["linear"]
        ]
    return [way(nfe=nfe, seed=seed) for seed in preset.seeds for way in ways for nfe in preset.nfes]


def trials_of(setup: Setup[GuidancePreset]) -> dict[str, Trial]:
    """Return the trials with equal networks: unconditional, conditional, and optionally conditional with less training.

    Raises:
        ArgumentError: The images have no labels, or more classes than a classifier has.
    """
    labels, tested = setup.labels, setup.test_labels
    if labels is None or tested is None or int(max(labels.max(), tested.max())) >= CLASSES:
        raise ArgumentError(
            f"the study of guidance needs images with labels from 0 to {CLASSES - 1}: take other --data"
        )
    preset = setup.preset
    names = setup.classes or tuple(map(str, range(CLASSES)))
    network = spec.make("networks", {**spec.content("networks", preset.network), "classes": len(names)})
    told = Examples(setup.images, labels)
    build = partial(models.build, Image(setup.shape, names), flow=preset.flow, network=network)
    plain = partial(models.build, setup.shape, flow=preset.flow, network=preset.network)

    shorter = max(1, round(preset.weak_share * preset.training.steps))
    return {
        UNCONDITIONAL: Trial(plain, setup.images, setup.images, setup.test),
        CONDITIONAL: Trial(build, told, setup.images, setup.test, labels=tested),
        WEAK: Trial(build, told, setup.images, setup.test, steps=shorter, labels=tested),
    }


def records_of(setup: Setup[GuidancePreset], trials: Mapping[str, Trial], results: Record) -> Record:
    """Return the cells with the study's further entries.

    These are ``class_accuracy`` and ``frechet_per_class``, ``None`` without classes; ``predictions`` and
    ``evaluations`` of a sample; ``train_cost``, of the models used, relative to the unconditional one; ``parameters``
    of the model.
    """
    preset = setup.preset
    load = cache(lambda name: trials[name].build())

    @cache
    def steps(name: str) -> int:
        return int(provenance(setup.out, name, preset.seeds[0])["training"]["steps"])

    cells = []
    for cell, record in zip(cells_of(preset), results["cells"], strict=True):
        model, predictor, predictions = cell.prepared(load)
        cells.append(
            {
                **record,
                "class_accuracy": record["accuracy"],
                "frechet_per_class": record.get("frechet_per_class"),
                "predictions": predictions,
                "evaluations": spent(model, predictor, cell.sampler, predictions),
                "train_cost": round(sum(map(steps, cell.needs)) / preset.training.steps, 4),
                "parameters": sum(p.numel() for p in model.predictor.parameters()),
            }
        )
    names = setup.classes or tuple(map(str, range(CLASSES)))
    return {"cells": cells, "classes": list(names)}


STUDY = Study("guidance", cells_of, trials_of, pages, outcome, records_of)
