"""Overhead of the sampling loop over its network calls: ``python -m benchmarks.sampler_overhead [--device cuda]``.

A run of N steps should cost at most 2 % more than N bare calls of its network. Two numbers measure this, for the U-Net
of the preset quick at batch 64 (``--preset``, ``--batch``):

* **loop**: of each run, the time outside the network over the time inside, both of the very same run, less what bare calls
  spend outside. It scatters by a tenth of itself. Once with torch's generator, as other libraries draw their noise, and once
  with a stream for each sample, as :func:`proxflow.sample` draws it.
* **runs**: whole runs over as many bare calls, in turns. This holds all there is, also what the loop takes from the
  network's caches, but the calls themselves vary by several per cent between one run and the next.

On CUDA a second line has whole runs recorded as one graph, as ``proxflow.sample(…, graph=True)`` does it, over as many bare
calls: launched kernel by kernel, and recorded as well.

After a network an operation finds the processor's caches full of other things, so that its first use in a step costs some
ten times what it costs alone. The last column is a step on points with the least network there is, which shows the latter.
On a processor all times are those of the process (one thread), which other programs hardly change; on a GPU they are the
device's, between events of its stream.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.tasks import TASKS
from proxflow import BFN, GPFN, PointPredictor, models
from proxflow.errors import ArgumentError
from proxflow.random import Generator, SampleStreams
from proxflow.samplers import SAMPLERS, Sampler
from proxflow.samplers.registry import Replayed
from proxflow.studies.presets import PRESETS


class Scale(nn.Module):
    """A minimal network."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x


class Clock:
    """Records times, and returns the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.noted = device, list[torch.cuda.Event | float]()

    def note(self, *_: object) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.noted.append(event)
        else:
            self.noted.append(time.process_time())

    def intervals(self) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        found = [
            later - earlier if isinstance(later, float) else earlier.elapsed_time(later) / 1e3
            for earlier, later in pairwise(self.noted)
        ]
        self.noted.clear()
        return found


class Comparison:
    """Runs of one sampler with one network, and bare calls of it.

    Args:
        sampler: The sampler to measure.
        predictor: The predictor with the network.
        flow: The flow to sample.
        shape: (batch, *event).
        nfe: Network calls per run.
        streams: Whether to draw the noise of each sample from its own stream.
    """

    def __init__(
        self,
        sampler: Sampler,
        predictor: PointPredictor,
        flow: GPFN | BFN,
        shape: tuple[int, ...],
        nfe: int,
        streams: bool = False,
    ) -> None:
        self.sampler, self.predictor, self.flow, self.shape, self.nfe = sampler, predictor, flow, shape, nfe
        self.device = next(iter(predictor.parameters()), torch.zeros(())).device
        self.streams, self.generator = streams, torch.Generator(self.device).manual_seed(0)
        self.inputs = torch.randn(shape, device=self.device), torch.full((shape[0],), 0.5, device=self.device)
        self.run(), self.calls()

    def run(self) -> None:
        generator: Generator = self.generator
        if self.streams:  # new, like those of each batch of proxflow.sample
            generator = SampleStreams(0, torch.arange(self.shape[0], device=self.device), self.nfe)
        self.sampler(self.predictor, self.flow, self.shape, self.nfe, generator, device=self.device)

    @torch.no_grad()
    def calls(self) -> None:
        for _ in range(self.nfe):
            self.predictor.network(*self.inputs)

    def loop(self, repeats: int) -> tuple[float, list[float]]:
        """Return the median seconds of a step outside its call, and for each run their ratio to the time of its calls."""
        clock, steps, shares = Clock(self.device), list[float](), list[float]()
        hooks = [
            self.predictor.network.register_forward_pre_hook(clock.note),
            self.predictor.network.register_forward_hook(clock.note),
        ]

        def outside_and_inside(work: Callable[[], None]) -> tuple[float, float]:
            clock.note()
            work()
            clock.note()
            intervals = clock.intervals()  # outside, inside, outside, …, outside
            return sum(intervals[::2]), sum(intervals[1::2])

        for _ in range(repeats):
            outside, inside = outside_and_inside(self.run)
            outside -= outside_and_inside(self.calls)[0]
            steps.append(outside / self.nfe)
            shares.append(outside / inside)
        for hook in hooks:
            hook.remove()
        return statistics.median(steps), shares

    def runs(self, repeats: int) -> list[float]:
        """Return ratios of whole runs to as many bare calls, in turns of alternating order."""
        clock, ratios = Clock(self.device), []

        def seconds(work: Callable[[], None]) -> float:
            clock.note()
            work()
            clock.note()
            return sum(clock.intervals())

        for k in range(repeats):
            times = {work: seconds(work) for work in ((self.run, self.calls) if k % 2 == 0 else (self.calls, self.run))}
            ratios.append(times[self.run] / times[self.calls])
        return ratios

    def graphs(self, repeats: int) -> tuple[list[float], list[float]]:
        """Return ratios of whole runs, replayed as one CUDA graph, to as many bare calls, launched and replayed."""

        def run(indices: Tensor) -> Tensor:
            streams = SampleStreams(0, indices, self.nfe)
            return self.sampler(self.predictor, self.flow, self.shape, self.nfe, streams, device=self.device).events

        def call(indices: Tensor) -> Tensor:
            self.calls()
            return indices

        replayed, bare = (Replayed(work, self.shape[0], self.device) for work in (run, call))
        clock, indices, ratios = Clock(self.device), torch.arange(self.shape[0], device=self.device), []
        for _ in range(repeats):
            for work in (lambda: replayed(indices), self.calls, lambda: bare(indices)):
                clock.note()
                work()
            clock.note()
            ours, launched, recorded = clock.intervals()
            ratios.append((ours / launched, ours / recorded))
        return [a for a, _ in ratios], [b for _, b in ratios]


def said(values: list[float]) -> str:
    return f"{statistics.median(values):6.2%} ({min(values):.2%}–{max(values):.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_overhead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="whose network is called")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, repeats = TASKS["mnist"], options.repeats
    unet = models.build(task.shape, network=PRESETS[options.preset].network).predictor.network
    print(
        f"{'flow':5} {'sampler':16} {'loop':>24} {'loop, streams':>24} {'runs':>28} "
        f"{'step, µs':>9} {'streams':>8} {'points':>7}"
    )
    for flow in (GPFN(), BFN(task.sigma1)):
        network, least = (
            PointPredictor(n, flow, parameterisation="x").eval().to(options.device) for n in (unet, Scale())
        )
        for name, sampler in SAMPLERS.items():
            shape = (options.batch, *task.shape)
            try:
                images, streams = (Comparison(sampler, network, flow, shape, options.nfe, s) for s in (False, True))
                points = Comparison(sampler, least, flow, (64, 2), 100)
            except ArgumentError:
                continue  # a sampler that this flow does not support
            (step, shares), (longer, more), (alone, _) = (
                images.loop(repeats),
                streams.loop(repeats),
                points.loop(repeats),
            )
            ratios = [ratio - 1 for ratio in images.runs(repeats)]
            print(
                f"{type(flow).__name__:5} {name:16} {said(shares):>24} {said(more):>24} {said(ratios):>28} "
                f"{1e6 * step:9.0f} {1e6 * longer:8.0f} {1e6 * alone:7.0f}",
                flush=True,
            )
            if options.device != "cpu":
                launched, recorded = streams.graphs(repeats)
                print(f"{'':22} as one graph: {said(launched)} of the calls; {said(recorded)} of the calls as a graph")


if __name__ == "__main__":
    main()
