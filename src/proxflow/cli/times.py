"""``proxflow times``: optimise the times of few evaluations for a trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from proxflow.cli._common import File, ModelSource, SamplerChoice, say
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Times:
    """Optimise the times of few evaluations for a trained model: better samples at the same cost.

    The times are chosen so that few steps end nearest to where many steps end from the same noise. This needs no data
    and trains nothing. They are kept in the model folder, and sample and evaluate use them whenever --sampler and
    --steps are those they were found for.

    For example:
        proxflow times runs/mine --steps 2 3 4 5
        proxflow times mnist --out runs/mnist --steps 4 --sampler unipc

    Args:
        model: A model folder, or the name of a model that comes with the package, which needs --out.
        steps: Numbers of network evaluations (NFE), each optimised by itself.
        sampler: Sampler that will be used, a deterministic one; "proxflow list samplers" shows the choices.
        n: Samples on which few and many steps are compared, all at once; lower it when memory runs out.
        seed: Seed of their noise.
        out: Folder for the model with the times, instead of its own.
        device: Where to compute; auto takes CUDA if there is one.
    """

    model: ModelSource
    steps: tuple[int, ...] = (2, 3, 4, 5)
    sampler: SamplerChoice = None
    n: int = 64
    seed: int = 0
    out: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the model's folder)")] = None
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to search with less memory."""
        return f"lower --n, now {self.n}"


def run(options: Times, device: torch.device) -> None:
    """Optimise the times of evaluations and save them with the model."""
    from proxflow import models, names
    from proxflow.runtime.files import writable_folder
    from proxflow.runtime.processes import Processes
    from proxflow.samplers import default_sampler
    from proxflow.samplers.optimise_times import REFERENCE_STEPS, optimise_times

    if Processes.current().size > 1:
        raise ArgumentError("times runs on one process: start it without torchrun")
    if not options.steps or min(options.steps) < 1:
        raise ArgumentError(f"--steps, the numbers of network evaluations, must be at least 1, got {options.steps}")
    if options.n < 1:
        raise ArgumentError(f"--n must be at least 1, got {options.n}")
    if options.sampler is not None:
        names.find("samplers", options.sampler)  # times are saved by name
    model = models.load(options.model, device)
    if options.out is None and options.model in models.shipped_models():
        raise ArgumentError(
            f"{options.model} comes with the package, which stays as it is: give --out, a folder for it with its times"
        )
    folder = writable_folder(Path(options.model) if options.out is None else options.out)
    sampler, shape = options.sampler or default_sampler(model.predictor, model.flow), (options.n, *model.shape)
    reference, found = None, dict(model.times.get(sampler, {}))
    say(f"times: {sampler}, {options.n} {model.data.examples_word} against {REFERENCE_STEPS} evaluations each")
    for steps in options.steps:
        best = optimise_times(
            model.predictor,
            model.flow,
            shape,
            steps,
            sampler=models.parse("samplers", sampler),
            seed=options.seed,
            reference=reference,
        )
        reference, found[steps] = best.reference, best.times
        say(
            f"{steps} evaluations: {best.error_before:.4f} from the reference before, {best.error:.4f} now; "
            f"{best.evaluations:,} network evaluations"
        )
        # Saved one by one, so that an interruption loses at most one.
        better = replace(model, times={**model.times, sampler: found})
        models.save(folder, better)
    say(f"written: {folder}; sample and evaluate take them with --sampler {sampler} and these --steps")
