"""Time of a sampling run over as many bare network calls: ``python -m benchmarks.sampler_overhead [--device cuda]``.

The U-Net of the quick preset at batch 64, where a run of N steps should cost at most 2 % more than N calls. Its calls vary
by several per cent themselves, so that the ratio's median is a coarse number. A tiny network shows what a step costs by
itself, on the same images and on points; its share of a call of the U-Net is the finer one. Runs and bare calls take turns.
On a processor the time is that of the process (one thread); on a GPU it is the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.tasks import TASKS
from proxflow import BFN, GPFN, PointPredictor
from proxflow.errors import ArgumentError
from proxflow.samplers import SAMPLERS, Sampler


class Scale(nn.Module):
    """The least network there is."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x


@torch.no_grad()
def compare(
    sampler: Sampler, predictor: PointPredictor, flow: GPFN | BFN, shape: tuple[int, ...], nfe: int, repeats: int
) -> tuple[list[float], float, float]:
    """Ratios of a run to as many bare calls; medians of what a step costs beside its call, and of a call, in µs."""
    device = next(iter(predictor.parameters()), torch.zeros(())).device
    generator, network = torch.Generator(device).manual_seed(0), predictor.network
    x, t = torch.randn(shape, device=device), torch.full((shape[0],), 0.5, device=device)

    def seconds(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            torch.cuda.synchronize()
            return time.perf_counter() - started
        started = time.process_time()
        work()
        return time.process_time() - started

    def run() -> None:
        sampler(predictor, flow, shape, nfe, generator, device=device)

    def bare() -> None:
        for _ in range(nfe):
            network(x, t)

    run(), bare()
    pairs = []
    for k in range(repeats):
        first, second = (run, bare) if k % 2 == 0 else (bare, run)  # neither always goes first
        times = {first: seconds(first), second: seconds(second)}
        pairs.append((times[run], times[bare]))
    extra = statistics.median((whole - calls) / nfe * 1e6 for whole, calls in pairs)
    call = statistics.median(calls / nfe * 1e6 for _, calls in pairs)
    return [whole / calls for whole, calls in pairs], extra, call


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_overhead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS["mnist"]
    print(
        f"{'flow':8} {'sampler':16} {'U-Net, ratio':>14} {'(range)':>17} {'images, µs':>11} {'share':>7} {'points, µs':>11}"
    )
    for flow in (GPFN(), BFN(task.sigma1)):
        unet, scale = (PointPredictor(network, flow).eval().to(options.device) for network in (task.network(), Scale()))
        for name, sampler in SAMPLERS.items():
            try:
                ratios, _, call = compare(sampler, unet, flow, (64, *task.shape), options.nfe, options.repeats)
                _, images, _ = compare(sampler, scale, flow, (64, *task.shape), options.nfe, options.repeats)
                _, points, _ = compare(sampler, scale, flow, (64, 2), 100, options.repeats)
            except ArgumentError:
                continue  # a sampler that this flow has no use for
            spread = f"({min(ratios):.3f}–{max(ratios):.3f})"
            measured = (
                f"{statistics.median(ratios):14.4f} {spread:>17} {images:11.0f} {images / call:7.2%} {points:11.0f}"
            )
            print(f"{type(flow).__name__:8} {name:16} {measured}")


if __name__ == "__main__":
    main()
