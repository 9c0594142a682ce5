"""Contract tests of parts that other packages can add, to call from any test suite.

    from proxflow.testing import check_divergence

    def test_my_divergence():
        check_divergence(MyDivergence())

Each raises ``AssertionError`` with a sentence that says what failed. The library's own parts pass the same tests.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxflow.beliefs import Belief, Binned, Categorical, DiagonalGaussian, FullGaussian, GaussianMixture, Product
from proxflow.data import GaussianMixtureLaw
from proxflow.divergences import Divergence, ReverseKL, has_closed_form, has_value, steps_compose
from proxflow.errors import ArgumentError
from proxflow.flows import BFN, GPFN, CategoricalEndpoints, Diffusion, DiscreteBFN
from proxflow.predictors.exact import ExactClasses, ExactMean
from proxflow.random import SampleStreams
from proxflow.samplers import Sampler
from proxflow.solvers import NewtonSolver, Solver

__all__ = [
    "BELIEFS",
    "check_belief",
    "check_divergence",
    "check_kind",
    "check_network",
    "check_sampler",
    "difference",
    "normal",
    "uniform",
]

Draw = Callable[[int, int], Any]
"""``draw(seed, batch)``: random beliefs of one family in double precision, a function of its arguments."""


def _require(holds: bool | Tensor, sentence: str) -> None:
    if not bool(holds):
        raise AssertionError(sentence)


def _instance(thing: Any, base: type[Any] = object) -> None:
    """Require an instance of a base class, as a class or anything else may be given by mistake."""
    expected = "an instance" if base is object else f"an instance of a {base.__name__}"
    got = f"the class {thing.__name__}: call it" if isinstance(thing, type) else f"{thing!r:.80}"
    _require(not isinstance(thing, type) and isinstance(thing, base), f"expected {expected}, got {got}")


@dataclass(frozen=True)
class _Contract:
    """Requirements on a part; every sentence begins with its name."""

    name: str

    def require(self, holds: bool | Tensor, sentence: str) -> None:
        _require(holds, f"{self.name}: {sentence}")

    def refused(self, call: Callable[[], object], sentence: str, by: type[Exception] = ArgumentError) -> None:
        try:
            call()
        except by:
            return
        self.require(False, sentence)

    def near(self, found: Tensor, expected: Tensor, sentence: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Require two tensors to be of one shape and close, equal infinities included; the message says by how much."""
        self.require(
            found.shape == expected.shape, f"{sentence}: got {tuple(found.shape)}, not {tuple(expected.shape)}"
        )
        found, expected = found.detach().double(), expected.detach().double()
        if not torch.allclose(found, expected, rtol=rtol, atol=atol):
            worst = float((found - expected).abs().max())
            allowed = f"allowed are {atol:g} + {rtol:g} of the value"
            self.require(False, f"{sentence}: they differ by up to {worst:.1e}, {allowed}")

    def derivatives(self, function: Callable[[Tensor], Tensor], x: Tensor, sentence: str, atol: float) -> None:
        """Require every derivative of a row-wise function to match central differences.

        All of these are computed in one batch: one by one, values that are numerical solutions would take minutes.
        """
        x, size = x.detach().requires_grad_(), 1e-6
        found = function(x)[0]
        rows = [torch.autograd.grad(each, x, retain_graph=True, allow_unused=True)[0] for each in found]
        exact = torch.stack([torch.zeros_like(x[0]) if row is None else row[0] for row in rows])
        moved = size * torch.eye(x.shape[1], dtype=x.dtype)
        above, below = function(torch.cat([x.detach() + moved, x.detach() - moved])).detach().chunk(2)
        self.near(exact, ((above - below) / (2 * size)).T, sentence, rtol=1e-3, atol=atol)

    def same(self, a: Belief, b: Belief, allowed: float, sentence: str) -> None:
        found = difference(a, b)
        self.require(found <= allowed, f"{sentence}: they differ by {found:.1e}, allowed are {allowed:g}")


def _part(belief: Any, rows: Any) -> Any:
    return belief.map(lambda a: a[rows])


# Random beliefs ----------------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    """Draw standard normal numbers of a shape, float64, from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int, *shape: int) -> Tensor:
    """Draw uniform numbers of a shape, float64, from a seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _diagonal_gaussian(seed: int, batch: int) -> DiagonalGaussian:
    return DiagonalGaussian(normal(seed, batch, 2), (0.5 * normal(seed + 1000, batch, 2)).exp())


def _full_gaussian(seed: int, batch: int) -> FullGaussian:
    factor = 0.5 * normal(seed, batch, 2, 2).tril(-1) + torch.diag_embed((0.5 * normal(seed + 1000, batch, 2)).exp())
    return FullGaussian(normal(seed + 2000, batch, 2), factor)


def _gaussian_mixture(seed: int, batch: int) -> GaussianMixture:
    means, log_stds = normal(seed + 1000, batch, 2, 2), 0.3 * normal(seed + 2000, batch, 2, 2)
    return GaussianMixture(0.5 * normal(seed, batch, 2), 1.5 * means, log_stds.exp())


def _product(seed: int, batch: int) -> Product:
    return Product((_diagonal_gaussian(seed, batch), Categorical(normal(seed + 3000, batch, 1, 3))))


BELIEFS: dict[type[Belief], Draw] = {
    DiagonalGaussian: _diagonal_gaussian,
    FullGaussian: _full_gaussian,
    Categorical: lambda seed, batch: Categorical(normal(seed, batch, 2, 3)),
    Binned: lambda seed, batch: Binned(normal(seed, batch, 2, 3)),
    GaussianMixture: _gaussian_mixture,
    Product: _product,
}
"""Functions that draw beliefs of each family: events of two coordinates, mixed data of two numbers and a category."""


def difference(a: Belief, b: Belief) -> float:
    """Return the largest difference of parameters, in a form that is unique for a distribution.

    Probabilities instead of logits; components of a mixture in the order of their means, or densities at some points if
    the numbers of components differ.
    """
    if isinstance(a, GaussianMixture) and isinstance(b, GaussianMixture) and a.components != b.components:
        points = 1.5 * normal(0, 40, *a.means.shape[2:]).to(a.means)
        return max(
            float((a.log_prob(x).exp() - b.log_prob(x).exp()).abs().max())
            for x in (point.expand_as(a.mean) for point in points)
        )

    def values(belief: Belief) -> list[Tensor]:
        if isinstance(belief, GaussianMixture):
            means, stds = (a.reshape(*a.shape[:2], -1) for a in (belief.means, belief.stds))
            order = means[..., 0].argsort(1)
            ordered = [a.take_along_dim(order[..., None], 1) for a in (means, stds)]
            return [belief.weights.take_along_dim(order, 1), *ordered]
        return [x.softmax(-1) if name.endswith("logits") else x for name, x in belief.tensors().items()]

    return max(float((x - y).abs().max()) for x, y in zip(values(a), values(b), strict=True))


# Divergences -------------------------------------------------------------------------------------------------------------


def check_divergence(
    divergence: Divergence,
    families: Mapping[type[Belief], Draw] | None = None,
    solver: Solver | None = None,
    *,
    smooth: bool = True,
    tolerance: float = 1e-12,
) -> None:
    """Check a divergence on every family for which it has values.

    Values are 0 at equal beliefs and positive elsewhere, sums if ``additive``, independent of the rest of the batch,
    nearly the same in single precision, and have finite derivatives. Steps end at belief and target, minimise
    :meth:`~proxflow.Divergence.objective`, agree with the solver if they have a closed form, and compose if
    ``composes``.

    Args:
        divergence: The divergence.
        families: Functions that draw beliefs of each family, ``draw(seed, batch)``; ``None`` for :data:`BELIEFS`.
            Families without a value are skipped.
        solver: Solver of steps without a closed form; ``None`` skips these. Closed forms are compared with it, or with
            :class:`~proxflow.NewtonSolver`.
        smooth: Whether the value is twice differentiable, also at equal beliefs.
        tolerance: Largest difference allowed between beliefs that should be equal, in double precision; a hundredth of it
            for values at equal beliefs, a hundred times as much between closed form and solver.

    Raises:
        AssertionError: A part of the contract does not hold.
    """
    _instance(divergence, Divergence)
    _instance(solver)
    draws = {f: draw for f, draw in (families or BELIEFS).items() if has_value(divergence, draw(0, 1))}
    _require(bool(draws), f"{divergence} has values on none of the families that were given")
    for family, draw in draws.items():
        known = has_closed_form(divergence, draw(0, 1))
        pair = _Pair(f"{divergence} on {family.__name__}", divergence, draw, solver or NewtonSolver(), known, tolerance)
        pair.check_values(smooth)
        if known or solver is not None:
            pair.check_steps(smooth)


@dataclass(frozen=True)
class _Pair(_Contract):
    divergence: Divergence
    draw: Draw
    solver: Solver
    closed: bool
    tolerance: float

    def beliefs(self, batch: int) -> tuple[Any, Any, Tensor]:
        return self.draw(1, batch), self.draw(2, batch), 0.1 + 0.8 * uniform(3, batch)

    def step(self, p: Any, q: Any, fraction: Tensor | float) -> Any:
        return self.divergence.interpolate(p, q, fraction) if self.closed else self.solved(p, q, fraction)

    def solved(self, p: Any, q: Any, fraction: Tensor | float) -> Any:
        return self.solver(self.divergence, p, q, fraction).belief_or_raise()

    def check_values(self, smooth: bool) -> None:
        d, (p, q, _) = self.divergence, self.beliefs(64)
        values = d(p, q)
        self.require(values.shape == (64,), f"values have the shape (64,) of the batch, got {tuple(values.shape)}")
        positive = (values > self.tolerance).all()
        self.require(positive, f"values of different beliefs are positive, got {values.min():.1e}")
        self.near(d(p, p), torch.zeros(64), "the value of equal beliefs is 0", atol=self.tolerance / 100)
        x = p.coordinates()
        for k in range(x.shape[1]):
            moved = x.clone()
            moved[:, k] += 0.1
            told = f"the value of different beliefs is 0: coordinate {k + 1} of {x.shape[1]} does not change it"
            self.require((d(p, p.at(moved)) > self.tolerance / 100).all(), told)
        third = slice(2, 3)
        self.near(
            d(_part(p, third), _part(q, third)),
            values[third],
            "the value of an example does not depend on the rest of the batch",
            rtol=self.tolerance,
        )
        if d.additive and p.factorised:
            per_site = d(p.sites(), q.sites()).reshape(64, -1)
            self.near(per_site.sum(1), values, "the value is the sum over coordinates", rtol=self.tolerance / 10)
        rounded = [b.map(Tensor.float) for b in (p, q)]
        single = d(*rounded)
        self.require(single.dtype == torch.float32, f"values of float32 beliefs are float32, got {single.dtype}")
        exact = d(*(b.map(Tensor.double) for b in rounded))
        self.near(single, exact, "values in float32 and float64 agree", rtol=1e-4, atol=1e-6)
        self.check_derivatives_of_values(smooth)

    def check_derivatives_of_values(self, smooth: bool) -> None:
        d, (p, q, _) = self.divergence, self.beliefs(1)
        for other, where in ((q, "apart"), (p, "at equal beliefs"))[: 1 + smooth]:
            x, y = p.coordinates().requires_grad_(), other.coordinates().requires_grad_()
            found = d(p.at(x), p.at(y)).sum()
            detached = "a value is detached from a belief: no derivative in its parameters can be taken"
            self.require(found.requires_grad, detached)
            slopes = torch.autograd.grad(found, (x, y), allow_unused=True)
            self.require(all(a is not None for a in slopes), detached)
            self.require(all(bool(a.isfinite().all()) for a in slopes), f"derivatives of values are finite {where}")
            if smooth:
                both, sentence = torch.cat([x, y], 1), "derivatives of values match finite differences"
                self.derivatives(self._values, both, f"first {sentence} {where}", 1e-7)
                self.derivatives(self._slopes, both, f"second {sentence} {where}", 1e-6)
        if smooth:
            p, _, _ = self.beliefs(64)
            way = normal(9, *p.coordinates().shape)

            def ratio(size: float) -> Tensor:
                return d(p, p.at(p.coordinates() + size * way)) / size**2

            for size in (1e-3, 1e-5):
                self.near(ratio(size), ratio(1e-2), f"values are quadratic near equality, {size:g} apart", rtol=0.2)

    def check_steps(self, smooth: bool) -> None:
        d, (p, q, f) = self.divergence, self.beliefs(4)
        moved, third = self.step(p, q, f), slice(2, 3)
        self.same(
            self.step(_part(p, third), _part(q, third), f[third]),
            _part(moved, third),
            self.tolerance / 10,
            "the step of an example does not depend on the rest of the batch",
        )
        for ends in (torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 1, 0, 1], dtype=torch.float64)):
            landed = self.step(p, q, ends)
            for end, belief in ((0, p), (1, q)):
                found, expected = _part(landed, ends == end), _part(belief, ends == end)
                self.same(found, expected, self.tolerance, f"the step of fraction {end} is the belief itself")
        self.same(self.step(p, q, 0.0), p, self.tolerance, "the step of fraction 0 is the first belief")
        self.same(self.step(p, q, 1), q, self.tolerance, "the step of fraction 1 is the target")
        if steps_compose(d, p):
            g = 0.1 + 0.8 * uniform(5, 4)
            twice, once = self.step(moved, q, g), self.step(p, q, 1 - (1 - f) * (1 - g))
            self.same(twice, once, self.tolerance, "steps toward a target compose, as is claimed")
        self.check_minimiser(p, q, f, moved, smooth)
        if self.closed:
            single = d.interpolate(p.map(Tensor.float), q.map(Tensor.float), f.float())
            dtypes = {a.dtype for a in single.tensors().values()}
            self.require(dtypes == {torch.float32}, f"the step of float32 beliefs is float32, got {dtypes}")
            self.same(single.map(Tensor.double), moved, 2e-5, "steps in float32 and float64 agree")
            if smooth:
                p, q, f = self.beliefs(16)
                sentence = f"the closed form is what {type(self.solver).__name__} finds"
                self.same(d.interpolate(p, q, f), self.solved(p, q, f), 100 * self.tolerance, sentence)
        if smooth:
            p, q, f = self.beliefs(1)
            sentence = "derivatives of steps match finite differences"
            for other in (q, p):
                inputs = torch.cat([p.coordinates(), other.coordinates(), f[:, None]], 1)
                if self.closed or other is q:
                    self.derivatives(self._ends, inputs, sentence, 1e-6)
                    continue
                # Among many nearly equal beliefs a solver can fail for some, whose values are dominated by rounding.
                free = inputs.requires_grad_()
                matches = torch.autograd.gradcheck(self._ends, free, atol=1e-6, fast_mode=True, raise_exception=False)
                self.require(matches, sentence)

    def _values(self, both: Tensor) -> Tensor:
        """Return values as a function of the concatenated coordinates of two beliefs, one column."""
        p, (x, y) = self.draw(1, 1), both.chunk(2, 1)
        return self.divergence(p.at(x), p.at(y))[:, None]

    def _slopes(self, both: Tensor) -> Tensor:
        """Return the derivatives of :meth:`_values`, one row per pair."""
        both = both if both.requires_grad else both.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(self._values(both).sum(), both, create_graph=True)
        return slopes

    def _ends(self, inputs: Tensor) -> Tensor:
        """Return the coordinates after steps as a function of concatenated coordinates of two beliefs and the fraction."""
        p, size = self.draw(1, 1), inputs.shape[1] // 2
        x, y, f = torch.split(inputs, [size, size, 1], 1)
        ends: Tensor = self.step(p.at(x), p.at(y), f[:, 0]).coordinates()
        return ends

    def check_minimiser(self, p: Any, q: Any, f: Tensor, r: Any, smooth: bool) -> None:
        d = self.divergence

        def objective(r: Any) -> Tensor:
            return (1 - f) * d(r, p) + f * d(r, q) if d.barycentric else d.objective(r, p, q, f)

        x = r.coordinates().detach().requires_grad_()
        lowest = objective(r.at(x))
        (slope,) = torch.autograd.grad(lowest.sum(), x)
        if smooth:
            self.near(slope, torch.zeros_like(slope), "the objective is flat at the step's end", atol=1e-9)
        for size in (1e-3, 1e-2, 0.1, 1.0):
            for seed in range(5):
                other = objective(r.at(x.detach() + size * normal(seed, *x.shape)))
                self.require((other > lowest).all(), f"the objective is larger {size:g} away from the step's end")


# Beliefs -----------------------------------------------------------------------------------------------------------------


def check_belief(draw: Draw) -> None:
    """Check a family of beliefs.

    Coordinates are invertible, events have one shape, samples depend only on the generator and follow the density,
    examples are independent of each other, and invalid arguments are refused.

    Args:
        draw: ``draw(seed, batch)``, beliefs in double precision with events (batch, number).

    Raises:
        AssertionError: A part of the contract does not hold.
    """
    belief = draw(1, 5)
    the, x = _Contract(type(belief).__name__), belief.coordinates()
    the.require(belief.batch_size == 5, f"batch_size is that of its tensors, got {belief.batch_size} for 5")
    the.require(x.ndim == 2 and len(x) == 5, f"coordinates have the shape (batch, number), got {tuple(x.shape)}")
    the.same(belief.at(x), belief, 1e-14, "the belief at its own coordinates is itself")
    other = 3 * normal(7, *x.shape)
    sentence = "any real vector is coordinates of a belief, which gives them back"
    the.near(belief.at(other).coordinates(), other, sentence, rtol=1e-12, atol=1e-12)
    the.require(belief.at(other[:2]).batch_size == 2, "coordinates of another batch size make such beliefs")
    named = belief.tensors()
    the.same(belief.with_tensors(named), belief, 0, "its tensors make it again")
    single = belief.map(Tensor.float)
    dtypes = {a.dtype for a in single.tensors().values()}
    the.require(dtypes == {torch.float32}, f"map reaches every tensor, got {dtypes} after float32")
    change = partial(setattr, belief, next(iter(type(belief).__match_args__)), None)
    the.refused(change, "a belief cannot be changed: make it a frozen dataclass", AttributeError)
    _check_events(belief, the)
    _check_law(draw(1, 1), the)
    _check_sites(belief, the)


def _check_events(belief: Any, the: _Contract) -> None:
    def sampled(seed: int) -> Tensor:
        events: Tensor = belief.sample(torch.Generator().manual_seed(seed))
        return events

    events, part = sampled(0), _part(belief, slice(1, 3))
    the.require(torch.equal(sampled(0), events), "samples are a function of the generator's state")
    the.require(not torch.equal(sampled(1), events), "another seed gives other samples")
    mode, density, features = belief.mode, belief.log_prob(events), belief.features()
    shapes = f"{tuple(mode.shape)} and {tuple(events.shape)}"
    the.require(mode.shape == events.shape, f"mode and samples have one shape, got {shapes}")
    the.require(mode.dtype == events.dtype, "mode and samples have one type")
    the.require(density.shape == (5,), f"log_prob has the shape (batch,), got {tuple(density.shape)}")
    the.require(density.isfinite().all(), "log_prob of its own samples is finite")
    the.require(len(features) == 5, f"features have the batch first, got {tuple(features.shape)}")
    drawn, own = (_part(belief, k).sample(SampleStreams(0, k)) for k in (torch.arange(5), torch.arange(1, 3)))
    pairs = [
        (part.log_prob(events[1:3]), density, "log_prob"),
        (part.mode, mode, "mode"),
        (part.mean, belief.mean, "mean"),
        (part.features(), features, "features"),
        (part.coordinates(), belief.coordinates(), "coordinates"),
        (own, drawn, "a sample drawn from streams"),
    ]
    for alone, together, what in pairs:
        the.near(alone, together[1:3], f"{what} does not depend on the rest of the batch", rtol=1e-12, atol=1e-14)
    single = belief.map(Tensor.float)
    rounded = single.log_prob(events if events.dtype == torch.int64 else events.float())
    the.near(rounded, density, "log_prob in float32 and float64 agree", rtol=1e-4, atol=1e-4)
    for wrong in (events[:1], events[:, :1], events[..., None]):
        shape = tuple(wrong.shape)
        the.refused(partial(belief.log_prob, wrong), f"log_prob refuses events of the shape {shape} by ArgumentError")


def _check_law(one: Any, the: _Contract) -> None:
    """Check that samples follow the density: E ∂ log p/∂θ = 0, to five standard errors of the mean over many samples."""
    n = 40_000
    x = one.coordinates().expand(n, -1).clone().requires_grad_()
    many = one.at(x)
    events = many.sample(torch.Generator().manual_seed(3)).detach()
    density = many.log_prob(events).sum()
    the.require(density.requires_grad, "log_prob is detached from the belief's parameters: it has no derivatives")
    (scores,) = torch.autograd.grad(density, x)
    the.require(scores.isfinite().all(), "derivatives of log_prob in the coordinates are finite")
    error = scores.mean(0).abs() / (scores.std(0) / n**0.5).clamp_min(1e-12)
    the.require((error < 5).all(), "samples follow log_prob; some derivative of it has a mean other than 0")
    if one.mean.shape == events[:1].shape and events.is_floating_point():
        error = (events.mean(0) - one.mean[0].detach()).abs() / (events.std(0) / n**0.5)
        the.require((error < 5).all(), "the mean of the samples is the belief's mean")


def _check_sites(belief: Any, the: _Contract) -> None:
    if not belief.factorised:
        for call in (belief.sites, partial(belief.unsites, belief)):
            the.refused(call, "a family that does not factorise refuses to be split, by ArgumentError")
        return
    sites, events = belief.sites(), belief.sample(torch.Generator().manual_seed(0))
    flat = events.reshape(-1, 1)
    drawn = sites.sample(torch.Generator().manual_seed(0))
    the.require(drawn.shape == flat.shape, f"sites have events {tuple(flat.shape)}, got {tuple(drawn.shape)}")
    the.same(belief.unsites(sites), belief, 0, "unsites is the inverse of sites")
    sentence = "log_prob is the sum over the coordinates of an event"
    the.near(sites.log_prob(flat).reshape(len(events), -1).sum(1), belief.log_prob(events), sentence, rtol=1e-12)


# Samplers ----------------------------------------------------------------------------------------------------------------


class _Counted:
    """A predictor that counts its calls."""

    def __init__(self, predict: Any) -> None:
        self.predict, self.calls = predict, 0

    def __call__(self, belief: Any, t: Tensor) -> Any:
        self.calls += 1
        return self.predict(belief, t)


def _exact() -> list[tuple[Any, Any, Callable[[Tensor], bool]]]:
    """Return flows of every kind, each with the exact predictor of some data and a test whether samples may be such data."""
    one = torch.ones(1, dtype=torch.float64)
    law = GaussianMixtureLaw(one, 0.2 * one.expand(1, 3), 0.15**2 * one.expand(3).diag()[None])
    rows, shares = torch.tensor([[0, 2, 0], [1, 1, 1], [2, 2, 2]]), one.new_tensor([0.5, 0.25, 0.25])

    def within(events: Tensor) -> bool:
        return bool((events.mean() - 0.2).abs() < 0.1) and bool(events.abs().max() <= 1)

    def classes(events: Tensor) -> bool:
        return bool((events >= 0).all()) and bool((events < 3).all())

    def possible(events: Tensor) -> bool:
        # One sample for all is that of a deterministic sampler, for which the coordinates need not agree yet.
        distinct = set(map(tuple, events.tolist()))
        return classes(events) and (len(distinct) == 1 or distinct <= set(map(tuple, rows.tolist())))

    discrete = (DiscreteBFN(3, 3.0), possible), (GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3)), classes)
    return [
        *((flow, ExactMean(flow, law), within) for flow in (GPFN(), Diffusion(), BFN(0.05))),
        *((flow, ExactClasses(flow, rows, shares), allowed) for flow, allowed in discrete),
    ]


def check_sampler(
    sampler: Sampler, flow: Any = None, predict: Any = None, possible: Callable[[Tensor], bool] = lambda events: True
) -> None:
    """Check a sampler on a flow of every kind that it supports, or on the given one.

    It uses exactly the given number of evaluations, a sample depends only on its seed and index, single precision gives
    the same samples, and those of an exact predictor lie where the data do.

    Args:
        sampler: The sampler.
        flow: A flow for events (3,); ``None`` for those of the library, of which it may refuse some with
            ``ArgumentError``.
        predict: An exact predictor of some data, for ``flow``.
        possible: Function that returns whether samples (batch, 3) with 60 evaluations of ``predict`` may be such data.

    Raises:
        AssertionError: A part of the contract does not hold.
    """
    _instance(sampler, Sampler)
    taken, told = 0, ""
    for this, exact, allowed in _exact() if flow is None else [(flow, predict, possible)]:
        the = _Contract(f"{type(sampler).__name__} on {type(this).__name__}")
        try:
            _check_pairs(sampler, this, exact, the)
            together = _sampled(sampler, this, exact, 6).events
        except ArgumentError as error:
            told = f": {error}"
            continue
        taken += 1
        wrong = int((~together.isfinite()).sum())
        the.require(wrong == 0, f"samples are finite, got NaN or infinity in {wrong} of {together.numel()} numbers")
        again = _sampled(sampler, this, exact, 6).events
        the.near(again, together, "the same seed gives the same samples")
        apart = torch.cat([_sampled(sampler, this, exact, 6, part).events for part in (range(3), range(3, 8))])
        the.near(apart, together, "a sample depends on its seed and index alone, not on its batch", atol=1e-12)
        for nfe in (1, 2, 5):
            counted = _Counted(exact)
            samples = _sampled(sampler, this, counted, nfe)
            the.require(counted.calls == nfe, f"{nfe} evaluations were asked for, {counted.calls} were spent")
            the.require(samples.nfe == nfe, f"{nfe} evaluations were spent, {samples.nfe} are reported")
            shape = tuple(samples.events.shape)
            the.require(shape == (8, 3), f"samples have the shape that was asked for, (8, 3), got {shape}")
        many = _sampled(sampler, this, exact, 60, range(40)).events
        law = f"mean {many.double().mean():.3g}, from {many.min():.3g} to {many.max():.3g}"
        the.require(allowed(many), f"samples lie where the data do, got {law}")
        single = _sampled(sampler, this, exact, 8, dtype=torch.float32).events
        double = _sampled(sampler, this, exact, 8).events
        kept = double.dtype if not double.is_floating_point() else torch.float32
        the.require(single.dtype == kept, f"samples in float32 are {kept}, got {single.dtype}")
        the.near(single, double, "samples in float32 and float64 agree", atol=2e-4)
    _require(taken > 0, f"{type(sampler).__name__} takes none of the flows{told}")


def _check_pairs(sampler: Sampler, flow: Any, predict: Any, the: _Contract) -> None:
    def pair(returned: Any, what: str) -> Any:
        holds = isinstance(returned, tuple) and len(returned) == 2
        the.require(holds, f"{what} returns a pair, belief and state, got {returned!r:.80}")
        return returned

    device, streams, times = torch.device("cpu"), SampleStreams(0, torch.arange(8)), sampler.times(flow, 2)
    belief, state = pair(sampler.init(flow, flow.prior((8, 3), streams, torch.float64, device), streams), "init")
    plan, target = sampler.plan(flow, belief, times, device), predict(belief, torch.full((8,), times[0]))
    pair(sampler.step(flow, belief, target, plan[0], plan[1], streams, state), "step")


def _sampled(
    sampler: Sampler,
    flow: Any,
    predict: Any,
    nfe: int,
    indices: Sequence[int] = range(8),
    dtype: torch.dtype = torch.float64,
) -> Any:
    streams = SampleStreams(0, torch.tensor(list(indices)))
    return sampler(predict, flow, (len(indices), 3), nfe, streams, dtype=dtype)


# Networks ----------------------------------------------------------------------------------------------------------------


def check_network(
    network_class: Callable[..., nn.Module], shape: Sequence[int], *, condition: Tensor | None = None, **fields: Any
) -> None:
    """Check a network: built by ``network_class(shape, **fields)``, called as ``network(x, t, end=…, condition=…)``.

    It keeps the shape of events in single and double precision, depends on event and time, examples are independent of
    each other in evaluation and training, loading its state reproduces it, and finite gradients reach every parameter.

    Args:
        network_class: The class; its ``forward`` may lack ``end`` and ``condition``.
        shape: Shape of an event, without the batch.
        condition: Condition of 4 examples, one row each, for a network that reads one.
        **fields: Its settings. With ``reads_end=True`` it gets the end times of steps.

    Raises:
        AssertionError: A part of the contract does not hold.
    """
    given = f"an instance of {type(network_class).__name__}: give its class"
    _require(not isinstance(network_class, nn.Module), f"expected a class of networks, got {given}")
    the = _Contract(getattr(network_class, "__name__", str(network_class)))
    network = network_class(tuple(shape), **fields)
    the.require(isinstance(network, nn.Module), f"it makes a network, got {network!r:.80}")
    the.require(any(p.requires_grad for p in network.parameters()), "it has no parameters to train")
    parameters = set(inspect.signature(network.forward).parameters)
    the.require(condition is None or "condition" in parameters, "its forward has no parameter condition")
    the.require(not fields.get("reads_end") or "end" in parameters, "its forward has no parameter end")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # layers initialised to zero would hide those before them
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    x, t = normal(1, 4, *shape), torch.tensor([0.0, 0.3, 0.8, 0.9], dtype=torch.float64)

    def output(
        network: nn.Module, dtype: torch.dtype, rows: slice = slice(None), x: Tensor = x, t: Tensor = t
    ) -> Tensor:
        told: dict[str, Any] = {}
        if fields.get("reads_end"):
            told["end"] = (t[rows] + 0.1).to(dtype)
        if condition is not None:
            told["condition"] = condition[rows].to(dtype) if condition.is_floating_point() else condition[rows]
        returned: Tensor = network(x[rows].to(dtype), t[rows].to(dtype), **told)
        return returned

    network.eval()
    with torch.no_grad():
        single = output(network, torch.float32)
        the.require(isinstance(single, Tensor), f"it returns a tensor, got {single!r:.80}")
        shapes = f"{tuple(single.shape)} for {tuple(x.shape)}"
        the.require(single.shape == x.shape, f"it returns {shapes}, not the same")
        the.require(single.dtype == torch.float32, f"it returns {single.dtype} for float32")
        other = network_class(tuple(shape), **fields)
        other.load_state_dict(network.state_dict())
        the.near(output(other.eval(), torch.float32), single, "another one with its state_dict returns the same")
        double = output(network.double(), torch.float64)
        the.require(double.dtype == torch.float64, f"it returns {double.dtype} for float64")
        size = float(double.abs().max())
        the.near(single, double, "float32 and float64 agree", atol=1e-4 * size)
        alone = output(network, torch.float64, slice(1, 2))
        the.near(alone, double[1:2], "an example does not depend on its batch in evaluation", atol=1e-10 * size)
        for what, event, time in (("event", x + 0.5, t), ("time", x, t / 2 + 0.1)):
            same = torch.equal(output(network, torch.float64, x=event, t=time), double)
            the.require(not same, f"it reads the {what}, got the same output for another {what}")
    x.requires_grad_()
    returned = output(network.float().train(), torch.float32, x=x)
    the.require(returned.requires_grad, "its output is detached from its parameters, so it cannot be trained")
    (slope,) = torch.autograd.grad(returned[1].square().sum(), x, retain_graph=True, allow_unused=True)
    the.require(slope is not None, "its output is detached from the event that it is given")
    slope[1] = 0
    worst = f"the loss of one changes with another, with a derivative of {float(slope.abs().max()):.1e}"
    the.require(not slope.any(), f"an example does not depend on its batch in training, as with BatchNorm: {worst}")
    torch.autograd.backward(returned.square().sum())
    for called, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.isfinite().all())
        the.require(reached or not parameter.requires_grad, f"no finite gradient reaches {called}")


# Kinds of data -----------------------------------------------------------------------------------------------------------


def check_kind(kind_class: type[Any], source: str, ending: str = ".npz", **settings: Any) -> None:
    """Check a kind of data on a source of at least two examples.

    The kind accepts the source and no other file, reads it and holds out a fraction, encoded examples decode to the
    stored ones, the kind is the same after being saved and loaded, examples can be written and drawn, and written files
    can be read again if the kind accepts them.

    Args:
        kind_class: The class.
        source: Name, file or folder.
        ending: Suffix of a file that it can write.
        **settings: Settings of :meth:`read`.

    Raises:
        AssertionError: A part of the contract does not hold.
    """
    from proxflow.examples import Examples

    given = type(kind_class).__name__
    _require(isinstance(kind_class, type), f"expected a class of kinds, got an instance of {given}: give its class")
    the = _Contract(kind_class.__name__)
    the.require(kind_class.takes(source), f"it takes {source!r}")
    loaded = kind_class.read(source, held_out=0.0, **settings)
    kind, train = loaded.kind, loaded.train
    the.require(isinstance(kind, kind_class), f"what is read has its kind, got {type(kind).__name__}")
    the.require(isinstance(train, Examples), f"what is read is Examples, got {type(train).__name__}")
    the.require(len(train) >= 2, f"the source has at least two examples, got {len(train)}")
    the.require(loaded.held_out is None, "a share of 0 keeps no example from training")
    held = kind_class.read(source, held_out=0.5, **settings).held_out
    the.require(held is not None and len(held) > 0, f"a share of 0.5 keeps examples from training, got {held!r:.80}")
    again = kind_class.read(source, held_out=0.0, **settings).train.x
    the.require(torch.equal(again, train.x), "reading twice gives the same examples")

    stored = train.x[:8]
    encoded = kind.encode(stored)
    expected = (len(stored), *kind.shape)
    the.require(tuple(encoded.shape) == expected, f"encoded are {tuple(encoded.shape)}, not {expected}")
    the.require(encoded.isfinite().all(), "encoded examples are finite")
    the.near(kind.encode(stored[1:2]), encoded[1:2], "an example is encoded alone as among others", atol=1e-6)
    decoded = kind.decode(encoded)
    the.require(decoded.dtype == stored.dtype, f"stored are {stored.dtype}, decoded {decoded.dtype}")
    size = 1e-5 * float(stored.double().abs().max()) if stored.is_floating_point() else 0.0
    the.near(decoded, stored, "what is encoded decodes to what is stored", atol=size)

    try:
        content = json.loads(json.dumps(dataclasses.asdict(kind)))
    except TypeError as error:
        raise AssertionError(
            f"{the.name}: its fields are plain values, which a model's file can hold: {error}"
        ) from error
    rebuilt = kind_class(**_with_tuples(content))
    the.require(rebuilt == kind, f"the kind made again of its fields is {rebuilt}, not {kind}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"examples{ending}"
        foreign = Path(folder) / "other.unknown"
        foreign.write_bytes(b"neither numbers nor pictures")
        the.require(not kind_class.takes(str(foreign)), f"takes accepts a file that is not its own, {foreign.name}")
        write = partial(kind.check_output, path.with_suffix(".unknown"), len(stored))
        the.refused(write, "check_output refuses a file with an unknown ending, .unknown, by ArgumentError")
        kind.check_output(path, len(stored))
        kind.write(path, stored)
        the.require(path.is_file() and path.stat().st_size > 0, f"writing {path.name} makes a file")
        if kind_class.takes(str(path)):
            back = kind_class.read(str(path), held_out=0.0).train.x
            the.near(back, stored, f"what is written to {path.name} is read again", atol=size)
    picture = np.asarray(kind.preview(stored))
    drawn = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] in (1, 3)
    the.require(drawn, f"a preview is bytes (height, width, 1 or 3), got {picture.dtype} {picture.shape}")


def _with_tuples(value: Any) -> Any:
    """Restore the tuples that JSON has as lists."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
