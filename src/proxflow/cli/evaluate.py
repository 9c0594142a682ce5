"""``proxflow evaluate``: measure how good images are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from proxflow.cli._common import (
    File,
    Number,
    SamplerChoice,
    check_counts,
    check_graph,
    check_sampler,
    draw,
    first_alone,
    less_memory,
    origin,
    say,
)
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from proxflow import metrics
    from proxflow.models import Model
    from proxflow.studies import scoreboard

LEAST = 4
"""Images that precision and recall need: more than the three neighbours of their manifolds."""


@dataclass(frozen=True)
class Evaluate:
    """Measure how good the images of a model are, or images made elsewhere.

    Prints the Fréchet distance, KID, precision, recall, density, coverage, diversity, the Vendi score, the sliced
    Wasserstein distance, the distance to the nearest training image and, where images have labels, a classifier's accuracy
    on them. Each has a standard error and a 95 % interval, and beside it the same number of as many real training images:
    no model can be expected to do better. Features come from a classifier in the package, of digits or, where the data are
    Fashion-MNIST, of clothes, unless you choose others.

    Several models, sets of images or files of earlier results make one table. What was not measured alike, on the same
    features, with the same reference and equally many images, is refused: such numbers do not compare.

    For example:
        proxflow evaluate --n 1000 --steps 20
        proxflow evaluate runs/mine --sampler stochastic --out mine.json
        proxflow evaluate --images few.npz
        proxflow evaluate first.npz second.npz mine.json
        proxflow evaluate runs/clothes --data fashion-mnist

    Args:
        sources: What to evaluate, one or several: the name of a model that comes with the package, or a model folder, as
            train and reproduce write them; images, in an .npz file with key "images", uint8, N x H x W x C, and perhaps
            "labels", N classes, or in a folder of PNG files; or results that evaluate or reproduce wrote, ending in .json.
        n: Images drawn from a model, or the first of those made elsewhere.
        steps: Network evaluations spent on each image (NFE).
        sampler: How to sample; "proxflow list samplers" shows the choices.
        seed: Number that fixes the images drawn, and which real training images are scored beside them.
        images: Evaluate these: the same as to name them first.
        data: What to compare with: mnist; fashion-mnist, which Debian's package dataset-fashion-mnist installs; or a folder
            of IDX files.
        extractor: mnist, fashion-mnist: the penultimate layer of a classifier of digits or of clothes, for 28 x 28 grey
            images. pixels: the images themselves. inception: the network of standard FID, whose weights are not in the
            package.
        inception_weights: File of those weights, ending in .safetensors.
        out: File, ending in .json, for the numbers and their conditions.
        batch_size: Images drawn at a time; lower it when memory runs out.
        device: Where to compute; auto takes CUDA when there is one.
        graph: Record a batch's work as one CUDA graph and replay it for all: with many batches small networks draw several
            times as many images a second.
    """

    sources: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[MODEL|IMAGES|RESULTS ...]", help_behavior_hint="(default: mnist)"),
    ] = ()
    n: Annotated[Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1000; of images, all)")] = None
    steps: int = 20
    sampler: SamplerChoice = None
    seed: int = 0
    images: Annotated[File, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the model's)")] = None
    data: str = "mnist"
    extractor: Annotated[
        Union[Literal["mnist", "fashion-mnist", "pixels", "inception"], None],  # noqa: UP007 - as of Text
        tyro.conf.arg(
            metavar="{mnist,fashion-mnist,pixels,inception}",
            help_behavior_hint="(default: fashion-mnist where the test images are its own, else mnist)",
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
    """Score images against the test images, print and write the numbers."""
    n = options.n if options.n is not None else 1000
    check_counts(n, options.steps, options.batch_size, LEAST)
    check_graph(options.graph, device)
    check_sampler(options.sampler)
    from proxflow import data, metrics, models
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

    training, test = data.load(options.data, "train").images, data.load(options.data, "test").images
    recognised = data.recognise(test)
    # A known set has one name wherever it was read from, so that its results stand in one table.
    called = recognised if recognised is not None and recognised == data.recognise(training) else options.data
    extractor = _extractor(options, recognised, tuple(test.shape[1:]), device)
    sources, counts = [], {}
    for name in fresh:
        path = Path(name)
        is_images = options.images is not None and name == str(options.images)
        folder_of_images = path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.[pP][nN][gG]"))
        if is_images or folder_of_images or path.suffix.lower() == ".npz":
            source, counts[name], shape = _images_source(path, options)
        else:
            model = models.load(name, device)
            source, counts[name], shape = _model_source(model, name, n, options), n, model.shape
        if extractor.image_shape not in (None, shape):
            raise ArgumentError(
                f"{extractor.name} takes images of shape {extractor.image_shape}; those of {name} have shape {shape}"
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

    identity = scoreboard.identity_of(extractor, training, test, called)
    for title, record in earlier.items():
        ours = metrics.Conditions.of({**identity, "samples": count})
        metrics.check_comparable({title: metrics.Conditions.of(record, title), fresh[0]: ours})
    evaluator = scoreboard.Evaluator.of(extractor, training, test, called, _classifier(options, recognised))
    floor = evaluator.floor(count, options.seed)
    records = {source.title: evaluator.record(source, floor, options.seed) for source in sources}
    if not Processes.current().first:
        return  # it has done its share of the images and of their features
    if len(records) + len(earlier) == 1:
        ((title, record),) = records.items()
        say(title)
        scoreboard.show_one(record)
    else:
        scoreboard.show_all({**records, **earlier})
    reference = f"{len(test)} test images of {called}"
    say(f"{count} images, and {count} real training images, against {reference}; ± is one standard error")
    say(f"features: {extractor.name}, {extractor.dimension} dimensions, sha256 {extractor.sha256}")
    if options.out is not None:
        write_json(options.out, {"cells": [*records.values()], **origin(device)})
        say(f"written: {options.out}")


def _extractor(
    options: Evaluate, recognised: str | None, shape: tuple[int, ...], device: torch.device
) -> metrics.FeatureExtractor:
    from proxflow import metrics

    if options.inception_weights is not None and options.extractor != "inception":
        raise ArgumentError("--inception-weights are for --extractor inception")
    match options.extractor:
        case "pixels":
            return metrics.pixel_features((shape[0], shape[1], shape[2]))
        case "inception":
            return metrics.inception_features(options.inception_weights, device)
        case chosen:
            return metrics.classifier_features(chosen or recognised or "mnist", device)


def _classifier(options: Evaluate, recognised: str | None) -> str:
    """Name the data set whose classifier sorts images: that of the images, whatever features are compared."""
    from proxflow import metrics

    if recognised is not None:
        return recognised
    return options.extractor if options.extractor in metrics.CLASSIFIERS else "mnist"


def _images_source(path: Path, options: Evaluate) -> tuple[scoreboard.Source, int, tuple[int, ...]]:
    import torch

    from proxflow import metrics
    from proxflow.data import image_files
    from proxflow.studies import scoreboard

    found = image_files.read_images(path)
    # Of one channel the order of dimensions in memory is uncertain, and kernels with another rounding would be chosen by it.
    whole, labels = found.images.clone(memory_format=torch.contiguous_format), found.labels
    images = whole[: options.n]
    if len(images) < LEAST:
        raise ArgumentError(f"{path}: evaluation needs at least {LEAST} images, got {len(images)}")
    shape = tuple(images.shape[1:])
    if labels is not None and shape != metrics.mnist_features().image_shape:
        labels = None  # the classifiers that could judge them are of such images
    made = {"flow": None, "sampler": None, "nfe": None, "images": str(path)}
    held = None if labels is None else labels[: len(images)]
    return scoreboard.Source(str(path), lambda: images, held, made), len(images), shape


def _model_source(model: Model, name: str, n: int, options: Evaluate) -> scoreboard.Source:
    from proxflow.models import word
    from proxflow.samplers import default_sampler
    from proxflow.studies import scoreboard

    sampler = options.sampler or default_sampler(model.predictor, model.flow)
    flow = word(model.flow).partition(":")[0]
    made: dict[str, Any] = {"flow": flow, "sampler": sampler, "nfe": options.steps, "model": name}
    if times := model.times_of(sampler, options.steps):
        made["times"] = list(times)
    title = f"{name} ({flow}), {sampler}, {options.steps} evaluations, seed {options.seed}"
    return scoreboard.Source(
        title,
        lambda: draw(model, n, options.steps, sampler, options.seed, options.batch_size, options.graph),
        None,
        made,
    )
