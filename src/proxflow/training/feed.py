"""The source of a step's examples: rows of data in memory, or batches that worker processes prefetch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxflow.config import TrainingConfig
from proxflow.data.augment import Augmentation
from proxflow.errors import DataError, ProxflowError
from proxflow.examples import AnyExamples, Examples, LazyExamples, moved, rows
from proxflow.random import mix
from proxflow.runtime.machine import SHARE, reading_processes
from proxflow.training.run import Run, Stage

Feed = Callable[[int, int], tuple[Examples, Any]]
"""From a step and the index of a part of its batch to examples, and which of them form the part."""

_AUGMENT_KEY, _READ_KEY = 2**60, 2**59
"""Keys that replace the step in the seeds of augmentation and of random data sets, larger than any step."""

_AHEAD = 4
"""Batches that each worker prefetches."""

_TRIES = 3
"""How often in a row workers that died are replaced."""


class Order:
    """Indices of the examples of a step: epoch after epoch, each a permutation from (seed, epoch)."""

    def __init__(self, number: int, config: TrainingConfig, stage: Stage) -> None:
        self.number, self.config, self.stage = number, config, stage
        self.epochs: dict[int, Tensor] = {}
        self.device = torch.device("cpu")  # or that of the data, so that steps do not wait for transfers

    def __call__(self, step: int) -> Tensor:
        start = self.stage.seen + (step - self.stage.step) * self.stage.batch_size
        stop = start + self.stage.batch_size
        first, last = start // self.number, (stop - 1) // self.number
        for epoch in range(first, last + 1):
            if epoch not in self.epochs:
                generator = torch.Generator().manual_seed(mix(self.config.seed, -1 - epoch))
                self.epochs = {known: order for known, order in self.epochs.items() if known >= first}
                self.epochs[epoch] = torch.randperm(self.number, generator=generator).to(self.device)
        joined = (
            torch.cat([self.epochs[epoch] for epoch in range(first, last + 1)]) if last > first else self.epochs[first]
        )
        return joined[start - first * self.number : stop - first * self.number]


@contextmanager
def feeding(
    data: AnyExamples, order: Order, parts: list[range], config: TrainingConfig, device: torch.device, run: Run
) -> Iterator[Feed]:
    """Yield the feed of a training from the current step of a run on.

    Args:
        data: The examples.
        order: Their order.
        parts: The parts of a batch that this process computes.
        config: Training settings.
        device: Device of the examples.
        run: The run, which records examples that are left out.
    """
    augmentation = Augmentation.of(config.augment)
    if isinstance(data, Examples):
        held = data.to(device) if _fits(data, device) else data
        yield _Held(held, order, parts, config, augmentation)
        return
    reader = _Reader(data, order, parts, config, augmentation, device, run)
    try:
        yield reader
    finally:
        reader.close()


def _fits(data: Examples, device: torch.device) -> bool:
    """Return whether data fit a share of a device's free memory; else each step transfers its rows."""
    size = data.x.numel() * data.x.element_size()
    return device.type != "cuda" or size <= SHARE * torch.cuda.mem_get_info(device)[0]


class _Held:
    """Examples in memory, on the device if they fit there."""

    def __init__(
        self, data: Examples, order: Order, parts: list[range], config: TrainingConfig, augmentation: Augmentation
    ) -> None:
        self.data, self.order, self.parts, self.seed, self.augmentation = data, order, parts, config.seed, augmentation
        order.device = data.x.device
        self.step, self.indices = -1, torch.empty(0)

    def __call__(self, step: int, number: int) -> tuple[Examples, Any]:
        if step != self.step:
            self.step, self.indices = step, self.order(step)
        part = self.parts[number]
        at = self.indices[part.start : part.stop]
        if not self.augmentation.names:
            return self.data, at
        x = self.augmentation(self.data.x[at], mix(mix(self.seed, step), _AUGMENT_KEY), part)
        return Examples(x, rows(self.data.condition, at), rows(self.data.start, at)), slice(None)


class _Request(NamedTuple):
    """A read request: which examples, for which part of which step."""

    step: int
    part: range
    indices: Tensor


class _Batches(Dataset[Any]):
    """Batches by request, as workers make them: x, conditions and what was left out; or why there are none."""

    def __init__(self, data: LazyExamples, augmentation: Augmentation, seed: int) -> None:
        self.data, self.augmentation, self.seed = data, augmentation, seed

    def __getitem__(self, request: _Request) -> Any:
        key = mix(self.seed, request.step)
        try:
            found, left_out = self.data.take(request.indices, mix(key, _READ_KEY), request.part.start)
            x = self.augmentation(found.x, mix(key, _AUGMENT_KEY), request.part)
        except ProxflowError as error:
            return error
        return x, found.condition, left_out


class _Requests:
    """The requests of a training in order, from a part of a step on."""

    def __init__(self, order: Order, parts: list[range], step: int, number: int, steps: int) -> None:
        self.order, self.parts, self.step, self.number, self.steps = order, parts, step, number, steps

    def __iter__(self) -> Iterator[_Request]:
        for step in range(self.step, self.steps):
            indices = self.order(step)
            for part in self.parts[self.number if step == self.step else 0 :]:
                yield _Request(step, part, indices[part.start : part.stop].clone())


class _Reader:
    """Examples that are read as needed, prefetched if there are workers.

    The examples of a step are a function of the step only, so workers that die are replaced by others that read the
    same.
    """

    def __init__(
        self,
        data: LazyExamples,
        order: Order,
        parts: list[range],
        config: TrainingConfig,
        augmentation: Augmentation,
        device: torch.device,
        run: Run,
    ) -> None:
        self.data, self.order, self.parts, self.steps, self.run = data, order, parts, config.steps, run
        self.batches, self.device = _Batches(data, augmentation, config.seed), device
        # Rows of a file are copied fast; pictures take long to decode.
        usual = 0 if hasattr(data.dataset, "read") else reading_processes()
        self.workers = usual if config.workers is None else config.workers
        self.iterator: Iterator[Any] | None = None
        # Torch's handler would raise at an arbitrary point when a worker dies; next() notices it anyway.
        self.handled = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        self.theirs: Any = signal.getsignal(signal.SIGCHLD) if self.handled else None
        self.checks: list[Callable[[Any], None]] = []
        if data.condition is None and data.conditional:  # conditions that are only known once read
            checks = (getattr(part, "check_condition", None) for part in run.predictor.modules())
            self.checks = [check for check in checks if check is not None]

    def __call__(self, step: int, number: int) -> tuple[Examples, Any]:
        found = self._next(step, number)
        if isinstance(found, ProxflowError):
            raise found
        x, condition, left_out = found
        if left_out:
            self.run.leave_out(left_out, len(self.data))
        if condition is not None:
            for check in self.checks:
                check(condition)
        return Examples(x.to(self.device, non_blocking=True), moved(condition, self.device)), slice(None)

    def _next(self, step: int, number: int) -> Any:
        for last in range(_TRIES):
            if self.iterator is None:
                self.iterator = self._begun(step, number)
            try:
                return next(self.iterator)
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A worker that dies during a transfer breaks the connection; errors of a data set begin with "Caught".
                if "Caught" in str(error) or (
                    isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)
                ):
                    raise
                self.close()
                if last == _TRIES - 1:
                    raise DataError(
                        f"{self.workers} processes that read the data died {_TRIES} times at step {step}, perhaps for want "
                        "of memory: give --workers 1 or 0 (workers in Python), or smaller examples"
                    ) from error
        raise AssertionError

    def _begun(self, step: int, number: int) -> Iterator[Any]:
        requests = _Requests(self.order, self.parts, step, number, self.steps)
        if not self.workers:
            return map(self.batches.__getitem__, requests)
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=requests,
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        before = signal.getsignal(signal.SIGCHLD) if self.handled else None
        iterator = iter(loader)
        if self.handled:
            self.theirs = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def close(self) -> None:
        """Stop the workers."""
        self.iterator = None
        if self.handled:
            signal.signal(signal.SIGCHLD, self.theirs)
