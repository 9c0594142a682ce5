"""The samplers by name, and :func:`sample`, which uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from proxflow import names
from proxflow.errors import ArgumentError, whole_number
from proxflow.examples import Condition, as_tensor, check_condition, given, moved, of_rows, reads, rows
from proxflow.flows import Flow
from proxflow.paths import check_path
from proxflow.random import SampleStreams
from proxflow.samplers.base import Sampler, Watch

SAMPLERS: dict[str, Sampler] = {
    name: entry.load()(**entry.settings) for name, entry in names.BUILT_IN["samplers"].items()
}
"""The library's own samplers by the names of :mod:`proxflow.names`; all pass the contract tests."""


def default_sampler(predictor: nn.Module, flow: Flow[Any]) -> str:
    """Return the name of the best sampler at few evaluations for a predictor and its flow.

    It is multistep2 if beliefs follow a Gaussian path. Predictors that read the end of a step, or draw, need a sampler
    that steps toward the newest target: deterministic. So do flows without a path. If in addition all samples start
    from the same belief, only noise makes them differ: stochastic. A predictor may name its own in ``sampler``.
    """
    if (own := getattr(predictor, "sampler", None)) is not None:
        return str(own)
    asks = reads(predictor)
    if "end" in asks:
        return "deterministic"
    if "noise" in asks or flow.latent is None:
        return "stochastic" if flow.begins_fixed else "deterministic"
    return "multistep2"


def chosen(sampler: Sampler | str | None, predictor: nn.Module, flow: Flow[Any]) -> Sampler:
    """Return a sampler, given itself or by name; ``None`` gives that of :func:`default_sampler`.

    Raises:
        ArgumentError: There is no sampler of this name, or the argument is not a sampler.
    """
    sampler = default_sampler(predictor, flow) if sampler is None else sampler
    if isinstance(sampler, str):
        entry = names.find("samplers", sampler)
        sampler = SAMPLERS[sampler] if sampler in SAMPLERS else entry.load()(**entry.settings)
    if not isinstance(sampler, Sampler):
        raise ArgumentError(f"expected a sampler or the name of one, got {sampler!r:.80}")
    return sampler


def sample(
    predictor: nn.Module,
    flow: Flow[Any],
    shape: Sequence[int],
    *,
    nfe: int = 20,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    batch_size: int = 128,
    first: int = 0,
    condition: Condition | None = None,
    start: Tensor | None = None,
    times: Sequence[float] | None = None,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
    graph: bool = False,
) -> Tensor:
    """Draw samples from a trained predictor; each depends only on the seed, its index and its own condition and start.

    Args:
        predictor: A predictor; its device and precision are used. During the call it is in evaluation mode.
        flow: The flow it was trained for.
        shape: (number of samples, *event).
        nfe: Predictions per sample, ≥ 1; each is one network evaluation, or two with guidance.
        sampler: A sampler or its name in :data:`SAMPLERS`; ``None`` takes :func:`default_sampler`.
        seed: Seed of the samples.
        batch_size: Samples drawn at a time, rounded up to a multiple of 16 if it is larger. A smaller last batch is
            padded with samples that are discarded, since kernels round differently for odd batch sizes. Below 16 less
            memory is used, and samples equal those of other batch sizes up to rounding.
        first: Index of the first sample.
        condition: Condition of the samples, one row per sample.
        start: Means of the prior draws to start from, (number, *event); ``None`` draws them.
        times: Times of the evaluations, increasing from 0, as :func:`proxflow.optimise_times` finds them; ``None`` takes the
            sampler's own.
        watch: Called at each evaluation of each batch.
        progress: Called with the number of finished samples after each batch.
        graph: Whether to capture the work of a batch as a CUDA graph and replay it for each: with small networks this
            saves kernel launches. It is worth it for many batches, and takes the memory of one more.

    Returns:
        The samples (number, *event) on the predictor's device.

    Raises:
        ArgumentError: An unknown sampler, a number out of range, times that do not increase from 0, or a condition or
            start without a row for each sample; a graph without a CUDA device, with ``watch``, or of work that
            synchronises with the device.
    """
    if not isinstance(predictor, nn.Module):
        raise ArgumentError(
            f"expected a predictor, a module, got {type(predictor).__name__}: give a condition as condition="
        )
    try:
        shape, batch_size = tuple(map(index, shape)), index(batch_size)
    except TypeError:
        raise ArgumentError(
            "the number of samples, the sizes of an event and the batch size must be whole numbers, got "
            f"{tuple(shape)} and {batch_size!r}"
        ) from None
    if not shape:
        raise ArgumentError("expected the shape of the samples, (number, *event), got ()")
    for what, size in (("number of samples", shape[0]), ("batch size", batch_size), ("sizes of an event", min(shape))):
        if size < 1:
            raise ArgumentError(f"the {what} must be at least 1, got {size}")
    parameter = next((p for p in predictor.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    device, number, event = parameter.device, shape[0], tuple(shape[1:])
    check_condition(predictor, condition, number)
    if (held := getattr(predictor, "examples", None)) not in (None, number):
        raise ArgumentError(f"the predictor has observations of {held} examples, and {number} samples are asked for")
    start = as_tensor(start)
    if start is not None:
        if not isinstance(start, Tensor) or tuple(start.shape) != shape:
            found = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
            raise ArgumentError(f"start has the shape of the samples, {shape}, of finite numbers; got {found}")
        if not bool(start.isfinite().all()):
            raise ArgumentError(
                "start has the shape of the samples, of finite numbers; it holds NaN or infinite values"
            )
    nfe, seed = whole_number(nfe, "the number of network evaluations", 1), whole_number(seed, "seed")
    if graph and (device.type != "cuda" or watch is not None):
        raise ArgumentError(
            f"graph records a batch's work on a CUDA device, where no watch can look in: the predictor is on {device}"
            + (", and watch is given" if watch is not None else "")
        )
    check_path(predictor, flow)
    draw_with = chosen(sampler, predictor, flow)
    condition, start = moved(condition, device), moved(start, device)
    unit = min(batch_size, 16)
    whole = -(-batch_size // unit) * unit

    def drawn(indices: Tensor) -> Tensor:
        streams, size = SampleStreams(seed, indices, expected=nfe), len(indices)
        own = (indices - first).clamp_(max=number - 1)  # samples that pad the last batch take the last row
        return draw_with(
            given(of_rows(predictor, own), rows(condition, own)),
            flow.rows(own),
            (size, *event),
            nfe,
            streams,
            dtype=dtype,
            device=device,
            times=times,
            start=rows(start, own),
            watch=watch,
        ).events

    was_training = predictor.training
    predictor.eval()
    finished = []
    try:
        replayed = Replayed(drawn, whole, device) if graph and number >= batch_size else None
        for begin in range(0, number, whole):
            wanted = min(whole, number - begin)
            size = -(-wanted // unit) * unit
            indices = torch.arange(first + begin, first + begin + size, device=device)
            draw = replayed if replayed is not None and size == whole else drawn
            finished.append(draw(indices)[:wanted])
            if progress is not None:
                progress(begin + wanted)
    finally:
        predictor.train(was_training)
    return torch.cat(finished)


class Replayed:
    """A function of a batch's indices, captured once as a CUDA graph.

    Raises:
        ArgumentError: The function cannot be captured.
    """

    def __init__(self, drawn: Callable[[Tensor], Tensor], size: int, device: torch.device) -> None:
        self.indices, self.graph = torch.arange(size, device=device), torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                drawn(self.indices)  # before capture, so that libraries choose kernels and initialise
            torch.cuda.current_stream().wait_stream(aside)
            try:
                with torch.cuda.graph(self.graph):
                    self.events = drawn(self.indices)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ArgumentError(
                    f"a batch's work cannot be recorded, perhaps because it waits for the device; leave out graph: {error}"
                ) from error

    def __call__(self, indices: Tensor) -> Tensor:
        self.indices.copy_(indices)
        self.graph.replay()
        return self.events.clone()
