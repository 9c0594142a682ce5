"""What can be asked on the command line: one dataclass a command, importable without torch.

``--help`` prints these docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from proxflow.config import DeviceName, ModelConfig, PairSamplerName, SamplerName, TrainingConfig
from proxflow.studies.presets import EXPERIMENTS, ExperimentName, PresetName

_MINUTES = "; ".join(
    f"{study} {name}: {preset.minutes}".removeprefix("mnist ")
    for study, presets in EXPERIMENTS.items()
    for name, preset in presets.items()
)

ModelSource = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")]
SamplerChoice = Annotated[
    SamplerName | None,
    tyro.conf.arg(
        metavar=f"{{{','.join(get_args(SamplerName))}}}",
        help_behavior_hint="(default: multistep2; of a long-step or draw model, deterministic)",
    ),
]


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


@dataclass(frozen=True)
class NetworkOptions(ModelConfig):
    """A flow and its U-Net."""

    def __post_init__(self) -> None:
        """Nothing, as for :class:`TrainingOptions`."""


@dataclass(frozen=True)
class TrainingOptions(TrainingConfig):
    """How to train."""

    def __post_init__(self) -> None:
        """Nothing: ranges are checked after parsing, because the parser's messages would name its own internals."""


@dataclass(frozen=True)
class Train:
    """Train a model on MNIST or on images of your own.

    Checkpoints are written on the way, and the model can be sampled from after the first. An interrupted training goes on
    where it stopped when the same command is given again. 10,000 steps of the default network on MNIST take about 70
    minutes on 2 processor cores.

    For example:
        proxflow train --out runs/mine
        proxflow train --out runs/kl --flow gpfn-kl --steps 1000
        proxflow train --out runs/straight --coupling ot
        proxflow train --out runs/draws --predictor draw
        proxflow train --out runs/own --data pictures --size 32 --channels 64 --multipliers 1 2 2 --patch 1
        proxflow train --out runs/few --teacher runs/mine --steps 800 --ema 0.99
        proxflow train --out runs/short --steps 1500
        proxflow train --out runs/better --teacher runs/mine --worse runs/short --steps 2000 --learning-rate 1e-3
        torchrun --standalone --nproc-per-node 8 -m proxflow.cli train --out runs/many --batch-size 1024

    Args:
        out: Folder for the model, its checkpoints, the log (log.jsonl) and pictures drawn on the way (samples).
        data: What to learn: mnist; fashion-mnist, which Debian's package dataset-fashion-mnist installs; a folder of IDX
            files named as theirs; a folder of pictures (PNG, JPEG, WebP, BMP, TIFF)
            of any size, grey or colour, with folders in it or not; or an .npz file with key "images", uint8,
            N x H x W x C.
        size: Side of the squares that the pictures of a folder are brought to, by scaling and cutting out the middle.
        held_out: Share of the images that is not trained on; the loss on them chooses the model kept in the folder "best".
            IDX data sets have test images of their own, which are taken for it.
        grid: Images drawn at each checkpoint, into the folder "samples"; 0 for none.
        teacher: A trained model, by name or folder, to make a student of, which draws good images with one
            evaluation (distribution matching, and a discriminator of drawn and real images). It has the teacher's
            flow and network, whose options are not given again.
        worse: With a teacher: a worse model of the same flow and data, trained a tenth to a third as long. The student then
            learns what the teacher predicts, led away from what this one predicts (autoguidance). If the
            teacher was trained well, it draws better with as many evaluations.
        adversarial: Weight of the discriminator in distribution matching; 0 for none, which halves a step's cost.
        guidance: How far it is led: 1 not at all, 2 as far again as the teacher is from the worse model.
        tensorboard: Write for TensorBoard, too, into the folder "tensorboard"; needs the extra of this name.
        network: Which flow, and the U-Net that predicts its targets.
        training: How to train: AdamW with warm-up and cosine decay, clipped gradients, averaged weights.
        device: Where to compute; auto takes CUDA when there is one.
    """

    out: Path
    data: str = "mnist"
    size: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: their own, or the smallest side, at most 64)"),
    ] = None
    held_out: float = 0.05
    grid: int = 16
    teacher: Annotated[
        str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, the flow's own loss)")
    ] = None
    worse: Annotated[
        str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, distribution matching)")
    ] = None
    adversarial: float = 0.1
    guidance: float = 2.0
    tensorboard: bool = False
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = NetworkOptions()
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = TrainingOptions()
    device: DeviceName = "auto"


@dataclass(frozen=True)
class Reflow:
    """Straighten a model's paths, for fewer evaluations: train it on its own pairs of noise and image.

    Each round draws pairs from the model, by a sampler without noise, and trains the model on straight lines between them,
    from the weights it has (2209.03003). The new model's folder is used like any other; the model of each round is in the
    folders round-1 and so on. An interrupted run goes on where it stopped when the same command is given again, and with
    more --rounds it adds them.

    For example:
        proxflow reflow runs/mine --out runs/straight --steps 2000 --learning-rate 5e-4
        proxflow reflow runs/mine --out runs/straight --rounds 2 --pairs 50000 --pair-steps 20

    Args:
        model: Name of a model that comes with the package, or a model folder; of the flow gpfn-w2 or gpfn-kl.
        out: Folder for the straightened model, and for pairs and checkpoints on the way.
        rounds: Number of rounds. One does most; errors of the sampler and of training add up with each.
        pairs: Pairs of noise and image that a round is trained on.
        pair_steps: Network evaluations spent on each image of a pair (NFE).
        pair_sampler: How these are drawn; "proxflow sample --help" explains the choices.
        training: How to train in each round.
        device: Where to compute; auto takes CUDA when there is one.
    """

    model: ModelSource
    out: Path
    rounds: int = 1
    pairs: int = 20_000
    pair_steps: int = 10
    pair_sampler: PairSamplerName = "multistep2"
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = TrainingOptions()
    device: DeviceName = "auto"


@dataclass(frozen=True)
class Times:
    """Find the times of few evaluations that suit a trained model, for better images at the same cost.

    Few steps are brought nearest to where many steps lead from the same noise, which needs no data and trains nothing. The
    times are kept in the model folder, and sample and evaluate take them by themselves wherever --sampler and --steps are
    those they were found for.

    For example:
        proxflow times runs/mine --steps 2 3 4 5
        proxflow times mnist --out runs/mnist --steps 4 --sampler unipc

    Args:
        model: A model folder, or the name of a model that comes with the package, which needs --out.
        steps: Numbers of network evaluations (NFE) to find times for, each by itself.
        sampler: How images will be drawn; "proxflow sample --help" explains the choices. It must draw no noise.
        n: Images that it compares few and many steps by, all at once; lower it when memory runs out.
        seed: Seed of their noise.
        out: Folder for the model with the times, instead of its own.
        device: Where to compute; auto takes CUDA when there is one.
    """

    model: ModelSource
    steps: tuple[int, ...] = (2, 3, 4, 5)
    sampler: SamplerChoice = None
    n: int = 64
    seed: int = 0
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the model's folder)")] = (
        None
    )
    device: DeviceName = "auto"


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
        n: Number of images drawn from a model, or taken of images made elsewhere, the first ones.
        steps: Network evaluations spent on each image (NFE).
        sampler: How to sample; "proxflow sample --help" explains the choices.
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
    n: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1000; of images, all)")] = None
    steps: int = 20
    sampler: SamplerChoice = None
    seed: int = 0
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the model's)")] = None
    data: str = "mnist"
    extractor: Annotated[
        Literal["mnist", "fashion-mnist", "pixels", "inception"] | None,
        tyro.conf.arg(
            metavar="{mnist,fashion-mnist,pixels,inception}",
            help_behavior_hint="(default: fashion-mnist where the test images are its own, else mnist)",
        ),
    ] = None
    inception_weights: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(needed for inception)")
    ] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: only print)")] = None
    batch_size: int = 128
    device: DeviceName = "auto"
    graph: bool = False


@dataclass(frozen=True)
class Reproduce:
    """Repeat an experiment of the paper: train, sample, evaluate, report.

    mnist trains a proximal flow with Wasserstein-2 steps (gpfn-w2) and two Bayesian Flow Networks (bfn with the
    reference's settings, bfn-tuned with the best found for MNIST) on one U-Net, with equal data, steps and seed. It
    evaluates each with each of its samplers at 1 to 100 network evaluations and writes results.json, a Markdown and an
    HTML report with pictures.

    few-step trains that U-Net in several ways that aim at good images in one to twenty evaluations, counts what each
    costs in training, and draws quality against evaluations and against cost. Its preset quick runs the best of
    them with one seed; long trains guidance and what it needs thirteen times as long.

    geometry trains that U-Net under six divergences, and on binary images under three, each beside a control that has its
    schedule but not its geometry, and says which differences are the geometry's. It has
    the presets quick and standard.

    An interrupted run goes on where it stopped when the same command is given again.

    For example:
        proxflow reproduce --preset quick
        proxflow reproduce mnist --preset paper --device cuda --out runs/paper
        proxflow reproduce geometry --preset quick
        proxflow reproduce few-step --data fashion-mnist

    Args:
        experiment: Which experiment.
        preset: How much to train and to sample.
        data: What to learn: mnist, or a folder of IDX files of 28 x 28 grey images.
        out: Folder for models, results and report.
        seed: Number that fixes initial weights, order of data and noise; a preset of several seeds counts up from it.
        device: Where to compute; auto takes CUDA when there is one.
    """

    experiment: Annotated[
        ExperimentName, tyro.conf.Positional, tyro.conf.arg(metavar="[{mnist,geometry,few-step}]")
    ] = "mnist"
    preset: Annotated[PresetName, tyro.conf.arg(help_behavior_hint=f"({_MINUTES}; default: quick)")] = "quick"
    data: str = "mnist"
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="PATH", help_behavior_hint="(default: runs/EXPERIMENT-PRESET, with other data also -DATA)"
        ),
    ] = None
    seed: int = 0
    device: DeviceName = "auto"


Options = Sample | Train | Reflow | Times | Evaluate | Reproduce
