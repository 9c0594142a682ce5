"""What geometry does to a proximal flow and what its schedule does: one network, many divergences, each with a control.

A network reads the mean of a belief. Under Wasserstein-2 the mean of a training belief is m = τ(t) x + (1 − τ(t)) μ₀; under
another divergence it has gone another part of the way from μ₀ to x, and that part may differ from pixel to pixel. So each
flow has a **control**: Wasserstein-2 on the schedule whose beliefs come nearest to the flow's own, in mean square over the
data. What flow and control share is the schedule's; what is left between them is the geometry's. Each flow is trained a
second time on the schedule that brings it nearest to Wasserstein-2 on the linear one, whose control is that flow.

On two classes a belief tells the network of its own pixel through a noisy channel, and a schedule is matched when this
channel has the same capacity at every time as that of the Bayesian Flow Network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow import data, models
from proxflow.beliefs import DiagonalGaussian
from proxflow.config import ModelConfig, SamplerName, to_dict
from proxflow.divergences import (
    KL,
    AnisotropicWasserstein2,
    Divergence,
    FisherRao,
    FrequencyMetric,
    Renyi,
    ReverseKL,
    Wasserstein2,
)
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN, Flow
from proxflow.likelihood import Nats, two_class_bound
from proxflow.models import Model
from proxflow.paths import Linear, Schedule, Shifted
from proxflow.predictors import ClassPredictor, PointPredictor
from proxflow.random import Generator, SampleStreams, rand
from proxflow.runtime.checkpoints import read_tensors
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.solvers.renyi import MomentSolver
from proxflow.studies import mnist
from proxflow.studies.mnist import Cell, Contender, kept_images
from proxflow.studies.presets import GeometryPreset

KNOTS = 65
"""Entries of a matched schedule's table."""

DRAWS = 16
"""Times drawn for each test image in the bound of its likelihood."""

TRAINING_SEED, TEST_SEED = 0, 1
"""Seeds of the draws that make images binary."""

MATCHING_IMAGES = 32
"""Training images whose pixels a schedule is matched on, each with one draw of the prior."""


@dataclass(frozen=True)
class ByTime(GPFN):
    """A barycentric flow whose errors weigh by the time alone, 1/max(1 − t, floor)².

    With the linear schedule this is :class:`GPFN`. Here a flow and its control, whose schedules differ and whose beliefs do
    not, weigh the same errors alike.
    """

    def weight(self, t: Tensor) -> Tensor:
        return (1 - t).clamp_min(self.weight_floor).reciprocal().square()


@dataclass(frozen=True)
class Tabulated(ByTime):
    """A flow whose steps do not compose, with its training beliefs read from a table instead of simulated for each.

    From N(μ₀, 1) to N(x, target_std²) a coordinate's standard deviation, and the part of the way from μ₀ to x that its mean
    has gone, depend on the time and on |x − μ₀| alone: they are simulated once on a grid, and interpolated. Sampling takes
    true steps.
    """

    def belief(self, x: Tensor, t: Tensor, generator: Generator, **_: Any) -> DiagonalGaussian:
        start = self.prior(x.shape, generator, x.dtype, x.device).mean
        way = x - start
        table, far = _table(self).to(x), way.abs().flatten(1)
        places = torch.stack([2 * far / FARTHEST - 1, (2 * t[:, None].to(x) - 1).expand_as(far)], dim=-1)
        found = torch.nn.functional.grid_sample(table, places[None], padding_mode="border", align_corners=True)
        fraction, std = found[0].reshape(2, *x.shape)
        return DiagonalGaussian(start + fraction * way, std)


FARTHEST, TABLE = 8.0, 129
"""The longest way of a table, in units of the data, and its size in time and in ways."""


@cache
def _table(flow: Tabulated) -> Tensor:
    """Part of the way and standard deviation, float64 (1, 2, times, ways)."""
    times, ways = (torch.linspace(0, end, TABLE, dtype=torch.float64) for end in (1, FARTHEST))
    x = ways.clamp_min(1e-3).repeat(TABLE, 1)
    prior = DiagonalGaussian(torch.zeros_like(x), torch.ones_like(x))
    belief = flow.walk(prior, flow.endpoints.target(x, prior), times)
    return torch.stack([belief.mean / x, belief.tensors()["std"]])[None]


GEOMETRIES: dict[str, ByTime] = {
    "reverse-kl": ByTime(ReverseKL()),
    "kl": ByTime(KL()),
    "fisher-rao": ByTime(FisherRao()),
    "renyi": Tabulated(Renyi(0.5), solver=MomentSolver(tolerance=1e-3)),
    "anisotropic": ByTime(AnisotropicWasserstein2(FrequencyMetric(28, 28))),
}
"""The divergences beside Wasserstein-2, each on the linear schedule."""

REMATCHED = ("fisher-rao", "anisotropic")
"""Geometries that are trained on the schedule nearest to Wasserstein-2 as well. Not KL, which on its matched schedule is
Wasserstein-2 itself, nor Rényi, whose path depends on the number of steps, so that no one schedule matches all."""

REPEATED = ("w2", "binary-bfn", *(f"{name}-matched" for name in REMATCHED))
"""Flows that are trained with further seeds: those that all others are held against, and those that most resemble w2."""

SIMPLEX: dict[str, Divergence] = {"linear": ReverseKL(), "fisher": FisherRao()}
"""The divergences between two classes, by the names of their flows."""


@dataclass(frozen=True)
class Pair:
    """A flow and the control that it is held against.

    Args:
        flow: Name of the flow.
        control: Name of its control.
        geometry: Name of the geometry that only the flow has.
        matched: Whether the schedule of the flow was matched to the control's, or the other way round.
    """

    flow: str
    control: str
    geometry: str
    matched: bool


def pairs() -> Iterator[Pair]:
    """All comparisons, in the order of the report."""
    for name in GEOMETRIES:
        # Reverse KL moves the mean as Wasserstein-2 does: every matched schedule is the linear one.
        yield Pair(name, "w2", name, True) if name == "reverse-kl" else Pair(name, f"w2-as-{name}", name, False)
        if name in REMATCHED:
            yield Pair(f"{name}-matched", "w2", name, True)
    for name in SIMPLEX:
        yield Pair(f"binary-{name}-matched", "binary-bfn", name, True)


# Matched schedules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanPath:
    """How the means of a flow's training beliefs go from prior to data.

    Args:
        times: Times in (0, 1).
        fraction: The part of the way, the same for all pixels, that comes nearest in mean square.
        unexplained: Root mean square of what is left, over that of the whole way.
    """

    times: tuple[float, ...]
    fraction: tuple[float, ...]
    unexplained: tuple[float, ...]


def mean_path(flow: GPFN, x: Tensor, times: Tensor) -> MeanPath:
    """Measure a flow's training beliefs against straight ones.

    Args:
        flow: A barycentric flow with Gaussian endpoints.
        x: Data (batch, *event), float64.
        times: Times in (0, 1), float64, (number,).
    """
    noise = flow.prior(x.shape, torch.Generator().manual_seed(0), x.dtype, x.device).mean
    way = x - noise
    whole = way.square().sum()
    fractions, left = [], []
    for t in times:
        belief = flow.belief(x, t.expand(len(x)), torch.Generator().manual_seed(0))
        gone = belief.mean - noise
        fraction = (gone * way).sum() / whole
        fractions.append(float(fraction))
        left.append(float(((gone - fraction * way).square().sum() / whole).sqrt()))
    return MeanPath(tuple(times.tolist()), tuple(fractions), tuple(left))


def knots() -> Tensor:
    """Times of a table's entries, float64; the ends stand for their limits, where log-odds are infinite."""
    return torch.linspace(0, 1, KNOTS, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)


def log_odds(fraction: Tensor) -> Tensor:
    """ln f/(1 − f)."""
    return fraction.log() - (-fraction).log1p()


def schedule_of(path: MeanPath) -> Shifted:
    """The schedule on which Wasserstein-2 has a path that was measured at :func:`knots`."""
    times, fraction = (torch.tensor(values, dtype=torch.float64) for values in (path.times, path.fraction))
    return rising(log_odds(fraction) - log_odds(times))


def inverse_of(schedule: Schedule) -> Shifted:
    """The schedule s with τ(s(t)) = t, for a flow that on the linear schedule goes as far as ``schedule`` says."""
    wanted = log_odds(knots())
    low, high = torch.full_like(wanted, -40), torch.full_like(wanted, 40)
    for _ in range(80):  # bisection in log-odds, where both ends of a schedule are resolved
        middle = (low + high) / 2
        s = torch.sigmoid(middle)
        reached = schedule.fraction(s).log() - schedule.remaining(s).log()
        before = reached < wanted
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return rising(middle - wanted)


# Capacity of what a belief between two classes tells of its own pixel -------------------------------------------------


def gaussian_capacity(accuracy: Tensor) -> Tensor:
    """Capacity in nats of the beliefs of a two-class Bayesian Flow Network at accuracy β: log-odds N(±2β, 4β)."""
    z = torch.linspace(-9, 9, 3001, dtype=torch.float64)
    density = torch.softmax(-z.square() / 2, dim=0)
    evidence = 2 * accuracy[:, None] + 2 * accuracy[:, None].sqrt() * z
    return math.log(2) - (density * torch.nn.functional.softplus(-evidence)).sum(1)


def linear_capacity(fraction: Tensor) -> Tensor:
    """Capacity of the linear flow's beliefs: a class is certain in the share τ/(1 − τ), and unknown in the rest."""
    return math.log(2) * (fraction / (1 - fraction)).clamp(max=1)


def fisher_capacity(fraction: Tensor) -> Tensor:
    """Capacity of the Fisher flow's beliefs, between even classes.

    With θ = cos²ψ, a belief is at ψ = (1 − τ)ψ₀ for the one class and mirrored about π/4 for the other, and ψ₀ has the
    density sin 2ψ₀ on [0, π/2]. The integral over ψ is a midpoint sum.
    """
    cells = 4000
    angle = (torch.arange(cells, dtype=torch.float64) + 0.5) * (math.pi / 2 / cells)
    keep = 1 - fraction[:, None]

    def density(angle: Tensor) -> Tensor:
        return torch.where(angle < keep * math.pi / 2, (2 * angle / keep).sin().clamp_min(0) / keep, 0)

    one, other = density(angle), density(math.pi / 2 - angle)
    ratio = torch.where(one > 0, 2 * one / (one + other), 1)
    return (one * ratio.log()).sum(1) * (math.pi / 2 / cells)


CAPACITIES: dict[str, Callable[[Tensor], Tensor]] = {"linear": linear_capacity, "fisher": fisher_capacity}


def schedule_of_capacity(capacity: Callable[[Tensor], Tensor], wanted: Tensor) -> Shifted:
    """The schedule of a flow between two classes whose beliefs have the capacities ``wanted`` at :func:`knots`."""
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 0.5)  # at τ = 1/2 every class is certain
    for _ in range(60):
        middle = (low + high) / 2
        before = capacity(middle) < wanted
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return rising(log_odds(middle) - log_odds(knots()))


def rising(table: Tensor) -> Shifted:
    """A shifted schedule from a table that may ask the fraction to stand still: it rises a little instead."""
    pieces = len(table) - 1
    values = [float(table[0])]
    for k, wanted in enumerate(table[1:].tolist()):
        nearest = min(max(0.5, k / pieces), (k + 1) / pieces)
        steepest = 0.99 / (pieces * nearest * (1 - nearest)) if k + 1 < pieces else 0.0
        values.append(max(wanted, values[-1] - steepest))
    return Shifted(tuple(values))


# The flows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyConfig(ModelConfig):
    """The network of a flow of this study.

    Args:
        contender: Name of the flow; a field that no model of the command line has, so that these refuse to load as such.
    """

    contender: str = ""


def gaussian_flows(paths: dict[str, MeanPath]) -> dict[str, ByTime]:
    """Every flow on grey images, by name."""
    flows = {"w2": ByTime(Wasserstein2())}
    for name, flow in GEOMETRIES.items():
        flows[name] = flow
        if name != "reverse-kl":
            schedule = schedule_of(paths[name])
            flows[f"w2-as-{name}"] = ByTime(Wasserstein2(), schedule)
            if name in REMATCHED:
                flows[f"{name}-matched"] = replace(flow, schedule=inverse_of(schedule))
    return flows


def simplex_flows() -> dict[str, GPFN | DiscreteBFN]:
    """Every flow on binary images, by name."""
    bfn = DiscreteBFN(2)
    flows: dict[str, GPFN | DiscreteBFN] = {"binary-bfn": bfn}
    wanted = gaussian_capacity(bfn.accuracies.beta(knots()))
    for name, divergence in SIMPLEX.items():
        for suffix, schedule in (("", Linear()), ("-matched", schedule_of_capacity(CAPACITIES[name], wanted))):
            flows[f"binary-{name}{suffix}"] = GPFN(divergence, schedule, CategoricalEndpoints(2))
    return flows


def binarised(images: Tensor, seed: int) -> Tensor:
    """Each pixel's class, drawn once with its grey value as the probability of class 1: int64, the shape of the images."""
    generator = torch.Generator().manual_seed(seed)
    return (255 * torch.rand(images.shape, generator=generator) < images).long()


def _as_images(classes: Tensor) -> Tensor:
    return (255 * classes).to(torch.uint8)


def contenders_of(
    preset: GeometryPreset, images: Tensor, test: Tensor, paths: dict[str, MeanPath]
) -> dict[str, Contender]:
    """Every flow of the study with its network and its data.

    Args:
        preset: Gives the network.
        images: Training images of bytes.
        test: Test images of bytes.
        paths: Of :func:`matched`.
    """
    shape = tuple(images.shape[1:])

    def build(name: str, flow: Flow[Any], head: Callable[[Any, Any], Any]) -> Model:
        config = StudyConfig(**{**vars(preset.network), "contender": name})
        return Model(config, shape, flow, head(models.unet(config, shape[0]), flow))

    found = {
        name: Contender(partial(build, name, flow, PointPredictor), images, images, test)
        for name, flow in gaussian_flows(paths).items()
    }
    classes, test_classes = binarised(images, TRAINING_SEED), binarised(test, TEST_SEED)
    binary, test_binary = _as_images(classes), _as_images(test_classes)
    for name, flow in simplex_flows().items():
        head = partial(build, name, flow, lambda network, _: ClassPredictor(network))
        found[name] = Contender(head, classes, binary, test_binary, _as_images)
    return found


def samplers_of(name: str) -> tuple[SamplerName, ...]:
    """The samplers of a flow: without noise for all but one; for the ones that all others are held against, their best."""
    if name == "binary-bfn":
        return ("stochastic",)  # without noise it gives one single sample
    if name.startswith("binary"):
        return ("deterministic", "stochastic")
    return ("deterministic", "multistep2") if name == "w2" else ("deterministic",)


def cells_of(preset: GeometryPreset) -> list[Cell]:
    """All cells of a preset."""
    names = dict.fromkeys(name for pair in pairs() for name in (pair.flow, pair.control))
    names |= dict.fromkeys(f"binary-{name}" for name in SIMPLEX)
    return [
        Cell(name, sampler, nfe, seed)
        for name in names
        for seed in (*preset.seeds, *(preset.further_seeds if name in REPEATED else ()))
        for sampler in samplers_of(name)
        for nfe in preset.nfes
    ]


# The experiment -------------------------------------------------------------------------------------------------------


def reproduce(
    name: str,
    preset: GeometryPreset,
    out: Path,
    device: torch.device,
    say: Callable[[str], None],
    dataset: str = "mnist",
) -> dict[str, Any]:
    """Run the study, or what is missing of it, and write ``results.json``.

    Args:
        name: Name of the preset, for the record.
        preset: What to run.
        out: Folder for models, cells and results.
        device: Where to train and sample.
        say: Called with a line at each stage.
        dataset: ``mnist``, or a folder of IDX files of 28 × 28 grey images.

    Returns:
        The content of ``results.json``.

    Raises:
        OutputError: The folder cannot be written, or holds a run of another configuration.
        DivergedError: Training broke down.
    """
    config = mnist.claim(out, {"preset": name, "dataset": dataset, **asdict(preset)})
    images = data.load(dataset, "train").images[: preset.train_images]
    test = data.load(dataset, "test").images
    paths = matched(out, images, say)
    contenders = contenders_of(preset, images, test, paths)
    cells = cells_of(preset)
    results = {
        "experiment": "geometry",
        "config": config,
        **mnist.run(
            out, contenders, cells, preset.training, preset.samples, device, say, data.recognise(test) or "mnist"
        ),
        "reference": f"{len(test)} test images of {dataset}, and the same made binary",
        "parameters": sum(p.numel() for p in contenders["w2"].build().predictor.parameters()),
        "paths": {flow: to_dict(path) for flow, path in paths.items()},
        "pairs": [compare(out, pair, cells, preset) for pair in pairs()],
        "likelihood": bounds(out, contenders, cells, preset, test, device, say),
    }
    write_json(out / "results.json", results)
    return results


def matched(out: Path, images: Tensor, say: Callable[[str], None]) -> dict[str, MeanPath]:
    """How the means of every geometry go on the linear schedule, measured once and kept."""
    x = data.to_range(images[:MATCHING_IMAGES]).double()
    paths = {}
    for name, flow in GEOMETRIES.items():
        path = out / "paths" / f"{name}.json"
        if not path.exists():
            say(f"match: {name}")
            writable_folder(path.parent)
            write_json(path, asdict(mean_path(flow, x, knots())))
        paths[name] = MeanPath(**{k: tuple(v) for k, v in read_json(path).items()})
    return paths


def compare(out: Path, pair: Pair, cells: list[Cell], preset: GeometryPreset) -> dict[str, Any]:
    """How far a flow is from its control after the same training, first seed.

    The largest difference of a weight of their networks; and of samples from the same noise the mean absolute difference of
    pixels, of 255, for each sampler and NFE that both have.
    """
    apart = []
    for cell in cells:
        other = replace(cell, flow=pair.control)
        if cell.flow == pair.flow and cell.seed == preset.seeds[0] and other in cells:
            images, others = (kept_images(out, c).astype(np.float64) for c in (cell, other))
            apart.append({"sampler": cell.sampler, "nfe": cell.nfe, "pixels": float(np.abs(images - others).mean())})
    ours, theirs = (
        read_tensors(out / "models" / f"{name}-seed{preset.seeds[0]}" / "model.safetensors")
        for name in (pair.flow, pair.control)
    )
    weights = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return {**asdict(pair), "weights": weights, "apart": apart}


def bounds(
    out: Path,
    contenders: Mapping[str, Contender],
    cells: Sequence[Cell],
    preset: GeometryPreset,
    test: Tensor,
    device: torch.device,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Bound of the negative log-likelihood of binary test images under each flow of them, nats an image.

    The test images are those that samples are compared with, the first ``preset.likelihood_images``.
    """
    x = binarised(test, TEST_SEED)[: preset.likelihood_images].to(device)
    records = []
    for flow, seed in dict.fromkeys((cell.flow, cell.seed) for cell in cells if cell.flow.startswith("binary")):
        path = out / "likelihood" / f"{flow}-seed{seed}.json"
        if not path.exists():
            say(f"likelihood: {flow}, seed {seed}, {len(x)} images")
            model = mnist.trained(out, flow, seed, contenders[flow], device)
            parts = []
            with torch.no_grad():
                for start in range(0, len(x), 100):
                    streams = SampleStreams(seed, torch.arange(start, min(start + 100, len(x)), device=device))
                    parts.append(nats(simplex_flows()[flow], model.predictor, x[start : start + 100], streams))
            found = Nats(torch.cat(parts), math.prod(model.shape))
            writable_folder(path.parent)
            record = {"flow": flow, "seed": seed, "nats": found.mean, "standard_error": found.standard_error}
            write_json(path, {**record, "images": len(x), "draws": DRAWS})
        records.append(read_json(path))
    return records


def nats(flow: GPFN | DiscreteBFN, predict: Callable[[Any, Tensor], Any], x: Tensor, generator: Generator) -> Tensor:
    """Upper bound of −log p(x) in nats per example, (batch,), from :data:`DRAWS` times for each example.

    For a Bayesian Flow Network its variational bound (2308.07037, §6): continuous-time loss and reconstruction loss.
    """
    if not isinstance(flow, DiscreteBFN):
        return two_class_bound(predict, flow, x, generator, draws=DRAWS)
    total = flow.reconstruction_loss(predict, x, generator)
    for k in range(DRAWS):
        t = (k + rand(torch.Size([len(x)]), generator, torch.float32, x.device)) / DRAWS
        total = total + flow.loss(predict, x, generator, t) / DRAWS
    return total.double() * math.prod(x.shape[1:])
