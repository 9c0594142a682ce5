"""Compute the principal components of the emoji's pixels used as their second features, and write them."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional

from proxflow.data import load
from proxflow.metrics.features import WEIGHTS
from proxflow.metrics.principal import SQUARE, Principal


def main(folder: Path = WEIGHTS) -> None:
    """Write ``emoji-principal`` into a folder with a description: explained variance of training images, checksum."""
    training, test = load("emoji", "train").images, load("emoji", "test").images
    found = Principal.of(training)
    content = save(dict(found.state_dict()))
    told = {
        "data": "emoji",
        "features": len(found.directions),
        "explained": round(_explained(found, training), 4),
        "explained_of_test": round(_explained(found, test), 4),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    (folder / "emoji-principal.safetensors").write_bytes(content)
    (folder / "emoji-principal.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{told}\n")


def _explained(found: Principal, images: torch.Tensor) -> float:
    """Return the explained fraction of the variance of images, uint8 (N, C, H, W), averaged over squares."""
    centred = (functional.avg_pool2d(images / 127.5 - 1.0, SQUARE) - found.mean).flatten(1)
    unit = functional.normalize(found.directions)
    return float((centred @ unit.T).square().sum() / centred.square().sum())


if __name__ == "__main__":
    main()
