"""What the command line does, one function a command."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from proxflow import data, metrics, models
from proxflow.cli.options import Evaluate, Options, Reflow, Reproduce, Sample, Times, Train
from proxflow.config import DeviceName, MethodName, ModelConfig, TrainingConfig, to_dict
from proxflow.couplings import MinibatchOT
from proxflow.data import image_files as imagefiles
from proxflow.errors import ArgumentError, DataError, MemoryLimitError, OutputError, ProxflowError
from proxflow.models import Model
from proxflow.predictors import Predictor
from proxflow.runtime.checkpoints import claim_folder, digest, remove_all
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.runtime.processes import Processes, joined
from proxflow.runtime.progress import bar
from proxflow.runtime.tracking import TensorBoard
from proxflow.samplers import default_sampler, sample
from proxflow.samplers.optimise_times import REFERENCE_STEPS, optimise_times
from proxflow.studies import pages, scoreboard, trials
from proxflow.studies.presets import EXPERIMENTS
from proxflow.training.fit import fit
from proxflow.training.recipes import lesson
from proxflow.training.reflow import reflow


def run(options: Options) -> None:
    """Do what a command asks for.

    Raises:
        ProxflowError: Any error of the library; of this class itself when memory ran out.
    """
    try:
        seed = options.training.seed if isinstance(options, Train | Reflow) else options.seed
        if not 0 <= seed < 2**63:
            raise ArgumentError(f"--seed must be at least 0 and below 2^63, got {seed}")
        with joined(device_of(options.device)) as device:
            if isinstance(options, Sample | Evaluate) and options.graph and device.type != "cuda":
                raise ArgumentError(f"--graph records work on a CUDA device, and this is {device.type}: leave it out")
            match options:
                case Sample():
                    run_sample(options, device)
                case Train():
                    run_train(options, device)
                case Reflow():
                    run_reflow(options, device)
                case Times():
                    run_times(options, device)
                case Evaluate():
                    run_evaluate(options, device)
                case Reproduce():
                    run_reproduce(options, device)
    except MemoryLimitError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ProxflowError(f"out of memory: {_out_of_memory(options)}") from error
    except SafetensorError as error:  # from writing: whatever reads such files has an error of its own
        raise OutputError(f"cannot write the weights: {error}") from error
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = " ".join(str(error).split())[:200]
            raise ProxflowError(f"the network cannot be compiled here, leave out --compile: {reason}") from error
        if "DefaultCPUAllocator" not in str(error):  # torch has no class of its own for memory of the processor
            raise
        raise ProxflowError(f"out of memory: {_out_of_memory(options)}") from error


def _out_of_memory(options: Options) -> str:
    match options:
        case Reproduce():
            return "free some on the device, or choose another --device; the same command then goes on"
        case Train() | Reflow():
            return f"lower --batch-size, now {options.training.batch_size}, or take a smaller network"
        case Times():
            return f"lower --n, now {options.n}"
        case _:
            return f"lower --batch-size, now {options.batch_size}: try --batch-size {max(1, options.batch_size // 2)}"


def say(line: str) -> None:
    """Print a line at once, also into a file or pipe; of several processes, the first one does."""
    if Processes.current().first:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


@contextmanager
def first_alone() -> Iterator[bool]:
    """A block in which only the first of several processes is to write; all of them fail where it does."""
    processes = Processes.current()
    with processes.together():
        yield processes.first


def device_of(name: DeviceName) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "--device cuda: this machine has no CUDA device that PyTorch can use; give --device cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


# sample ---------------------------------------------------------------------------------------------------------------


_FEW = 2
"""Network evaluations up to which the shipped student draws better than its teacher."""


def run_sample(options: Sample, device: torch.device) -> None:
    """Draw images and write them."""
    _check_counts(options.n, options.steps, options.batch_size)
    name = options.model if options.model is not None else "mnist-few" if options.steps <= _FEW else "mnist"
    model = models.load(name, device)
    with first_alone() as writing:
        if writing:
            imagefiles.check_output(options.out, options.n, model.shape[0])
    images = draw(model, options.n, options.steps, options.sampler, options.seed, options.batch_size, options.graph)
    with first_alone() as writing:
        if writing:
            imagefiles.write(options.out, trials.to_channels_last(images))
    at = " at the times found for them" if _found_times(model, options.sampler, options.steps) else ""
    say(f"{options.n} images, {options.steps} network evaluations each{at}: {options.out}")


def _found_times(model: Model, sampler: str | None, steps: int) -> Sequence[float] | None:
    """What the command ``times`` found for so many evaluations, if it was run."""
    return model.times_of(sampler or default_sampler(model.predictor, model.flow), steps)


def draw(
    model: Model, n: int, steps: int, sampler: str | None, seed: int, batch_size: int, graph: bool = False
) -> Tensor:
    """Sample with a progress bar: uint8 (n, channels, height, width), in every process; each of them draws its share."""
    processes = Processes.current()
    # Shares begin where batches may: sampling works in multiples of 16 images.
    mine = processes.part(n, 16)
    events = torch.zeros(0, *model.shape)
    with bar("sample", len(mine), "images") as show:
        if mine:
            events = sample(
                model.predictor,
                model.flow,
                (len(mine), *model.shape),
                nfe=steps,
                sampler=sampler,
                seed=seed,
                batch_size=batch_size,
                first=mine.start,
                times=_found_times(model, sampler, steps),
                progress=show,
                graph=graph,
            )
    return processes.gather(data.to_bytes(events), n, 16)


def _check_counts(n: int, steps: int, batch_size: int, least: int = 1) -> None:
    if n < least:
        raise ArgumentError(f"--n must be at least {least}, got {n}")
    if steps < 1:
        raise ArgumentError(f"--steps, the number of network evaluations, must be at least 1, got {steps}")
    if batch_size < 1:
        raise ArgumentError(f"--batch-size must be at least 1, got {batch_size}")


# train ----------------------------------------------------------------------------------------------------------------


_GRID_STEPS = 10
"""Network evaluations for each of the pictures drawn while training."""


def run_train(options: Train, device: torch.device) -> None:
    """Train a model, or go on with one, and say where it is."""
    _check_finite({**vars(options.training), **vars(options.network)})
    training = TrainingConfig(**vars(options.training))
    config = ModelConfig(**vars(options.network))
    teacher = None if options.teacher is None else models.load(options.teacher, device)
    worse = None if options.worse is None else models.load(options.worse, device)
    method = _method(options)
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
    learning = lesson(method, model, teacher, worse, guidance=options.guidance, adversarial=options.adversarial)
    out = options.out
    with first_alone() as writing:
        if writing:
            _claim(writable_folder(out), config, training, images, options, teacher, worse, method)
    if _steps_done(out) == training.steps:
        say(f"{out} holds this model, trained for all of its {training.steps} steps")
        _say_how_to_sample(out)
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
        "hardware": hardware(device),
        "versions": versions(),
        **({} if teacher is None else {"teacher": options.teacher, "method": method}),
        **({} if worse is None else {"worse": options.worse, "guidance": options.guidance}),
        **({"adversarial": options.adversarial} if method == "distribution-matching" else {}),
    }

    first, board = Processes.current().first, None
    if options.tensorboard and first:
        board = TensorBoard(out / "tensorboard")
    best = _held_out_loss(out / "best")
    latest = math.inf

    def track(entry: dict[str, float]) -> None:
        nonlocal latest
        latest = entry.get("held_out_loss", latest)
        if board is not None:
            board.numbers(entry)

    def keep(averaged: nn.Module, step: int) -> None:
        nonlocal best
        present = learning.kept(averaged)
        weights, origin = present.state_dict(), {**provenance, "steps": step}
        with first_alone() as writing:
            if writing:
                models.save(out, model, weights, origin)
            if writing and latest < best:
                best = latest
                models.save(out / "best", model, weights, {**origin, "held_out_loss": best})
        if options.grid and shape[0] in (1, 3):
            painter = Model(config, shape, model.flow, cast(Predictor, present))
            evaluations = 1 if method == "distribution-matching" else _GRID_STEPS
            drawn = draw(painter, options.grid, evaluations, "deterministic", training.seed, training.batch_size)
            pictures = trials.to_channels_last(drawn)
            with first_alone() as writing:
                if writing:
                    imagefiles.write(writable_folder(out / "samples") / f"step-{step:08d}.png", pictures)
            if board is not None:
                board.picture("samples", imagefiles.grid(pictures), step)
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
    with first_alone() as writing:
        if writing:
            models.save(out, model, learning.kept(result.predictor).state_dict(), {**provenance, **finished})
            remove_all(out)
    say(f"trained in {result.seconds / 60:.1f} minutes, last loss {result.losses[-1]:.4g}: {out}")
    _say_how_to_sample(out)


def _method(options: Train) -> MethodName:
    if options.adversarial != Train.adversarial and (options.teacher is None or options.worse is not None):
        raise ArgumentError("--adversarial is for distribution matching: a student of a --teacher alone")
    if options.worse is None:
        if options.guidance != Train.guidance:
            raise ArgumentError("--guidance says how far to lead away from a model, which --worse must name")
        return "flow" if options.teacher is None else "distribution-matching"
    if options.teacher is None:
        raise ArgumentError("--worse names what a student is led away from, so it needs a --teacher as well")
    return "autoguidance"


def _check_finite(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ArgumentError(f"--{name.replace('_', '-')} must be a finite number, got {value}")


def _where(device: torch.device) -> str:
    size = Processes.current().size
    return device.type if size == 1 else f"{device.type}, {size} processes"


def _held_out_loss(folder: Path) -> float:
    """The held-out loss of the model in a folder; infinite where there is none."""
    path = folder / "config.json"
    match read_json(path) if path.exists() else None:
        case {"provenance": {"held_out_loss": float(loss)}}:
            return loss
    return math.inf


def training_images(options: Train) -> tuple[Tensor, Tensor | None]:
    """uint8 images (number, channels, height, width) to train on and held-out ones, of what the options name.

    Raises:
        ArgumentError: The share to hold out is no share, or leaves nothing.
        DataError: There is nothing such, or it is corrupt.
    """
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
        images = read_images(path)
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


def read_images(path: Path) -> Tensor:
    """uint8 images (number, channels, height, width) of an ``.npz`` file or a folder of PNG files."""
    return torch.from_numpy(imagefiles.read(path)).permute(0, 3, 1, 2).contiguous()


def _claim(
    out: Path,
    config: ModelConfig,
    training: TrainingConfig,
    images: Tensor,
    options: Train,
    teacher: Model | None,
    worse: Model | None,
    method: MethodName,
) -> None:
    """Write down what a folder is for, or refuse one that is for something else."""
    wanted = {
        **to_dict(config),
        **training.decisive(),
        "held_out": options.held_out,
        "data": f"sha256 {hashlib.sha256(images.numpy().tobytes()).hexdigest()}, shape {list(images.shape)}",
        "teacher": None if teacher is None else digest(teacher.predictor),
        "worse": None if worse is None else digest(worse.predictor),
        "guidance": None if worse is None else options.guidance,
        "adversarial": options.adversarial if method == "distribution-matching" else None,
    }
    # What was added later had its default.
    later = {"held_out": 0.0, "teacher": None, "worse": None, "guidance": None, "adversarial": None}
    defaults = {**to_dict(ModelConfig()), **to_dict(TrainingConfig()), **later}
    claim_folder(out, wanted, defaults, "training")


def _steps_done(folder: Path) -> int | None:
    """Steps that the model in a folder was trained for; ``None`` where there is no model yet."""
    path = folder / "config.json"
    match read_json(path) if path.exists() else None:
        case {"provenance": {"steps": int(steps)}}:
            return steps
    return None


def _say_how_to_sample(folder: Path) -> None:
    say(f"draw from it: proxflow sample {folder}")


# reflow ---------------------------------------------------------------------------------------------------------------


def run_reflow(options: Reflow, device: torch.device) -> None:
    """Straighten a model's paths, or go on with it."""
    _check_finite(vars(options.training))
    training = TrainingConfig(**vars(options.training))
    straightened = reflow(
        models.load(options.model, device),
        training,
        options.out,
        rounds=options.rounds,
        pairs=options.pairs,
        pair_nfe=options.pair_steps,
        sampler=options.pair_sampler,
        source=options.model,
        device=device,
        provenance={"hardware": hardware(device), "versions": versions()},
        say=say,
    )
    passes = straightened.provenance["reflow"]["network_passes"]
    say(f"straightened in {options.rounds} rounds, {sum(passes.values()):,} network passes: {options.out}")
    _say_how_to_sample(options.out)


# times ----------------------------------------------------------------------------------------------------------------


def run_times(options: Times, device: torch.device) -> None:
    """Find times of evaluations and keep them with the model."""
    if Processes.current().size > 1:
        raise ArgumentError("times runs on one process: start it without torchrun")
    if not options.steps or min(options.steps) < 1:
        raise ArgumentError(f"--steps, the numbers of network evaluations, must be at least 1, got {options.steps}")
    if options.n < 1:
        raise ArgumentError(f"--n must be at least 1, got {options.n}")
    model = models.load(options.model, device)
    if options.out is None and options.model in models.shipped_models():
        raise ArgumentError(
            f"{options.model} comes with the package, which stays as it is: give --out, a folder for it with its times"
        )
    folder = writable_folder(Path(options.model) if options.out is None else options.out)
    sampler, shape = options.sampler or default_sampler(model.predictor, model.flow), (options.n, *model.shape)
    reference, found = None, dict(model.times.get(sampler, {}))
    say(f"times: {sampler}, {options.n} images against {REFERENCE_STEPS} evaluations each")
    for steps in options.steps:
        best = optimise_times(
            model.predictor, model.flow, shape, steps, sampler=sampler, seed=options.seed, reference=reference
        )
        reference, found[steps] = best.reference, best.times
        say(
            f"{steps} evaluations: {best.error_before:.4f} from the reference before, {best.error:.4f} now; "
            f"{best.evaluations:,} network evaluations"
        )
        # Each at once, so that an interruption loses one at most.
        better = replace(model, times={**model.times, sampler: found})
        models.save(folder, better, model.predictor.state_dict(), model.provenance)
    say(f"written: {folder}; sample and evaluate take them with --sampler {sampler} and these --steps")


# evaluate -------------------------------------------------------------------------------------------------------------

LEAST = 4
"""Images that precision and recall need: more than the three neighbours of their manifolds."""


def run_evaluate(options: Evaluate, device: torch.device) -> None:
    """Score images against the test images, print and write the numbers."""
    n = options.n if options.n is not None else 1000
    _check_counts(n, options.steps, options.batch_size, LEAST)
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
        held = {"cells": [*records.values()], "hardware": hardware(device), "versions": versions()}
        write_json(options.out, held)
        say(f"written: {options.out}")


def _extractor(
    options: Evaluate, recognised: str | None, shape: tuple[int, ...], device: torch.device
) -> metrics.FeatureExtractor:
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
    """The data set whose classifier finds classes: that of the images, whatever features are compared."""
    if recognised is not None:
        return recognised
    return options.extractor if options.extractor in metrics.CLASSIFIERS else "mnist"


def _images_source(path: Path, options: Evaluate) -> tuple[scoreboard.Source, int, tuple[int, ...]]:
    whole = read_images(path)
    labels = imagefiles.read_labels(path, len(whole))
    images = whole[: options.n]
    if len(images) < LEAST:
        raise ArgumentError(f"{path}: evaluation needs at least {LEAST} images, got {len(images)}")
    shape = tuple(images.shape[1:])
    if labels is not None and shape != metrics.mnist_features().image_shape:
        labels = None  # the classifiers that could sort them are of such images
    origin = {"flow": None, "sampler": None, "nfe": None, "images": str(path)}
    held = None if labels is None else torch.from_numpy(labels)[: len(images)]
    return scoreboard.Source(str(path), lambda: images, held, origin), len(images), shape


def _model_source(model: Model, name: str, n: int, options: Evaluate) -> scoreboard.Source:
    sampler = options.sampler or default_sampler(model.predictor, model.flow)
    origin: dict[str, Any] = {"flow": model.config.flow, "sampler": sampler, "nfe": options.steps, "model": name}
    if times := _found_times(model, sampler, options.steps):
        origin["times"] = list(times)
    title = f"{name} ({model.config.flow}), {sampler}, {options.steps} evaluations, seed {options.seed}"
    return scoreboard.Source(
        title,
        lambda: draw(model, n, options.steps, sampler, options.seed, options.batch_size, options.graph),
        None,
        origin,
    )


# reproduce ------------------------------------------------------------------------------------------------------------


def run_reproduce(options: Reproduce, device: torch.device) -> None:
    """Run an experiment, or what is missing of it, and write the report."""
    if Processes.current().size > 1:
        raise ArgumentError(
            "reproduce runs on one process: start it without torchrun; train, sample and evaluate run on many"
        )
    presets = EXPERIMENTS[options.experiment]
    if options.preset not in presets:
        raise ArgumentError(
            f"{options.experiment} has the presets {' and '.join(presets)}, got --preset {options.preset}"
        )
    name = f"{options.experiment}-{options.preset}"
    if options.data != "mnist":
        name += f"-{Path(options.data).name}"
    out = options.out if options.out is not None else Path("runs") / name
    writable_folder(out)
    say(
        f"{options.experiment}, {options.preset}: {presets[options.preset].minutes}; running on {device.type}, into {out}"
    )
    say("interrupt with Ctrl-C at any time: the same command goes on where it stopped")
    study, preset = trials.find(options.experiment), presets[options.preset].counted_from(options.seed)
    results = trials.reproduce(study, options.preset, preset, out, device, say, options.data)
    files = trials.write_report(out, device)
    pages.show(study.outcome(results))
    for path in (out / "results.json", *(file for file in files if file.suffix in (".md", ".html"))):
        say(f"written: {path}")
