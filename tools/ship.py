"""Put a trained model into the package, with its weights in half precision: half the size, with equally good samples.

    python -m tools.ship runs/digits mnist-classes --command "proxflow train --conditional …"

Models whose training has not ended are refused. Samples are those of the rounded weights, which are converted to single
precision when loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from proxflow import models
from proxflow.errors import ArgumentError


def ship(folder: Path, name: str, command: str, into: Path = models.SHIPPED) -> Path:
    """Write the model of a folder as the shipped one of a name, and return its folder.

    Raises:
        ArgumentError: Its training has not ended, or a weight is too large for half precision.
    """
    model = models.load(folder)
    known = model.provenance
    steps = known.get("training", {}).get("steps")
    if known.get("steps") != steps:
        raise ArgumentError(f"{folder} was trained for {known.get('steps')} of {steps} steps: finish it first")
    weights = {key: value.half() for key, value in model.predictor.state_dict().items()}
    for key, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"{folder}: {key} has weights too large for half precision")
    kept = {key: value for key, value in known.items() if key not in ("sessions", "stages")}
    models.save(into / name, model, weights, {**kept, "weights": "rounded to half precision", "command": command})
    return into / name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True)
    found = parser.parse_args()
    print(ship(found.folder, found.name, found.command))  # noqa: T201
