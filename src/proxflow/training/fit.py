"""Training: one resumable loop from data to averaged weights, on one process or many.

All randomness of step k follows from (seed, k), and the noise of an example from (seed, k, its index in the batch). So
resumed runs, and runs on several processes, draw the same as one uninterrupted process.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.config import TrainingConfig
from proxflow.data.augment import Augmentation
from proxflow.errors import ArgumentError, MemoryLimitError
from proxflow.examples import AnyExamples, Examples, LazyExamples, check_condition, examples_of, moved, rows
from proxflow.flows import Flow, as_real, draw_times
from proxflow.paths import check_path
from proxflow.random import BatchRows, mix
from proxflow.runtime.machine import out_of_memory, usable_device
from proxflow.runtime.processes import (
    Processes,
    broadcast_weights,
    distribute,
    local,
    no_sync,
    plain_copy,
    shard,
    whole,
)
from proxflow.runtime.progress import bar
from proxflow.training.feed import Order, feeding
from proxflow.training.objectives import Objective
from proxflow.training.run import LOG_WINDOW, Run, RunFolder, fingerprint

Encode = Callable[[Tensor], Tensor]
"""A map from a batch of stored data to the encoded form, which the flow's beliefs describe."""


HELD_OUT = 1024
"""Most held-out examples for the loss of a checkpoint."""

_HELD_OUT_KEY, _NOISE_KEY = 2**62, 2**61
"""Keys that replace the step in the seeds of the held-out loss and of the noise, larger than any step."""

_FAR = 11.0
"""Largest ratio between the standard deviations of the data and of the flow's prior, either way."""

_MOMENTS_OF = 10_000
"""Most examples, evenly spaced, from which mean and standard deviation of the data are computed."""

_MOST_NUMBERS = 2**27
"""Most numbers in these examples, as large images may not fit into memory."""

_AGREE = 10
"""Steps between checks of all processes whether one of them received a stop signal."""


@dataclass(frozen=True)
class Result:
    """Result of training.

    Args:
        predictor: The predictor with averaged (EMA) weights, in evaluation mode.
        losses: Mean training loss over each log window of 50 steps.
        seconds: Time spent training, interrupted runs included.
        skipped: Steps that the non-finite guard skipped: their loss or gradient was not finite.
        left_out: Names of examples that could not be read since training started or resumed, with the reason; the next
            ones took their place.
        sessions: For each start or resumption of training, its first step and its environment: versions, threads,
            device, processes.
        stages: Changes of the number of steps, the batch size or the learning rate: the step, and the settings from
            there on.
    """

    predictor: nn.Module
    losses: list[float]
    seconds: float
    skipped: int = 0
    left_out: tuple[str, ...] = ()
    sessions: tuple[dict[str, Any], ...] = ()
    stages: tuple[dict[str, Any], ...] = ()


def fit(
    predictor: nn.Module,
    flow: Objective,
    data: Any,
    config: TrainingConfig,
    *,
    folder: Path | str | None = None,
    device: torch.device | str = "cpu",
    label: str = "train",
    held_out: Any = None,
    encode: Encode | None = None,
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
    track: Callable[[dict[str, float]], None] | None = None,
) -> Result:
    """Train a predictor on a flow.

    Under torchrun, or in any initialised process group, the processes share the batch of each step. Each must call this
    with the same arguments.

    Args:
        predictor: Trained in place; an averaged copy is returned. If it has a method ``parameter_groups``, this returns
            AdamW's groups, with ``factor`` scaling the learning rate; the gradient of each group is clipped separately.
        flow: The flow, with its default loss; or another objective, see :mod:`proxflow.training.objectives`.
        data: Training data (number, *event): uint8 images, real numbers, or class indices. A tensor, an array, a
            map-style data set or a ``DataLoader`` of one (see :func:`proxflow.examples.examples_of`), or
            :class:`proxflow.Examples` with conditions and given prior draws. Real numbers are converted to the
            precision of the network's weights. A data set that does not fit into a quarter of the free memory, or is
            random, is read as needed (:class:`proxflow.examples.LazyExamples`), with the same result for any number of
            ``config.workers``.
        config: How to train.
        folder: Folder of checkpoints, see :mod:`proxflow.runtime.checkpoints`. If it holds checkpoints of the same
            data, flow, predictor and configuration, training resumes from the newest; ``steps``, ``batch_size`` and
            ``learning_rate`` may differ from before, and apply from there on. ``None`` saves nothing.
        device: Where to train.
        label: Label of the progress bar.
        held_out: Held-out examples, of the form of ``data``, or of its augmented form with ``config.augment``. The
            averaged predictor's loss on them at each checkpoint decides which checkpoint is the best; without them the
            training loss does.
        encode: Map from a batch of ``data`` to the encoded form, as of a kind of data; ``None`` takes the flow's own
            (:meth:`proxflow.Flow.encode`), which scales uint8 to [-1, 1] for real data.
        on_checkpoint: Called with the averaged predictor and the number of steps done, after each checkpoint, and again
            for one that training resumes from, as the first call may not have finished.
        track: Called with numbers by name, including ``step``, every 50 steps and at each checkpoint.

    Returns:
        The averaged predictor and the history of the loss.

    Raises:
        ArgumentError: Data of the wrong type or shape, out of range or not finite, or of a mean or scale so far from
            the flow's prior that samples would miss them; conditions that the network does not read; a batch too small
            for the processes.
        DataError: More than a hundredth of the examples of a data set cannot be read.
        CheckpointError: The folder's checkpoint is corrupt, or of other data, another flow, predictor or configuration; the
            message names what differs.
        DivergedError: More than ``skip_limit`` of 50 steps had a loss or gradient that is not finite. Such steps are
            skipped, so the weights are those of the last good step.
        MemoryLimitError: Memory ran out; the message suggests sizes to try.
        OutputError: The folder cannot be written, or another process uses it. Earlier checkpoints stay valid.
        KeyboardInterrupt: On SIGINT, after a checkpoint was written.
        SystemExit: On SIGTERM, likewise, with status 143.
    """
    if not isinstance(predictor, nn.Module) or not hasattr(flow, "loss"):
        raise ArgumentError(
            f"fit takes a predictor, a module, and then a flow or another objective, got {type(predictor).__name__} and "
            f"{type(flow).__name__}"
        )
    if not any(p.requires_grad for p in predictor.parameters()):
        raise ArgumentError(
            f"{type(predictor).__name__} has no weights to train: give its network some that are not frozen"
        )
    data = _checked(data, "training", config.workers)
    if held_out is not None:
        held_out = _checked(held_out, "held-out", config.workers)
    about = flow if isinstance(flow, Flow) else getattr(flow, "flow", None)
    check_path(predictor, about)
    if encode is None:
        encode = about.encode if isinstance(about, Flow) else as_real
    for examples in (data, held_out):
        if examples is not None:
            check_condition(predictor, examples.condition, len(examples))
            if isinstance(about, Flow):
                _refuse_unfit(about, examples, encode)
    augmentation = Augmentation.of(config.augment)
    augmentation.check(data.some(1))
    if held_out is not None:
        augmentation.whole(held_out.some(1))
    if isinstance(about, Flow):
        _refuse_far(about, data, encode)  # there may be too few held-out examples for moments
    _fit_moments(predictor, data, encode)
    folder = None if folder is None else Path(folder)
    with nullcontext() if folder is None else RunFolder(folder).alone():
        return _fit(
            predictor, flow, data, config, folder, usable_device(device), label, held_out, encode, on_checkpoint, track
        )


def _fit(
    predictor: nn.Module,
    flow: Objective,
    data: AnyExamples,
    config: TrainingConfig,
    folder: Path | None,
    device: torch.device,
    label: str,
    held_out: AnyExamples | None,
    encode: Encode,
    on_checkpoint: Callable[[nn.Module, int], None] | None,
    track: Callable[[dict[str, float]], None] | None,
) -> Result:
    """Train on checked data; see :func:`fit`."""
    processes = Processes.current()
    parts = _parts(config, processes)

    # Before the network is sharded, which changes the classes of its modules.
    made_of = {} if folder is None else fingerprint(predictor, flow, data, held_out)
    learnt = [p.requires_grad for p in predictor.parameters()]
    predictor.to(device).train()
    broadcast_weights(predictor, processes)
    averaged = copy.deepcopy(predictor).eval().requires_grad_(False)
    sharded = config.parallel == "fsdp" and processes.size > 1
    unsharded = copy.deepcopy(averaged).cpu() if sharded else averaged  # the form in which weights are returned
    model = distribute(predictor, config.parallel, processes, device)
    if sharded:
        shard(averaged, processes, device)
    optimiser = torch.optim.AdamW(
        _groups(predictor), config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    run = Run(predictor, averaged, optimiser, config, folder, processes, track, made_of)
    run.resume()
    run.begin(device)
    if config.compile:
        # CUDA graphs, as the kernels of a small network take less time than their launches.
        predictor.compile(mode="reduce-overhead" if device.type == "cuda" and processes.size == 1 else None)

    def checkpointed() -> None:
        if on_checkpoint is not None:
            on_checkpoint(plain_copy(averaged, unsharded).to(device) if sharded else averaged, run.step)

    if run.saved and (run.saved % config.checkpoint_every == 0 or run.saved == config.steps):
        checkpointed()
    average = _averaging(averaged, predictor)
    order, measured = Order(len(data), config, run.stage), held_out
    if isinstance(measured, LazyExamples):
        measured, left_out = measured.take(torch.arange(min(len(measured), HELD_OUT)))
        run.leave_out(left_out, len(data))
    augmentation = Augmentation.of(config.augment)
    if measured is not None and augmentation.taken is not None:
        measured = measured[:HELD_OUT]
        measured = replace(measured, x=augmentation.whole(measured.x))
    generator, source, size = torch.Generator(device), torch.Generator(device), config.batch_size
    precision = next((p.dtype for p in predictor.parameters() if p.is_floating_point()), torch.float32)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")

    def total_loss(network: nn.Module, source_of: Examples, at: Any, t: Tensor, key: int, part: range) -> Tensor:
        source.manual_seed(mix(key, _NOISE_KEY))
        noise = source if len(part) == len(t) else BatchRows(source, len(t), part)
        x = encode(source_of.x[at].to(device))
        if x.is_floating_point():
            x = x.to(torch.promote_types(precision, torch.float32))
        told: dict[str, Any] = {name: moved(rows(value, at), device) for name, value in source_of.told()}
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            total = flow.loss(network, x, noise, t[part.start : part.stop], **told).float().sum()
        if bf16:
            torch.clear_autocast_cache()  # casts of the weights are only valid for this step
        return total

    @torch.no_grad()
    def held_out_loss() -> float | None:
        if measured is None:
            return None
        number = min(len(measured), HELD_OUT)
        key = mix(config.seed, _HELD_OUT_KEY)
        t, total = draw_times(number, generator.manual_seed(key), device), torch.zeros((), device=device)
        at_once = config.batch_size // processes.size // config.accumulate
        # Every process makes as many calls, as sharded weights are gathered jointly: without rows left, on the first.
        for part in _split(processes.part(number), -(-number // (processes.size * at_once))):
            taken = part or range(1)
            found = total_loss(averaged, measured, slice(taken.start, taken.stop), t, key, taken)
            if part:
                total += found
        return float(processes.add_up(total)) / number

    with (
        bar(label, config.steps * size, "images", run.step * size) as show,
        _signals() as stop_signal,
        _memory(config, parts),
        feeding(data, order, parts, config, device, run) as feed,
        # The configuration's precision applies, not a caller's autocast, whose casts would outlive the inner contexts.
        torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext(),
    ):
        while run.step < config.steps:
            key = mix(config.seed, run.step)
            t = draw_times(size, generator.manual_seed(key), device)
            rate = learning_rate(run.step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
                for parameter in group["params"]:  # like the optimiser's zero_grad, without its profiling
                    parameter.grad = None
            shares: list[Tensor] = []
            for number, part in enumerate(parts):
                if config.compile:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                examples, at = feed(run.step, number)
                _seed_dropout(mix(key, processes.rank * len(parts) + number), device)
                with no_sync(model, last=number == len(parts) - 1):
                    total = total_loss(model, examples, at, t, key, part)
                    # Scaled so that the average over processes is the gradient of the mean over the whole batch.
                    share = total / (size / processes.size)
                    if not share.requires_grad:
                        raise ArgumentError(
                            "the loss does not depend on any weight that is trained: the network's forward must neither "
                            "detach what it returns nor compute it under torch.no_grad"
                        )
                    share.backward()  # type: ignore[no-untyped-call]
                shares.append(share.detach())
            loss = processes.average(sum(shares[1:], start=shares[0]))
            norms = [whole(nn.utils.clip_grad_norm_(group["params"], config.clip)) for group in optimiser.param_groups]
            norm = torch.stack(norms).sum() if len(norms) > 1 else norms[0]
            optimiser.found_inf = run.guard(loss, norm)  # type: ignore[attr-defined]  # then step() changes nothing
            optimiser.step()
            average(min(config.ema, (1 + run.step) / (10 + run.step)))
            run.step += 1

            last = run.step == config.steps
            if run.step % LOG_WINDOW == 0 or last:
                run.close_window(rate)
                show(run.step * size)
            if run.step % config.checkpoint_every == 0 or last:
                run.save(held_out_loss())
                checkpointed()
            if processes.size == 1 or run.step % _AGREE == 0:
                stop = processes.any(stop_signal.number is not None)
                if stop:
                    run.save(None)
                    raise KeyboardInterrupt if stop_signal.number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    returned = plain_copy(averaged, unsharded).to(device) if sharded else averaged
    for parameter, learns in zip(returned.parameters(), learnt, strict=True):  # so that it may be trained further
        parameter.requires_grad_(learns)
    return Result(
        returned, run.losses, run.seconds, run.skipped,
        tuple(run.left_out.values()), tuple(run.sessions), tuple(map(asdict, run.stages)),
    )  # fmt: skip


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up to the peak, then cosine decay to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _groups(predictor: nn.Module) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups, each clipped separately; ``factor`` scales the learning rate."""
    own = getattr(predictor, "parameter_groups", None)
    groups: list[dict[str, Any]] = [{"params": list(predictor.parameters())}] if own is None else own()
    return [{"factor": 1.0, **group} for group in groups]


def _averaging(averaged: nn.Module, predictor: nn.Module) -> Callable[[float], None]:
    """Return a function of the decay that updates the averaged weights."""
    # Collected once: traversing all modules at each step would take longer than the averaging.
    means: list[Tensor] = list(averaged.parameters())
    values: list[Tensor] = list(predictor.parameters())
    buffers = list(zip(averaged.buffers(), predictor.buffers(), strict=True))
    sharded = any(local(mean) is not mean for mean in means)

    @torch.no_grad()
    def average(decay: float) -> None:
        own, new = (list(map(local, tensors)) if sharded else tensors for tensors in (means, values))
        torch._foreach_lerp_(own, new, 1 - decay)
        for mean, value in buffers:
            mean.copy_(value)

    return average


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed torch's global generators for dropout, which takes no generator; ``torch.manual_seed`` is slower."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _checked(given: Any, which: str, workers: int | None) -> AnyExamples:
    """Return data as examples, and refuse data that cannot be trained on."""
    examples = examples_of(given, which, workers)
    data = examples.some(2) if isinstance(examples, LazyExamples) else examples.x
    if data.ndim < 2 or data.numel() == 0 or data.is_complex() or data.is_sparse:
        raise ArgumentError(
            f"{which} data must be a non-empty tensor (number, *event) of uint8 images, real numbers or class indices, got "
            f"{data.dtype} {tuple(data.shape)}"
        )
    if data.is_floating_point() and not data.isfinite().all():
        bad = int((~data.isfinite()).flatten(1).any(1).sum())
        raise ArgumentError(f"{bad} of {len(data)} {which} examples hold NaN or infinite values: remove or mend them")
    return examples


def _spaced(data: AnyExamples) -> Tensor:
    most = min(_MOMENTS_OF, _MOST_NUMBERS // max(1, data.some(1).numel()))
    step = -(-len(data) // max(1, most))
    return data.take(torch.arange(0, len(data), step))[0].x if isinstance(data, LazyExamples) else data.x[::step]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column or channel of real data (number, channels, …), in float64."""
    x = x.double().movedim(1, 0).flatten(1)
    return x.mean(1), x.std(1, correction=0)


def _fit_moments(predictor: nn.Module, data: AnyExamples, encode: Encode) -> None:
    """Set mean and standard deviation of the data in a predictor that needs them."""
    fit_to = getattr(predictor, "fit_to", None)
    if fit_to is not None and getattr(predictor, "asks_moments", False):
        mean, std = _moments(encode(_spaced(data)))
        fit_to(mean.tolist(), std.tolist())


def _refuse_unfit(flow: Flow[Any], data: AnyExamples, encode: Encode) -> None:
    """Refuse data that the flow does not accept."""
    stored, real = data.some(1) if isinstance(data, LazyExamples) else data.x, flow.path is not None
    if not (real and stored.dtype == torch.uint8):  # the range of pixels is known from their type
        flow.check(encode(stored[:1] if real else stored))  # for classes every value is checked


def _refuse_far(flow: Flow[Any], data: AnyExamples, encode: Encode) -> None:
    """Refuse data whose mean or scale is so far from a flow's prior that samples would miss them.

    With a prior of standard deviation 1 and 20 evaluations, exact predictions give samples of 0.9 to 1 times the data's
    standard deviation if this is from a tenth to ten times the prior's; beyond that soon only a fraction of it.
    """
    if data.some(1).dtype == torch.uint8 or flow.path is None:  # pixels have a range
        return
    x = encode(_spaced(data))
    place, scale = 0.0, 1.0
    if not flow.begins_normal:
        generator, cpu = torch.Generator("cpu").manual_seed(0), torch.device("cpu")
        began = flow.prior((1024, *x.shape[1:]), generator, torch.float32, cpu).mean
        place, scale = float(began.mean()), float(began.std())
    for column, (mean, std) in enumerate(zip(*(moment.tolist() for moment in _moments(x)), strict=True)):
        far = abs(mean - place) > _FAR * 10 * max(scale, std)
        if far or (std > 0 and not scale / _FAR < std < scale * _FAR):
            remedy = (
                "bring the data to mean 0 and standard deviation 1, as proxflow.build(data).fit(data) does and undoes for "
                "its samples"
            )
            if data.start is not None:
                remedy = "if a model drew the data, as reflow does, train it for longer first; else " + remedy
            raise ArgumentError(
                f"column or channel {column} of the data has mean {mean:.4g} and standard deviation {std:.4g}, and the flow "
                f"begins at {place:.2g} ± {scale:.2g}, too far to sample well: {remedy}"
            )


def _parts(config: TrainingConfig, processes: Processes) -> list[range]:
    """Return the parts of a batch that this process computes, one after the other."""
    if config.batch_size < processes.size * config.accumulate:
        raise ArgumentError(
            f"a batch of {config.batch_size} is too small for {processes.size} processes of {config.accumulate} parts "
            "each: raise batch_size"
        )
    return _split(processes.part(config.batch_size), config.accumulate)


def _split(indices: range, number: int) -> list[range]:
    return [indices[len(indices) * k // number : len(indices) * (k + 1) // number] for k in range(number)]


@dataclass
class _StopSignal:
    """The signal that the process received."""

    number: int | None = None


@contextmanager
def _signals() -> Iterator[_StopSignal]:
    """Record SIGTERM and SIGINT instead of stopping at once; a second one acts as usual."""
    stop_signal = _StopSignal()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop_signal
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop_signal.number = number
        signal.signal(number, before[number])

    found = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop_signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _memory(config: TrainingConfig, parts: list[range]) -> Iterator[None]:
    """Raise a :class:`MemoryLimitError` that suggests sizes to try when memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        at_once = max(map(len, parts))
        if at_once == 1:
            advice = "one example at a time is too much: take a smaller network, or smaller images"
        else:
            advice = (
                f"try --accumulate {2 * config.accumulate} (accumulate in Python), which works through the same batch "
                f"{-(-at_once // 2)} at a time, or --batch-size {max(1, config.batch_size // 2)}"
            )
        raise MemoryLimitError(f"out of memory with {at_once} examples at a time: {advice}") from error
