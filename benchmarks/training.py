"""Overhead of the training engine over a bare loop, per step, on one process.

    python benchmarks/training.py [--channels 32] [--batch-size 64] [--steps 100]

Both train the same network on the same images with the same flow. The bare loop draws a batch and its noise, and only
does what is necessary: forward, backward, clipping, fused AdamW, averaged weights. The engine also derives each
example's noise from (seed, step, index), skips steps that are not finite, schedules the learning rate, handles signals,
and logs. Steps of both alternate, so that other load affects both equally; their CPU times are compared. Finally, the
time saved by the fast path to a Wasserstein-2 training belief (``GPFN._straight_belief``) is compared with the proximal
step that it replaces, on points and on images.
"""

import argparse
import copy
import itertools
import statistics
import time

import torch

import proxflow

parser = argparse.ArgumentParser()
parser.add_argument("--channels", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()
torch.set_num_threads(1)

IMAGES = torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return proxflow.build((1, 28, 28), network=f"unet:channels={options.channels}").predictor


class Bare:
    """A minimal training loop, one step per call."""

    def __init__(self) -> None:
        self.flow, self.predictor = proxflow.GPFN(), network().train()
        self.averaged = copy.deepcopy(self.predictor).eval()
        self.optimiser = torch.optim.AdamW(self.predictor.parameters(), 2e-3, betas=(0.9, 0.98), fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        picked = torch.randint(len(IMAGES), (options.batch_size,), generator=self.generator)
        x = IMAGES[picked].float() / 127.5 - 1
        self.optimiser.zero_grad()
        self.flow.loss(self.predictor, x, self.generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.predictor.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.predictor.parameters()), 0.001)


class Paired(proxflow.GPFN):
    """Between two steps of the engine, takes one of the bare loop, and records the CPU time of both."""

    def loss(self, predict, x, generator, t=None):
        arrived = time.process_time()
        with torch.enable_grad():
            BARE()
        left = time.process_time()
        NOTES.append((arrived, left))
        return super().loss(predict, x, generator, t)


BARE, NOTES = Bare(), []
proxflow.fit(network(), Paired(), IMAGES, proxflow.TrainingConfig(steps=options.steps, batch_size=options.batch_size))
notes = NOTES[3:]  # the first steps allocate memory
engine = [after[0] - before[1] for before, after in itertools.pairwise(notes)]
bare = [left - arrived for arrived, left in notes[1:]]
overhead = statistics.median(ours - theirs for ours, theirs in zip(engine, bare, strict=True))
typical = statistics.median(bare)
print(f"bare loop {1e3 * typical:.2f} ms a step, median of {len(bare)}")
print(f"engine    {1e3 * overhead:+.2f} ms a step, median of the pairs' differences: {100 * overhead / typical:+.2f} %")


def belief_seconds(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the CPU time of a training belief, by the fast path and by the proximal step: medians of turns."""
    flow, generator = proxflow.GPFN(), torch.Generator().manual_seed(0)
    x, t = torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)

    def stepped() -> None:
        flow.reached(flow.prior(x.shape, generator, x.dtype, x.device), x, t)

    ways = {"short": lambda: flow.belief(x, t, generator), "stepped": stepped}
    spent = {name: list[float]() for name in ways}
    for _ in range(30):
        for name, way in ways.items():
            begun = time.process_time()
            for _ in range(50):
                way()
            spent[name].append((time.process_time() - begun) / 50)
    return statistics.median(spent["short"]), statistics.median(spent["stepped"])


for shape in ((256, 2), (options.batch_size, 1, 28, 28)):
    short, stepped = belief_seconds(shape)
    print(f"belief {shape}: {1e6 * short:.0f} µs the short way, {1e6 * stepped:.0f} µs by the proximal step")
