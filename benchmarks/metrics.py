"""Time and memory of the metrics.

``python benchmarks/metrics.py time [threads]``: all metrics of 10,000 images of 28 × 28 against the 10,000 test images
of MNIST, from bytes to scores with intervals, with the floor of 10,000 real images and the nearest of the 60,000
training images. The images represent samples: MNIST training images with some noise. CPU seconds are those of all
threads; wall seconds are longer if the machine has other work.

``python benchmarks/metrics.py memory [samples] [dimension] [rows] [threads]``: all metrics of two sets of features,
50,000 × 2,048 by default, in float32. Peak memory is that of the whole process so far, PyTorch and both sets included
(ru_maxrss). Pairwise metrics take long at that size, but no more memory than for a tile of 2,048 × 4,096: ``rows``
above 0 restricts them to so many samples.
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch

from proxflow import data
from proxflow.metrics import (
    FeatureStatistics,
    GaussianStatistics,
    Reference,
    Scores,
    mnist_features,
    nearest_distances,
    sliced_wasserstein,
    vendi_score,
)
from proxflow.metrics.frechet import frechet_estimate
from proxflow.studies.scoreboard import Evaluator, Source

T = TypeVar("T")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def timed(name: str, work: Callable[[], T]) -> T:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    say(f"{name:44} {wall:8.1f} {processor:12.1f} {peak():10.2f}")
    return result


def of_digits(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    training, test = data.load("mnist", "train").images, data.load("mnist", "test").images
    noise = torch.randn(10_000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = (training[-10_000:] + 16.0 * noise).clamp(0.0, 255.0).round().to(torch.uint8)
    say(f"10,000 images, {threads} threads, PyTorch {torch.__version__}\n")
    say(f"{'':44} {'wall s':>8} {'processor s':>12} {'peak GiB':>10}")

    def all_of_it() -> dict[str, object]:
        evaluator = timed(
            "reference: 10,000 test, 60,000 training", lambda: Evaluator.of(mnist_features(), training, test, "mnist")
        )
        floor = timed("floor: 10,000 real images", lambda: evaluator.floor(10_000, 0))
        return timed("10,000 samples", lambda: evaluator.record(Source("", lambda: images, None, {}), floor, 0))

    record = timed("together", all_of_it)
    names = [field.name for field in fields(Scores) if isinstance(record[field.name], float)]
    say("\n" + "\n".join(f"{name:44} {record[name]:8.4f}" for name in names))


def of_features(samples: int = 50_000, dimension: int = 2048, rows: int = 0, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(samples, dimension, generator=generator) for _ in range(2))
    rows = rows or samples
    say(f"{samples:,} × {dimension:,} features twice, {threads} threads; before: peak {peak():.2f} GiB\n")
    say(f"{'':44} {'wall s':>8} {'processor s':>12} {'peak GiB':>10}")

    def statistics() -> GaussianStatistics:
        seen = FeatureStatistics(dimension)
        for part in torch.split(real, 500):
            seen.update(part)
        return seen.gaussian()

    known = timed("statistics in batches of 500", statistics)
    timed("Fréchet distance with influences", lambda: frechet_estimate(fake, known))
    timed("Vendi score", lambda: vendi_score(fake))
    timed("sliced Wasserstein distance", lambda: sliced_wasserstein(real, fake))
    timed(f"nearest of {samples:,}, for {rows:,}", lambda: nearest_distances(real, fake[:rows]))
    timed(f"all scores of {rows:,} and {rows:,}", lambda: Reference.of(real[:rows]).score(fake[:rows]))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    commands = {"time": of_digits, "memory": of_features}
    if sys.argv[1:2] == [] or sys.argv[1] not in commands:
        sys.exit(f"usage: python benchmarks/metrics.py {' | '.join(commands)} …\n\n{__doc__}")
    commands[sys.argv[1]](*map(int, sys.argv[2:]))
