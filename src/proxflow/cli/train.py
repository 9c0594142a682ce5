"""``proxflow train``: train a model, or resume training."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast

import tyro

from proxflow.cli._common import (
    Number,
    Text,
    TrainingOptions,
    bound_record,
    bound_text,
    content_of,
    draw,
    first_alone,
    less_memory_to_train,
    origin,
    say,
    say_how_to_sample,
    word,
)
from proxflow.config import DeviceName, MethodName, to_dict
from proxflow.errors import ArgumentError, CheckpointError, OutputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from proxflow.data.kinds import Kind, Loaded
    from proxflow.examples import AnyExamples
    from proxflow.flows import Flow
    from proxflow.models import Model
    from proxflow.models.spec import Part

GRID_STEPS = 10
"""Network evaluations for each of the samples drawn while training."""

_CHANGES = {"divergence": "divergences", "schedule": "schedules", "coupling": "couplings"}
"""Options that change a part of the flow, and where their names come from."""

_UNREAD: Mapping[str, Any] = {"classes": 2, "bins": 2}
"""Placeholders for the flow's settings that the data decide, before they are read."""

_READING = {
    "size": "folders of pictures",
    "context": "text",
    "tokens": "text",
    "categories": "tables",
    "ignore": "tables",
    "target": "tables",
    "numbers": "tables",
}
"""Options that say how data are read, and for which kind of data."""


@dataclass(frozen=True)
class Train:
    """Train a model on MNIST, or on your own images, rows of numbers, tables or text.

    Checkpoints are saved during training, and the model can be sampled from after the first. The same command resumes a
    training that was interrupted; with another --steps, --batch-size or --learning-rate it resumes with these, also
    after training has ended. 10,000 steps of the default network on MNIST take about 70 minutes on 2 processor cores.

    Flow, network and the like are strings, NAME or NAME:field=value,field=value; "proxflow list" shows all names.

    For example:
        proxflow train --out runs/mine
        proxflow train --out runs/kl --divergence kl --steps 1000
        proxflow train --out runs/bfn --flow bfn:sigma1=0.3
        proxflow train --out runs/straight --coupling ot
        proxflow train --out runs/draws --predictor draw
        proxflow train --out runs/own --data pictures --size 32 --network unet:channels=64,multipliers=1,2,2,patch=1
        proxflow train --out runs/rows --data points.csv --steps 2000
        proxflow train --out runs/text --data bible --tokens letters --batch-size 32 --steps 2000
        proxflow train --out runs/book --data book.txt --context 256 --flow bfn-discrete --network transformer-small
        proxflow train --out runs/table --data people.csv --ignore name --target income --steps 2000
        proxflow train --out runs/mine --steps 20000
        proxflow train --out runs/tuned --init runs/mine --data pictures --steps 1000 --learning-rate 2e-4
        proxflow train --out runs/few --teacher runs/mine --steps 800 --ema 0.99
        proxflow train --out runs/digits --conditional
        proxflow train --out runs/binary --kind binary
        proxflow train --out runs/bins --flow bfn-discretised
        proxflow train --out runs/emoji --data emoji --conditional --augment crop
        proxflow train --out runs/parts --data pictures --size 96 --augment flip,crop:64
        proxflow train --out runs/few-digits --teacher runs/digits --guidance 2 --steps 800 --ema 0.99
        proxflow train --out runs/any-digits --teacher runs/digits --guidance 3 --guidance-input --steps 800 --ema 0.99
        proxflow train --out runs/short --steps 1500
        proxflow train --out runs/better --teacher runs/mine --weak runs/short --steps 2000 --learning-rate 1e-3
        torchrun --standalone --nproc-per-node 8 -m proxflow.cli train --out runs/many --batch-size 1024

    Args:
        out: Folder for the model, its checkpoints, the log (log.jsonl) and the samples drawn during training (samples).
        data: Training data. Images: mnist; emoji, in colour; fashion-mnist, which Debian's package
            dataset-fashion-mnist installs; a folder of IDX files with the names of MNIST's; a folder of pictures (PNG,
            JPEG, WebP, BMP, TIFF) of any size, grey or colour, with or without subfolders; an .npz or .npy file of
            images, N x H x W x C; a folder that "proxflow prepare" wrote, of images or latents; cifar10:FOLDER or
            cifar100:FOLDER, the binary version; 'shards:NAME-{000..127}.tar', of WebDataset; arrow:PATH or
            hub:OWNER/NAME, Hugging Face data sets. Rows of numbers: a .npy, .npz or .csv file. Tables: a .csv file with
            column names in the first line and text, missing cells or whole numbers among its columns, or a .parquet
            file. Text: bible, the King James Version, which comes with the package; a .txt file; or a folder of such
            files, each a document.
        kind: Kind of data, where it is ambiguous; binary takes images as black and white pixels, drawn anew at each
            step.
        size: Side length of the squares that the pictures of a folder are scaled and centre-cropped to.
        context: Context length: tokens of text in a training example, and in a sample.
        tokens: Tokens of text: characters; letters, a to z and space alone; bytes; or the .json file of a tokenizer,
            which needs the extra "text".
        categories: Columns of a table that are categorical although they look like numbers.
        ignore: Columns of a table to leave out.
        target: Column of a table to condition on, as categories: proxflow sample --class NAME.
        numbers: How the network sees the numeric columns of a table: standard (standardised) or by quantiles; by
            default, quantiles for columns with a long tail and standard for the others.
        held_out: Fraction of the data held out; the loss on it chooses the model kept in the folder "best". IDX data
            sets have test images of their own, which are used instead. Of text it is the end of each of 20 equal parts.
        flow: The flow. gpfn-* is the General Proximal Flow Network with the named divergence, bfn the Bayesian Flow
            Network with the reference's settings; gpfn-w2-tuned and bfn-tuned have settings tuned for MNIST. Text takes
            masked, bfn-discrete, gpfn-linear or gpfn-fisher-rao.
        divergence: Divergence of the proximal steps of a gpfn flow, instead of its own.
        schedule: Schedule of the step sizes of a gpfn flow, instead of its own. linear:final=0.6 suits images as simple
            as digits, where beliefs at later times tell nothing new.
        coupling: How a gpfn flow pairs prior draws with examples in training. ot: by minibatch optimal transport, the
            nearest pairing within a batch, which straightens the paths; needs the extra "transport" in training, not in
            sampling.
        network: Network and its sizes: unet for images, mlp for rows of numbers, transformer for text.
        predictor: point predicts the data from the belief. long-step also reads the end time of each step and learns
            where many small steps would lead, for few evaluations; it needs gpfn-w2 with final 1, and the deterministic
            sampler. draw also reads noise and draws from the distribution of the data given the belief, for few
            evaluations; it is trained by the energy score, at twice the cost per step, and takes the samplers that use
            no earlier predictions.
        conditional: Condition on the labels of the data, so that classes can be asked for: proxflow sample --class 7.
        drop: Fraction of the training examples whose class is withheld, so that the model also draws without a class
            and can be guided.
        parameterisation: What the network of a point predictor outputs: x, the data; epsilon, the noise; v, the
            velocity.
        init: A trained model, by name or folder, whose weights training starts from. Its flow, network and predictor
            are used unless others are given, and so are its units of the data, which must have its shape.
        grid: Samples drawn at each checkpoint, into the folder "samples"; 0 for none.
        teacher: A trained model, by name or folder, to distil into a student that draws good images with one
            evaluation, by distribution matching with a discriminator of drawn and real images. The student has the
            teacher's flow and network, whose options are not given again.
        weak: With a teacher: a weaker model of the same flow and data, trained a tenth to a third as long. The student
            then learns the teacher's predictions guided away from those of the weak model (autoguidance). From a
            well-trained teacher, it draws better at the same number of evaluations.
        adversarial: Weight of the discriminator in distribution matching; 0 for none, which halves the cost of a step.
        guidance: Guidance weight of the student's targets: 1 is none; 2 goes as far beyond the teacher as the teacher
            is from the weak model. Without a weak model: weight of the classifier-free guidance of a conditional
            teacher, whose guided samples the student then draws with one evaluation.
        guidance_interval: First and last time at which a conditional teacher is guided, in [0, 1].
        guidance_rule: Guidance rule of a conditional teacher; "proxflow list guidance" shows them.
        guidance_input: Make weight and interval inputs of the student of a conditional teacher, to choose them when
            sampling, at one evaluation; --guidance is then the largest weight that it learns.
        dry_run: Print the parameters, operations, memory and data read of a step, and train nothing.
        tensorboard: Also log to TensorBoard, in the folder "tensorboard"; needs the extra of this name.
        training: Training: AdamW with warm-up and cosine decay, gradient clipping, exponential moving average (EMA) of
            weights.
        device: Where to compute; auto takes CUDA if there is one.
    """

    out: Path
    data: str = "mnist"
    kind: Annotated[Text, word("the one that reads such data")] = None
    size: Annotated[
        Number,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: median sides, the shorter at most 64)"),
    ] = None
    context: Annotated[Number, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 128)")] = None
    tokens: Annotated[Text, word("characters")] = None
    categories: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="COL [COL ...]", help_behavior_hint="(default: as they look)")
    ] = ()
    ignore: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="COL [COL ...]", help_behavior_hint="(default: none)")
    ] = ()
    target: Annotated[Text, tyro.conf.arg(metavar="COL", help_behavior_hint="(default: none)")] = None
    numbers: Annotated[
        Union[Literal["standard", "quantiles"], None],  # noqa: UP007
        tyro.conf.arg(metavar="{standard,quantiles}", help_behavior_hint="(default: by column)"),
    ] = None
    held_out: float = 0.05
    flow: Annotated[Text, word("gpfn-w2; of text masked")] = None
    divergence: Annotated[Text, word("the flow's")] = None
    schedule: Annotated[Text, word("the flow's")] = None
    coupling: Annotated[Text, word("any with any")] = None
    network: Annotated[Text, word("the kind's")] = None
    predictor: Annotated[Text, word("the flow's, or point")] = None
    parameterisation: Annotated[Text, word("the flow's, or else the data's")] = None
    init: Annotated[Text, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, random weights)")] = None
    conditional: bool = False
    drop: Annotated[Union[float, None], tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 0.1)")] = None  # noqa: UP007
    grid: int = 16
    teacher: Annotated[
        Text, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, the flow's own loss)")
    ] = None
    weak: Annotated[
        Text, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: none, distribution matching)")
    ] = None
    adversarial: float = 0.1
    guidance: Annotated[
        Union[float, None],  # noqa: UP007
        tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 2 with a weak model, else 1)"),
    ] = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rule: Annotated[Text, word("linear")] = None
    guidance_input: bool = False
    dry_run: bool = False
    tensorboard: bool = False
    training: tyro.conf.OmitArgPrefixes[TrainingOptions] = field(default_factory=TrainingOptions)
    device: DeviceName = "auto"

    @property
    def with_less_memory(self) -> str:
        """Say how to train with less memory."""
        return less_memory_to_train(self.training.batch_size)


def run(options: Train, device: torch.device) -> None:
    """Train a model, or resume training, and say where it is saved."""
    training = options.training.checked()
    method = _method(options)
    if options.grid < 0:
        raise ArgumentError(f"--grid must not be negative, got {options.grid}")
    import torch

    from proxflow import models
    from proxflow.data import NAMED
    from proxflow.data.augment import Augmentation, refuse_mirrored
    from proxflow.data.image_files import write_png
    from proxflow.data.kinds.table import Table
    from proxflow.examples import Examples, check_condition, reads, rows
    from proxflow.predictors import Predictor
    from proxflow.runtime.checkpoints import digest
    from proxflow.runtime.files import writable_folder
    from proxflow.runtime.processes import Processes
    from proxflow.runtime.tracking import TensorBoard
    from proxflow.training.conditions import ConditionDropout, GuidanceInput, with_dropout
    from proxflow.training.cost import cost
    from proxflow.training.fit import fit
    from proxflow.training.recipes import recipe
    from proxflow.training.run import CHANGEABLE, RunFolder, decisive, upgrade

    Augmentation.of(training.augment)  # refuses invalid values before data are read, as the flow below
    teacher = None if options.teacher is None else models.load(options.teacher, device)
    weak = None if options.weak is None else models.load(options.weak, device)
    init = None if options.init is None else models.load(options.init, device)
    if teacher is None and init is None:
        _flow(options, options.flow or "gpfn-w2")  # refuses invalid values before data are read
    loaded = _loaded(options)
    if options.target is not None:
        options = replace(options, conditional=True)
    kind, examples, held_out = loaded.kind, loaded.train, loaded.held_out
    if kind.augment:
        training = replace(training, augment=",".join(filter(None, (training.augment, kind.augment))))
    augmentation = Augmentation.of(training.augment)
    augmentation.check(examples.some(1))
    if augmentation.taken is not None:
        kind = replace(kind, shape=augmentation.shape(kind.shape))
    if "flip" in training.augment:
        refuse_mirrored(training.augment, options.data if options.data in NAMED else _recognised(examples))
    torch.manual_seed(training.seed)
    if teacher is not None:
        model = _student(options, kind, teacher)
    else:
        model = _untrained(options, kind) if init is None else _begun(options, kind, init)
    kind = model.data
    if getattr(kind, "vocabulary", ()) != getattr(loaded.kind, "vocabulary", ()):
        raise ArgumentError(
            f"the model was trained on text of other tokens than {options.data} has, and so of other indices: give text of "
            "the same characters, or train a model of --tokens letters or bytes, which fit any text"
        )
    if getattr(kind, "layout", None) != getattr(loaded.kind, "layout", None):
        raise ArgumentError(
            f"the model was trained on a table of other columns, categories or gaps than {options.data} has: give a table "
            "like it, or train a model from the beginning"
        )
    if getattr(kind, "encoder", None) != getattr(loaded.kind, "encoder", None):
        raise ArgumentError(
            f"the model was trained on the latents of another autoencoder than {options.data} has: give latents of the "
            "same, or train a model from the beginning"
        )
    conditional = "condition" in reads(model.predictor)
    if options.conditional and not conditional:
        begun = f"--teacher {options.teacher}" if init is None else f"--init {options.init}"
        raise ArgumentError(f"--conditional: {begun} was trained without classes; leave one of the two out")
    theirs, ours = models.class_names(loaded.kind), models.class_names(kind)
    if conditional and theirs and ours and theirs != ours:  # labels are indices of the names
        raise ArgumentError(
            f"the model has the classes {', '.join(ours):.200}, and {options.data} has {', '.join(theirs):.200}: give "
            "data of the same classes"
        )
    if getattr(model.predictor.network, "conditional", False) and examples.condition is None:
        raise ArgumentError(f"the model is conditional, and {options.data} holds no labels to train it with")
    check_condition(model.predictor, examples.condition if conditional else None, len(examples))
    if not conditional:
        examples, held_out = examples.alone(), None if held_out is None else held_out.alone()
    if teacher is not None:
        held_out = None  # a student's loss says how far it is from its teacher, not how good it is
    guidance, rule = None if options.guidance_input else _guidance(options, method), options.guidance_rule or "linear"
    learning = recipe(
        method, model, teacher, weak, guidance=guidance, interval=options.guidance_interval, rule=rule,
        adversarial=options.adversarial,
    )  # fmt: skip
    led: dict[str, Any] = {}
    if method == "distribution-matching" and guidance not in (1, None):
        led = {"guidance_interval": list(options.guidance_interval), "guidance_rule": rule}
    if options.drop == 1:
        raise ArgumentError("--drop 1 would take every condition away: leave out --conditional, or drop fewer")
    objective = with_dropout(learning.objective, model.predictor, options.drop)
    drop = objective.rate if isinstance(objective, ConditionDropout) else None

    if options.dry_run:
        for note in loaded.notes:
            say(note)
        first, bf16 = (
            examples.some(1),
            training.precision == "bf16" or (training.precision, device.type) == ("auto", "cuda"),
        )
        size = first.numel() * first.element_size()
        say(f"dry run: {cost(model.predictor, model.shape, training, size, Processes.current().size, bf16).text}")
        return
    out, folder = options.out, RunFolder(options.out)
    content = content_of(examples)
    labels = hashlib.sha256(examples.condition.numpy().tobytes()) if torch.is_tensor(examples.condition) else None
    settings = {
        "held_out": options.held_out,
        "numbers": loaded.record.get("numbers"),
        "data": content,
        "labels": None if labels is None else f"sha256 {labels.hexdigest()}",
        "drop": drop,
        "teacher": None if teacher is None else digest(teacher.predictor),
        "weak": None if weak is None else digest(weak.predictor),
        "init": None if init is None else digest(init.predictor),
        "guidance": guidance if weak is not None or led else None,
        **led,
        "adversarial": options.adversarial if method == "distribution-matching" else None,
    }
    with folder.alone():
        changes = folder.claim(
            {**training.decisive(), **settings, **decisive(model, training)},  # data decide parts: named before them
            lambda held: upgrade(
                {"held_out": 0.0, "weak": held.pop("worse", None), "init": None, "numbers": settings["numbers"], **held}
            ),
            CHANGEABLE,
        )
        if folder.steps_done == training.steps:
            say(f"{out} holds this model, trained for all of its {training.steps} steps")
            say_how_to_sample(out)
            return
        if folder.steps_done and not folder.has_checkpoint:
            raise OutputError(
                f"{out} holds a finished model without its last checkpoint, so it cannot go on: give --init {out} and "
                "another --out folder"
            )
        for note in loaded.notes:
            say(note)
        if changes:
            say(f"{out} goes on with {', '.join(changes)}")
        source = (
            f" after {options.teacher}" if teacher is not None else f" from {options.init}" if init is not None else ""
        )
        size = Processes.current().size
        where = device.type if size == 1 else f"{device.type}, {size} processes"
        called = models.word(model.flow)
        if kind.defaults.predictor != "point":
            called = called.partition(":")[0]  # settings that the data decide are long, and saved in the model's file
        squares = "" if augmentation.taken is None else f", parts of {augmentation.taken[1]} x {augmentation.taken[1]}"
        say(
            f"train: {called}{source} on {loaded.description}{squares}, {training.steps} steps of "
            f"{training.batch_size}, on {where}; interrupt with Ctrl-C, the same command goes on"
        )
        known = {"content": content} if isinstance(kind, Table) else {}  # tells evaluate what was trained on
        provenance = {
            "data": f"{len(examples)} {kind.examples_word} of {options.data}",
            "held_out": 0 if held_out is None else len(held_out),
            **({"read": {**loaded.record, **known}} if loaded.record else {}),
            "training": to_dict(training),
            **origin(device),
            **({} if drop is None else {"drop": drop}),
            **({} if teacher is None else {"teacher": options.teacher, "method": method}),
            **({} if init is None else {"init": {"model": options.init, "weights": digest(init.predictor)}}),
            **({} if weak is None else {"weak": options.weak, "guidance": guidance}),
            **({"guidance": guidance, **led} if led else {}),
            **({"guidance": learning.objective.law} if isinstance(learning.objective, GuidanceInput) else {}),
            **({"adversarial": options.adversarial} if method == "distribution-matching" else {}),
        }

        board = TensorBoard(out / "tensorboard") if options.tensorboard and Processes.current().first else None
        latest = math.inf

        def track(entry: dict[str, float]) -> None:
            nonlocal latest
            latest = entry.get("held_out_loss", latest)
            if board is not None:
                board.numbers(entry)

        def keep(averaged: nn.Module, step: int) -> None:
            again, present = folder.steps_done == step, learning.kept(averaged)  # once more when training resumes
            folder.save(model, present, {**provenance, "steps": step}, latest)
            if options.grid:
                painter = replace(model, predictor=cast(Predictor, present))
                nfe, condition = 1 if method == "distribution-matching" else GRID_STEPS, None
                if examples.condition is not None:  # drawn for the first examples' conditions, over and over
                    condition = rows(examples.condition, torch.arange(options.grid) % len(examples))
                drawn = draw(painter, options.grid, nfe, None, training.seed, training.batch_size, condition=condition)
                picture = kind.preview(drawn)
                with first_alone() as writing:
                    if writing:
                        path = writable_folder(out / "samples") / f"step-{step:08d}{kind.shown}"
                        write_png(path, picture) if kind.shown == ".png" else kind.write(path, drawn)
                if board is not None:
                    board.picture("samples", picture, step)
            if not (again or sys.stderr.isatty()):  # where no bar shows it
                say(f"step {step} of {training.steps}: saved")

        result = fit(
            learning.module,
            objective,
            examples,
            training,
            folder=out,
            device=device,
            held_out=held_out,
            encode=kind.encode,
            on_checkpoint=keep,
            track=track,
        )
        finished = {"steps": training.steps, "seconds": round(result.seconds, 1), "losses": result.losses}
        if latest < math.inf:
            finished["held_out_loss"] = latest
        trained = replace(model, predictor=cast(Predictor, learning.kept(result.predictor)))
        if trained.has_bound and isinstance(held_out, Examples) and len(held_out) > 1:
            chosen = held_out[torch.arange(0, len(held_out), -(-len(held_out) // _BOUNDED))]
            nats = trained.bound(augmentation.whole(chosen.x), condition=chosen.condition, draws=_DRAWS)
            finished["bound"] = {**bound_record(nats), "draws": _DRAWS}
            of = "" if len(chosen) == len(held_out) else f" of {len(held_out)}"
            say(f"{len(chosen)}{of} held-out {kind.examples_word}: {bound_text(kind, nats)}")
        elif trained.has_bound:
            say(f"fewer than 2 {kind.examples_word} are held out, so their likelihood is not bounded: see --held-out")
        elif isinstance(kind, Table):
            say(f"the likelihood of rows has no bound of the flow {called.partition(':')[0]}, which it has of gpfn")
        finished |= {"sessions": list(result.sessions), "stages": list(result.stages)}
        folder.finish(model, learning.kept(result.predictor), {**provenance, **finished})
        for said in result.left_out:
            say(f"left out: {said}")
        say(f"trained in {result.seconds / 60:.1f} minutes, last loss {result.losses[-1]:.4g}: {out}")
        say_how_to_sample(out)


_BOUNDED, _DRAWS = 128, 8
"""Held-out examples whose likelihood is bounded after training, and draws of the time for each."""


def _method(options: Train) -> MethodName:
    if options.adversarial != Train.adversarial and (options.teacher is None or options.weak is not None):
        raise ArgumentError("--adversarial is for distribution matching: a student of a --teacher alone")
    if options.init is not None and options.teacher is not None:
        raise ArgumentError("--init and --teacher each say what the weights begin with: give one of them")
    led = options.guidance_rule is not None or options.guidance_interval != Train.guidance_interval
    if led and (options.weak is not None or options.teacher is None or options.guidance is None):
        raise ArgumentError(
            "--guidance-interval and --guidance-rule say how a conditional --teacher is led: give --guidance, and no --weak"
        )
    if options.guidance_input and (
        options.guidance is None or options.teacher is None or options.weak is not None or led
    ):
        raise ArgumentError(
            "--guidance-input makes a student of a conditional --teacher that reads weight and interval: give --guidance, "
            "the largest weight, and no --weak, --guidance-rule or --guidance-interval"
        )
    if options.weak is None:
        if options.guidance is not None and options.teacher is None:
            raise ArgumentError(
                "--guidance says how far to lead a student, away from a model that --weak must name, or as a conditional "
                "--teacher is"
            )
        return "flow" if options.teacher is None else "distribution-matching"
    if options.teacher is None:
        raise ArgumentError("--weak names what a student is led away from, so it needs a --teacher as well")
    return "autoguidance"


def _guidance(options: Train, method: MethodName) -> float:
    """Return the guidance weight of a student; 1 for none."""
    if options.guidance is not None:
        return options.guidance
    return 2.0 if method == "autoguidance" else 1.0


def _loaded(options: Train) -> Loaded:
    from proxflow.data.kinds import kind_of_source

    kind = kind_of_source(options.data, options.kind)
    takes = inspect.signature(kind.read).parameters.values()
    settings: dict[str, Any] = {}
    for name, what in _READING.items():
        if not (value := getattr(options, name)) and value != 0:
            continue
        if not any(p.name == name for p in takes):
            table = ": give --kind table" if what == "tables" and options.data.lower().endswith(".csv") else ""
            raise ArgumentError(f"--{name} is for {what}; {options.data} is read as {kind.examples_word}{table}")
        settings[name] = value
    if any(p.name == "exclude" for p in takes):
        settings["exclude"] = options.out  # which may be in the folder that is read
    if any(p.name == "workers" for p in takes):
        settings["workers"] = options.training.workers
    return kind.read(options.data, held_out=options.held_out, seed=options.training.seed, **settings)


def _recognised(examples: AnyExamples) -> str | None:
    """Return the name of the data set whose training images these examples are, all of them."""
    from proxflow.data import recognise
    from proxflow.examples import Examples

    images = isinstance(examples, Examples) and examples.x.ndim == 4
    return recognise(examples.x) if images and examples.x.shape[1:] == (1, 28, 28) else None


def _student(options: Train, kind: Kind, teacher: Model) -> Model:
    """Build the untrained student of a teacher."""
    from proxflow import models
    from proxflow.models import spec

    given = [name for name in (*_CHANGES, "flow", "network", "predictor", "parameterisation") if getattr(options, name)]
    if given:
        raise ArgumentError(f"a student has the flow and network of its teacher: leave out --{' --'.join(given)}")
    if kind.shape != teacher.shape:
        raise ArgumentError(
            f"a student learns from data like its teacher's, {teacher.shape}, and these are {kind.shape}"
        )
    predictor, network = spec.make("predictors", teacher.spec["predictor"]), teacher.network
    if options.guidance_input:
        if not teacher.classes or "guidance" not in spec.fields("networks", network.kind):
            raise ArgumentError(
                f"--guidance-input: {options.teacher} was trained without classes, so there is nothing to lead toward"
            )
        network = replace(network, settings={**network.settings, "guidance": options.guidance})
    # Of the teacher's kind: rows of numbers keep the units that its network was trained in.
    return models.build(teacher.data, flow=teacher.flow, network=network, predictor=predictor)


def _begun(options: Train, kind: Kind, init: Model) -> Model:
    """Build the model that the options describe, with the weights of a trained one.

    Raises:
        ArgumentError: The data have another shape, or the weights do not fit.
    """
    from proxflow import models
    from proxflow.models import spec
    from proxflow.runtime.checkpoints import refuse_difference

    if kind.shape != init.shape:
        raise ArgumentError(f"--init {options.init} is of data of shape {init.shape}, and these are {kind.shape}")
    named = options.predictor or options.parameterisation or options.flow
    predictor = _predictor(options, kind) if named else spec.make("predictors", init.spec["predictor"])
    flow = _flow(options, options.flow, kind.decides) if options.flow else _changed(options, init.flow)
    network: Any = options.network or init.network
    if options.conditional and options.network:
        network = _conditional(options, kind)
    # Of its kind: rows of numbers keep the units that the network was trained in.
    model = models.build(init.data, flow=flow, network=network, predictor=predictor)
    given, own = init.predictor.state_dict(), model.predictor.state_dict()
    other = [name for name in own if name in given and own[name].shape != given[name].shape]
    try:
        refuse_difference(options.init or "", set(given), set(own))
    except CheckpointError as error:
        raise ArgumentError(f"--init: {error}; leave --network out to take its own") from error
    if other:
        raise ArgumentError(
            f"--init {options.init}: its {other[0]!r} is {tuple(given[other[0]].shape)}, and in this model "
            f"{tuple(own[other[0]].shape)}: leave --network out to take its own"
        )
    model.predictor.load_state_dict(given)
    return model


def _untrained(options: Train, kind: Kind) -> Model:
    """Build the untrained model that the options describe."""
    from proxflow import models

    flow = _flow(options, options.flow or kind.defaults.flow, kind.decides)
    network = _conditional(options, kind) if options.conditional else options.network
    return models.build(kind, flow=flow, network=network, predictor=_predictor(options, kind))


def _predictor(options: Train, kind: Kind) -> str | None:
    """Return the predictor's string."""
    predictor = options.predictor
    if options.parameterisation is not None:
        predictor = predictor or kind.defaults.predictor
        predictor += f"{',' if ':' in predictor else ':'}parameterisation={options.parameterisation}"
    return predictor


def _conditional(options: Train, kind: Kind) -> Part:
    """Return the network with the classes of the data.

    Raises:
        ArgumentError: The data have no classes, or the network takes none, or another number.
    """
    from proxflow.data.arrays import shapes_in
    from proxflow.data.kinds.table import Table
    from proxflow.models import class_names, spec

    classes = len(class_names(kind))
    if not classes and isinstance(kind, Table):
        raise ArgumentError("--conditional: of tables give --target COL in its place, a column that rows are drawn for")
    if not classes and options.data.lower().endswith(".npz"):
        keys = ", ".join(shapes_in(Path(options.data)))
        raise ArgumentError(
            f"--conditional: {options.data} has the keys {keys:.200}, and labels of images are read from the key labels: "
            "save them so, or leave --conditional out"
        )
    if not classes:
        raise ArgumentError(
            f"--conditional: {options.data} holds no labels of {kind.examples_word} that are read; leave it out, or give "
            "images with classes"
        )
    wanted = spec.content("networks", options.network or kind.defaults.network)
    if "classes" not in spec.fields("networks", wanted["kind"]):
        raise ArgumentError(f"--conditional: the network {wanted['kind']} takes no classes")
    if wanted.setdefault("classes", classes) != classes:
        raise ArgumentError(f"--network with classes={wanted['classes']}: {options.data} has {classes} classes")
    part: Part = spec.make("networks", wanted)
    return part


def _flow(options: Train, flow: str, decided: Mapping[str, Any] | None = None) -> str | Flow[Any]:
    """Return a flow, or its string if no part is changed; ``decided`` are the settings that the data decide.

    Raises:
        ArgumentError: An unknown name, a value out of range, or a part that the flow does not have.
    """
    from proxflow import models
    from proxflow.models import spec

    if decided is None:
        known = spec.fields("flows", spec.content("flows", flow)["kind"])
        decided = {name: value for name, value in _UNREAD.items() if name in known}
    made = _changed(options, spec.make("flows", models.flow_content(flow, decided)))
    return made if any(getattr(options, name) is not None for name in _CHANGES) else flow


def _changed(options: Train, made: Flow[Any]) -> Flow[Any]:
    """Return a flow with the parts that the options name; see :func:`_flow`."""
    from proxflow import models

    changes: dict[str, Any] = {}
    for name, group in _CHANGES.items():
        text = getattr(options, name)
        if text is None:
            continue
        if name not in {f.name for f in fields(cast(Any, made))}:
            raise ArgumentError(
                f"--{name} {text}: the flow {models.word(made)} has no {name}; take a gpfn flow, or leave it out"
            )
        changes[name] = models.parse(group, text)
    if "divergence" in changes and made.schedule == made.divergence.schedule(made.endpoints):  # type: ignore[attr-defined]
        changes.setdefault("schedule", None)  # the new divergence has its own
    coupling = changes.get("coupling")
    if options.coupling is not None and options.coupling.startswith("reflow"):
        raise ArgumentError("--coupling reflow: such a model is made of a trained one, by the command reflow")
    if coupling is not None and hasattr(coupling, "check"):
        coupling.check()  # its dependency may not be installed
    return replace(cast(Any, made), **changes) if changes else made
