"""The paper's experiment on MNIST: GPFN-W2 against Bayesian Flow Networks, sampler by sampler, at equal evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from proxflow import models
from proxflow.models import spec
from proxflow.studies.mnist.report import outcome, pages
from proxflow.studies.presets import MnistPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Cell, Setup, Study, Trial


def cells_of(preset: MnistPreset) -> list[Cell]:
    """Return all cells of a preset, cheapest first within a flow and sampler."""
    return [
        Cell(flow, sampler, nfe, seed)
        for seed in preset.seeds
        for flow, samplers in preset.samplers.items()
        for sampler in samplers
        for nfe in preset.nfes
    ]


def trials_of(setup: Setup[MnistPreset]) -> dict[str, Trial]:
    """Return a trial for each flow, on the same network and images."""

    def trial(flow: str) -> Trial:
        build = partial(models.build, setup.shape, flow=flow, network=setup.preset.network)
        return Trial(build, setup.images, setup.images, setup.test)

    return {flow: trial(flow) for flow in setup.preset.samplers}


def records_of(setup: Setup[MnistPreset], trials: Mapping[str, Trial], results: Record) -> Record:
    """Return the flows as version-independent strings: tuned ones by their settings."""
    return {"flows": {flow: spec.word(spec.parse("flows", flow)) for flow in trials}}


STUDY = Study("mnist", cells_of, trials_of, pages, outcome, records_of)
