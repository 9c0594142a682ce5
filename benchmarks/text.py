"""The cost of tokens: a training step with a large vocabulary, and the library's loops compared with plain ones.

    python -m benchmarks.text large      one step of 32 x 128 tokens of 50,257 classes: seconds, and peak memory
    python -m benchmarks.text overhead   a training step and a sampling run beside plain loops on the same transformer

Memory is the peak of a process (VmHWM), so each flow runs in its own. Overhead is in CPU time of the process, in
consecutive pairs of runs, with median and spread.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from proxflow import (
    GPFN,
    CategoricalEndpoints,
    DiscreteBFN,
    FisherRao,
    Flow,
    Masked,
    Model,
    ReverseKL,
    TrainingConfig,
    build,
    fit,
)
from proxflow.data.kinds.text import Text
from proxflow.data.text import LETTERS
from proxflow.nn import TokenTransformer
from proxflow.predictors import ClassPredictor

CLASSES, CONTEXT, BATCH = 50_257, 128, 32
ENDS = CategoricalEndpoints(CLASSES)
FLOWS: dict[str, Flow] = {
    "bfn-discrete": DiscreteBFN(CLASSES, 0.04),
    "masked": Masked(CLASSES),
    "gpfn-linear": GPFN(ReverseKL(), endpoints=ENDS),
    "gpfn-fisher-rao": GPFN(FisherRao(), endpoints=ENDS),
}


def peak() -> float:
    """Return the peak memory of the process in GB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e9


def large(name: str, steps: int = 2) -> None:
    """Train a transformer of width 128 for some steps, and print seconds per step and peak memory."""
    flow = FLOWS[name]
    predictor = ClassPredictor(TokenTransformer((CONTEXT, CLASSES), width=128, depth=2), flow)
    optimiser = torch.optim.AdamW(predictor.parameters(), fused=True)
    x = torch.randint(CLASSES, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    wall, spent = [], []
    for step in range(steps):
        begun, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        flow.loss(predictor, x, torch.Generator().manual_seed(step)).mean().backward()
        optimiser.step()
        wall.append(time.perf_counter() - begun)
        spent.append(time.process_time() - cpu)
    print(
        f"{name:16} {min(wall):6.2f} s a step ({min(spent):.2f} s of processor time), peak {peak():.2f} GB, "
        f"{torch.get_num_threads()} threads",
        flush=True,
    )


def spent(work: Callable[[], object]) -> float:
    """Return the CPU time of some work in seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def plain_training(model: Model, x: torch.Tensor, steps: int, batch: int) -> None:
    """Train the same as the flow masked by a plain loop without the library."""
    network = model.predictor.network
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = x[torch.randint(len(x), (batch,), generator=generator)].long()
        t = torch.rand(batch, generator=generator).clamp(1e-6, 1 - 1e-6)
        hidden = torch.rand(tokens.shape, generator=generator) >= t[:, None]
        logits = network(tokens.masked_fill(hidden, -1), t)
        cost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        loss = ((cost.unflatten(0, tokens.shape) * hidden).mean(1) / (1 - t)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 0.01)


@torch.no_grad()
def plain_sampling(model: Model, number: int, steps: int) -> None:
    """Draw the same as the flow masked by a plain loop."""
    network, generator = model.predictor.network.eval(), torch.Generator().manual_seed(0)
    tokens = torch.full((number, *model.shape), -1)
    for k in range(steps):
        t = torch.full((number,), k / steps)
        log_probs = network(tokens, t).double().log_softmax(-1)
        uniform = torch.rand(log_probs.shape, generator=generator, dtype=torch.float64).clamp_min_(1e-300)
        drawn = (log_probs - (-uniform.log()).log()).argmax(-1)
        reveal = torch.rand(tokens.shape, generator=generator) < 1 / (steps - k)
        tokens = torch.where((tokens < 0) & reveal, drawn, tokens)


def overhead(pairs: int = 8) -> None:
    """Print the overhead of training and of sampling over plain loops, in percent of CPU time."""
    kind = Text((CONTEXT,), "letters", tuple(LETTERS))
    model = build(kind, flow="masked", network="transformer:width=128,depth=3", seed=0)
    x = torch.randint(27, (4096, CONTEXT), generator=torch.Generator().manual_seed(0)).byte()
    few, many = 10, 30

    def ours(steps: int) -> Callable[[], object]:
        config = TrainingConfig(steps=steps, batch_size=BATCH, learning_rate=1e-3, ema=0.99, precision="float32")
        return lambda: fit(model.predictor, model.flow, x, config, encode=kind.encode)

    def theirs(steps: int) -> Callable[[], object]:
        return lambda: plain_training(model, x, steps, BATCH)

    for name, one, other in (
        (
            "training step",
            lambda: spent(ours(many)) - spent(ours(few)),
            lambda: spent(theirs(many)) - spent(theirs(few)),
        ),
        (
            "sampling run",
            lambda: spent(lambda: model.sample(BATCH, nfe=16, batch_size=BATCH)),
            lambda: spent(lambda: plain_sampling(model, BATCH, 16)),
        ),
    ):
        other()
        ratios = sorted(100 * (one() / other() - 1) for _ in range(pairs))
        spread = statistics.stdev(ratios) / len(ratios) ** 0.5
        print(
            f"{name:14} {statistics.median(ratios):+.1f} % ± {spread:.1f} over a plain loop, {pairs} pairs", flush=True
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["large"]:
            for flow_name in FLOWS:
                subprocess.run([sys.executable, "-m", "benchmarks.text", "large", flow_name], check=True)
        case ["large", flow_name]:
            large(flow_name)
        case ["overhead"]:
            overhead()
        case _:
            print(__doc__)
