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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.config import TrainingConfig
from proxflow.data.images import to_range
from proxflow.errors import ArgumentError, MemoryLimitError
from proxflow.examples import Examples, check_condition, moved, rows
from proxflow.flows import draw_times
from proxflow.random import BatchRows
from proxflow.runtime.machine import out_of_memory
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
from proxflow.training.objectives import Objective
from proxflow.training.run import LOG_WINDOW, Run

Encode = Callable[[Tensor], Tensor]
"""A map from a batch of stored data to the form that the flow's beliefs are about."""


HELD_OUT = 1024
"""Most held-out examples that the loss of a checkpoint is measured on."""

_HELD_OUT_KEY, _NOISE_KEY = 2**62, 2**61
"""Numbers in place of a step in the seeds of the held-out loss and of the noise, larger than any step."""

_AGREE = 10
"""Steps between the moments at which several processes agree whether one of them has a stop signal."""


@dataclass(frozen=True)
class Result:
    """Result of training.

    Args:
        predictor: The predictor with averaged (EMA) weights, in evaluation mode.
        losses: Mean training loss over each log window of 50 steps.
        seconds: Time spent training, interrupted runs included.
        skipped: Steps that the non-finite guard skipped: their loss or gradient was not finite.
    """

    predictor: nn.Module
    losses: list[float]
    seconds: float
    skipped: int = 0


def fit(
    predictor: nn.Module,
    flow: Objective,
    data: Tensor | Examples,
    config: TrainingConfig,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    label: str = "train",
    held_out: Tensor | Examples | None = None,
    encode: Encode | None = None,
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
    track: Callable[[dict[str, float]], None] | None = None,
) -> Result:
    """Train a predictor on a flow.

    Under torchrun, or in any initialised process group, the processes share the batch of each step. Each calls this with
    the same arguments.

    Args:
        predictor: Trained in place; an averaged copy is returned. If it has a method ``parameter_groups``, this gives
            AdamW's groups, with ``factor`` for that of the learning rate; the gradient of each group is clipped by itself.
        flow: The flow, which has training beliefs and loss; or another objective, see :mod:`proxflow.training.objectives`.
        data: Training data (number, *event), alone or as :class:`proxflow.Examples` with conditions and given prior draws:
            uint8 images, real numbers or int64 class indices.
        config: How to train.
        folder: Where checkpoints are kept, see :mod:`proxflow.runtime.checkpoints`. If it holds checkpoints of the same
            configuration, training resumes from the newest. ``None`` keeps nothing on disk.
        device: Where to train.
        label: Name shown beside the progress bar.
        held_out: Examples that are not trained on, of the form of ``data``. The averaged predictor's loss on them, measured
            at each checkpoint, decides which checkpoint is the best; without them the training loss does.
        encode: Map from a batch of ``data`` to the form that the flow's beliefs are about, as that of a kind of data;
            ``None`` scales uint8 to [-1, 1] and leaves other data unchanged.
        on_checkpoint: Called with the averaged predictor and the number of steps done, after each checkpoint.
        track: Called with numbers by name, ``step`` among them, each 50 steps and at each checkpoint.

    Returns:
        The averaged predictor and the history of the loss.

    Raises:
        ArgumentError: Data of the wrong type or shape, or with values that are not finite; conditions that the network does
            not know; a batch too small for the processes.
        CheckpointError: The folder's checkpoint is corrupt or of another configuration.
        DivergedError: More than ``skip_limit`` of 50 steps had a loss or gradient that is not finite. Such steps are
            skipped, so the weights are those of the last good step.
        MemoryLimitError: Memory ran out; the message names sizes to try.
        OutputError: The folder cannot be written. Earlier checkpoints are still good.
        KeyboardInterrupt: On SIGINT, after a checkpoint was written.
        SystemExit: On SIGTERM, likewise, with status 143.
    """
    data = _checked(data, "training")
    if held_out is not None:
        held_out = _checked(held_out, "held-out")
    for examples in (data, held_out):
        if examples is not None:
            check_condition(predictor, examples.condition, len(examples))
    encode = _scaled if encode is None else encode
    processes, device = Processes.current(), torch.device(device)
    parts = _parts(config, processes)
    if held_out is not None and len(held_out) < processes.size:
        raise ArgumentError(f"{len(held_out)} held-out examples are too few for {processes.size} processes")

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
    run = Run(predictor, averaged, optimiser, config, folder, processes, track)
    run.resume()
    if config.compile:
        # CUDA graphs, as the kernels of a small network take less time than their launches.
        predictor.compile(mode="reduce-overhead" if device.type == "cuda" and processes.size == 1 else None)

    average = _averaging(averaged, predictor)
    data, order = data.to(device), _Order(len(data), config, device)
    generator, source, size = torch.Generator(device), torch.Generator(device), config.batch_size
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")

    def total_loss(network: nn.Module, source_of: Examples, at: Any, t: Tensor, key: int, part: range) -> Tensor:
        source.manual_seed(_mix(key, _NOISE_KEY))
        noise = source if len(part) == len(t) else BatchRows(source, len(t), part)
        x = encode(source_of.x[at].to(device))
        told: dict[str, Any] = {name: moved(rows(value, at), device) for name, value in source_of.told()}
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            total = flow.loss(network, x, noise, t[part.start : part.stop], **told).float().sum()
        if bf16:
            torch.clear_autocast_cache()  # casts of the weights, which are of this step alone
        return total

    @torch.no_grad()
    def held_out_loss() -> float | None:
        if held_out is None:
            return None
        number = min(len(held_out), HELD_OUT) // processes.size * processes.size
        key = _mix(config.seed, _HELD_OUT_KEY)
        t, total = draw_times(number, generator.manual_seed(key), device), torch.zeros((), device=device)
        for part in _split(processes.part(number), -(-number // processes.size // len(parts[0]))):
            total += total_loss(averaged, held_out, slice(part.start, part.stop), t, key, part)
        return float(processes.add_up(total)) / number

    with (
        bar(label, config.steps * size, "images", run.step * size) as show,
        _signals() as stop_signal,
        _memory(config, parts),
        # The configuration's precision holds, not a caller's autocast, within which casts would outlive the inner contexts.
        torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext(),
    ):
        while run.step < config.steps:
            key = _mix(config.seed, run.step)
            indices, t = order(run.step), draw_times(size, generator.manual_seed(key), device)
            rate = learning_rate(run.step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
                for parameter in group["params"]:  # like the optimiser's zero_grad, without its profiling
                    parameter.grad = None
            shares: list[Tensor] = []
            for number, part in enumerate(parts):
                if config.compile:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                _seed_dropout(_mix(key, processes.rank * len(parts) + number), device)
                with no_sync(model, last=number == len(parts) - 1):
                    total = total_loss(model, data, indices[part.start : part.stop], t, key, part)
                    # Scaled so that the average over processes is the gradient of the mean over the whole batch.
                    share = total / (size / processes.size)
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
                if on_checkpoint is not None:
                    on_checkpoint(plain_copy(averaged, unsharded).to(device) if sharded else averaged, run.step)
            if processes.size == 1 or run.step % _AGREE == 0:
                stop = processes.any(stop_signal.number is not None)
                if stop:
                    run.save(None)
                    raise KeyboardInterrupt if stop_signal.number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    return Result(
        plain_copy(averaged, unsharded).to(device) if sharded else averaged, run.losses, run.seconds, run.skipped
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up to the peak, then half a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _groups(predictor: nn.Module) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups, each clipped by itself; ``factor`` scales the learning rate."""
    own = getattr(predictor, "parameter_groups", None)
    groups: list[dict[str, Any]] = [{"params": list(predictor.parameters())}] if own is None else own()
    return [{"factor": 1.0, **group} for group in groups]


def _averaging(averaged: nn.Module, predictor: nn.Module) -> Callable[[float], None]:
    """Return the function of the decay that moves the averaged weights toward the predictor's."""
    # Collected once: a walk through all modules in each step would take longer than the averaging.
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


def _mix(seed: int, step: int) -> int:
    """Return a seed for one step. With seed + step instead, runs with neighbouring seeds would share random numbers."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed torch's global generators for dropout, which takes no generator; ``torch.manual_seed`` is slower."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _checked(given: Tensor | Examples, which: str) -> Examples:
    """Return data as examples, and refuse data that cannot be trained on."""
    if not isinstance(given, Tensor | Examples):
        raise ArgumentError(
            f"{which} data are a tensor (number, *event) or proxflow.Examples, got {type(given).__name__}: of an array "
            "torch.from_numpy makes a tensor"
        )
    data = given.x if isinstance(given, Examples) else given
    if data.ndim < 2 or len(data) == 0 or not (data.is_floating_point() or data.dtype in (torch.uint8, torch.int64)):
        raise ArgumentError(
            f"{which} data must be a non-empty tensor (number, *event) of uint8 images, real numbers or int64 classes, "
            f"got {data.dtype} {tuple(data.shape)}"
        )
    if data.is_floating_point() and not data.isfinite().all():
        bad = int((~data.isfinite()).flatten(1).any(1).sum())
        raise ArgumentError(f"{bad} of {len(data)} {which} examples hold NaN or infinite values: remove or mend them")
    return given if isinstance(given, Examples) else Examples(data)


def _parts(config: TrainingConfig, processes: Processes) -> list[range]:
    """Return the parts of a batch that this process works through, one after the other."""
    if config.batch_size < processes.size * config.accumulate:
        raise ArgumentError(
            f"a batch of {config.batch_size} is too small for {processes.size} processes of {config.accumulate} parts "
            "each: raise batch_size"
        )
    return _split(processes.part(config.batch_size), config.accumulate)


def _split(indices: range, number: int) -> list[range]:
    return [indices[len(indices) * k // number : len(indices) * (k + 1) // number] for k in range(number)]


def _scaled(batch: Tensor) -> Tensor:
    return to_range(batch) if batch.dtype == torch.uint8 else batch


@dataclass
class _StopSignal:
    """What signal the process was sent."""

    number: int | None = None


@contextmanager
def _signals() -> Iterator[_StopSignal]:
    """Note SIGTERM and SIGINT instead of dying of them at once; a second one acts as usual."""
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
    """Raise a :class:`MemoryLimitError` that names sizes to try when memory runs out."""
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


class _Order:
    """Indices of the examples of a step: epoch after epoch, each a permutation from (seed, epoch)."""

    def __init__(self, number: int, config: TrainingConfig, device: torch.device) -> None:
        self.number, self.config, self.device = number, config, device
        self.epochs: dict[int, Tensor] = {}  # on the device, so that steps do not wait for transfers

    def __call__(self, step: int) -> Tensor:
        start, stop = step * self.config.batch_size, (step + 1) * self.config.batch_size
        first, last = start // self.number, (stop - 1) // self.number
        for epoch in range(first, last + 1):
            if epoch not in self.epochs:
                generator = torch.Generator().manual_seed(_mix(self.config.seed, -1 - epoch))
                self.epochs = {known: order for known, order in self.epochs.items() if known >= first}
                self.epochs[epoch] = torch.randperm(self.number, generator=generator).to(self.device)
        joined = (
            torch.cat([self.epochs[epoch] for epoch in range(first, last + 1)]) if last > first else self.epochs[first]
        )
        return joined[start - first * self.number : stop - first * self.number]
