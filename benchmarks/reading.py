"""Training from disk compared with training from memory: ``python -m benchmarks.reading``.

The default network learns colour pictures of 64 × 64, held in memory, read from a folder of JPEG files, and from
prepared bytes, with different numbers of workers. Runs take turns in alternating order; the first few steps of each are
ignored, and wall time is measured. Printed is the throughput relative to that from memory in the same round: median
(quartiles).

Workers need free cores to cost nothing: on a busy machine the clock measures that machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import proxflow
from proxflow.config import TrainingConfig
from proxflow.data.pictures import survey
from proxflow.data.prepared import Prepared, prepare
from proxflow.data.stored import Folder
from proxflow.examples import Examples, LazyExamples
from proxflow.training.fit import fit

SIDE, WARM = 64, 3


class Timed(proxflow.GPFN):
    """Records when each step begins."""

    def loss(self, *given: Any, **told: Any) -> Tensor:
        MOMENTS.append(time.perf_counter())
        return super().loss(*given, **told)


MOMENTS: list[float] = []


def photographs(folder: Path, number: int) -> None:
    """Write JPEG files of smooth noise, about as large as photographs."""
    generator = torch.Generator().manual_seed(0)
    for k in range(number):
        coarse = torch.rand(1, 3, 9, 9, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
        noisy = (smooth + 0.03 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
        picture = (255 * noisy[0].permute(1, 2, 0)).byte().numpy()
        Image.fromarray(picture).save(folder / f"{k:05d}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        files, cache = Path(place) / "files", Path(place) / "cache"
        files.mkdir()
        photographs(files, options.pictures)
        folder = Folder(survey(files, SIDE))
        prepare(folder, cache, 0)
        held = torch.stack([folder.picture(k) for k in range(len(folder))])
        sources: dict[str, tuple[Any, int]] = {"memory": (Examples(held), 0)}
        for workers in options.workers:
            sources[f"JPEG files, {workers} workers"] = LazyExamples(folder), workers
            sources[f"prepared bytes, {workers} workers"] = LazyExamples(Prepared(cache)), workers
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for k in range(options.rounds + 1):
            order = list(sources.items())
            for name, (examples, workers) in order[k % len(order) :] + order[: k % len(order)]:
                model = proxflow.build((3, SIDE, SIDE), flow=Timed())
                MOMENTS.clear()
                fit(model.predictor, Timed(), examples, TrainingConfig(steps=options.steps, workers=workers))
                if k:  # the first round warms up
                    rates[name].append((len(MOMENTS) - 1 - WARM) / (MOMENTS[-1] - MOMENTS[WARM]))
        for name, found in rates.items():
            low, middle, high = statistics.quantiles([a / b for a, b in zip(found, rates["memory"], strict=True)], n=4)
            print(f"{name:28} {statistics.median(found):.2f} steps/s, of memory's {middle:.3f} ({low:.3f}–{high:.3f})")


if __name__ == "__main__":
    main()
