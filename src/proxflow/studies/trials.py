"""Studies: a trial is trained for each seed, a cell is scored for each sampler, NFE and seed, and reports are written.

The work is divided into pieces, each saved when done. The same command resumes with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from proxflow import data, metrics, models
from proxflow.config import TrainingConfig, to_dict
from proxflow.data import to_bytes
from proxflow.data.arrays import read_npz
from proxflow.errors import ArgumentError, CheckpointError, DataError, OutputError
from proxflow.examples import Examples, examples_of
from proxflow.flows import Flow
from proxflow.models import Model, format1, spec
from proxflow.runtime.checkpoints import load_weights, remove_all, write_tensors
from proxflow.runtime.files import read_json, writable_folder, write_atomically, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.pool import Piece, work_through
from proxflow.runtime.progress import bar
from proxflow.samplers import sample
from proxflow.studies import pages
from proxflow.studies.pages import Block
from proxflow.studies.presets import EXPERIMENTS, Preset, Size
from proxflow.studies.scoreboard import Record, floor, title_of_extractor, within_classes
from proxflow.training.conditions import ConditionDropout, with_dropout
from proxflow.training.fit import fit
from proxflow.training.recipes import Recipe, recipe
from proxflow.training.run import RunFolder

P = TypeVar("P", bound=Preset)

Measure = Callable[[Tensor, Tensor], dict[str, metrics.Estimate]]
"""Function of a cell's images, bytes, and their features by the first extractor that returns further scores and floors."""

KEPT = 64
"""Images saved per cell, for the report."""

KEPT_OF_A_CLASS = 10
"""Images saved per class instead, if samples are drawn for classes."""


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Args:
        flow: Name of the trial.
        sampler: Name of the sampler.
        nfe: Network evaluations spent on each sample.
        seed: Seed of training and sampling.
    """

    flow: str
    sampler: str
    nfe: int
    seed: int

    @property
    def name(self) -> str:
        """Its unique name."""
        return f"{self.flow}-{self.sampler}-nfe{self.nfe:03d}-seed{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the trials whose models it uses, its own first."""
        return (self.flow,)

    def file(self, out: Path, ending: str = "json") -> Path:
        """Return the file of the cell's record in the folder ``out``, or, as npz, of its first images."""
        return out / "cells" / f"{self.name}.{ending}"

    def prepared(self, load: Callable[[str], Model]) -> tuple[Model, nn.Module, int]:
        """Return the model, the predictor, and the number of predictions per sample for ``nfe`` evaluations.

        Args:
            load: Function that returns the model of a trial in :attr:`needs`.
        """
        model = load(self.flow)
        return model, model.predictor, self.nfe


@dataclass(frozen=True)
class Trial:
    """A model to train and score, with its training data and reference images.

    Args:
        build: Builds the untrained model; initial weights come from torch's global generator.
        data: Training data, as for :func:`proxflow.fit`.
        images: The same as images of bytes, for the floor.
        test: Reference images, bytes; trials that are compared share one tensor.
        to_images: Function from samples to images of bytes.
        recipe: Function from the untrained model and settings to the recipe and the settings to use; ``None`` for the
            flow's own loss and the given settings.
        steps: Training steps, if not the preset's.
        named: Whether flow and predictor have names, so that the model can be loaded like any other.
        labels: Labels of the test images, int64 (N,): samples are drawn for classes in these proportions, and also
            scored within classes; ``None`` draws without classes.
        after: Names of the trials whose models it learns from.
    """

    build: Callable[[], Model]
    data: Tensor | Examples
    images: Tensor
    test: Tensor
    to_images: Callable[[Tensor], Tensor] = to_bytes
    recipe: Callable[[Model, TrainingConfig], tuple[Recipe, TrainingConfig]] | None = None
    steps: int | None = None
    named: bool = True
    labels: Tensor | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup(Generic[P]):
    """The settings and data of a study.

    Args:
        preset: The preset.
        out: Folder for models, cells and results.
        device: Where to train and sample.
        say: Called with a line at each stage.
        images: Training images of bytes, (N, C, H, W).
        test: Test images of bytes.
        labels: Classes of the training images, int64 (N,), or ``None``.
        test_labels: Those of the test images.
        classes: Names of the classes, in the order of their labels, as far as known.
    """

    preset: P
    out: Path
    device: torch.device
    say: Callable[[str], None]
    images: Tensor
    test: Tensor
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])


@dataclass(frozen=True)
class Study(Generic[P]):
    """A study that :func:`reproduce` runs, and its report.

    Args:
        name: Its name on the command line and in its results.
        cells: All cells of a preset; a trial is trained with every seed of its cells.
        trials: The trials by name.
        pages: Writes figures into the folder of a run with the given results, sampling on the device; returns the
            report. It raises :class:`CheckpointError` or :class:`DataError` if models or images are missing or corrupt,
            and :class:`OutputError` if a file cannot be written.
        outcome: The outcome, from the results.
        records: Returns further entries of the results, given the trials and the results so far.
        further: Prepares, once in each process, the further scores of cells; given the two extractors.
    """

    name: str
    cells: Callable[[P], list[Cell]]
    trials: Callable[[Setup[P]], dict[str, Trial]]
    pages: Callable[[Path, Record, torch.device], list[Block]]
    outcome: Callable[[Record], list[Block]]
    records: Callable[[Setup[P], Mapping[str, Trial], Record], Record] = lambda setup, trials, found: {}
    further: Callable[[Setup[P], Sequence[metrics.FeatureExtractor]], Measure] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A study that does all of its work itself and saves results as they are made, not of trained image models.

    Args:
        name: Its name on the command line and in its results.
        run: Does what is missing of a preset, and returns the content of ``results.json``; given the name of the
            preset, the preset, the folder, the device, a function that prints a line, the data set, and the number of
            processes.
        pages: As for a :class:`Study`.
        outcome: As for a :class:`Study`.
    """

    name: str
    run: Callable[[str, Any, Path, torch.device, Callable[[str], None], str, int], Record]
    pages: Callable[[Path, Record, torch.device], list[Block]]
    outcome: Callable[[Record], list[Block]]


def find(name: str) -> Study[Any] | Benchmark:
    """Return the study of a name in :data:`proxflow.studies.presets.EXPERIMENTS`.

    Raises:
        ArgumentError: There is none.
    """
    if name not in EXPERIMENTS:
        raise ArgumentError(f"there is no study {name!r}; known are {', '.join(EXPERIMENTS)}")
    study: Study[Any] | Benchmark = import_module(f"proxflow.studies.{name.replace('-', '_')}.study").STUDY
    return study


def reproduce(
    study: Study[Any] | Benchmark,
    name: str,
    preset: Size,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str = "mnist",
    processes: int = 1,
) -> Record:
    """Run a study, or what is missing of it, and write ``results.json``.

    Trainings and cells are pieces that only depend on the seed and on the models they need, so results are the same for
    any number of processes, each with one thread.

    Args:
        study: The study.
        name: Name of the preset, for the record.
        preset: Its size.
        out: Folder for models, cells and results.
        device: Where to train and sample.
        say: Called with a line at each stage.
        dataset: As for :func:`proxflow.data.load`. Fashion-MNIST, wherever it was read from, and emoji are scored with
            the features of their own classifiers, everything else with those of MNIST's.
        processes: Processes that train and evaluate in parallel, on CPUs; 1 does all in this one.

    Returns:
        The content of ``results.json``.

    Raises:
        OutputError: The folder cannot be written, or holds a run of another configuration.
        DivergedError: Training diverged.
    """
    if isinstance(study, Benchmark):
        return study.run(name, preset, out, device, say, dataset, processes)
    if not isinstance(preset, Preset):
        raise ArgumentError(
            f"the study {study.name} trains, and the preset {name} says nothing of it: give one of its own"
        )
    config = json.loads(json.dumps({"preset": name, "dataset": dataset, **preset.settings()}))
    training, testing = data.load(dataset, "train"), data.load(dataset, "test")  # before the folder is claimed
    recognised = data.recognise(testing.images)
    for extractor in extractors_of(recognised or "mnist", torch.device("cpu")):
        if extractor.image_shape not in (None, testing.images.shape[1:]):
            raise ArgumentError(
                f"{study.name} scores images by {extractor.name}, which reads {extractor.image_shape}, and those of "
                f"{dataset} are {tuple(testing.images.shape[1:])}: give --data of that size, or train your own model"
            )
    claim(out, study.name, config)
    images, test = training.images[: preset.train_images], testing.images
    labels = None if training.labels is None else training.labels[: preset.train_images]
    classes = data.CLASSES.get(recognised or dataset, ())
    setup = Setup(preset, out, device, say, images, test, labels, testing.labels, classes)
    trials = study.trials(setup)
    results = {
        "experiment": study.name,
        "config": config,
        **evaluate(study, setup, trials, study.cells(preset), recognised or "mnist", processes),
        "reference": f"{len(test)} test images of {recognised or dataset}",
    }
    results |= study.records(setup, trials, results)
    write_json(out / "results.json", results)
    return results


def write_report(out: Path, device: torch.device) -> list[Path]:
    """Write figures, ``report.md`` and ``report.html`` from the folder of a finished run.

    Args:
        out: Folder with ``results.json``, ``cells`` and ``models``, whoever ran it.
        device: Device to sample on.

    Returns:
        The files written: the figures, then the two reports.

    Raises:
        CheckpointError: The results, or a model that is shown, are missing or corrupt.
        DataError: The images of a cell are missing or corrupt, or the results are not those of a study.
        OutputError: A file cannot be written.
    """
    results = read_json(out / "results.json")
    if not isinstance(results, dict) or results.get("experiment") not in EXPERIMENTS:
        raise DataError(f"{out / 'results.json'} holds no results of a study: give the folder of a finished run")
    return pages.write(out, find(results["experiment"]).pages(out, results, device))


def claim(out: Path, name: str, config: Record) -> None:
    """Record the configuration of a study's folder; the number of seeds may change between calls.

    Raises:
        OutputError: It has another configuration, or cannot be written.
        CheckpointError: The recorded configuration is corrupt.
    """
    wanted = {"experiment": name, **config}

    def upgraded(held: Record) -> Record:
        if held.get("experiment", name) != name:
            raise OutputError(
                f"{out} holds a run of {held['experiment']}, not of {name}: choose another --out folder, or remove this one "
                "to start over"
            )
        return _upgraded({"experiment": name, **held}, wanted)

    RunFolder(out, name, "config.json").claim(wanted, upgraded)


def _upgraded(held: Record, wanted: Record) -> Record:
    """Convert the settings of a run to this version's form; settings added later had their defaults."""
    if "training" in wanted:
        held["training"] = {**to_dict(TrainingConfig()), **held.get("training", {})}
    # Pieces have their seeds in their names, so that further seeds can be added.
    if held.get("seeds", [])[:1] == wanted["seeds"][:1]:
        held["seeds"] = wanted["seeds"]
    if isinstance(held.get("network"), dict):
        old = format1.translate({"model": held["network"]}, "config.json")["network"]
        held["network"] = spec.word(spec.restore("networks", old, "config.json"))
    return {name: value for name, value in held.items() if name in wanted}


def evaluate(
    study: Study[Any],
    setup: Setup[Any],
    trials: Mapping[str, Trial],
    cells: Sequence[Cell],
    features: str,
    processes: int = 1,
) -> Record:
    """Train and evaluate what is missing of a study.

    Args:
        study: The study.
        setup: Settings, folder and data.
        trials: The trials by name.
        cells: What to evaluate.
        features: The data set whose classifier's features all cells are scored with, as for
            :func:`proxflow.metrics.classifier_features`.
        processes: As for :func:`reproduce`.

    Returns:
        The records of all cells and trainings, with the conditions that they share.

    Raises:
        ArgumentError: There is no classifier for this data set.
        OutputError: The folder has cells that were scored with other features.
    """
    out, samples = setup.out, setup.preset.samples
    extractors = extractors_of(features, setup.device)
    wanted, todo = titles(extractors), [cell for cell in cells if not cell.file(out).exists()]
    for path in (cell.file(out) for cell in cells if cell not in todo):
        held = _held_record(path)
        if held.get("samples", samples) != samples:
            raise OutputError(
                f"{path} has {held['samples']} samples, not {samples}: choose another folder, or remove its cells to score "
                "them again"
            )
        if (found := {name: held.get(name) for name in wanted}) != wanted:
            scored, asked = (" and ".join(str(each) for each in known.values()) for known in (found, wanted))
            raise OutputError(
                f"{path} was scored on {scored}, not on {asked}: choose another folder, or remove its cells to score them "
                "again"
            )
    trained_with = list(dict.fromkeys((name, cell.seed) for cell in cells for name in cell.needs))
    untrained = [(name, seed) for name, seed in trained_with if not present(setup, name, trials[name], seed)]
    if processes > 1 and len(untrained) + len(todo) > 1:
        _side_by_side(study, setup, trials, untrained, todo, features, processes)
        untrained, todo = [], []
    for name, seed in untrained:
        train(setup, name, trials[name], seed)
    if todo:
        setup.say(f"evaluate: {len(todo)} cells of {samples} samples")
        bench = Bench(study, setup, trials, features)
        with bar("evaluate", sum(cell.nfe for cell in todo) * samples, "evaluations") as show:
            spent = 0
            for cell in todo:
                bench.evaluate(cell)
                spent += cell.nfe * samples
                show(spent)
    return {
        "hardware": hardware(setup.device),
        "versions": versions(),
        **{
            f"{prefix}extractor": {"name": each.name, "sha256": each.sha256, "dimension": each.dimension}
            for prefix, each in zip(PREFIXES, extractors, strict=True)
        },
        "training": {f"{name}-seed{seed}": provenance(out, name, seed) for name, seed in trained_with},
        "cells": [read_json(cell.file(out)) for cell in cells],
    }


def _held_record(path: Path) -> Record:
    """Read the record of a cell from an earlier command.

    Raises:
        CheckpointError: It is corrupt.
    """
    mending = "remove the file, and the same command scores its cell again"
    try:
        held = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {mending}") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: expected the scores of a cell, got {json.dumps(held):.80}: {mending}")
    return held


PREFIXES = ("", "second_")
"""Prefixes of score names, by extractor: the second shows whether results are tuned to the first."""


def extractors_of(features: str, device: torch.device) -> tuple[metrics.FeatureExtractor, ...]:
    """Return the two extractors of a data set: its classifier, and an independent one of another architecture.

    Raises:
        ArgumentError: There are none for this data set.
    """
    names = (features, metrics.second_of(features))
    return tuple(metrics.shipped_features(name, device) for name in names)


def titles(extractors: Sequence[metrics.FeatureExtractor]) -> dict[str, str]:
    """Return the names of extractors in a cell's record."""
    return {f"{prefix}extractor": title_of_extractor(each) for prefix, each in zip(PREFIXES, extractors, strict=True)}


class Bench:
    """The means of scoring cells in one process: the extractors, and references and floors as needed.

    Raises:
        ArgumentError: There is no classifier for this data set.
    """

    def __init__(self, study: Study[Any], setup: Setup[Any], trials: Mapping[str, Trial], features: str) -> None:
        self.study, self.setup, self.trials, self.features = study, setup, trials, features
        self.extractors = extractors_of(features, setup.device)
        self.references = cache(lambda test: tuple(metrics.Reference.of(extract(test)) for extract in self.extractors))
        self.floors = cache(self._floors)

    def _floors(self, test: Tensor, images: Tensor, seed: int) -> dict[str, float]:
        first, second = (
            floor(reference, extractor, images, self.setup.preset.samples, seed).as_floor()
            for reference, extractor in zip(self.references(test), self.extractors, strict=True)
        )
        return first | {f"second_{name}": second[name] for name in ("floor", "floor_precision", "floor_recall")}

    @cached_property
    def further(self) -> Measure:
        """The study's further scores; none by default. A process that only trains never prepares it."""
        if self.study.further is None:
            return lambda images, features: {}
        return self.study.further(self.setup, self.extractors)

    def evaluate(self, cell: Cell, progress: Callable[[int], None] | None = None) -> None:
        """Sample and score a cell, and save it; ``progress`` is called with the number of samples drawn."""
        evaluate_cell(self, cell, progress)


# Side by side ---------------------------------------------------------------------------------------------------------

_bench: Bench | None = None
"""The bench of a worker process."""

_TENSORS = ("images", "test", "labels", "test_labels")


def _side_by_side(
    study: Study[Any],
    setup: Setup[Any],
    trials: Mapping[str, Trial],
    untrained: Sequence[tuple[str, int]],
    todo: Sequence[Cell],
    features: str,
    processes: int,
) -> None:
    """Train and evaluate in processes; trainings come first, and cells use the remaining cores."""
    coming = {(name, seed): f"train {name}, seed {seed}" for name, seed in untrained}

    def needed(names: Sequence[str], seed: int) -> tuple[str, ...]:
        return tuple(coming[name, seed] for name in names if (name, seed) in coming)

    doing = f"{len(untrained)} trainings and {len(todo)} cells of {setup.preset.samples} samples"
    setup.say(f"{doing}, on {processes} processes side by side")
    pieces = []
    for name, seed in untrained:
        settings = settings_of(setup, trials[name], seed)
        work = settings.steps * settings.batch_size * Flow.passes
        pieces.append(Piece(coming[name, seed], _train, (name, seed), work, needed(trials[name].after, seed)))
    # The longest first, so that no core is left with a long one at the end.
    for cell in sorted(todo, key=lambda cell: -cell.nfe):
        work = cell.nfe * setup.preset.samples
        pieces.append(Piece(f"evaluate {cell.name}", _evaluate, (cell,), work, needed(cell.needs, cell.seed)))
    # As arrays: tensors would travel in shared memory, of which containers have little.
    arrays = {name: tensor.numpy() for name in _TENSORS if (tensor := getattr(setup, name)) is not None}
    without: dict[str, Any] = dict.fromkeys(arrays)
    bare: Any = replace(setup, say=silent, **without)
    work_through(pieces, processes, _begin, (study.name, bare, arrays, features), setup.say)


def side_by_side(pieces: Sequence[Piece], processes: int, say: Callable[[str], None]) -> None:
    """Do pieces of a benchmark, which save their results, in single-threaded processes; leave a single one undone."""
    if processes > 1 and len(pieces) > 1:
        say(f"{len(pieces)} pieces, on {processes} processes side by side")
        work_through(pieces, processes, torch.set_num_threads, (1,), say)


def _begin(study: str, bare: Any, arrays: Mapping[str, Any], features: str) -> None:
    global _bench
    torch.set_num_threads(1)
    setup = replace(bare, **{name: torch.from_numpy(array) for name, array in arrays.items()})
    found: Any = find(study)
    _bench = Bench(found, setup, found.trials(setup), features)


def silent(line: str) -> None:
    """Print nothing: the parent process prints it."""


def _ours() -> Bench:
    if _bench is None:
        raise RuntimeError("the pool has not begun")
    return _bench


def _train(name: str, seed: int) -> None:
    bench = _ours()
    train(bench.setup, name, bench.trials[name], seed)


def _evaluate(cell: Cell) -> None:
    bench = _ours()
    with bar("evaluate", bench.setup.preset.samples, "images") as show:
        bench.evaluate(cell, show)


def settings_of(setup: Setup[Any], trial: Trial, seed: int) -> TrainingConfig:
    """Return the settings of a trial's training, before its recipe changes them."""
    usual: TrainingConfig = setup.preset.training
    return replace(usual, seed=seed, steps=trial.steps or usual.steps)


def present(setup: Setup[Any], name: str, trial: Trial, seed: int) -> bool:
    """Return whether the model of a trial exists, which may be a copy of a folder of ``proxflow train``.

    Raises:
        OutputError: There is another model, or one whose training has not ended.
        CheckpointError: Its files are corrupt.
    """
    folder = setup.out / "models" / f"{name}-seed{seed}"
    if not (folder / "config.json").exists():
        return False
    if trial.named and trial.recipe is None:
        try:
            _check_same(folder, trial, settings_of(setup, trial, seed))
        except CheckpointError as error:
            raise CheckpointError(f"{error}: remove {folder}, and the same command trains it again") from error
    return True


def train(setup: Setup[Any], name: str, trial: Trial, seed: int) -> None:
    """Train one trial, resuming from its checkpoint if there is one, and save its model."""
    folder, settings = setup.out / "models" / f"{name}-seed{seed}", settings_of(setup, trial, seed)
    torch.manual_seed(seed)  # the same initial weights for every trial
    model = trial.build()
    lesson = recipe("flow", model)
    if trial.recipe is not None:
        lesson, settings = trial.recipe(model, settings)
    examples = trial.data if lesson.data is None else lesson.data
    label = f"train {name}"
    setup.say(f"train: {name}, seed {seed}, {settings.steps} steps of {settings.batch_size} images")
    objective = with_dropout(lesson.objective, model.predictor)
    result = fit(lesson.module, objective, examples, settings, folder=folder, device=setup.device, label=label)
    record = {
        "data": f"{len(examples)} training {'images' if lesson.data is None else 'pairs'}",
        "training": to_dict(settings),
        "passes": objective.passes,
        **({} if lesson.method == "flow" else {"method": lesson.method}),
        "seconds": round(result.seconds, 1),
        "losses": [round(loss, 6) for loss in result.losses],
        "hardware": hardware(setup.device),
        "versions": versions(),
    }
    weights = lesson.kept(result.predictor).state_dict()
    if trial.named:
        models.save(folder, model, weights, record)
    else:
        write_tensors(folder / "model.safetensors", weights)
        write_json(folder / "config.json", {"provenance": record})
    remove_all(folder)


def _check_same(folder: Path, trial: Trial, settings: TrainingConfig) -> None:
    """Refuse a trained model that differs from what a trial would train.

    Raises:
        OutputError: It has other parts or settings, is not fully trained, or was trained on other data.
    """
    found, model, parts = models.load(folder), trial.build(), ("flow", "network", "predictor")
    known = found.provenance
    held = {**TrainingConfig().decisive(), **known.get("training", {}), **{part: found.spec[part] for part in parts}}
    held["steps"] = known.get("steps", held["steps"])
    wanted = {**settings.decisive(), **{part: model.spec[part] for part in parts}}
    if known.get("hardware", {}).get("device") == "cpu":  # where auto is float32
        for each in (held, wanted):
            each["precision"] = {"auto": "float32"}.get(each["precision"], each["precision"])
    if (folder / "run.json").exists():
        record, x = read_json(folder / "run.json"), examples_of(trial.data, "training").x
        held |= {name: record.get(name) for name in ("data", "drop", "teacher", "init")}
        objective = with_dropout(model.flow, model.predictor)
        drop = objective.rate if isinstance(objective, ConditionDropout) else None
        content = hashlib.sha256(x.numpy().tobytes()).hexdigest()
        wanted |= {"data": f"sha256 {content}, shape {list(x.shape)}", "drop": drop, "teacher": None, "init": None}
    for name, value in wanted.items():
        if held.get(name) != value:
            raise OutputError(
                f"{folder} holds another model than this study trains, with {name} {json.dumps(held.get(name)):.200}, not "
                f"{json.dumps(value):.200}: remove it, or choose another folder"
            )


def provenance(out: Path, name: str, seed: int) -> Record:
    """Return the provenance of the model of a trial."""
    record: Record = read_json(out / "models" / f"{name}-seed{seed}" / "config.json")["provenance"]
    return record


def trained(setup: Setup[Any], name: str, trial: Trial, seed: int) -> Model:
    """Load the model of a trial saved by :func:`train`.

    Raises:
        CheckpointError: It is missing or corrupt.
    """
    model = trial.build()
    load_weights(model.predictor, setup.out / "models" / f"{name}-seed{seed}" / "model.safetensors")
    model.predictor.eval().to(setup.device)
    return model


def evaluate_cell(bench: Bench, cell: Cell, progress: Callable[[int], None] | None = None) -> None:
    """Sample and score one cell, and write its record and its first images."""
    setup, trials, trial = bench.setup, bench.trials, bench.trials[cell.flow]
    number = setup.preset.samples
    labels = None if trial.labels is None else metrics.labels_in_proportion(trial.labels, number)
    model, predictor, predictions = cell.prepared(lambda name: trained(setup, name, trials[name], cell.seed))
    started, draw = time.monotonic(), partial(sample, predictor, model.flow, batch_size=256, condition=labels)
    samples = draw((number, *model.shape), nfe=predictions, sampler=cell.sampler, seed=cell.seed, progress=progress)
    seconds = time.monotonic() - started
    images = trial.to_images(samples).cpu()
    (extractor, other), (reference, further) = bench.extractors, bench.references(trial.test)
    found, hits, within = extractor(images), None, Record()
    kept, chosen = dict[str, Any](), torch.arange(min(KEPT, number))
    if labels is not None and trial.labels is not None:
        hits = metrics.class_hits(metrics.load_classifier(bench.features), images, labels)
        within = within_classes(reference, trial.labels, found, labels)
        chosen = torch.cat([(labels == label).nonzero()[:KEPT_OF_A_CLASS, 0] for label in range(int(labels.max()) + 1)])
        kept["labels"] = labels[chosen].numpy()
    scores, second = reference.score(found, hits), further.score(other(images))
    writable_folder(setup.out / "cells")
    kept["images"] = np.ascontiguousarray(images[chosen].permute(0, 2, 3, 1).numpy())
    write_atomically(cell.file(setup.out, "npz"), lambda path: np.savez_compressed(path, **kept))
    besides = bench.further(images, found)
    scored = asdict(scores)
    for name, estimate in besides.items():  # each with its own number of images: a floor has others
        scored["intervals"] |= metrics.bootstrap({name: estimate}, 0)
        scored["errors"][name] = estimate.standard_error
    record = {
        **asdict(cell),
        **scored,
        **{name: estimate.value for name, estimate in besides.items()},
        **within,
        **{f"second_{name}": getattr(second, name) for name in ("frechet", "precision", "recall")},
        **bench.floors(trial.test, trial.images, cell.seed),
        **titles(bench.extractors),
        "sampling_seconds": round(seconds, 2),
    }
    write_json(cell.file(setup.out), record)


def kept_images(out: Path, cell: Cell) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read the saved images of a cell, (N, H, W), or (N, H, W, 3) in colour.

    Raises:
        DataError: They are missing or corrupt.
    """
    return _shown(_kept(out, cell, "images")["images"])


def kept_classes(out: Path, cell: Cell) -> dict[int, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Read the saved images of a cell drawn for classes by label, as :func:`kept_images`.

    Raises:
        DataError: They are missing or corrupt.
    """
    held = _kept(out, cell, "images", "labels")
    return {label: _shown(held["images"][held["labels"] == label]) for label in sorted(set(held["labels"].tolist()))}


def _shown(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return images[..., 0] if images.shape[-1] == 1 else images


def _kept(out: Path, cell: Cell, *keys: str) -> dict[str, Any]:
    path = cell.file(out, "npz")
    try:
        found = dict(read_npz(path, keys))
        if missing := sorted(set(keys) - set(found)):
            raise DataError(f'expected the key "{missing[0]}"')
        return found
    except DataError as error:
        raise DataError(
            f"{path} does not hold the images of this cell ({error}): remove {path.stem}.json beside it and run the "
            "experiment again, which makes both anew"
        ) from error
