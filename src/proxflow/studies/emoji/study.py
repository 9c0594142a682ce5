"""Emoji: a conditional flow of few colour pictures, its one-step student, and what they memorise.

A few thousand pictures are seen a hundred times each, so a model may copy them. Every cell has the fraction of its
samples that are nearer to a training picture than nearly all held-out pictures, in pixels and in the classifier's
features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from proxflow import metrics, models
from proxflow.config import TrainingConfig
from proxflow.data.kinds.image import Image
from proxflow.errors import ArgumentError
from proxflow.examples import Examples
from proxflow.metrics import Estimate, FeatureExtractor, Memorisation
from proxflow.models import Model, spec
from proxflow.studies.emoji.report import FEW, FLOW, outcome, pages
from proxflow.studies.presets import EmojiPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Cell, Measure, Setup, Study, Trial, trained
from proxflow.training.recipes import Recipe, recipe

_STUDENT: dict[str, Any] = {"warmup_steps": 50, "ema": 0.99}
"""Settings of the student's training that differ from the preset's, as in the few-step study."""


def cells_of(preset: EmojiPreset) -> list[Cell]:
    """Return all cells of a preset: the flow with each sampler, then the student, of one evaluation."""
    return [
        cell
        for seed in preset.seeds
        for cell in (
            *(Cell(FLOW, sampler, nfe, seed) for sampler in preset.samplers for nfe in preset.nfes),
            Cell(FEW, "deterministic", 1, seed),
        )
    ]


def trials_of(setup: Setup[EmojiPreset]) -> dict[str, Trial]:
    """Return the flow, and the student that learns from it and, with a discriminator, from the pictures.

    Raises:
        ArgumentError: The images have no labels.
    """
    labels, tested, preset = setup.labels, setup.test_labels, setup.preset
    if labels is None or tested is None:
        raise ArgumentError("the study of emoji draws for classes, and the images have no labels: take other --data")
    names = _names(setup)
    network = spec.make("networks", {**spec.content("networks", preset.network), "classes": len(names)})
    build = partial(models.build, Image(setup.shape, names), flow=preset.flow, network=network)
    told = Examples(setup.images, labels)
    flow = Trial(build, told, setup.images, setup.test, labels=tested)

    def taught(model: Model, training: TrainingConfig) -> tuple[Recipe, TrainingConfig]:
        learning = recipe("distribution-matching", model, trained(setup, FLOW, flow, training.seed))
        return learning, replace(training, **_STUDENT)

    return {FLOW: flow, FEW: replace(flow, recipe=taught, steps=preset.student_steps, after=(FLOW,))}


def _names(setup: Setup[EmojiPreset]) -> tuple[str, ...]:
    labels = torch.cat([part for part in (setup.labels, setup.test_labels) if part is not None])
    return setup.classes or tuple(map(str, range(int(labels.max()) + 1)))


def further(setup: Setup[EmojiPreset], extractors: Sequence[FeatureExtractor]) -> Measure:
    """Return a measure of memorised samples and its floor, see :class:`proxflow.metrics.Memorisation`.

    ``memorised`` is by Euclidean distances of pixels in [-1, 1], ``memorised_features`` by those of the first
    extractor's features; their floors, ``memorised_floor`` and ``memorised_features_floor``, are the fractions of the
    test images.
    """
    channels, height, width = setup.shape
    pixels = metrics.pixel_features((channels, height, width))

    def values(images: Tensor) -> Tensor:
        return pixels(images, dtype=torch.float32)

    by_pixels = Memorisation.of(values(setup.images), values(setup.test))
    by_features = Memorisation.of(extractors[0](setup.images), extractors[0](setup.test))

    def measured(images: Tensor, found: Tensor) -> dict[str, Estimate]:
        return {
            "memorised": by_pixels.score(values(images)),
            "memorised_floor": by_pixels.floor,
            "memorised_features": by_features.score(found),
            "memorised_features_floor": by_features.floor,
        }

    return measured


def records_of(setup: Setup[EmojiPreset], trials: Mapping[str, Trial], results: Record) -> Record:
    """Return names of the classes, and the cells with their numbers of parameters and class accuracy."""
    sizes = {name: sum(p.numel() for p in trial.build().predictor.parameters()) for name, trial in trials.items()}
    cells = [
        {**cell, "class_accuracy": cell["accuracy"], "parameters": sizes[cell["flow"]]} for cell in results["cells"]
    ]
    return {"cells": cells, "classes": list(_names(setup))}


STUDY = Study("emoji", cells_of, trials_of, pages, outcome, records_of, further)
