"""The cost of an observation in a sampling step, relative to the network: ``python -m benchmarks.posterior``.

Runs of the renewing sampler with and without an observation, in turns, on the U-Net of the shipped digits with a mask
of their lower half, for flower also a blur: CPU seconds (one thread) per step, and their ratio. A step with a
closed-form proximal map, flower, should cost at most 1.05 of an unconditional one. Calls of the network are counted;
mmps adds products with its Jacobian.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from proxflow import Posterior, inverse, models
from proxflow.samplers import SAMPLERS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posterior")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load("mnist")
    shape = (options.batch, *model.shape)
    known = torch.ones(model.shape, dtype=torch.bool)
    known[:, model.shape[1] // 2 :] = False
    clean = torch.zeros(shape)
    made = {"unconditional": model.predictor}
    blur = inverse.Blur(1.5)
    made["flower, blur"] = Posterior(model.predictor, blur, blur(clean), noise=0.1, method="flower")
    for method in ("flower", "flower-draw", "diffpir", "repaint", "dps", "pigdm", "tmpd", "mmps"):
        made[method] = Posterior(model.predictor, inverse.Mask(known), clean, noise=0.1, method=method)
    calls = list[int]()
    hook = model.predictor.network.register_forward_hook(lambda *_: calls.append(0))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    counted: dict[str, int] = {}
    for _ in range(options.repeats):
        for name, predictor in made.items():
            calls.clear()
            started = time.process_time()
            SAMPLERS["renewed"](predictor, model.flow, shape, options.nfe, torch.Generator().manual_seed(0))
            seconds[name].append(time.process_time() - started)
            counted[name] = len(calls)
    hook.remove()
    print(f"{'method':14} {'calls':>6} {'seconds a step':>15} {'over unconditional':>20}")
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times, seconds["unconditional"], strict=True)]
        print(
            f"{name:14} {counted[name]:6} {statistics.median(times) / options.nfe:15.4f} "
            f"{statistics.median(ratios):8.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
