"""``proxflow sample``: draw from a trained model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from proxflow.cli._common import (
    ALL,
    FEW,
    File,
    GuidanceOptions,
    Number,
    SamplerChoice,
    Text,
    autoencoder_of,
    check_counts,
    check_graph,
    check_sampler,
    classes_asked,
    draw,
    first_alone,
    guided,
    less_memory,
    say,
    spent,
    steps_of,
)
from proxflow.config import DeviceName
from proxflow.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from proxflow.data.autoencoders import Codec
    from proxflow.models import Model


@dataclass(frozen=True)
class Sample:
    r"""Draw samples from a trained model.

    For example:
        proxflow sample                                     64 digits in one picture, samples.png
        proxflow sample --n 1000 --steps 5 --out few.npz    an array of 1000 images, 5 evaluations each
        proxflow sample runs/mine --out pictures            a folder of PNG files, from your own model
        proxflow sample runs/rows --n 5000 --out rows.csv   rows of numbers, from a model of such data
        proxflow sample runs/table --n 1000 --out made.csv  a table, with the columns of the training table
        proxflow sample --class 7 --guidance 2              sevens, from the package's conditional model of digits
        proxflow sample runs/digits --class all --n 10      ten of each class, a row for each
        proxflow sample runs/latents --encoder sd-vae       pictures, from a model of latents whose autoencoder has moved
        proxflow sample runs/text --n 8 --out samples.txt   text, from a model of text
        proxflow sample runs/text --prompt "And it came "   text that begins like this
        proxflow sample runs/text --infill "To be, or ___ to be"

    Args:
        model: Name of a model that comes with the package, or a model folder as train and reproduce write it. Without
            it, mnist is used, or mnist-classes if --class is given; with one or two evaluations mnist-few or
            mnist-classes-few, which were trained for one, unless --sampler is adams-bashforth2, which suits the others.
        n: Number of samples; if --class names several classes, of each.
        steps: Predictions per sample: fewer is faster, more is better. Each is one network evaluation (NFE), or two
            with guidance.
        classes: Classes for a conditional model to draw, by name or number, or all. Without it, classes are drawn in
            the proportions of the data. With several, a picture has a labelled row for each, and the key "labels" of an
            .npz file has the class of each image.
        guidance: How predictions are guided.
        sampler: How to sample; "proxflow list samplers" shows the choices, among them deterministic: the proximal step
            toward the prediction; stochastic: toward a noisy draw around it; multistep2: second order;
            adams-bashforth2: for 2 to 4 evaluations. Most of the others need a flow with Gaussian paths:
            gpfn-w2, gpfn-kl, bfn or diffusion. A model trained with --predictor long-step takes only deterministic, one
            with --predictor draw those that use no earlier predictions. Settings follow the name: marginal:kappa=0.5.
        seed: Random seed: sample i depends only on the seed and i, not on --n or --batch-size.
        out: Where to write; the suffix chooses the format. Images: .png, a grid; .npz, key "images", uint8, N x H x W x
            C; without a suffix, a folder of PNG files, 00000.png and so on. Rows of numbers: .npy, .npz, .csv, or .png
            for a plot. Text: .txt, one sample per line, or separated by blank lines if they contain line breaks, and
            bytes unchanged; .jsonl, one JSON string per line. Tables: .csv, .parquet or .png.
        prompt: Text that each sample of a model of text begins with, verbatim.
        infill: Text with gaps to fill, each _ an unknown token. In it \_ is a literal underscore, and \\ a backslash.
        encoder: Autoencoder that decodes samples of a model of latents, if it is no longer where it was when they were
            made; none writes the latents themselves, to an .npz file, key "latents".
        batch_size: Samples drawn at a time; lower it when memory runs out.
        device: Where to compute; auto takes CUDA if there is one.
        graph: Capture the work of a batch as a CUDA graph and replay it for all: with many batches, small networks draw
            several times as many samples per second.
    """

    model: Annotated[
        Text,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="(default: one of the package's of MNIST)"),
    ] = None
    n: int = 64
    steps: Annotated[
        Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 20; 1 for a one-evaluation student)")
    ] = None
    classes: Annotated[
        tuple[str, ...], tyro.conf.arg(name="class", metavar="CLASS [CLASS ...]", help_behavior_hint="(default: any)")
    ] = ()
    guidance: tyro.conf.OmitArgPrefixes[GuidanceOptions] = field(default_factory=GuidanceOptions)
    sampler: SamplerChoice = None
    seed: int = 0
    out: Annotated[
        File,
        tyro.conf.arg(
            metavar="PATH", help_behavior_hint="(default: samples.png; of rows samples.csv, of text samples.txt)"
        ),
    ] = None
    prompt: Annotated[Text, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: none)")] = None
    infill: Annotated[Text, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: none)")] = None
    encoder: Annotated[Text, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: where it was)")] = None
    batch_size: int = 128
    device: DeviceName = "auto"
    graph: bool = False

    @property
    def named(self) -> str:
        """The model that is named, or else the package's model that fits the options."""
        if self.model is not None:
            return self.model
        # Of two evaluations this sampler makes more of a model that was not trained for one.
        few = self.steps is not None and self.steps <= (1 if self.sampler == "adams-bashforth2" else FEW)
        return ("mnist-classes" if self.classes else "mnist") + ("-few" if few else "")

    @property
    def with_less_memory(self) -> str:
        """Say how to draw with less memory."""
        return less_memory(self.batch_size, self.n)


def run(options: Sample, device: torch.device) -> None:
    """Draw samples and write them."""
    check_counts(options.n, 1 if options.steps is None else options.steps, options.batch_size)
    check_graph(options.graph, device)
    check_sampler(options.sampler)
    from proxflow import models
    from proxflow.data import labelled
    from proxflow.data.kinds.image import Image
    from proxflow.data.kinds.latents import Latents
    from proxflow.data.kinds.table import Table
    from proxflow.runtime.machine import fits_in_memory

    options.guidance.check()
    model = models.load(options.named, device)
    steps = steps_of(model, options.named, options.steps)
    labels = _labels(options, model)
    if labels is None and model.classes and model.provenance.get("drop") == 0:
        raise ArgumentError(
            "this model was trained with --drop 0 and never without a class: name one or all of them by --class"
        )
    model, length = _told(options, model)
    table = model.data if isinstance(model.data, Table) and model.data.target else None
    if table is not None and labels is None:
        labels = table.drawn_labels(options.n, options.seed)
    guidance = options.guidance.loaded(device)
    predictor = guided(model, guidance, labels)
    number = options.n if labels is None else len(labels)
    codec = _codec(options, model, device)
    kind = model.data.pictured if codec is not None and isinstance(model.data, Latents) else model.data
    ending = ".npz" if isinstance(kind, Latents) else kind.ending
    out = Path(f"samples{ending}") if options.out is None else options.out
    with first_alone() as writing:
        if writing:
            _spare_data(out, model)
            kind.check_output(out, number)
    if not fits_in_memory(taken := 4 * number * math.prod(model.shape), 1.0):
        raise ArgumentError(
            f"--n: {number:,} samples take {taken / 1e9:,.0f} GB of memory, and fewer are free: draw fewer at a time, "
            "each with another --seed"
        )
    samples = draw(
        model,
        number,
        steps,
        options.sampler,
        options.seed,
        options.batch_size,
        options.graph,
        labels,
        **guidance,
    )
    samples = samples if length is None else samples[:, :length]
    with first_alone() as writing:
        if writing and codec is not None:
            samples = codec.decode(samples)
        if writing and labels is not None and isinstance(kind, Image) and out.suffix.lower() in (".png", ".npz"):
            images = samples.cpu().permute(0, 2, 3, 1).contiguous().numpy()
            if out.suffix.lower() == ".npz" or len(options.classes) > 1 or options.classes == (ALL,):
                labelled.write(out, images, labels.numpy(), model.classes)
            else:
                kind.write(out, samples)
        elif writing:
            kind.write(out, samples)
    at = " at the times found for them" if model.times_of(options.sampler, steps) else ""
    evaluations = spent(model, predictor, options.sampler, steps)
    word = kind.examples_word if number != 1 else kind.examples_word.removesuffix("s")
    say(f"{number} {word}, {evaluations} network evaluation{'s' * (evaluations != 1)} each{at}: {out}")


def _spare_data(out: Path, model: Model) -> None:
    """Refuse to overwrite the data that a model was trained on.

    Raises:
        ArgumentError: The path is its data, or a file in their folder.
    """
    match model.provenance:
        case {"read": {"source": str(source)}}:
            data = Path(source)
        case {"data": str(said)}:  # "300 rows of points.csv"
            _, names_it, place = said.partition(f" {model.data.examples_word} of ")
            if not names_it:  # "60000 training images", whose empty path would be the working directory
                return
            data = Path(place)
        case _:
            return
    if not (out.exists() and data.exists()):
        return
    if out.samefile(data):
        raise ArgumentError(f"--out {out} is what the model was trained on, which would be lost: choose another place")
    if out.is_file() and out.resolve().is_relative_to(data.resolve()):
        raise ArgumentError(
            f"--out {out} is a file in the folder {data}, which the model was trained on: choose another place"
        )


def _told(options: Sample, model: Model) -> tuple[Model, int | None]:
    """Return the model conditioned on a prompt or a text with gaps; and the length of such a text.

    Raises:
        ArgumentError: The model is not of text, or the text does not fit it.
    """
    from proxflow import inverse
    from proxflow.data.kinds.text import Text as OfText
    from proxflow.predictors import Posterior

    if options.prompt is None and options.infill is None:
        return model, None
    option = "--prompt" if options.infill is None else "--infill"
    if options.prompt is not None and options.infill is not None:
        raise ArgumentError("--prompt and --infill each say what is known of the text: give one of them")
    if not isinstance(model.data, OfText):
        raise ArgumentError(f"{option} is for models of text, and this one is of {model.data.examples_word}")
    length = None
    if options.infill is None:
        tokens, known = model.data.begun(options.prompt or "")
    else:
        tokens, known, length = model.data.with_gaps(options.infill)
    posterior = Posterior(model.predictor, inverse.Mask(known), tokens[None], flow=model.flow)
    return replace(model, predictor=cast(Any, posterior)), length


def _codec(options: Sample, model: Model, device: torch.device) -> Codec | None:
    """Return the decoder of the samples of a model of latents; ``None`` for other models and for ``none``.

    Raises:
        ArgumentError: One is given for other data, or it is not found or cannot be loaded; the message says what to
            give.
        DataError: It is not the one that made the latents.
    """
    from proxflow.data.kinds.latents import Latents

    if not isinstance(model.data, Latents):
        if options.encoder is not None:
            raise ArgumentError(f"--encoder is for models of latents, and this one is of {model.data.examples_word}")
        return None
    if options.encoder == "none":
        return None
    word = options.encoder or model.data.found
    if not word:
        raise ArgumentError(
            "the model does not say where its autoencoder is: give --encoder DIR, or --encoder none for latents"
        )
    try:
        module = autoencoder_of(word).load()
    except (ArgumentError, DataError) as error:
        if options.encoder is not None:
            raise
        raise DataError(
            f"{error}; the samples are latents, which it decodes: give --encoder DIR, or --encoder none for the latents"
        ) from error
    return model.data.codec(module, device)


def _labels(options: Sample, model: Model) -> Tensor | None:
    """Return the label of each sample, int64 (number,), class after class; ``None`` without a class.

    Raises:
        ArgumentError: The model has no classes, or not these; the message names them.
    """
    import torch

    if not options.classes:
        return None
    chosen = classes_asked(options.classes, model.classes)
    return torch.tensor(chosen).repeat_interleave(options.n)
