"""Effects of geometry and schedule on a proximal flow: one network, many divergences, each with a control.

A network reads the mean of a belief. Under Wasserstein-2 the mean of a training belief is m = τ(t) x + (1 − τ(t)) μ₀;
under another divergence it is at another fraction of the path from μ₀ to x, which may differ between pixels. So each
flow has a **control**: Wasserstein-2 with the schedule whose beliefs are nearest to the flow's own, in mean square over
the data. What flow and control have in common is due to the schedule; their difference is due to the geometry. Each
flow is trained a second time with the schedule that brings it nearest to Wasserstein-2 with the linear one, which is
then its control.

With two classes a belief is a noisy channel from its own pixel to the network, and a schedule is matched if this
channel has the same capacity at every time as that of the Bayesian Flow Network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow import data, models
from proxflow._math import bisect
from proxflow.beliefs import DiagonalGaussian
from proxflow.config import to_dict
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
from proxflow.examples import Condition
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN
from proxflow.likelihood import Nats, bayesian_bound, two_class_bound
from proxflow.paths import Linear, Schedule, Shifted
from proxflow.random import Generator, SampleStreams
from proxflow.runtime.checkpoints import read_tensors
from proxflow.runtime.files import read_json, writable_folder, write_json
from proxflow.solvers.renyi import MomentSolver
from proxflow.studies.geometry.report import outcome, pages
from proxflow.studies.presets import GeometryPreset
from proxflow.studies.scoreboard import Record
from proxflow.studies.trials import Cell, Setup, Study, Trial, kept_images, trained

KNOTS = 65
"""Entries of a matched schedule's table."""

DRAWS = 16
"""Random times per test image in the bound of its likelihood."""

TRAINING_SEED, TEST_SEED = 0, 1
"""Seeds of the binarisation of images."""

MATCHING_IMAGES = 32
"""Training images used to match a schedule, each with one draw of the prior."""


@dataclass(frozen=True)
class ByTime(GPFN):
    """A barycentric flow whose errors are weighted by the time only, 1/max(1 − t, floor)².

    With the linear schedule this is :class:`GPFN`. So a flow and its control, with different schedules but equal
    beliefs, weight errors equally.
    """

    def weight(self, t: Tensor) -> Tensor:
        return (1 - t).clamp_min(self.weight_floor).reciprocal().square()


@dataclass(frozen=True)
class Tabulated(ByTime):
    """A flow whose steps do not compose, with training beliefs from a table instead of simulation.

    From N(μ₀, 1) to N(x, target_std²) a coordinate's standard deviation, and the fraction of the path from μ₀ to x of
    its mean, only depend on the time and on |x − μ₀|: they are simulated once on a grid, and interpolated. Sampling
    takes exact steps.
    """

    def drawn(self, x: Tensor, t: Tensor, generator: Generator, condition: Condition | None) -> DiagonalGaussian:
        start = self.prior(x.shape, generator, x.dtype, x.device).mean
        way = x - start
        table, far = _table(self).to(x), way.abs().flatten(1)
        places = torch.stack([2 * far / FARTHEST - 1, (2 * t[:, None].to(x) - 1).expand_as(far)], dim=-1)
        found = torch.nn.functional.grid_sample(table, places[None], padding_mode="border", align_corners=True)
        fraction, std = found[0].reshape(2, *x.shape)
        return DiagonalGaussian(start + fraction * way, std)


FARTHEST, TABLE = 8.0, 129
"""The largest distance in a table, in units of the data, and its size in times and distances."""


@cache
def _table(flow: Tabulated) -> Tensor:
    """Simulate fraction of the path and standard deviation, float64 (1, 2, times, distances)."""
    times, ways = (torch.linspace(0, end, TABLE, dtype=torch.float64) for end in (1, FARTHEST))
    x = ways.clamp_min(1e-3).repeat(TABLE, 1)
    prior = DiagonalGaussian(torch.zeros_like(x), torch.ones_like(x))
    belief = flow.walk(prior, flow.endpoints.target(x, prior), times)
    return torch.stack([belief.mean / x, belief.tensors()["std"]])[None]


GEOMETRIES: dict[str, ByTime] = {
    "reverse-kl": ByTime(ReverseKL()),
    "kl": ByTime(KL(), Linear()),
    "fisher-rao": ByTime(FisherRao()),
    "renyi": Tabulated(Renyi(0.5), solver=MomentSolver(tolerance=1e-3)),
    "anisotropic": ByTime(AnisotropicWasserstein2(FrequencyMetric(28, 28))),
}
"""The divergences beside Wasserstein-2, each on the linear schedule."""

REMATCHED = ("fisher-rao", "anisotropic")
"""Geometries that are also trained with the schedule nearest to Wasserstein-2. Not KL, which then is Wasserstein-2
itself, nor Rényi, whose path depends on the number of steps, so that no single schedule matches."""

REPEATED = ("w2", "binary-bfn", *(f"{name}-matched" for name in REMATCHED))
"""Flows that are trained with further seeds: those to which all others are compared, and those most similar to w2."""

SIMPLEX: dict[str, Divergence] = {"linear": ReverseKL(), "fisher": FisherRao()}
"""The divergences between two classes, by the names of their flows."""


@dataclass(frozen=True)
class Pair:
    """A flow and its control.

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
    """Yield all comparisons, in the order of the report."""
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
    """The mean path of a flow's training beliefs from prior to data.

    Args:
        times: Times in (0, 1).
        fraction: The fraction of the path, the same for all pixels, that is nearest in mean square.
        unexplained: Root mean square of the rest, relative to that of the whole path.
    """

    times: tuple[float, ...]
    fraction: tuple[float, ...]
    unexplained: tuple[float, ...]


def mean_path(flow: GPFN, x: Tensor, times: Tensor) -> MeanPath:
    """Compare a flow's training beliefs with straight paths.

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
    """Return the times of a table's entries, float64; the ends replace 0 and 1, where log-odds are infinite."""
    return torch.linspace(0, 1, KNOTS, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)


def log_odds(fraction: Tensor) -> Tensor:
    """Return ln f/(1 − f)."""
    return fraction.log() - (-fraction).log1p()


def schedule_of(path: MeanPath) -> Shifted:
    """Return the schedule with which Wasserstein-2 has a path measured at :func:`knots`."""
    times, fraction = (torch.tensor(values, dtype=torch.float64) for values in (path.times, path.fraction))
    return rising(log_odds(fraction) - log_odds(times))


def inverse_of(schedule: Schedule) -> Shifted:
    """Return the schedule s with τ(s(t)) = t, for a flow whose path with the linear schedule is ``schedule``."""
    wanted = log_odds(knots())

    def reached(odds: Tensor) -> Tensor:
        s = torch.sigmoid(odds)
        return schedule.fraction(s).log() - schedule.remaining(s).log()

    # In log-odds, where both ends of a schedule are resolved.
    return rising(bisect(reached, wanted, -40, 40) - wanted)


# Capacity of a belief between two classes about its own pixel -------------------------------------------------


def gaussian_capacity(accuracy: Tensor) -> Tensor:
    """Return the capacity in nats of the beliefs of a two-class Bayesian Flow Network at accuracy β: log-odds N(±2β, 4β)."""
    z = torch.linspace(-9, 9, 3001, dtype=torch.float64)
    density = torch.softmax(-z.square() / 2, dim=0)
    evidence = 2 * accuracy[:, None] + 2 * accuracy[:, None].sqrt() * z
    return math.log(2) - (density * torch.nn.functional.softplus(-evidence)).sum(1)


def linear_capacity(fraction: Tensor) -> Tensor:
    """Return the capacity of the linear flow's beliefs: the fraction τ/(1 − τ) is certain, and the rest unknown."""
    return math.log(2) * (fraction / (1 - fraction)).clamp(max=1)


def fisher_capacity(fraction: Tensor) -> Tensor:
    """Return the capacity of the Fisher flow's beliefs, between equally likely classes.

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
    """Return the schedule of a flow between two classes whose beliefs have the capacities ``wanted`` at :func:`knots`."""
    # At τ = 1/2 every class is certain.
    return rising(log_odds(bisect(capacity, wanted, 0, 0.5)) - log_odds(knots()))


def rising(table: Tensor) -> Shifted:
    """Return a shifted schedule of a table that may be constant in places: it rises slightly instead."""
    pieces = len(table) - 1
    values = [float(table[0])]
    for k, wanted in enumerate(table[1:].tolist()):
        nearest = min(max(0.5, k / pieces), (k + 1) / pieces)
        steepest = 0.99 / (pieces * nearest * (1 - nearest)) if k + 1 < pieces else 0.0
        values.append(max(wanted, values[-1] - steepest))
    return Shifted(tuple(values))


# The flows ------------------------------------------------------------------------------------------------------------


def gaussian_flows(paths: dict[str, MeanPath]) -> dict[str, ByTime]:
    """Return every flow on grey images, by name."""
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
    """Return every flow on binary images, by name."""
    bfn = DiscreteBFN(2)
    flows: dict[str, GPFN | DiscreteBFN] = {"binary-bfn": bfn}
    wanted = gaussian_capacity(bfn.accuracies.beta(knots()))
    for name, divergence in SIMPLEX.items():
        for suffix, schedule in (("", Linear()), ("-matched", schedule_of_capacity(CAPACITIES[name], wanted))):
            flows[f"binary-{name}{suffix}"] = GPFN(divergence, schedule, CategoricalEndpoints(2))
    return flows


def binarised(images: Tensor, seed: int) -> Tensor:
    """Draw each pixel's class, once, with its grey value as the probability of class 1: int64, the shape of the images."""
    generator = torch.Generator().manual_seed(seed)
    return (255 * torch.rand(images.shape, generator=generator) < images).long()


def _as_images(classes: Tensor) -> Tensor:
    return (255 * classes).to(torch.uint8)


def trials_of(setup: Setup[GeometryPreset]) -> dict[str, Trial]:
    """Return every flow of the study with its network and its data, matched schedules included."""
    images, test = setup.images, setup.test

    classes = binarised(images, TRAINING_SEED)
    binary, test_binary = _as_images(classes), _as_images(binarised(test, TEST_SEED))

    def build(flow: GPFN | DiscreteBFN) -> Callable[[], models.Model]:
        return partial(models.build, setup.shape, flow=flow, network=setup.preset.network)

    found = {
        name: Trial(build(flow), images, images, test, named=False)
        for name, flow in gaussian_flows(matched(setup)).items()
    }
    for name, flow in simplex_flows().items():
        found[name] = Trial(build(flow), classes, binary, test_binary, _as_images, named=False)
    return found


def samplers_of(name: str) -> tuple[str, ...]:
    """Return the samplers of a flow: the deterministic one, and the best one of the reference flows."""
    if name == "binary-bfn":
        return ("stochastic",)  # deterministic, it gives a single sample
    if name.startswith("binary"):
        return ("deterministic", "stochastic")
    return ("deterministic", "multistep2") if name == "w2" else ("deterministic",)


def cells_of(preset: GeometryPreset) -> list[Cell]:
    """Return all cells of a preset."""
    names = dict.fromkeys(name for pair in pairs() for name in (pair.flow, pair.control))
    names |= dict.fromkeys(f"binary-{name}" for name in SIMPLEX)
    return [
        Cell(name, sampler, nfe, seed)
        for name in names
        for seed in (*preset.seeds, *(preset.further_seeds if name in REPEATED else ()))
        for sampler in samplers_of(name)
        for nfe in preset.nfes
    ]


# The records ----------------------------------------------------------------------------------------------------------


def records_of(setup: Setup[GeometryPreset], trials: Mapping[str, Trial], results: Record) -> Record:
    """Return paths, comparisons and likelihoods, with their settings."""
    cells = cells_of(setup.preset)
    return {
        "reference": f"{results['reference']}, and the same made binary",
        "parameters": sum(p.numel() for p in trials["w2"].build().predictor.parameters()),
        "paths": {flow: to_dict(path) for flow, path in matched(setup).items()},
        "pairs": [compare(setup, pair, cells) for pair in pairs()],
        "likelihood": bounds(setup, trials, cells),
    }


def _piece(setup: Setup[Any], kind: str, name: str, doing: str, make: Callable[[], Record]) -> Record:
    """Return a record in the folder of the run, made first if it is missing."""
    path = setup.out / kind / f"{name}.json"
    if not path.exists():
        setup.say(doing)
        writable_folder(path.parent)
        write_json(path, make())
    record: Record = read_json(path)
    return record


def matched(setup: Setup[GeometryPreset]) -> dict[str, MeanPath]:
    """Return the mean paths of every geometry with the linear schedule, measured once and saved."""
    x = data.to_range(setup.images[:MATCHING_IMAGES]).double()

    def path(name: str) -> MeanPath:
        made = _piece(setup, "paths", name, f"match: {name}", lambda: asdict(mean_path(GEOMETRIES[name], x, knots())))
        return MeanPath(**{key: tuple(values) for key, values in made.items()})

    return {name: path(name) for name in GEOMETRIES}


def compare(setup: Setup[GeometryPreset], pair: Pair, cells: Sequence[Cell]) -> Record:
    """Measure the difference between a flow and its control after the same training, for the first seed.

    It is the largest difference of a weight of their networks, and the mean absolute pixel difference, of 255, of
    samples from the same noise, for each sampler and NFE that both have.
    """
    out, seed, apart = setup.out, setup.preset.seeds[0], []
    for cell in cells:
        other = replace(cell, flow=pair.control)
        if (cell.flow, cell.seed) == (pair.flow, seed) and other in cells:
            images, others = (kept_images(out, c).astype(np.float64) for c in (cell, other))
            apart.append({"sampler": cell.sampler, "nfe": cell.nfe, "pixels": float(np.abs(images - others).mean())})
    ours, theirs = (
        read_tensors(out / "models" / f"{name}-seed{seed}" / "model.safetensors") for name in (pair.flow, pair.control)
    )
    weights = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return {**asdict(pair), "weights": weights, "apart": apart}


def bounds(setup: Setup[GeometryPreset], trials: Mapping[str, Trial], cells: Sequence[Cell]) -> list[Record]:
    """Bound the negative log-likelihood of binary test images under each binary flow, in nats per image.

    The test images are the reference of the samples, the first ``preset.likelihood_images``.
    """
    x = binarised(setup.test, TEST_SEED)[: setup.preset.likelihood_images].to(setup.device)

    def bound(flow: str, seed: int) -> Record:
        model, parts = trained(setup, flow, trials[flow], seed), []
        bound_of: Callable[..., Tensor] = bayesian_bound if isinstance(model.flow, DiscreteBFN) else two_class_bound
        with torch.no_grad():
            for start in range(0, len(x), 100):
                streams = SampleStreams(seed, torch.arange(start, min(start + 100, len(x)), device=setup.device))
                parts.append(bound_of(model.predictor, model.flow, x[start : start + 100], streams, draws=DRAWS))
        found = Nats(torch.cat(parts), math.prod(model.shape))
        record = {"flow": flow, "seed": seed, "nats": found.mean, "standard_error": found.standard_error}
        return {**record, "images": len(x), "draws": DRAWS}

    return [
        _piece(
            setup,
            "likelihood",
            f"{flow}-seed{seed}",
            f"likelihood: {flow}, seed {seed}, {len(x)} images",
            partial(bound, flow, seed),
        )
        for flow, seed in dict.fromkeys((cell.flow, cell.seed) for cell in cells if cell.flow.startswith("binary"))
    ]


STUDY = Study("geometry", cells_of, trials_of, pages, outcome, records_of)
