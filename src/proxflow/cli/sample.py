"""``proxflow sample``: draw from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from proxflow.cli._common import (
    SamplerChoice,
    check_counts,
    check_graph,
    draw,
    first_alone,
    found_times,
    less_memory,
    say,
)
from proxflow.config import DeviceName

if TYPE_CHECKING:
    import torch

FEW = 2
"""Network evaluations up to which the shipped student draws better than its teacher."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained model.

    For example:
        proxflow sample                                     64 digits in one picture, samples.png
        proxflow sample --n 1000 --steps 5 --out few.npz    an array of 1000 images, 5 evaluations each
        proxflow sample runs/mine --out pictures            a folder of PNG files, from a model of your own

    Args:
        model: Name of a model that comes with the package, or a model folder, as train and reproduce write them. Without
            it, mnist-few draws with one evaluation, which is what it was trained for, and with two; mnist with more.
        n: Number of images.
        steps: Network evaluations spent on each image (NFE): fewer is faster, more is better.
        sampler: deterministic: the proximal step toward the prediction. stochastic: toward a noisy draw around it.
            marginal: replaces noise but keeps its amount. multistep2: second order, the best at few evaluations.
            multistep3: third order. unipc: second order, with a corrector. midpoint: second order, two evaluations a step.
            bfn-solver1, bfn-solver2: BFN-Solver of either order; sde-: with fresh noise. All but the first two need a flow
            with Gaussian paths: gpfn-w2, gpfn-kl, bfn or bfn-tuned. A model trained with --predictor long-step takes
            deterministic alone, one with --predictor draw also stochastic, marginal and bfn-solver1.
        seed: Number that fixes the images: image i depends on the seed and on i alone, whatever --n and --batch-size are.
        out: Where to write. Ending .png: one picture, a grid. Ending .npz: key "images", uint8, N x H x W x C. No ending:
            a folder of PNG files, 00000.png and so on.
        batch_size: Images drawn at a time; lower it when memory runs out.
        device: Where to compute; auto takes CUDA when there is one.
        graph: Record a batch's work as one CUDA graph and replay it for all: with many batches small networks draw several
            times as many images a second.
    """

    model: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[MODEL]", help_behavior_hint="(default: mnist, or mnist-few with at most 2 evaluations)"
        ),
    ] = None
    n: int = 64
    steps: int = 20
    sampler: SamplerChoice = None
    seed: int = 0
    out: Path = Path("samples.png")
    batch_size: int = 128
    device: DeviceName = "auto"
    graph: bool = False

    @property
    def with_less_memory(self) -> str:
        """Say how to draw with less memory."""
        return less_memory(self.batch_size)


def run(options: Sample, device: torch.device) -> None:
    """Draw images and write them."""
    check_counts(options.n, options.steps, options.batch_size)
    check_graph(options.graph, device)
    from proxflow import models
    from proxflow.data import image_files
    from proxflow.studies import mnist

    name = options.model if options.model is not None else "mnist-few" if options.steps <= FEW else "mnist"
    model = models.load(name, device)
    with first_alone() as writing:
        if writing:
            image_files.check_output(options.out, options.n, model.shape[0])
    images = draw(model, options.n, options.steps, options.sampler, options.seed, options.batch_size, options.graph)
    with first_alone() as writing:
        if writing:
            image_files.write(options.out, mnist.to_channels_last(images))
    at = " at the times found for them" if found_times(model, options.sampler, options.steps) else ""
    say(f"{options.n} images, {options.steps} network evaluations each{at}: {options.out}")
