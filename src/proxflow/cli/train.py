"""``proxflow train``: train a model, or go on with it."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from proxflow.cli._common import TrainingOptions, draw, first_alone, origin, say, say_how_to_sample
from proxflow.config import DeviceName, MethodName, ModelConfig, TrainingConfig, to_dict
from proxflow.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


GRID_STEPS = 10
"""Network evaluations for each of the samples drawn while training."""


@dataclass(frozen=True)
class NetworkOptions(ModelConfig):
    """A flow and its U-Net."""

    def __post_init__(self) -> None:
        """Check nothing, as :class:`TrainingOptions`."""


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
        proxflow train --out runs/better --teacher runs/mine --weak runs/short --steps 2000 --learning-rate 1e-3
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
        weak: With a teacher: a weaker model of the same flow and data, trained a tenth to a third as long. The student then
            learns what the teacher predicts, led away from what this one predicts (autoguidance). If the
            teacher was trained well, it draws better with as many evaluations.
        adversarial: Weight of the discriminator in distribution matching; 0 for none, which halves a step's cost.
        guidance: How far it is led: 1 not at all, 2 as far again as the teacher is from the weak model.
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
    weak: Annotated[
        str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, distribution matching)")
    ] = None
    adversarial: float = 0.1
    guidance: float = 2.0
    tensorboard: bool = False
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = NetworkOptions()
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = field(default_factory=TrainingOptions)
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to train with less memory."""
        return f"lower --batch-size, now {self.training.batch_size}, or take a smaller network"


def run(options: Train, device: torch.device) -> None:
    """Train a model, or go on with one, and say where it is."""
    training = options.training.checked()
    method = _method(options)
    import torch

    from proxflow import models
    from proxflow.couplings import MinibatchOT
    from proxflow.data import image_files
    from proxflow.models import Model
    from proxflow.predictors import Predictor
    from proxflow.runtime.checkpoints import digest
    from proxflow.runtime.files import writable_folder
    from proxflow.runtime.processes import Processes
    from proxflow.runtime.tracking import TensorBoard
    from proxflow.studies import mnist
    from proxflow.training.fit import fit
    from proxflow.training.recipes import recipe
    from proxflow.training.run import RunFolder

    config = ModelConfig(**vars(options.network))
    teacher = None if options.teacher is None else models.load(options.teacher, device)
    weak = None if options.weak is None else models.load(options.weak, device)
    if teacher is not None:
        if config != ModelConfig():
            raise ArgumentError(
                "a student has the flow and network of its teacher: leave out the options of the network"
            )
        config = teacher.config
    elif config.coupling == "ot":
        MinibatchOT().check()
    elif config.coupling == "reflow":
        raise ArgumentError("--coupling reflow: such a model is made of a trained one, by the command reflow")
    images, held_out = training_images(options)
    shape = tuple(images.shape[1:])
    torch.manual_seed(training.seed)
    model = models.build(config, shape)
    if teacher is not None:
        held_out = None  # a student's loss says how far it is from its teacher, not how good it is
    learning = recipe(method, model, teacher, weak, guidance=options.guidance, adversarial=options.adversarial)
    out, folder = options.out, RunFolder(options.out)
    settings = {
        "held_out": options.held_out,
        "data": f"sha256 {hashlib.sha256(images.numpy().tobytes()).hexdigest()}, shape {list(images.shape)}",
        "teacher": None if teacher is None else digest(teacher.predictor),
        "weak": None if weak is None else digest(weak.predictor),
        "guidance": None if weak is None else options.guidance,
        "adversarial": options.adversarial if method == "distribution-matching" else None,
    }
    folder.claim({**to_dict(config), **training.decisive(), **settings}, _upgrade)
    if folder.steps_done == training.steps:
        say(f"{out} holds this model, trained for all of its {training.steps} steps")
        say_how_to_sample(out)
        return
    source = "" if teacher is None else f" after {options.teacher}"
    say(
        f"train: {config.flow}{source} on {len(images)} images of {shape[1]} x {shape[2]}, {training.steps} steps of "
        f"{training.batch_size}, on {_where(device)}; interrupt with Ctrl-C, the same command goes on"
    )
    provenance = {
        "data": f"{len(images)} images of {options.data}",
        "held_out": 0 if held_out is None else len(held_out),
        "training": to_dict(training),
        **origin(device),
        **({} if teacher is None else {"teacher": options.teacher, "method": method}),
        **({} if weak is None else {"weak": options.weak, "guidance": options.guidance}),
        **({"adversarial": options.adversarial} if method == "distribution-matching" else {}),
    }

    first, board = Processes.current().first, None
    if options.tensorboard and first:
        board = TensorBoard(out / "tensorboard")
    latest = math.inf

    def track(entry: dict[str, float]) -> None:
        nonlocal latest
        latest = entry.get("held_out_loss", latest)
        if board is not None:
            board.numbers(entry)

    def keep(averaged: nn.Module, step: int) -> None:
        present = learning.kept(averaged)
        folder.save(model, present, {**provenance, "steps": step}, latest)
        if options.grid and shape[0] in (1, 3):
            painter = Model(config, shape, model.flow, cast(Predictor, present))
            evaluations = 1 if method == "distribution-matching" else GRID_STEPS
            drawn = draw(painter, options.grid, evaluations, "deterministic", training.seed, training.batch_size)
            pictures = mnist.to_channels_last(drawn)
            with first_alone() as writing:
                if writing:
                    image_files.write(writable_folder(out / "samples") / f"step-{step:08d}.png", pictures)
            if board is not None:
                board.picture("samples", image_files.grid(pictures), step)
        if not sys.stderr.isatty():  # where no bar shows it
            say(f"step {step} of {training.steps}: saved")

    result = fit(
        learning.module,
        learning.objective,
        images,
        training,
        folder=out,
        device=device,
        held_out=held_out,
        on_checkpoint=keep,
        track=track,
    )
    finished = {"steps": training.steps, "seconds": round(result.seconds, 1), "losses": result.losses}
    if latest < math.inf:
        finished["held_out_loss"] = latest
    folder.finish(model, learning.kept(result.predictor), {**provenance, **finished})
    say(f"trained in {result.seconds / 60:.1f} minutes, last loss {result.losses[-1]:.4g}: {out}")
    say_how_to_sample(out)


def _method(options: Train) -> MethodName:
    if options.adversarial != Train.adversarial and (options.teacher is None or options.weak is not None):
        raise ArgumentError("--adversarial is for distribution matching: a student of a --teacher alone")
    if options.weak is None:
        if options.guidance != Train.guidance:
            raise ArgumentError("--guidance says how far to lead away from a model, which --weak must name")
        return "flow" if options.teacher is None else "distribution-matching"
    if options.teacher is None:
        raise ArgumentError("--weak names what a student is led away from, so it needs a --teacher as well")
    return "autoguidance"


def _where(device: torch.device) -> str:
    from proxflow.runtime.processes import Processes

    size = Processes.current().size
    return device.type if size == 1 else f"{device.type}, {size} processes"


def training_images(options: Train) -> tuple[Tensor, Tensor | None]:
    """Read uint8 images (number, channels, height, width) to train on and held-out ones, of what the options name.

    Raises:
        ArgumentError: The share to hold out is no share, or leaves nothing.
        DataError: There is nothing such, or it is corrupt.
    """
    import torch

    from proxflow import data
    from proxflow.data import image_files
    from proxflow.runtime.processes import Processes

    if not 0 <= options.held_out < 1:
        raise ArgumentError(f"--held-out must lie in [0, 1), got {options.held_out}")
    if options.grid < 0:
        raise ArgumentError(f"--grid must not be negative, got {options.grid}")
    path = Path(options.data)
    idx = options.data in data.NAMED or any(path.glob("train-images-idx3-ubyte*"))
    if options.size is not None and (idx or not path.is_dir()):
        raise ArgumentError(f"--size is for folders of pictures; {options.data} has a size of its own")
    if idx:
        tested = options.data in data.NAMED or any(path.glob("t10k-images-idx3-ubyte*"))
        held_out = data.load(options.data, "test").images if tested and options.held_out else None
        return data.load(options.data, "train").images, held_out
    if path.is_dir():
        images = data.read_pictures(path, options.size)
    elif path.suffix.lower() == ".npz":
        images = torch.from_numpy(image_files.read(path)).permute(0, 3, 1, 2).contiguous()
    else:
        raise DataError(
            f"no training data {options.data!r}: expected {', '.join(data.NAMED)}, an existing folder of IDX files named as "
            "MNIST's or of pictures (PNG, JPEG and others), or an .npz file"
        )
    number = int(options.held_out * len(images))
    if number < Processes.current().size:
        return images, None  # so few images are all needed
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.training.seed))
    return images[order[number:].sort().values], images[order[:number]]


def _upgrade(held: dict[str, Any]) -> dict[str, Any]:
    """Bring what an earlier version wrote down to today's names."""
    later = {"held_out": 0.0, "teacher": None, "weak": held.pop("worse", None), "guidance": None, "adversarial": None}
    return {**to_dict(ModelConfig()), **to_dict(TrainingConfig()), **later, **held}
