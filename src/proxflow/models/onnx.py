"""Models as ONNX graphs: the network with its parameterisation, for programs without Python."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.beliefs import Belief, DiagonalGaussian, Product
from proxflow.errors import ArgumentError, MissingPackageError, OutputError
from proxflow.examples import GUIDANCE, reads
from proxflow.models.model import Model
from proxflow.nn.conditions import NONE, Conditions
from proxflow.predictors import BinnedPredictor
from proxflow.random import SampleStreams, Streams
from proxflow.runtime.files import writable_folder, write_atomically

OPSET = 20
"""ONNX opset version: the newest that torch's tracing exporter writes."""

CLOSE = 1e-4
"""Largest difference from torch, relative for values above 1, with which a graph is written."""

KEY = "proxflow"
"""Key of the model's description, JSON, in the metadata of a graph."""


def export_onnx(model: Model, path: Path | str) -> float:
    """Write a model's prediction as an ONNX graph, and return its largest difference from torch's.

    The graph reads the predictor's inputs, with any batch size, and returns the parameters of the predicted target:

    ================  ======================================================================================
    ``mean``          mean of a Gaussian belief, float32 (batch, \\*event)
    ``logits``        log-probabilities of classes, (batch, \\*event, classes); ``tokens``, int64, where known or hidden
    ``0.mean`` …      of mixed data, by the number of the part
    ``t``             times, float32 (batch,)
    ``end``           ends of the steps, for models that read them
    ``noise``         standard normal, of the shape of the mean, for models that draw
    ``label``         number of the class, int64 (batch,); −1 is the null class, no condition
    ``vector`` …      further conditions by name, NaN where an example has none; ``guidance`` as weight, first and last time
    ``target_mean``   mean of the predicted target; ``target_logits``, ``target_0.mean`` … likewise
    ``target_std``    where bins are predicted: the standard deviation of the Gaussian whose mass they have
    ================  ======================================================================================

    Its metadata hold the rest, as JSON under the key "proxflow" (:func:`outline`). Before the file is saved, it is run
    by onnxruntime, with two batch sizes, and compared with torch.

    Args:
        model: The model.
        path: The file, ending .onnx.

    Raises:
        ArgumentError: Another suffix; a network that cannot be exported, or that reads the standard deviation of
            beliefs.
        OutputError: The graph differs from torch by more than 1e-4; the file cannot be written.
        MissingPackageError: onnx or onnxruntime is not installed.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ArgumentError(f"a graph is written to a file ending .onnx, got {path}")
    onnx, runtime = _packages()
    writable_folder(path.parent)
    told = _Told(model)
    batches = [told.example(number, seed) for number, seed in ((3, 0), (1, 1), (5, 2))]
    graph = onnx.load_from_string(_traced(told, batches[0]))
    onnx.helper.set_model_props(graph, {KEY: json.dumps(outline(model))})
    graph.producer_name = "proxflow"
    written = graph.SerializeToString(deterministic=True)
    difference = max(_difference(runtime, written, told, batch) for batch in batches)
    if not difference <= CLOSE:
        raise OutputError(
            f"cannot write {path}: the graph differs from torch by {difference:.2g}, and {CLOSE:g} is allowed; the network "
            "does something that its trace does not show, as a branch on a value: write it without"
        )

    def put(temporary: Path) -> None:
        temporary.write_bytes(written)

    write_atomically(path, put)
    return difference


def outline(model: Model) -> dict[str, Any]:
    """Return what a program needs to use a model's graph, as JSON values.

    It has the model's specification, which includes flow, schedule, divergence, kind and shape, the names of its inputs
    and classes, the standard deviation of its targets, its times for few evaluations, and a checksum of its weights.
    """
    told = _Told(model)
    times = {name: {str(n): list(found) for n, found in given.items()} for name, given in model.times.items()}
    return {
        **model.spec,
        "format": 1,
        "inputs": list(told.names),
        "classes": list(model.classes),
        "target_std": getattr(model.predictor, "target_std", None),
        "times": times,
        "weights": checksum(model.predictor),
    }


def checksum(module: nn.Module) -> str:
    """Return a checksum of a module's weights, sha256."""
    found = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        found.update(name.encode() + weight.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()


class _Told(nn.Module):
    """A predictor as a function of tensors in the order of :attr:`names`, on the CPU and in float32."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.predictor = copy.deepcopy(model.predictor).cpu().float()
        nothing, processor = SampleStreams(0, torch.arange(2)), torch.device("cpu")
        self.belief: Belief = model.flow.prior((2, *model.shape), nothing, torch.float32, processor)
        self.eval()
        asks = reads(self.predictor)
        owned = getattr(self.predictor.network, "conditions", None)
        if "condition" in asks and not isinstance(owned, Conditions):
            raise ArgumentError(
                "this network reads a condition in a form of its own, which a graph has no name for: take one of "
                "proxflow.nn, or a network without"
            )
        self.told = tuple(name for name in ("end", "noise") if name in asks)
        self.conditions = {} if owned is None else dict.fromkeys(owned.names, owned)
        if owned is not None and owned.guidance:
            self.conditions[GUIDANCE] = owned
        self.shown = tuple(_shown(self.belief))
        self.names = (*self.shown, "t", *self.told, *self.conditions)
        self.outputs = tuple(f"target_{name}" for name in self._target(self.example(2, 0)))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._target(given).values())

    def _target(self, given: Sequence[Tensor]) -> dict[str, Tensor]:
        by = dict(zip(self.names, given, strict=True))
        told: dict[str, Any] = {"end": by["end"]} if "end" in by else {}
        if "noise" in by:
            told["generator"] = _Given(by["noise"])
        if self.conditions:
            parts = {name: by[name] for name in self.conditions}
            told["condition"] = parts if len(parts) > 1 else next(iter(parts.values()))
        belief = _believed(self.belief, by)
        if isinstance(self.predictor, BinnedPredictor) and isinstance(belief, DiagonalGaussian):
            # Two numbers, which determine all bin probabilities.
            return self.predictor.gaussian(belief, by["t"], **told).tensors()
        return _shown(self.predictor(belief, by["t"], **told))

    def example(self, number: int, seed: int) -> tuple[Tensor, ...]:
        """Draw inputs for a batch, among them the first and the last time and examples without a condition."""
        source = torch.Generator().manual_seed(seed)
        t = torch.rand(number, generator=source)
        t[0] = float(seed % 2)
        found: dict[str, Tensor] = {}
        for name, like in _shown(self.belief).items():
            shape = (number, *like.shape[1:])
            if like.is_floating_point():
                drawn = torch.randn(shape, generator=source)
                found[name] = drawn.log_softmax(-1) if name.endswith("logits") else drawn
            else:
                found[name] = torch.randint(-1, getattr(self.belief, "classes", 2), shape, generator=source)
        found["t"] = t
        if "end" in self.told:
            found["end"] = t + (1 - t) * torch.rand(number, generator=source)
        if "noise" in self.told:
            found["noise"] = torch.randn((number, *self.belief.mode.shape[1:]), generator=source)
        for name, owned in self.conditions.items():
            found[name] = _condition(name, owned, number, self.belief, source)
        return tuple(found[name] for name in self.names)


def _condition(name: str, owned: Conditions, number: int, belief: Belief, source: torch.Generator) -> Tensor:
    """Draw a part of a condition for a batch; the last example has none."""
    if name == "label":
        label = torch.randint(0, owned.classes, (number,), generator=source)
        label[-1] = NONE
        return label
    if name == GUIDANCE:
        weight = 1 + (owned.guidance - 1) * torch.rand(number, generator=source)
        part = torch.stack([weight, torch.zeros(number), torch.ones(number)], dim=1)
    else:
        sides = belief.mode.shape[2:] if name == "image" else ()
        part = torch.randn((number, getattr(owned, f"{name}s"), *sides), generator=source)
    part[-1] = math.nan
    return part


class _Given(Streams):
    """Draws that are given."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def draw(self, normal: bool, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self.noise


def _shown(belief: Belief) -> dict[str, Tensor]:
    """Return the parameters of a belief in a graph: all but the standard deviation, which the time determines."""
    if isinstance(belief, Product):
        parts = [_shown(part) for part in belief.parts]
        return {f"{i}.{name}": a for i, part in enumerate(parts) for name, a in part.items()}
    return {"mean": belief.mean} if isinstance(belief, DiagonalGaussian) else belief.tensors()


def _believed(like: Belief, given: Mapping[str, Tensor], before: str = "") -> Belief:
    """Return the belief with given parameters; inverse of :func:`_shown`."""
    if isinstance(like, Product):
        return Product(tuple(_believed(part, given, f"{before}{i}.") for i, part in enumerate(like.parts)))
    if isinstance(like, DiagonalGaussian):
        return DiagonalGaussian(given[f"{before}mean"], _no_spread)
    return like.with_tensors({name: given[f"{before}{name}"] for name in like.tensors()})


def _no_spread() -> Tensor:
    raise ArgumentError(
        "this predictor reads the spread of beliefs, which a graph is not given: it follows from the time, so compute it "
        "there"
    )


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(f"{error.name} is not installed: pip install 'proxflow[onnx]'") from None
    return onnx, onnxruntime


def _rms_norm(graph: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
    """Export torch's RMS norm over the last dimension, for which its exporter has no rule."""
    eps = torch.finfo(torch.float32).eps if eps.node().mustBeNone() else eps
    axis = graph.op("Constant", value_t=torch.tensor([-1]))
    square = graph.op("ReduceMean", graph.op("Mul", x, x), axis)
    least = graph.op("Constant", value_t=torch.tensor(float(eps))) if isinstance(eps, float) else eps
    normed = graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, graph.op("Cast", least, to_i=1))))
    return normed if weight.node().mustBeNone() else graph.op("Mul", normed, weight)


def _expm1(graph: Any, x: Any) -> Any:
    """Export eˣ − 1, accurate near 0, which torch's exporter lacks: 2T/(1 − T) with T = tanh(−|x|/2), or −eˣ of that."""
    one, two = (graph.op("Constant", value_t=torch.tensor(value)) for value in (1.0, 2.0))
    half = graph.op("Tanh", graph.op("Div", graph.op("Neg", graph.op("Abs", x)), two))
    below = graph.op("Div", graph.op("Mul", two, half), graph.op("Sub", one, half))
    above = graph.op("Neg", graph.op("Mul", graph.op("Exp", x), below))
    positive = graph.op("Greater", x, graph.op("Constant", value_t=torch.tensor(0.0)))
    return graph.op("Where", positive, above, below)


def _traced(told: _Told, example: tuple[Tensor, ...]) -> bytes:
    """Return the graph by tracing.

    Raises:
        ArgumentError: An operation has no counterpart in ONNX.
    """
    buffer = io.BytesIO()
    for name, rule in (("rms_norm", _rms_norm), ("expm1", _expm1)):
        torch.onnx.register_custom_op_symbolic(f"aten::{name}", rule, OPSET)  # type: ignore[attr-defined]
    names = [*told.names, *told.outputs]
    try:
        # Traced: torch's newer exporter takes half a minute for a small U-Net. Its warnings are about branches on shapes,
        # which are meant, and the comparison finds those on values.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                told, example, buffer, dynamo=False,  # type: ignore[arg-type]
                opset_version=OPSET, input_names=list(told.names),
                output_names=list(told.outputs), dynamic_axes={name: {0: "batch"} for name in names},
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, torch.jit.Error) as error:
        raise ArgumentError(f"no ONNX graph can be made of this network: {str(error).partition(chr(10))[0]}") from error
    return buffer.getvalue()


def _difference(runtime: Any, graph: bytes, told: _Told, example: tuple[Tensor, ...]) -> float:
    """Return the largest difference between a graph's outputs and torch's, relative for values above 1."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    asked = {i.name for i in session.get_inputs()}  # inputs that a predictor does not use are not in the graph
    given = {name: value.numpy() for name, value in zip(told.names, example, strict=True) if name in asked}
    with torch.no_grad():
        expected = told(*example)
    try:
        found = session.run(list(told.outputs), given)
    except runtime.capi.onnxruntime_pybind11_state.RuntimeException as error:
        raise OutputError(f"the graph fails where torch does not: {error}") from error
    worst = 0.0
    for one, other in zip(map(torch.from_numpy, found), expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        finite = other.isfinite()
        same = torch.equal(one[~finite], other[~finite])
        gap = ((one - other).abs() / other.abs().clamp_min(1))[finite]
        worst = max(worst, float(gap.max()) if same and gap.isfinite().all() else math.inf)
    return worst
