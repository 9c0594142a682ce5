"""The public contracts: every sampler and network meets them, and each names what is broken in a member that does not."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from proxflow._math import sum_events
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.data.kinds.image import Image
from proxflow.data.kinds.vector import Vector
from proxflow.divergences import Divergence, closed_form, value
from proxflow.errors import ArgumentError
from proxflow.nn import MLP, DiT, UNet
from proxflow.random import Generator
from proxflow.samplers import SAMPLERS, Deterministic, Samples
from proxflow.solvers import NewtonSolver
from proxflow.testing import BELIEFS, check_belief, check_divergence, check_kind, check_network, check_sampler, normal


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    with pytest.raises(AssertionError, match=sentence):
        yield


# Divergences: squared distance of means and logarithms of standard deviations, broken in one place or another -----------


@dataclass(frozen=True)
class Straight(Divergence):
    """Straight in means and logarithms of standard deviations."""

    fault: str = ""
    additive = True

    @property
    def composes(self) -> bool:  # type: ignore[override]
        return True


def _log(belief: DiagonalGaussian) -> Tensor:
    return torch.stack([belief.mean, belief.std.log()], -1)


@value(Straight, DiagonalGaussian)
def _(divergence: Straight, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    squares = (_log(p) - _log(q)).square().sum(-1)
    match divergence.fault:
        case "negative":
            return -sum_events(squares)
        case "offset":
            return sum_events(squares) + 1e-3
        case "batch":
            return sum_events(squares) * squares.mean()
        case "joint":
            return sum_events(squares).sqrt() * 2
        case "shape":
            return squares
        case "double":
            return sum_events(squares).double()
        case "detached":
            return sum_events((_log(p).detach() - _log(q)).square().sum(-1) + 0 * p.mean + 0 * p.std)
        case "means":
            return sum_events((p.mean - q.mean).square() + 0 * p.std + 0 * q.std)
        case "constant":
            return sum_events(squares).detach()
        case "one":
            return sum_events((_log(p).detach() - _log(q)).square().sum(-1))
        case "root":
            return sum_events(squares.sqrt())
    return sum_events(squares)


@closed_form(Straight, DiagonalGaussian)
def _(divergence: Straight, belief: DiagonalGaussian, target: DiagonalGaussian, over: Any) -> DiagonalGaussian:
    f = over(belief.mean)
    match divergence.fault:
        case "late":
            f = f * 0.99
        case "speed":
            f = f.square()
        case "mean":
            return DiagonalGaussian(torch.lerp(belief.mean, target.mean, f), torch.lerp(belief.std, target.std, f))
        case "neighbour":
            f = f.mean()
    mean, log_std = torch.lerp(_log(belief), _log(target), f[..., None]).unbind(-1)
    return DiagonalGaussian(mean, log_std.exp())


def test_a_good_divergence_passes() -> None:
    check_divergence(Straight())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("negative", r"values of different beliefs are positive, got -\d"),
        ("means", "the value of different beliefs is 0: coordinate 3 of 4 does not change it"),
        ("constant", "a value is detached from a belief"),
        ("one", "a value is detached from a belief"),
        ("offset", "the value of equal beliefs is 0: they differ by up to 1.0e-03"),
        ("batch", "the value of an example does not depend on the rest of the batch"),
        ("joint", "the value is the sum over coordinates"),
        ("shape", r"values have the shape \(64,\) of the batch, got \(64, 2\)"),
        ("double", "values of float32 beliefs are float32"),
        ("detached", "first derivatives of values match finite differences apart"),
        ("root", "derivatives of values are finite at equal beliefs"),
        ("late", "the step of fraction 1 is the belief itself"),
        ("speed", "steps toward a target compose"),
        ("mean", "the objective is flat at the step's end"),
        ("neighbour", "the step of an example does not depend on the rest of the batch"),
    ],
)
def test_a_broken_divergence_is_named(fault: str, sentence: str) -> None:
    with refused(rf"Straight\(fault='{fault}'\) on DiagonalGaussian: {sentence}"):
        check_divergence(Straight(fault))


def test_a_divergence_without_values_is_named() -> None:
    with refused("has values on none of the families"):
        check_divergence(Straight(), {f: draw for f, draw in BELIEFS.items() if f is not DiagonalGaussian})


def test_a_class_where_an_instance_is_wanted_is_named_and_the_other_way_round(table: str) -> None:
    with refused("expected an instance of a Divergence, got the class Straight: call it"):
        check_divergence(Straight)  # type: ignore[arg-type]
    with refused("expected an instance, got the class NewtonSolver: call it"):
        check_divergence(Straight(), solver=NewtonSolver)  # type: ignore[arg-type]
    with refused("expected an instance of a Sampler, got the class Deterministic: call it"):
        check_sampler(Deterministic)  # type: ignore[arg-type]
    with refused("expected an instance of a Sampler, got 'deterministic'"):
        check_sampler("deterministic")  # type: ignore[arg-type]
    with refused("expected a class of networks, got an instance of Layers: give its class"):
        check_network(Layers((3,)), (3,))
    with refused("expected a class of kinds, got an instance of Rows: give its class"):
        check_kind(Rows((2,)), table, ".csv")  # type: ignore[arg-type]


# Beliefs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Uniform(Belief):
    """Uniform on [centre − e^width, centre + e^width], blurred at its edges so that its density has derivatives."""

    mean: Tensor
    scale: Tensor

    fault = ""
    factorised = True

    @property
    def batch_size(self) -> int:
        return len(self.mean)

    @property
    def mode(self) -> Tensor:
        return self.mean.float() if self.fault == "mode" else self.mean

    def sample(self, generator: Generator) -> Tensor:
        if self.fault == "global":
            return DiagonalGaussian(self.mean, self.scale).sample(torch.Generator())
        wide = 1.1 if self.fault == "wide" else 1.0
        return DiagonalGaussian(self.mean, wide * self.scale).sample(generator)

    def log_prob(self, x: Tensor) -> Tensor:
        if self.fault != "unchecked":
            self._check_event(x, self.mean.shape)
        if self.fault == "detached":
            return DiagonalGaussian(self.mean.detach(), self.scale.detach()).log_prob(x)
        return DiagonalGaussian(self.mean, self.scale).log_prob(x.expand(self.mean.shape) if x.ndim == 2 else self.mean)

    def coordinates(self) -> Tensor:
        scale = self.scale if self.fault == "bounded" else self.scale.log()
        return torch.cat([self.mean, scale], dim=1)

    def at(self, coordinates: Tensor) -> Uniform:
        mean, scale = coordinates.chunk(2, dim=1)
        return type(self)(mean, scale.abs() if self.fault == "bounded" else scale.exp())

    def features(self) -> Tensor:
        return self.mean - self.mean.mean() if self.fault == "features" else self.mean

    def sites(self) -> Uniform:
        return type(self)(self.mean.reshape(-1, 1), self.scale.reshape(-1, 1))

    def unsites(self, sites: Uniform) -> Uniform:
        scale = sites.mean if self.fault == "sites" else sites.scale
        return type(self)(sites.mean.reshape(self.mean.shape), scale.reshape(self.mean.shape))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("mode", "mode and samples have one type"),
        ("global", "another seed gives other samples"),
        ("wide", "samples follow log_prob"),
        ("unchecked", r"log_prob refuses events of the shape \(1, 2\)"),
        ("detached", "log_prob is detached from the belief's parameters"),
        ("bounded", "any real vector is coordinates of a belief"),
        ("features", "features does not depend on the rest of the batch"),
        ("sites", "unsites is the inverse of sites"),
    ],
)
def test_a_broken_belief_is_named(fault: str, sentence: str) -> None:
    broken = type("Broken", (Uniform,), {"fault": fault})
    with refused(f"Broken: {sentence}"):
        check_belief(lambda seed, batch: broken(normal(seed, batch, 2), normal(seed + 1, batch, 2).exp()))


# Samplers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_meets_the_contract(name: str) -> None:
    check_sampler(SAMPLERS[name])


class Wrapped(Deterministic):
    fault = ""

    def __call__(self, predict: Any, flow: Any, shape: Any, nfe: int, generator: Any, **settings: Any) -> Samples:
        match self.fault:
            case "spends":
                predict(flow.prior(shape, generator, torch.float64, torch.device("cpu")), torch.zeros(shape[0]))
        samples = super().__call__(predict, flow, shape, nfe, generator, **settings)
        match self.fault:
            case "reports":
                return replace(samples, nfe=nfe + 1)
            case "batch":
                return replace(samples, events=samples.events + 1e-3 * len(samples.events))
            case "far":
                return replace(samples, events=samples.events + 0.5)
            case "double":
                return replace(samples, events=samples.events.double())
            case "global":
                return replace(samples, events=samples.events + torch.randn(()))
            case "nan":
                return replace(samples, events=samples.events.where(samples.events < samples.events.max(), torch.nan))
        return samples

    def init(self, flow: Any, belief: Any, generator: Any) -> Any:
        return belief if self.fault == "init" else super().init(flow, belief, generator)

    def step(self, *given: Any) -> Any:
        belief, state = super().step(*given)
        return belief if self.fault == "step" else (belief, state)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("init", "init returns a pair, belief and state, got DiagonalGaussian"),
        ("step", "step returns a pair, belief and state, got DiagonalGaussian"),
        ("global", "the same seed gives the same samples: they differ by up to"),
        ("nan", "samples are finite, got NaN or infinity in 1 of 24 numbers"),
        ("spends", "1 evaluations were asked for, 2 were spent"),
        ("reports", "1 evaluations were spent, 2 are reported"),
        ("batch", "a sample depends on its seed and index alone"),
        ("far", r"samples lie where the data do, got mean 0\.\d+, from"),
        ("double", "samples in float32 are torch.float32"),
    ],
)
def test_a_broken_sampler_is_named(fault: str, sentence: str) -> None:
    with refused(f"Broken on GPFN: {sentence}"):
        check_sampler(type("Broken", (Wrapped,), {"fault": fault})())


# Networks ----------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """One hidden layer, conditioned on a number."""

    def __init__(self, shape: tuple[int, ...], *, width: int = 8, reads_end: bool = False, fault: str = "") -> None:
        super().__init__()
        size = math.prod(shape)
        self.enter, self.leave, self.fault = nn.Linear(size + 3, width), nn.Linear(width, size), fault
        self.unused = nn.Linear(1, 1) if fault == "unused" else None
        self.norm = (
            nn.BatchNorm1d(width) if fault == "norm" else nn.Dropout(0.5) if fault == "dropout" else nn.Identity()
        )
        self.drawn = torch.randn(size) if fault == "hidden" else torch.zeros(size)

    def forward(self, x: Tensor, t: Tensor, *, end: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        told = torch.stack([a if a is not None else torch.zeros_like(t) for a in (t, end, condition)], 1)
        if self.fault == "double":
            return self.leave(self.enter(torch.cat([x.flatten(1), told], 1).float())).reshape(x.shape)
        hidden = self.enter(torch.cat([x.flatten(1), told], 1)).tanh()
        match self.fault:
            case "timeless":
                hidden = self.enter(torch.cat([x.flatten(1), 0 * told], 1)).tanh()
            case "deaf":
                hidden = self.enter(torch.cat([0 * x.flatten(1), told], 1)).tanh()
            case "severed":
                return self.leave(self.norm(hidden)).reshape(x.shape).detach()
        hidden = self.norm(hidden)
        if self.fault == "batch":
            hidden = hidden - hidden.mean(0)
        returned = self.leave(hidden) + self.drawn.to(x.dtype)
        return returned if self.fault == "flat" else returned.reshape(x.shape)


@pytest.mark.parametrize("reads_end", [False, True])
@pytest.mark.parametrize("condition", [None, torch.tensor([0.0, 1.0, -1.0, 2.0])])
def test_a_good_network_passes(reads_end: bool, condition: Tensor | None) -> None:
    check_network(Layers, (2, 3), condition=condition, width=4, reads_end=reads_end)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("unused", "no finite gradient reaches unused.weight"),
        ("hidden", "another one with its state_dict returns the same"),
        ("batch", "an example does not depend on its batch"),
        ("norm", r"an example does not depend on its batch in training, as with BatchNorm: .* derivative of \d"),
        ("timeless", "it reads the time"),
        ("deaf", "it reads the event"),
        ("severed", "its output is detached from its parameters"),
        ("flat", r"it returns \(4, 6\) for \(4, 2, 3\)"),
    ],
)
def test_a_broken_network_is_named(fault: str, sentence: str) -> None:
    with refused(f"Layers: {sentence}"):
        check_network(Layers, (2, 3), fault=fault)


def test_a_network_may_drop_out() -> None:
    check_network(Layers, (2, 3), fault="dropout")


def test_a_network_without_parameters_is_named() -> None:
    with refused("<lambda>: it has no parameters to train"):
        check_network(lambda shape: nn.Identity(), (3,))


def test_a_network_must_read_what_it_is_given() -> None:
    class Deaf(nn.Linear):
        def __init__(self, shape: tuple[int, ...], **_: Any) -> None:
            super().__init__(shape[0], shape[0])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * (1 + t[:, None])

    check_network(Deaf, (3,))
    with refused("Deaf: its forward has no parameter condition"):
        check_network(Deaf, (3,), condition=torch.zeros(4))
    with refused("Deaf: its forward has no parameter end"):
        check_network(Deaf, (3,), reads_end=True)


# Kinds -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of numbers in a file .csv, to a scale."""

    shape: tuple[int, ...]
    scale: Any = 2.0
    fault = ""

    @classmethod
    def takes(cls, source: str) -> bool:
        return source.endswith(".csv") or cls.fault == "greedy"

    @classmethod
    def read(cls, source: str, *, held_out: float = 0.05, seed: int = 0) -> Any:
        from proxflow.examples import Examples

        with Path(source).open(newline="") as file:
            rows = torch.tensor([[float(a) for a in row] for row in csv.reader(file)], dtype=torch.float64)
        scale = torch.tensor(2.0) if cls.fault == "tensor" else [2.0] if cls.fault == "list" else 2.0
        train = rows if cls.fault == "bare" else Examples(rows)
        kept = int(held_out * len(rows)) if cls.fault != "keeps" else 0
        return SimpleNamespace(
            kind=cls((rows.shape[1],), scale), train=train[kept:], held_out=train[:kept] if kept else None
        )

    @property
    def _scale(self) -> float:
        return float(self.scale[0] if isinstance(self.scale, list) else self.scale)

    def encode(self, stored: Tensor) -> Tensor:
        encoded = (stored / self._scale).float()
        return encoded[:, None] if self.fault == "shape" else encoded

    def decode(self, samples: Tensor) -> Tensor:
        decoded = samples.double() * (1.01 if self.fault == "scale" else 1.0) * self._scale
        return decoded.float() if self.fault == "dtype" else decoded

    def check_output(self, path: Path, number: int) -> None:
        if path.suffix != ".csv" and self.fault != "unchecked":
            raise ArgumentError("only .csv can be written")

    def write(self, path: Path, stored: Tensor) -> None:
        if self.fault != "unwritten":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows((stored + (self.fault == "written")).tolist())

    def preview(self, stored: Tensor) -> Any:
        return np.zeros((2, 2, 1), dtype=np.float32 if self.fault == "preview" else np.uint8)


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(f"{x},{y}" for x, y in normal(1, 12, 2).tolist()) + "\n")
    return str(path)


def test_good_kinds_pass(table: str, tmp_path: Path) -> None:
    check_kind(Rows, table, ".csv")
    check_kind(Vector, table, ".csv")
    check_kind(Vector, table)
    np.savez(tmp_path / "images.npz", images=np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1))
    check_kind(Image, str(tmp_path / "images.npz"))


@pytest.mark.parametrize(("network", "shape"), [(MLP, (3,)), (UNet, (1, 8, 8)), (DiT, (1, 8, 8))])
def test_the_librarys_networks_pass(network: Any, shape: tuple[int, ...]) -> None:
    check_network(network, shape)
    check_network(network, shape, reads_end=True)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("greedy", "takes accepts a file that is not its own"),
        ("keeps", "a share of 0.5 keeps examples from training, got None"),
        ("unchecked", "check_output refuses a file with an unknown ending"),
        ("bare", "what is read is Examples, got Tensor"),
        ("tensor", "its fields are plain values"),
        ("list", "the kind made again of its fields is"),
        ("shape", r"encoded are \(8, 1, 2\), not \(8, 2\)"),
        ("scale", "what is encoded decodes to what is stored"),
        ("dtype", "stored are torch.float64, decoded torch.float32"),
        ("unwritten", "writing examples.csv makes a file"),
        ("written", "what is written to examples.csv is read again"),
        ("preview", "a preview is bytes"),
    ],
)
def test_a_broken_kind_is_named(table: str, fault: str, sentence: str) -> None:
    with refused(f"Broken: {sentence}"):
        check_kind(type("Broken", (Rows,), {"fault": fault}), table, ".csv")
