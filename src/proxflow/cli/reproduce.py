"""``proxflow reproduce``: repeat a study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from proxflow.cli._common import File, say
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError
from proxflow.studies.presets import EXPERIMENTS, ExperimentName, PosteriorPreset, PresetName

if TYPE_CHECKING:
    import torch

_MINUTES = "\n".join(
    f"        {study} {name}: {preset.minutes}"
    for study, presets in EXPERIMENTS.items()
    for name, preset in presets.items()
)

_DATA = {"emoji": "emoji", "text": "bible", "tables": "scikit-learn"}
"""Data of the studies that do not use MNIST."""


@dataclass(frozen=True)
class Reproduce:
    """Repeat an experiment of the paper: train, sample, evaluate, report.

    mnist trains a proximal flow with Wasserstein-2 steps (gpfn-w2) and two Bayesian Flow Networks (bfn with the
    reference's settings, bfn-tuned with the best found for MNIST) with the same U-Net, data, steps and seed. It
    evaluates each with each of its samplers at 1 to 100 network evaluations (quick: 20) and writes results.json, a
    Markdown and an HTML report with pictures. Its preset long trains both families ten times as long, with default
    settings and with the best found for MNIST (gpfn-w2-tuned), and says which is ahead at how many evaluations.

    few-step trains that U-Net in several ways that aim at good images in one to twenty evaluations, counts what each
    costs in training, and plots quality against evaluations and against cost. Its preset quick runs the best of them
    with one seed; long trains autoguidance and what it needs thirteen times as long.

    geometry trains that U-Net with six divergences, and on binary images with three, each beside a control with the
    same schedule but not the same geometry, and says which differences are due to the geometry.

    guidance trains that U-Net with classes and without, draws with every weight, interval and rule of guidance at 4, 10
    and 20 network evaluations, and weighs Fréchet distance, precision and class accuracy against recall.

    emoji trains a U-Net on colour pictures of emoji with their groups, and a student of it that draws with one
    evaluation, and reports with all scores which share of the samples is copied from training pictures.

    text trains Bayesian, masked, linear and Fisher–Rao flows of classes and an autoregressive model with the same
    transformer, some on matched schedules, bounds the likelihood of held-out text and evaluates samples at 1 to 256
    network evaluations.

    tables trains flows of mixed data on the tables inside scikit-learn, half of each, and compares synthetic rows with
    the held-out half: columns, pairs of columns, a random forest that tells them apart, one that learns from them, and
    the nearest training row, beside a Gaussian copula, the real half, and peers if they are installed.

    posterior trains nothing: it samples known posteriors, of Gaussian data, of the Gaussian mixture used as a benchmark
    in this field and of signals, and restores digits, with every method here and with those of azula if it is installed
    (tests/requirements-peers.txt), with the same denoisers.

    The same command resumes an interrupted run. Presets, and what they take:

    For example:
        proxflow reproduce --preset quick
        proxflow reproduce mnist --preset paper --device cuda --out runs/paper
        proxflow reproduce geometry --preset quick
        proxflow reproduce few-step --data fashion-mnist
        proxflow reproduce guidance --preset quick
        proxflow reproduce emoji --preset quick
        proxflow reproduce text --preset quick
        proxflow reproduce tables --preset quick
        proxflow reproduce posterior --preset quick

    Args:
        experiment: Which experiment.
        preset: How much to train and to sample, see above.
        data: Data to learn or to restore: mnist, fashion-mnist, or a folder of IDX files of 28 x 28 grey images, with
            labels for guidance; for text bible, a text file or a folder of them; emoji and tables only use their own.
        model: For posterior: name or folder of the model that restores images of --data; by default one of the package.
        out: Folder for models, results and report.
        seed: Seed of initial weights, order of data and noise; a preset with several seeds counts up from it.
        seeds: Number of seeds, instead of the preset's; with more of them the same folder is continued.
        device: Where to compute; auto takes CUDA if there is one.
    """

    experiment: Annotated[
        ExperimentName,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[{mnist,geometry,few-step,guidance,emoji,text,tables,posterior}]"),
    ] = "mnist"
    preset: Annotated[PresetName, tyro.conf.arg(help_behavior_hint="(default: quick)")] = "quick"
    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="STR", help_behavior_hint="(default: mnist; what text, emoji and tables have of their own)"
        ),
    ] = None
    out: Annotated[
        File,
        tyro.conf.arg(
            metavar="PATH", help_behavior_hint="(default: runs/EXPERIMENT-PRESET, with other data also -DATA)"
        ),
    ] = None
    model: str = "mnist"
    seed: int = 0
    seeds: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as many as the preset has)")
    ] = None
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to resume with less memory."""
        return "free some on the device, or choose another --device; the same command then goes on"


Reproduce.__doc__ = str(Reproduce.__doc__).replace("what they take:\n", f"what they take:\n{_MINUTES}\n", 1)


def run(options: Reproduce, device: torch.device) -> None:
    """Run an experiment, or the rest of it, and write the report."""
    import multiprocessing

    import torch

    from proxflow.runtime.files import writable_folder
    from proxflow.runtime.machine import working_processes
    from proxflow.runtime.processes import Processes
    from proxflow.studies import pages, trials

    if Processes.current().size > 1:
        raise ArgumentError(
            "reproduce runs on one process: start it without torchrun; train, sample and evaluate run on many"
        )
    presets = EXPERIMENTS[options.experiment]
    if options.preset not in presets:
        raise ArgumentError(
            f"{options.experiment} has the presets {' and '.join(presets)}, got --preset {options.preset}"
        )
    if options.model != "mnist" and options.experiment != "posterior":
        raise ArgumentError(
            f"--model is for posterior, which restores images with it; {options.experiment} trains its own"
        )
    if options.seeds is not None and options.seeds < 1:
        raise ArgumentError(f"an experiment takes at least one seed, got --seeds {options.seeds}")
    name, usual = f"{options.experiment}-{options.preset}", _DATA.get(options.experiment, "mnist")
    dataset = usual if options.data is None else options.data
    if options.experiment == "emoji" and dataset != usual:
        raise ArgumentError(f"emoji learns the emoji of the package, and --data is {dataset}: leave --data out")
    if dataset != usual:
        name += f"-{Path(dataset).name}"
    out = options.out if options.out is not None else Path("runs") / name
    writable_folder(out)
    size = presets[options.preset]
    takes = size.minutes
    if options.seeds is not None and options.seeds != len(size.seeds):
        takes += f" with {len(size.seeds)} seed{'s' * (len(size.seeds) > 1)}, here {options.seeds}"
    say(f"{options.experiment}, {options.preset}: {takes}; running on {device.type}, into {out}")
    say("interrupt with Ctrl-C at any time: the same command goes on where it stopped")
    study, preset = trials.find(options.experiment), size.counted_from(options.seed, options.seeds)
    if isinstance(preset, PosteriorPreset):
        preset = replace(preset, model=options.model)
    processes = 1
    if device.type == "cpu":
        torch.set_num_threads(1)
        processes = working_processes()
        multiprocessing.set_forkserver_preload([trials.__name__])  # imported once, for all processes
    results = trials.reproduce(study, options.preset, preset, out, device, say, dataset, processes)
    files = trials.write_report(out, device)
    pages.show(study.outcome(results))
    for path in (out / "results.json", *(file for file in files if file.suffix in (".md", ".html"))):
        say(f"written: {path}")
