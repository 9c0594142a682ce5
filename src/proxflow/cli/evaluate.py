"""``proxflow evaluate``: measure how good images and tables are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast

import tyro

from proxflow.cli._common import (
    File,
    GuidanceOptions,
    Number,
    SamplerChoice,
    Text,
    bound_record,
    bound_text,
    check_counts,
    check_graph,
    check_sampler,
    classes_asked,
    content_of,
    draw,
    first_alone,
    guided,
    less_memory,
    origin,
    print_table,
    say,
    spent,
    steps_of,
)
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from proxflow import metrics
    from proxflow.data.kinds.table import Table
    from proxflow.likelihood import Nats
    from proxflow.models import Model
    from proxflow.studies import scoreboard

Extractor = Literal[
    "mnist",
    "fashion-mnist",
    "mnist-mixer",
    "fashion-mnist-mixer",
    "emoji",
    "emoji-principal",
    "pixels",
    "efficientnet-lite0",
    "inception",
]

LEAST, LEAST_REAL = 4, 6
"""Least images for scores, drawn and real: more than the nearest neighbours used, three and, for coverage, five."""


@dataclass(frozen=True)
class Evaluate:
    """Measure how good the images or rows of a model are, or images made elsewhere.

    Prints the Fréchet distance, KID, precision, recall, density, coverage, diversity, the Vendi score, the sliced
    Wasserstein distance, the distance to the nearest training image and, for images with labels, a classifier's
    accuracy on them. Each has a standard error and a 95 % interval. The same number of real training images is scored
    as well: the floor, which no model is expected to beat. A model is compared with its own data, with held-out images
    if there are enough. Features come from a classifier in the package for MNIST, Fashion-MNIST, IDX files of that
    shape and emoji, and are the pixels themselves for other pictures, unless you choose others.

    A conditional model draws the classes in the proportions of the reference images. Images with classes are also
    compared within their classes: the means over classes of Fréchet distance, precision and recall are printed.

    Rows of a table are compared with held-out rows (train with --held-out 0.5 for many): the distributions of columns,
    the dependence between columns, how well a random forest tells synthetic rows from real ones, how well one trained
    on synthetic rows predicts the target of real ones, and the distance to the nearest training row. This needs the
    extra "tables".

    Several models, sets of images or files of earlier results make one table. Sources measured with different features,
    references or numbers of images are refused, because their numbers are not comparable.

    For example:
        proxflow evaluate --n 1000 --steps 20
        proxflow evaluate runs/mine --sampler stochastic --out mine.json
        proxflow evaluate --images few.npz
        proxflow evaluate first.npz second.npz mine.json
        proxflow evaluate runs/own
        proxflow evaluate runs/digits --guidance 2 --guidance-interval 0.1 0.9
        proxflow evaluate runs/digits --class 7
        proxflow evaluate runs/table --out table.json
        proxflow evaluate drawn-elsewhere --data pictures --size 32

    Args:
        sources: What to evaluate, one or several: the name of a model that comes with the package, or a model folder as
            train and reproduce write it; images, in an .npz file with key "images", uint8, N x H x W x C, and
            optionally "labels", N classes, or in a folder of pictures; or a .json file of results that evaluate or
            reproduce wrote.
        n: Images drawn from a model, or taken at equal distances from images made elsewhere; rows of a table.
        steps: Predictions per image. Each is one network evaluation (NFE), or two with guidance.
        classes: Evaluate conditional models on these classes only, by name or number, against the real images of these.
        guidance: How predictions are guided.
        sampler: How to sample; "proxflow list samplers" shows the choices.
        seed: Seed of the images drawn, and of the choice of real training images scored beside them.
        images: Images to evaluate, as if named first.
        data: Reference data: any images that train takes. If the set has no test images, the reference are the held-out
            images of the first model that was trained on it, or else half of the set.
        size: Side length of the squares that the pictures of a folder are scaled and centre-cropped to.
        extractor: Features. mnist, fashion-mnist: the penultimate layer of a classifier of digits or of clothes, for 28
            x 28 grey images; with -mixer that of a second classifier, of another architecture, to check that no
            conclusion depends on one. emoji: that of a classifier of emoji; emoji-principal: 64 principal components of
            their pixels. pixels: the images themselves. efficientnet-lite0: a network for natural images from the
            package of that name; its distances are not FID. inception: the network of standard FID, whose weights are
            not in the package.
        inception_weights: The .safetensors file of those weights.
        out: A .json file for the scores and how they were measured.
        batch_size: Images drawn at a time; lower it when memory runs out.
        device: Where to compute; auto takes CUDA if there is one.
        graph: Capture the work of a batch as a CUDA graph and replay it for all: with many batches, small networks draw
            several times as many images per second.
    """

    sources: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[MODEL|IMAGES|RESULTS ...]", help_behavior_hint="(default: mnist)"),
    ] = ()
    n: Annotated[
        Number,
        tyro.conf.arg(
            metavar="INT",
            help_behavior_hint="(default: 1000; of images, all; of rows, ten for each real one, at most 10000)",
        ),
    ] = None
    steps: Annotated[
        Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 20; 1 for a one-evaluation student)")
    ] = None
    classes: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="class", metavar="CLASS [CLASS ...]", help_behavior_hint="(default: as in the data)"),
    ] = ()
    guidance: tyro.conf.OmitArgPrefixes[GuidanceOptions] = field(default_factory=GuidanceOptions)
    sampler: SamplerChoice = None
    seed: int = 0
    images: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the model's)")] = None
    data: Annotated[
        Text,
        tyro.conf.arg(
            metavar="SOURCE",
            help_behavior_hint="(default: what models were trained on; for 28 x 28 images alone, mnist)",
        ),
    ] = None
    size: Annotated[Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as in training)")] = None
    extractor: Annotated[
        Union[Extractor, None],  # noqa: UP007 - as of Text
        tyro.conf.arg(
            metavar="{mnist,fashion-mnist,mnist-mixer,fashion-mnist-mixer,emoji,emoji-principal,pixels,efficientnet-lite0,"
            "inception}",
            help_behavior_hint="(default: fashion-mnist and emoji for their own images, mnist for 28 x 28 IDX files, else "
            "pixels)",
        ),
    ] = None
    inception_weights: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(needed for inception)")] = (
        None
    )
    out: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: only print)")] = None
    batch_size: int = 128
    device: DeviceName = "auto"
    graph: bool = False

    @property
    def with_less_memory(self) -> str:
        """Say how to draw with less memory."""
        return less_memory(self.batch_size, self.n)


def run(options: Evaluate, device: torch.device) -> None:
    """Score images against the test images, print and save the scores."""
    n = options.n if options.n is not None else 1000
    check_counts(n, 1 if options.steps is None else options.steps, options.batch_size, LEAST)
    check_graph(options.graph, device)
    check_sampler(options.sampler)
    options.guidance.check()
    from proxflow import metrics, models
    from proxflow.data.kinds.table import Table
    from proxflow.runtime.files import writable_folder, write_json
    from proxflow.runtime.processes import Processes
    from proxflow.studies import scoreboard

    if options.out is not None:
        if options.out.suffix.lower() != ".json" or options.out.is_dir():
            raise ArgumentError(f"--out must be a file ending in .json, got {str(options.out)!r}")
        with first_alone() as writing:
            if writing:
                writable_folder(options.out.parent)
    named = [str(options.images), *options.sources] if options.images is not None else [*options.sources]
    named = named or ["mnist"]
    earlier: dict[str, dict[str, Any]] = {}
    for path in (Path(name) for name in named if name.lower().endswith(".json")):
        earlier |= scoreboard.read_records(path)
    fresh = [name for name in named if not name.lower().endswith(".json")]
    if not fresh and Processes.current().first:
        scoreboard.show_all(earlier)
    if not fresh:
        return

    loaded = {name: models.load(name, device) for name in fresh if not _holds_images(name, options)}
    for name in fresh:
        if name not in loaded and (options.classes or options.guidance.guidance != 1):
            raise ArgumentError(
                f"--class and --guidance say how a model draws, and {name} holds images: leave them out"
            )
    if any(isinstance(model.data, Table) for model in loaded.values()):
        _evaluate_tables(options, loaded, fresh, device)
        return
    guidance = options.guidance.loaded(device)
    reference = _binary(_of_parts(_reference(options, loaded, fresh), loaded), loaded)
    if options.classes:
        reference = _of_classes(reference, options, loaded)
    training, test, called = reference.training, reference.test, reference.called
    shape_of_data = tuple(test.shape[1:])
    if options.n is None:
        n = min(n, len(training))
    extractor = _extractor(options, reference, device)
    sources, counts = [], {}
    for name in fresh:
        if name in loaded:
            model = loaded[name]
            source, counts[name], shape = _model_source(model, name, n, options, reference, guidance), n, model.shape
        else:
            source, counts[name], shape = _images_source(Path(name), options, reference)
        if extractor.image_shape not in (None, shape):
            raise ArgumentError(
                f"{extractor.name} takes images of shape {extractor.image_shape}; those of {name} have shape {shape}"
            )
        if shape != shape_of_data:
            raise ArgumentError(
                f"images of {name} have shape {shape}, and those of {called} {shape_of_data}: give --data of one "
                "shape, or --size"
            )
        sources.append(source)
    count = counts[fresh[0]]
    for name, other in counts.items():
        if other != count:
            raise ArgumentError(
                f"{fresh[0]} and {name} cannot stand in one table, because they were not measured alike: samples: {count} "
                f"and {other}. Give --n {min(count, other)}"
            )
    if count > len(training):
        raise ArgumentError(
            f"--n: {count} images cannot be compared with as many of {len(training)} real training images"
        )

    if len(test) < LEAST_REAL:
        raise ArgumentError(f"{called}: a reference needs at least {LEAST_REAL} images, got {len(test)}")
    identity = scoreboard.identity_of(extractor, training, test, called)
    for title, record in earlier.items():
        ours = metrics.Conditions.of({**identity, "samples": count})
        metrics.check_comparable({title: metrics.Conditions.of(record, title), fresh[0]: ours})
    classifier, labels = _classifier(options, reference), _compared_within(reference, sources)
    evaluator = scoreboard.Evaluator.of(extractor, training, test, called, classifier, labels)
    floor = evaluator.floor(count, options.seed)
    records = {source.title: evaluator.record(source, floor, options.seed) for source in sources}
    if not Processes.current().first:
        return  # its share of images and features is done
    if len(records) + len(earlier) == 1:
        ((title, record),) = records.items()
        say(title)
        scoreboard.show_one(record)
    else:
        scoreboard.show_all({**records, **earlier})
    against = f"{len(test)} {reference.kept} of {called}"
    say(f"{count} images, and {count} real training images, against {against}; ± is one standard error")
    say(f"features: {extractor.name}, {extractor.dimension} dimensions, sha256 {extractor.sha256}")
    bounds = {name: found for name, model in loaded.items() if (found := _bound(model, reference, options)) is not None}
    for name, nats in bounds.items():
        say(f"likelihood of {len(nats.values)} {reference.kept} under {name}: {bound_text(loaded[name].data, nats)}")
    if options.out is not None:
        told = {"bounds": {name: bound_record(nats) for name, nats in bounds.items()}} if bounds else {}
        write_json(options.out, {"cells": [*records.values()], **told, **origin(device)})
        say(f"written: {options.out}")


def _evaluate_tables(
    options: Evaluate, loaded: Mapping[str, Model], fresh: Sequence[str], device: torch.device
) -> None:
    """Score the rows of models of tables, print and save the scores.

    Raises:
        ArgumentError: A source is no model of tables, an option is for images, or too few reference rows are left.
    """
    from dataclasses import asdict

    from proxflow.data.kinds import split
    from proxflow.data.kinds.table import Table
    from proxflow.examples import Examples
    from proxflow.metrics.tables import LEAST as LEAST_ROWS
    from proxflow.metrics.tables import floor_scores, rows_to_make, table_scores
    from proxflow.runtime.files import write_json

    for name in ("classes", "images", "size", "extractor", "inception_weights"):
        if getattr(options, name):
            word = "class" if name == "classes" else name.replace("_", "-")
            raise ArgumentError(f"--{word} is for images, and {fresh[0]} is of a table: leave it out")
    if options.guidance.guidance != 1:
        raise ArgumentError("--guidance is for images: of tables it is measured without")
    sources = _sources_of_tables(options, loaded, fresh)
    records, lines, floors, said = list[dict[str, Any]](), list[tuple[str, ...]](), list[tuple[str, ...]](), list[str]()
    for title, source in sources.items():
        model = loaded[title]
        kind, told = cast(Table, model.data), model.provenance.get("read", {})
        every, named, known = Examples(kind.rows(source)[0]), source == told.get("source"), told.get("content")
        train, test = split(every, told.get("held_out", 0.0), told.get("seed", 0)) if named or known else (every, None)
        own, kept = content_of(train) == known if known else named, "kept from training"
        if named and not own:
            kept = "which may have been trained on, as the file has changed since training"
        if not (named or own):
            train, test = split(every, 0.5, 0)
            kept = "a half of them" + (f"; the model was trained on {told['source']}" if "source" in told else "")
        if test is None or len(test) < LEAST_ROWS:
            train, test = split(every, 0.5, 0)
            kept = "a half of them, which was trained on, as too few were kept from training"
            if test is None or len(test) < LEAST_ROWS:
                raise ArgumentError(
                    f"{source}: scores need at least {LEAST_ROWS} rows to compare with: give more --data"
                )
        number = options.n or rows_to_make(len(test))
        classes, target = [column.classes for column in kind.columns], _scored_target(kind)
        labels = kind.drawn_labels(number, options.seed) if kind.target else None
        steps = steps_of(model, title, options.steps)
        stored = draw(model, number, steps, options.sampler, options.seed, options.batch_size, options.graph, labels)
        made = kind.values(stored)
        real = kind.values(train.x), kind.values(test.x)
        scores = asdict(table_scores(made, *real, classes, target, options.seed))
        floor = floor_scores(*real, classes, target, options.seed).as_floor()
        bounded = {}
        if model.has_bound:
            labelled = kind.with_labels(test)
            nats = model.bound(labelled.x, condition=labelled.condition, seed=options.seed, batch_size=256)
            bounded = {"bound": bound_record(nats)}
            said.append(f"likelihood of {len(test)} rows under {title}: {bound_text(kind, nats)}")
        records.append(
            {
                "model": title,
                "data": source,
                "against": f"{len(test)} rows, {kept}",
                "rows": number,
                "target": kind.columns[target].name,
                "nfe": steps,
                "seed": options.seed,
                **scores,
                **floor,
                **bounded,
            }
        )
        say(f"{title}: {number} made rows against {len(test)} of {source}, {kept}; target {kind.columns[target].name}")
        lines.append((title, *(f"{value:.3f}" for value in scores.values())))
        real_ones = tuple(f"{value:.3f}" for value in floor.values())
        if real_ones not in [line[1:] for line in floors]:
            floors.append((f"real rows of {source}{f', beside {title}' if floors else ''}", *real_ones))
    print_table(("", *(name.replace("_", " ") for name in scores)), [*lines, *floors], ("",))
    for line in said:
        say(line)
    if options.out is not None:
        with first_alone() as writing:
            if writing:
                write_json(options.out, {"rows": records, **origin(device)})
        say(f"written: {options.out}")


def _sources_of_tables(options: Evaluate, loaded: Mapping[str, Model], fresh: Sequence[str]) -> dict[str, str]:
    """Return the table that each model is compared with.

    Raises:
        ArgumentError: A source is no model of tables, has a single column, or does not say what it was trained on; or the
            models are of tables, columns or targets that differ.
    """
    from proxflow.data.kinds.table import Table

    sources, first = dict[str, str](), dict[str, Any]()
    for title in fresh:
        model = loaded.get(title)
        if model is None or not isinstance(model.data, Table):
            raise ArgumentError(f"{title} is no model of a table, and others are: evaluate them apart")
        kind, source = model.data, options.data or model.provenance.get("read", {}).get("source")
        if source is None:
            raise ArgumentError(f"{title} does not say which data it was trained on: give --data")
        if len(kind.columns) < 2:
            raise ArgumentError(
                f"{title} is of one column alone, and scores hold columns against each other: they need a table of two"
            )
        sources[title] = source
        own = {
            "data": source,
            "columns": ", ".join(column.name for column in kind.columns),
            "target": kind.columns[_scored_target(kind)].name,
        }
        first = first or own
        if other := [name for name in own if own[name] != first[name]]:
            raise ArgumentError(
                f"{fresh[0]} and {title} cannot stand in one table, because they were not measured alike: {other[0]}: "
                f"{first[other[0]]:.80} and {own[other[0]]:.80}. Evaluate them apart"
                + (", or give --data" if other[0] == "data" else "")
            )
    return sources


def _scored_target(kind: Table) -> int:
    """Return the index of the column that a forest learns to predict: target, last category or last."""
    categories = [k for k, column in enumerate(kind.columns) if column.classes]
    named = [k for k in categories if kind.columns[k].name == kind.target]
    return [*named, *categories[::-1], len(kind.columns) - 1][0]


@dataclass(frozen=True)
class _Reference:
    """What images are compared with.

    Args:
        training: Images for the floor and the nearest neighbours, uint8 (number, channels, height, width).
        test: The reference images.
        called: Name of the set.
        kept: Description of the reference images.
        recognised: The named set that these are, wherever they were read from.
        classified: Whether there is a classifier for them: for a named set, or IDX files of the shape of digits.
        labels: Classes of training and reference images, int64 (number,) each; ``None`` if they have none.
        classes: Names of the classes by their labels.
    """

    training: torch.Tensor
    test: torch.Tensor
    called: str
    kept: str
    recognised: str | None
    classified: bool
    labels: tuple[torch.Tensor, torch.Tensor] | None = None
    classes: Mapping[int, str] = field(default_factory=dict)

    def numbers_for(self, model: Model) -> torch.Tensor | None:
        """Return a model's label of each class by the label here, the last for −1; ``None`` if it lacks some."""
        import torch

        if self.labels is None or not set(self.classes.values()) <= set(model.classes):
            return None
        numbers = torch.full((max(self.classes) + 2,), -1)
        for label, name in self.classes.items():
            numbers[label] = model.classes.index(name)
        return numbers


def _of_parts(reference: _Reference, loaded: dict[str, Model]) -> _Reference:
    """Return the reference cropped or scaled as models that learnt parts of larger images need it.

    Raises:
        ArgumentError: They learnt different parts.
    """
    from proxflow.data.augment import Augmentation

    parts = {}
    for name, model in loaded.items():
        match model.provenance:
            case {"training": {"augment": str(text)}}:
                parts[name] = Augmentation.of(text)
    first = next((name for name, part in parts.items() if part.taken is not None), None)
    if first is None or tuple(reference.test.shape[1:]) == loaded[first].shape:
        return reference
    if other := [name for name in loaded if name not in parts or parts[name].taken != parts[first].taken]:
        raise ArgumentError(
            f"{first} learnt parts of larger images, and {other[0]} others or none: evaluate them apart"
        )
    training, test = (parts[first].whole(images) for images in (reference.training, reference.test))
    height, width = test.shape[2:]
    called = f"{reference.called}, brought to {height} x {width}"
    return replace(reference, training=training, test=test, called=called, recognised=None, classified=False)


def _binary(reference: _Reference, loaded: Mapping[str, Model]) -> _Reference:
    """Return the reference for models of binary images: the same images, with pixels drawn black or white.

    Raises:
        ArgumentError: Only some of the models are of binary images.
    """
    from proxflow.data.kinds.image import Binary, drawn_once

    binary = {name: isinstance(model.data, Binary) for name, model in loaded.items()}
    if not any(binary.values()):
        return reference
    if not all(binary.values()):
        first, other = (next(name for name, found in binary.items() if found is of) for of in (True, False))
        raise ArgumentError(f"{first} draws binary images, and {other} does not: evaluate them apart")
    training, test = drawn_once(reference.training), drawn_once(reference.test)
    return replace(reference, training=training, test=test, called=f"{reference.called}, binarised")


def _bound(model: Model, reference: _Reference, options: Evaluate) -> Nats | None:
    """Bound the likelihood of the reference under a model; ``None`` if there is no bound, or the model has classes."""
    if not model.has_bound or model.classes:
        return None
    chosen = reference.test[: 1000 if options.n is None else options.n]
    return model.bound(chosen, seed=options.seed, batch_size=min(options.batch_size, 64))


def _of_classes(reference: _Reference, options: Evaluate, loaded: dict[str, Model]) -> _Reference:
    """Return the reference restricted to some classes.

    Raises:
        ArgumentError: A model, or the reference, does not have them.
    """
    import torch

    names, known = list[str](), reference.labels
    for model in loaded.values():
        names = [model.classes[k] for k in classes_asked(options.classes, model.classes)]
        if known is None or not set(names) <= set(reference.classes.values()):
            raise ArgumentError(
                f"--class: {reference.called} has no images of {', '.join(names):.80}: give other --data"
            )
    wanted = torch.tensor([label for label, name in reference.classes.items() if name in names])
    among = [torch.isin(labels, wanted) for labels in known or ()]
    return replace(
        reference,
        training=reference.training[among[0]],
        test=reference.test[among[1]],
        called=f"{reference.called}, class{'es' if len(names) > 1 else ''} {', '.join(names)}",
        labels=known and (known[0][among[0]], known[1][among[1]]),
    )


def _compared_within(
    reference: _Reference, sources: list[scoreboard.Source]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return labels of training and test images for comparison within classes; ``None`` for no such comparison."""
    import torch

    drawn = [source.labels for source in sources if source.labels is not None]
    if reference.labels is None or not drawn:
        return None
    fewest = min(
        int((held == label).sum())
        for labels in drawn
        for label in torch.unique(labels)
        for held in (labels, reference.labels[1])
    )
    if fewest < LEAST:
        say(f"no scores within classes: they need {LEAST} images of each class, and there are {fewest} of one")
        return None
    return reference.labels


def _holds_images(name: str, options: Evaluate) -> bool:
    """Return whether a source is images, not a model."""
    from proxflow.data.pictures import holds_pictures

    path = Path(name)
    if (options.images is not None and name == str(options.images)) or path.suffix.lower() in (".npz", ".npy"):
        return True
    of_a_run = (path / "config.json").exists() or (path / "run.json").exists()
    return path.is_dir() and not of_a_run and holds_pictures(path)


def _source_of(name: str, model: Model) -> tuple[str, dict[str, Any]]:
    """Return the data that a model was trained on, and how they were read, as far as known."""
    from proxflow import data, models

    match model.provenance:
        case {"read": {"source": str(source), **told}}:
            return source, {key: told[key] for key in ("held_out", "seed", "size") if key in told}
        case {"data": str(text)} if " images of " in text:
            return text.partition(" images of ")[2], {}
    if name in models.shipped_models():
        return max((known for known in data.NAMED if name.startswith(known)), key=len, default="mnist"), {}
    raise ArgumentError(
        f"{name} does not say which data it was trained on: give --data, which it is to be compared with"
    )


def _reference(options: Evaluate, loaded: dict[str, Model], fresh: list[str]) -> _Reference:
    import torch

    from proxflow import data
    from proxflow.data.image_files import read_array
    from proxflow.data.kinds import kind_of_source
    from proxflow.data.kinds.image import Image
    from proxflow.data.kinds.latents import Latents
    from proxflow.errors import DataError
    from proxflow.examples import Examples, joined
    from proxflow.models import class_names

    known: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, model in loaded.items():
        if isinstance(model.data, Latents):
            raise ArgumentError(
                f"{name} draws latents: give the images that proxflow sample {name} decodes into a file .npz, and --data"
            )
        if not isinstance(model.data, Image):
            raise ArgumentError(
                f"{name} draws {model.data.examples_word}, and evaluate measures images and tables; what train bounds of "
                "held-out data stands in the model's config.json"
            )
        if options.data is None:
            known[name] = _source_of(name, model)
    if options.data is not None:
        chosen = options.data
        for name, model in loaded.items():
            if "read" in model.provenance and _source_of(name, model)[0] == chosen:
                known[name] = _source_of(name, model)
                break
    elif known:
        (first, (chosen, _)), *others = known.items()
        for name, (other, _) in others:
            if other != chosen:
                raise ArgumentError(f"{first} was trained on {chosen}, and {name} on {other}: give --data")
    else:
        path = Path(fresh[0])
        images = read_array(path).images if path.is_file() else None
        if images is not None and tuple(images.shape[1:]) != (1, 28, 28):
            raise ArgumentError(
                f"{path} holds images of shape {tuple(images.shape[1:])}: give --data to compare them with"
            )
        chosen = "mnist"
    told = next(iter(known.values()))[1] if known else {}
    path = Path(chosen)
    named = chosen in data.NAMED
    if options.size is None and (named or any(path.glob("t10k-images-idx3-ubyte*"))):
        sets = data.load(chosen, "train"), data.load(chosen, "test")
        training, test = (part.images for part in sets)
        recognised = data.recognise(test)
        # A known set has one name wherever it was read from, so that its results can share a table.
        called = recognised if recognised is not None and recognised == data.recognise(training) else chosen
        classified = recognised is not None or tuple(test.shape[1:]) == (1, 28, 28)
        labels = [part.labels for part in sets if part.labels is not None]
        if len(labels) < len(sets):
            return _Reference(training, test, called, "test images", recognised, classified)
        held = labels[0].long(), labels[1].long()
        names = {k: str(k) for k in torch.unique(torch.cat(held)).tolist()}
        if chosen in data.CLASSES:
            names = dict(enumerate(data.CLASSES[chosen]))
        return _Reference(training, test, called, "test images", recognised, classified, held, names)
    if not named and not path.exists() and not Image.takes(chosen):
        raise DataError(
            f"no data set {chosen!r}: expected {', '.join(data.NAMED)}, or an existing folder or file of images"
        )
    kind = kind_of_source(chosen)
    if kind is not Image:
        raise ArgumentError(f"--data {chosen} is read as {kind.examples_word}, and images are compared with images")
    size = options.size if options.size is not None else told.get("size")
    found = Image.read(chosen, held_out=told.get("held_out", 0.0), seed=told.get("seed", 0), size=size)
    say(found.notes[0])
    train, rest, kept = found.train, found.held_out, "images kept from training"
    if rest is None or len(rest) < LEAST_REAL:
        both = None
        if rest is not None and rest.condition is not None and train.condition is not None:
            both = joined(rest.condition, train.condition)
        whole = train if rest is None else Examples(torch.cat([rest.x, train.x]), both)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        half = len(whole) // 2
        kept = "images (half of all, as too few were kept from training)" if told else "images (half of all)"
        train, rest = whole[order[half:].sort().values], whole[order[:half]]
    if not isinstance(train.condition, torch.Tensor) or not isinstance(rest.condition, torch.Tensor):
        return _Reference(train.x, rest.x, chosen, kept, None, False)
    classes = dict(enumerate(class_names(found.kind)))
    return _Reference(train.x, rest.x, chosen, kept, None, False, (train.condition, rest.condition), classes)


def _extractor(options: Evaluate, reference: _Reference, device: torch.device) -> metrics.FeatureExtractor:
    from proxflow import metrics

    if options.inception_weights is not None and options.extractor != "inception":
        raise ArgumentError("--inception-weights are for --extractor inception")
    chosen: str | None = options.extractor or reference.recognised
    if chosen is None:
        chosen = "mnist" if reference.classified else "pixels"
    match chosen:
        case "pixels":
            channels, height, width = reference.test.shape[1:]
            return metrics.pixel_features((channels, height, width))
        case "efficientnet-lite0":
            return metrics.natural_features(device)
        case "inception":
            return metrics.inception_features(options.inception_weights, device)
        case _:
            return metrics.shipped_features(chosen, device)


def _classifier(options: Evaluate, reference: _Reference) -> str | None:
    """Name the data set whose classifier is used: that of the images, whatever features are compared.

    ``None`` if there is no classifier for such images or classes.
    """
    from proxflow import metrics

    if not reference.classified or not set(reference.classes) <= set(range(10)):
        return None
    if reference.recognised is not None:
        return reference.recognised
    known = metrics.CLASSIFIERS.get(options.extractor or "mnist")
    return "mnist" if known is None else known.data


def _images_source(
    path: Path, options: Evaluate, reference: _Reference
) -> tuple[scoreboard.Source, int, tuple[int, ...]]:
    import torch

    from proxflow.data import image_files
    from proxflow.studies import scoreboard

    found = image_files.read_images(path)
    # With one channel the memory format is ambiguous, and would select kernels that round differently.
    whole, labels = found.images.clone(memory_format=torch.contiguous_format), found.labels
    number = min(len(whole), options.n or len(reference.training))
    # At equal distances: images may be sorted by class.
    order = torch.arange(number) * len(whole) // number
    images, labels = whole[order], None if labels is None else labels[order]
    if number < len(whole):
        many = "" if options.n is not None else ", as many as there are real training images"
        say(f"{path}: {number} of {len(whole)} images, taken at equal distances{many}")
    if len(images) < LEAST:
        raise ArgumentError(f"{path}: evaluation needs at least {LEAST} images, got {len(images)}")
    if labels is not None and not reference.classified:
        say(f"{path}: its labels are not used, as there is a classifier of digits, clothes and emoji alone")
        labels = None
    made = {"flow": None, "sampler": None, "nfe": None, "images": str(path)}
    held = None if labels is None else labels[: len(images)]
    return scoreboard.Source(str(path), lambda: images, held, made), len(images), tuple(images.shape[1:])


def _model_source(
    model: Model, name: str, n: int, options: Evaluate, reference: _Reference, guidance: dict[str, Any]
) -> scoreboard.Source:
    from proxflow import metrics
    from proxflow.models import word
    from proxflow.samplers import default_sampler
    from proxflow.studies import scoreboard

    sampler = options.sampler or default_sampler(model.predictor, model.flow)
    flow = word(model.flow).partition(":")[0]
    numbers, labels, condition = reference.numbers_for(model), None, None
    if numbers is not None and reference.labels is not None:
        labels = metrics.labels_in_proportion(reference.labels[1], n)
        condition = numbers[labels]
        say(f"{name}: drawn of {len(set(labels.tolist()) - {-1})} classes, in the proportions of the {reference.kept}")
    elif model.classes:
        say(f"{name}: drawn without a class, as {reference.called} does not have its classes")
    steps = steps_of(model, name, options.steps)
    evaluations = spent(model, guided(model, guidance, condition), sampler, steps)
    made: dict[str, Any] = {"flow": flow, "sampler": sampler, "nfe": evaluations, "model": name}
    led = ""
    if guidance:
        given = options.guidance
        rule = given.guidance_rule or "linear"
        made |= {"weight": given.guidance, "interval": list(given.guidance_interval), "rule": rule, "weak": given.weak}
        led = f", guidance {given.guidance:g}"
    if times := model.times_of(sampler, steps):
        made["times"] = list(times)
    title = f"{name} ({flow}), {sampler}, {evaluations} evaluations{led}, seed {options.seed}"
    return scoreboard.Source(
        title,
        lambda: draw(model, n, steps, sampler, options.seed, options.batch_size, options.graph, condition, **guidance),
        labels,
        made,
    )
