"""Models as ONNX graphs: what onnxruntime makes of them is what torch does, for every kind of model."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import proxflow
from proxflow import models
from proxflow.cli import main
from proxflow.data import text as corpus
from proxflow.data.kinds.table import Table
from proxflow.data.kinds.text import Text
from proxflow.errors import ArgumentError, MissingPackageError, OutputError
from proxflow.models.onnx import CLOSE, KEY, checksum, export_onnx
from proxflow.predictors import reads_guidance

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def told(path):
    return json.loads(session(path).get_modelmeta().custom_metadata_map[KEY])


def randomised(model):
    """The model with weights away from the zeros that its last layers begin with."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


@pytest.mark.parametrize("name", models.shipped_models())
def test_every_shipped_model_predicts_by_onnxruntime_what_it_does_by_torch(tmp_path, name):
    model, path = proxflow.load(name), tmp_path / "x.onnx"
    assert export_onnx(model, path) <= CLOSE
    source = torch.Generator().manual_seed(5)
    mean, t = torch.randn(7, *model.shape, generator=source), torch.rand(7, generator=source)
    given = {"mean": mean.numpy(), "t": t.numpy()}
    condition = None
    if model.classes:
        condition = torch.tensor([0, 9, -1, 3, -1, 7, 7])
        given["label"] = condition.numpy()
    if reads_guidance(model.predictor):
        given["guidance"] = np.full((7, 3), np.nan, np.float32)  # none
    (found,) = session(path).run(["target_mean"], given)
    with torch.no_grad():
        belief = proxflow.DiagonalGaussian(mean, 1.0)
        own = {} if condition is None else {"condition": condition}
        expected = model.predictor(belief, t, **own).mean
        if condition is not None:  # −1 is the null class
            nothing = model.predictor(proxflow.DiagonalGaussian(mean[[2, 4]], 1.0), t[[2, 4]]).mean
            torch.testing.assert_close(torch.from_numpy(found)[[2, 4]], nothing, atol=CLOSE, rtol=0)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=CLOSE, rtol=0)
    known = told(path)
    assert known["classes"] == list(model.classes)
    assert known["data"]["shape"] == [1, 28, 28]
    assert known["flow"]["schedule"] == {"kind": "linear", "final": 0.8}
    assert known["weights"] == checksum(model.predictor)


IMAGES = (2, 8, 8)
FRESH = {
    "unet": (IMAGES, {"network": "unet:channels=8,multipliers=1,2,attention=1"}),
    "unet with classes, as epsilon": (IMAGES, {"network": "unet:channels=8,multipliers=1,classes=3", "flow": "bfn"}),
    "unet that reads guidance": (IMAGES, {"network": "unet:channels=8,multipliers=1,classes=3,guidance=3"}),
    "unet of long steps": (IMAGES, {"network": "unet:channels=8,multipliers=1", "predictor": "long-step"}),
    "unet of draws": (IMAGES, {"network": "unet:channels=8,multipliers=1", "predictor": "draw"}),
    "unet of bins": (IMAGES, {"network": "unet:channels=8,multipliers=1", "flow": "bfn-discretised:bins=16"}),
    "unet of odd pictures": ((1, 7, 5), {"network": "unet:channels=8,multipliers=1,patch=2,images=1"}),
    "dit with classes": (IMAGES, {"network": "dit:width=16,depth=2,heads=2,classes=3,tokens=2", "flow": "gpfn-kl"}),
    "mlp": ((5,), {}),
    "mlp with classes and vectors": ((5,), {"network": "mlp:width=16,depth=2,classes=3,vectors=2"}),
    "mlp, edm": ((5,), {"predictor": "point:parameterisation=edm", "flow": "diffusion"}),
}


@pytest.mark.parametrize("name", FRESH)
def test_fresh_models_are_written_and_read(tmp_path, name):
    shape, settings = FRESH[name]
    final = {} if "flow" in settings or "predictor" in settings else {"flow": "gpfn-w2"}
    model = randomised(proxflow.build(shape, seed=0, **{**settings, **final}))
    assert export_onnx(model, tmp_path / "x.onnx") <= CLOSE
    inputs = [i.name for i in session(tmp_path / "x.onnx").get_inputs()]
    assert set(inputs) <= set(told(tmp_path / "x.onnx")["inputs"])
    assert inputs[:2] == ["mean", "t"]
    assert ("end" in inputs) == ("long" in name)
    assert ("noise" in inputs) == ("draws" in name)
    outputs = [o.name for o in session(tmp_path / "x.onnx").get_outputs()]
    assert outputs == ["target_mean", *(["target_std"] if "bins" in name else [])]
    assert ("label" in inputs) == ("classes" in name or "guidance" in name)


def test_beliefs_of_classes_and_of_tables_are_logits_by_part(tmp_path):
    letters = Text((6,), "letters", tuple(corpus.LETTERS))
    for flow, name, kind in (("masked", "tokens", torch.int64), ("bfn-discrete", "logits", torch.float32)):
        model = randomised(proxflow.build(letters, flow=flow, network="transformer:width=8,depth=1,heads=1", seed=0))
        assert export_onnx(model, tmp_path / "x.onnx") <= CLOSE
        first, *_ = session(tmp_path / "x.onnx").get_inputs()
        assert (first.name, first.type) == (name, "tensor(int64)" if kind is torch.int64 else "tensor(float)")
    rows = ["weight,length,sort", *(f"{k / 7:.3f},{k * k / 9:.3f},{'xyz'[k % 3]}" for k in range(60))]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    table = Table.read(tmp_path / "a.csv").kind
    model = randomised(proxflow.build(table, network="mlp:width=8", seed=0))
    export_onnx(model, tmp_path / "x.onnx")
    assert [i.name for i in session(tmp_path / "x.onnx").get_inputs()] == ["0.mean", "1.logits", "t"]
    assert [o.name for o in session(tmp_path / "x.onnx").get_outputs()] == ["target_0.mean", "target_1.logits"]


def test_a_network_whose_trace_is_not_what_it_does_is_refused(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, t):
            return self.layer(x) if float(x.sum()) > 0 else x

    model = proxflow.build((3,), seed=0)
    model.predictor.network = Branching()
    with pytest.raises(OutputError, match="differs from torch by"):
        export_onnx(model, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_what_no_graph_can_hold_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    model = proxflow.build((3,), seed=0)
    with pytest.raises(ArgumentError, match=r"ending \.onnx"):
        export_onnx(model, tmp_path / "x.pt")

    class Rare(nn.Module):
        def forward(self, x, t):
            return torch.special.log_ndtr(x)

    rare = proxflow.build((3,), seed=0)
    rare.predictor.network = Rare()
    with pytest.raises(ArgumentError, match="no ONNX graph can be made of this network"):
        export_onnx(rare, tmp_path / "x.onnx")
    assert main(["export", "nonesuch", "--onnx", str(tmp_path / "x.onnx")]) == 2
    assert "no model 'nonesuch'" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"proxflow\[onnx\]"):
        export_onnx(model, tmp_path / "x.onnx")


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "page.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    names = runpy.run_path("page.py")
    assert names["digits"].shape == (4, 1, 28, 28)
    assert names["furthest"] <= CLOSE


def test_the_command_says_how_near_to_torch_the_graph_is(tmp_path, capsys):
    assert main(["export", "mnist", "--onnx", str(tmp_path / "digits.onnx")]) == 0
    assert capsys.readouterr().out.endswith("from torch\n")
    assert (tmp_path / "digits.onnx").stat().st_size > 700_000
