"""Rewrite the files of ``proxflow page`` for the shipped models: a graph of each, and its description.

``python -m tools.page``, in the root of the repository, after a model was shipped again. A test fails while one is out
of date.
"""

from __future__ import annotations

import lzma
import tempfile
from pathlib import Path

import onnxruntime

from proxflow import models, page
from proxflow.models.onnx import export_onnx, outline
from proxflow.runtime.files import write_json


def main(into: Path = page.FILES / "models") -> None:
    """Write the graphs, compressed, and ``models.json``.

    Constants are folded here: the browser would do it at each start, and now draws half a second sooner.
    """
    into.mkdir(exist_ok=True)
    told = {}
    for name in models.shipped_models():
        model = models.load(name)
        told[name] = outline(model)
        with tempfile.TemporaryDirectory() as folder:
            written, simple = Path(folder) / "x.onnx", Path(folder) / "simple.onnx"
            export_onnx(model, written)
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(simple)
            onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
            packed = lzma.compress(simple.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (into / f"{name}.onnx.xz").write_bytes(packed)
    write_json(into / "models.json", told)


if __name__ == "__main__":
    main()
