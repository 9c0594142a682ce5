"""Bounds of the likelihood of flows of classes: masked diffusion, and steps on the simplex of any number of classes.

**Masked diffusion** (:class:`~proxflow.flows.Masked`): classes are revealed one after the other, and with the share h
of those that are hidden

    −log p(x) ≤ ∫₀¹ dh/h E Σ_{i hidden} −log ê_i(x_i).

"Simplified and Generalized Masked Diffusion for Discrete Data" (Shi et al., 2024), arXiv 2406.04329, eq. 5.

**The linear flow** (reverse KL on the simplex). A belief (1 − τ) θ₀ + τ e_x with θ₀ uniform has one density on all of
{θ_x ≥ τ}: it tells that x is among the *candidates* A = {k: θ_k ≥ τ}, each as likely as another, and nothing else. As
ρ = τ/(1 − τ) grows to 1, a candidate k ≠ x falls out when ρ reaches θ₀_k. Given what fell out so far, each of the m
others does so at the rate m/s, with s = Σ_{k ∈ A} (θ_k/(1 − τ) − ρ), whichever candidate x is. A model that has x
drawn from ê among the candidates lets k fall out at (1 − ê_k) times that rate, and the divergence of the two
processes is

    −log p(x) ≤ ∫₀¹ dρ E Σ_i (m_i/s_i) Σ_{k ∈ A_i, k ≠ x_i} −log(1 − ê_i(k)).

With exact predictions its mean is the entropy. Of two classes it is the erasure channel of
:mod:`proxflow.likelihood.channel`.

**The Fisher–Rao flow.** With φ the angle from √θ to e_k, and φ/c before the step, c = 1 − τ, a belief has the
likelihood G(θ_k) ∝ cos(φ/c) sin^{2K−3}(φ/c) / (cos φ sin^{2K−3} φ), which rises with θ_k. So it is a mixture of the
linear flow's beliefs: uniform on {θ_x ≥ s} for a hidden s, whose law has the survival function sin^{2K−3} φ₀ (sin φ₀
− cos φ₀ tan(cφ₀)/c) at s = cos²(cφ₀). At a fixed quantile s grows as c falls. The process that moves each coordinate
along its quantile has the flow's marginals, and the linear flow's bound holds for it. Its candidates know more than
the belief that a network reads; of this each coordinate's own prediction is told here. So with exact predictions it
is the entropy for one coordinate, and for several it is larger by what the others' candidates would have told.

All costs are functions of the belief and of what the process knows, so each is a bound whatever the network says.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from proxflow._math import bisect, class_cross_entropy, over_events, sum_events
from proxflow.beliefs import Categorical
from proxflow.divergences import FisherRao, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_condition, given
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN, Flow, Masked
from proxflow.likelihood.bayesian import bayesian_bound
from proxflow.likelihood.channel import draw_uncertain, two_class_bound
from proxflow.random import Generator, rand

_FARTHEST_CONTEXT = 10.0
"""As in :mod:`proxflow.likelihood.channel`: how far, in nats, a prediction's odds may be moved by the likelihood."""

_CELLS, _QUANTILES = 512, 256
"""Size of the table by which times of the Fisher–Rao flow are drawn, and quantiles that it is made of."""


def class_bound(
    predict: Predict,
    flow: Flow[Any],
    x: Tensor,
    generator: Generator,
    *,
    draws: int = 16,
    condition: Condition | None = None,
) -> Tensor:
    """Estimate an upper bound of −log p(x) of a flow of classes, in nats per example, by Monte Carlo.

    Bits per token are ``Nats(values, tokens).bits_per_dimension``. With exact predictions the mean over the data is their
    entropy; for Fisher–Rao of more than two classes it is so for events of one coordinate, and larger for others.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted classes.
        flow: :class:`~proxflow.DiscreteBFN` (:func:`bayesian_bound`), :class:`~proxflow.Masked`, or :class:`~proxflow.GPFN`
            with ``ReverseKL`` or ``FisherRao`` and ``CategoricalEndpoints`` (:func:`two_class_bound` for two classes).
        x: Classes, int64 (batch, *event).
        generator: Source of times and noise, on the device of ``x``. With :class:`~proxflow.random.SampleStreams` an
            example's number does not depend on its batch.
        draws: Times for each example, one in each of ``draws`` equal parts, ≥ 1, each an evaluation.
        condition: What the predictions are conditioned on, one row an example.

    Returns:
        Nats per example, (batch,), float64.

    Raises:
        ArgumentError: Another kind of flow, data that are not its classes, no data, or ``draws`` < 1.
    """
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws}")
    told: dict[str, Any] = {"draws": draws, "condition": condition}
    if isinstance(flow, DiscreteBFN):
        return bayesian_bound(predict, flow, x, generator, **told)
    ends = getattr(flow, "endpoints", None)
    if not has_class_bound(flow):
        raise ArgumentError(
            "class_bound knows DiscreteBFN, Masked, and GPFN with ReverseKL or FisherRao between classes, "
            f"got {flow!r:.120}"
        )
    if isinstance(flow, GPFN) and isinstance(ends, CategoricalEndpoints) and ends.classes == 2:
        return two_class_bound(predict, flow, x, generator, **told)
    flow.check(x)
    if not x.numel():
        raise ArgumentError(f"there must be data, (batch, *event), got {tuple(x.shape)}")
    check_condition(predict, condition, len(x))
    asked = given(predict, condition)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(draws):
        uniform = (k + rand(torch.Size([len(x)]), generator, torch.float64, x.device)) / draws
        if isinstance(flow, Masked):
            total += _masked_cost(asked, flow, x, generator, uniform)
        elif isinstance(flow, GPFN):
            total += _simplex_cost(asked, flow, x, generator, uniform)
    return total / draws


def has_class_bound(flow: Flow[Any]) -> bool:
    """Tell whether :func:`class_bound` knows a flow."""
    if isinstance(flow, GPFN):
        known = type(flow.divergence) in (ReverseKL, FisherRao) and flow.energy is None
        return known and isinstance(flow.endpoints, CategoricalEndpoints)
    return isinstance(flow, DiscreteBFN | Masked)


def _masked_cost(predict: Predict, flow: Masked, x: Tensor, generator: Generator, uniform: Tensor) -> Tensor:
    """Return the integrand of the bound at a time for each example, over the time's density, and the cost at the end."""
    end = flow.schedule.remaining(torch.ones((), dtype=torch.float64, device=x.device))
    hidden = end + (1 - end) * uniform
    t = flow.schedule.time_of(1 - hidden)

    def cost(t: Tensor) -> Tensor:
        belief = flow.belief(x, t.float(), generator)
        logits = predict(belief, t.float()).logits.double()
        return sum_events(class_cross_entropy(logits, torch.where(belief.hidden, x, -1)))

    found = cost(t) * ((1 - end) / hidden)
    ends_early = getattr(flow.schedule, "final", 1.0) < 1
    return found + cost(torch.ones_like(t)) if ends_early else found


def _simplex_cost(predict: Predict, flow: GPFN, x: Tensor, generator: Generator, uniform: Tensor) -> Tensor:
    """Return the integrand of the bound at a time for each example, over the density of the time."""
    classes: int = flow.endpoints.classes  # type: ignore[attr-defined]
    share, density = draw_uncertain(uniform)
    fisher = isinstance(flow.divergence, FisherRao)
    if fisher:
        fraction, slope = _fisher_time(share, classes - 1)
        quantile = rand(x.shape, generator, torch.float64, x.device)
        level, rise = _fisher_level(over_events(1 - fraction, quantile).expand(x.shape), quantile, classes - 1)
        rate = rise / (1 - level).square() * over_events(slope, level)  # of ρ = s/(1 − s), by the share
    else:
        ratio = 1 - share ** (1 / (classes - 1))
        fraction = ratio / (1 + ratio)
        level = over_events(fraction, x.double()).expand(x.shape)
        rate = over_events(share ** (1 / (classes - 1) - 1) / (classes - 1), level)
    ratio = (level / (1 - level))[..., None]
    own = x[..., None]
    theta = rand(torch.Size([*x.shape, classes]), generator, torch.float64, x.device).log().neg()
    over = theta / theta.sum(-1, keepdim=True) - ratio
    over = over.scatter_add(-1, own, ratio)  # θ/(1 − s) − ρ
    alive = (over >= 0).scatter(-1, own, True)
    belief = Categorical(((over + ratio) * (1 - level[..., None])).log())
    t = flow.schedule.time_of(fraction)
    logits = predict(belief.map(Tensor.float), t.float()).logits.double()
    if fisher:
        logits = logits - _fisher_log_likelihood(belief.logits, over_events(1 - fraction, belief.logits), classes)
    predicted = logits.masked_fill(~alive, -torch.inf).softmax(-1)
    others = alive.scatter(-1, own, False)
    missed = torch.where(others, -torch.log1p(-predicted.clamp(max=1 - 1e-15)), 0).sum(-1)
    hazard = others.sum(-1) / torch.where(alive, over, 0).sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    return sum_events(rate * hazard * missed) / density


def _survival(phi: Tensor, c: Tensor, n: int) -> Tensor:
    """Return P(s ≥ cos²(cφ₀)) of the hidden level of a Fisher–Rao belief of n + 1 classes."""
    return phi.sin() ** (2 * n - 1) * (phi.sin() - phi.cos() * (c * phi).tan() / c)


def _fisher_level(c: Tensor, quantile: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the level s at a quantile of its survival function, and −∂s/∂c there, float64."""
    phi = bisect(lambda p: _survival(p, c, n), quantile, 0.0, math.pi / 2)
    sine, cosine, tangent = phi.sin(), phi.cos(), (c * phi).tan()
    secant = 1 + tangent.square()
    # Both derivatives over sin^{2n−2} φ₀, which may underflow.
    by_c = -sine * cosine * (phi * secant / c - tangent / c.square())
    by_phi = (2 * n - 1) * cosine * (sine - cosine * tangent / c) + sine * (cosine * (1 - secant) + sine * tangent / c)
    moved = phi - c * by_c / by_phi.clamp_min(torch.finfo(torch.float64).tiny)
    return (c * phi).cos().square(), (2 * c * phi).sin() * moved.clamp_min(0)


@cache
def _fisher_table(n: int) -> tuple[Tensor, Tensor]:
    """Return fractions τ from 0 to 1/2, and the share of wrong candidates that is left at each, which falls from 1 to 0."""
    fraction = torch.linspace(0, 0.5, _CELLS + 1, dtype=torch.float64)
    quantile = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    c = (1 - fraction)[1:-1, None].expand(-1, _QUANTILES)
    level, _ = _fisher_level(c, quantile.expand(c.shape), n)
    left = (1 - level / (1 - level)).clamp_min(0).pow(n).mean(1)
    ends = [left.new_ones(1), left, left.new_zeros(1)]
    return fraction, torch.cat(ends).cummin(0).values


def _fisher_time(share: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the fraction τ at which a share of the wrong candidates is left, and −dτ/d(share), by the table."""
    fraction, left = (a.to(share.device) for a in _fisher_table(n))
    place = torch.searchsorted(-left, -share, right=True).clamp(1, _CELLS) - 1  # left falls
    high, low = left[place], left[place + 1]
    slope = (fraction[1] - fraction[0]) / (high - low).clamp_min(1e-300)
    return fraction[place] + slope * (high - share), slope


def _fisher_log_likelihood(logits: Tensor, c: Tensor, classes: int) -> Tensor:
    """Return ln G(θ_k) up to a constant, at most a few nats from the largest: (batch, *event, K)."""
    tiny = torch.finfo(torch.float64).tiny
    theta = logits.exp()
    angle = torch.atan2((1 - theta).clamp_min(0).sqrt(), theta.sqrt())
    start = (angle / c).clamp(max=math.pi / 2)

    def log_density(phi: Tensor) -> Tensor:
        return phi.cos().clamp_min(tiny).log() + (2 * classes - 3) * phi.sin().clamp_min(tiny).log()

    found = log_density(start) - log_density(angle)
    return (found - found.amax(-1, keepdim=True)).clamp_min(-_FARTHEST_CONTEXT)
