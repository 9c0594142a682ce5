"""Search for the σ₁ that serves BFN best on MNIST, so that it meets GPFN at its best: ``bfn-tuned``.

    python -m tools.bfn_sigma1 --out results/bfn-sigma1

Given again with other values, it adds them to the file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from proxflow import data, metrics, models
from proxflow.config import TrainingConfig, to_dict
from proxflow.flows import BFN
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.runtime.machine import hardware, versions
from proxflow.samplers import sample
from proxflow.studies.scoreboard import floor
from proxflow.training.fit import fit

SIGMAS = (0.1, 0.2, 0.3, 0.5, 0.7)
SAMPLERS: tuple[str, ...] = ("stochastic", "multistep2")
NFES = (10, 20, 50)
NETWORK = "unet:channels=16"
TRAINING = TrainingConfig(steps=800, batch_size=64)
SAMPLES = 500


def main() -> None:
    """Train a small network at each σ₁ and write how its samples score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS, help="values of σ₁ to try")
    arguments = parser.parse_args()
    folder, device = writable_folder(arguments.out), torch.device("cpu")
    training, test = data.load("mnist", "train"), data.load("mnist", "test")
    extractor = metrics.mnist_features(device)
    reference = metrics.Reference.of(extractor(test.images))
    real = floor(reference, extractor, training.images, SAMPLES, TRAINING.seed)
    path = folder / "results.json"
    results: dict[str, Any] = {
        "experiment": "bfn-sigma1",
        "config": {"network": NETWORK, "training": to_dict(TRAINING)},
        "extractor": {"name": extractor.name, "sha256": extractor.sha256},
        "floor": asdict(real),
        "hardware": hardware(device),
        "versions": versions(),
        "records": read_json(path)["records"] if path.exists() else [],
    }
    done = {record["sigma1"] for record in results["records"]}
    for sigma1 in (sigma1 for sigma1 in arguments.sigmas if sigma1 not in done):
        torch.manual_seed(TRAINING.seed)
        model = models.build(training.images.shape[1:], flow=BFN(sigma1), network=NETWORK, predictor="point")
        predictor = fit(model.predictor, model.flow, training.images, TRAINING, label=f"σ₁ = {sigma1}").predictor
        for sampler in SAMPLERS:
            for nfe in NFES:
                drawn = sample(predictor, model.flow, (SAMPLES, *model.shape), nfe=nfe, sampler=sampler, batch_size=256)
                scores = reference.score(extractor(data.to_bytes(drawn)))
                results["records"].append({"sigma1": sigma1, "sampler": sampler, "nfe": nfe, **asdict(scores)})
                sys.stdout.write(f"σ₁ = {sigma1}  {sampler:<12} NFE {nfe:>3}  Fréchet distance {scores.frechet:.2f}\n")
        write_json(path, results)


if __name__ == "__main__":
    main()
