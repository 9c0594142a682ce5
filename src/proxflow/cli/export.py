"""``proxflow export``: write a model as an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from proxflow.cli._common import ModelSource, say


@dataclass(frozen=True)
class Export:
    """Write a model as an ONNX graph, for programs without Python.

    The graph is the network as its predictor uses it: from belief, time and condition to the predicted target, for a batch
    of any size. Before it is saved, it is run by onnxruntime and compared with torch. Its metadata hold what a program needs
    to sample from the model. This needs the packages of the extra "onnx".

    For example:
        proxflow export mnist --onnx mnist.onnx
        proxflow export runs/mine --onnx mine.onnx

    Args:
        model: A model folder, or the name of a model that comes with the package.
        onnx: The .onnx file to write.
    """

    model: ModelSource
    onnx: Annotated[Path, tyro.conf.arg(metavar="FILE")]


def run(options: Export) -> None:
    """Write the graph and print its largest difference from torch."""
    from proxflow import models
    from proxflow.models.onnx import export_onnx

    model = models.load(options.model)
    difference = export_onnx(model, options.onnx)
    size = options.onnx.stat().st_size / 1e6
    say(f"{options.onnx}: {size:.1f} MB, at most {difference:.1g} from torch")
