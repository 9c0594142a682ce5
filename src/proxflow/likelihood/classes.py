"""Likelihood bounds of flows of classes: masked diffusion, and steps on the simplex of any number of classes.

**Masked diffusion** (:class:`~proxflow.flows.Masked`): classes are revealed one after the other, and with the fraction
h of hidden ones

    −log p(x) ≤ ∫₀¹ dh/h E Σ_{i hidden} −log ê_i(x_i).

"Simplified and Generalized Masked Diffusion for Discrete Data" (Shi et al., 2024), arXiv 2406.04329, eq. 5.

**The linear flow** (reverse KL on the simplex). A belief (1 − τ) θ₀ + τ e_x with θ₀ uniform has constant density on
{θ_x ≥ τ}: it only says that x is among the *candidates* A = {k: θ_k ≥ τ}, all equally likely. As ρ = τ/(1 − τ) grows to
1, a candidate k ≠ x is eliminated when ρ reaches θ₀_k. Given the eliminations so far, each of the m others is
eliminated at the rate m/s, with s = Σ_{k ∈ A} (θ_k/(1 − τ) − ρ), whichever candidate x is. A model that draws x from ê
among the candidates eliminates k at (1 − ê_k) times that rate, and the divergence of the two processes is

    −log p(x) ≤ ∫₀¹ dρ E Σ_i (m_i/s_i) Σ_{k ∈ A_i, k ≠ x_i} −log(1 − ê_i(k)).

With exact predictions its mean is the entropy. For two classes it is the erasure channel of
:mod:`proxflow.likelihood.channel`.

**The Fisher–Rao flow.** Let q(θ|k) be the distribution of a coordinate's belief, u_k its velocity toward e_k, s_k = ∇
log q(θ|k), and let a bar be the mean over the posterior of the class given all beliefs. The equations of continuity of
q and of its mean over the data, and an integration by parts, give the rate at which KL(q(·|x) ‖ mean) grows,

    E Σ_i (u_x − ū)·(s_x − s̄) = E Σ_i (e_x − p)ᵀ M (e_x − p),   M_kl = u_k·s_l,

where p are the marginals of the posterior, which a network predicts. With φ_k the angle from √θ to e_k, c = 1 − τ the
factor by which it has shrunk, and −c as the time, u_k = a_k (e_k − θ) and s_l = h_l e_l with

    a_k = 2 (φ_k/c) cot φ_k,   h_k = ∂ log G(θ_k)/∂θ_k,   G = cos(φ/c) sin^{2K−3}(φ/c) / (cos φ sin^{2K−3} φ).

Where M is positive on differences of distributions, the cost (e_x − ê)ᵀ M (e_x − ê) is a proper score, minimal on
average at ê = p. For rare beliefs it is not; there its diagonal part a_k h_k is multiplied by the least number κ that
makes it so. Then for every distribution of the data the mean of

    L(x) = ∫_{1/2}^1 dc E Σ_i [κ Σ_k a_k h_k δ_k² − (Σ_k a_k δ_k)(Σ_k h_k θ_k δ_k)],   δ = e_x − ê,

is at least the entropy. For the distribution ∝ exp(−L) this means Σ_x exp(−L(x)) ≤ 1, so that L(x) is an upper bound on
−log p(x) of the model p ∝ exp(−L), whatever the network predicts. With exact predictions its mean is the entropy, plus
the little that κ adds. For two classes it is the arc of :mod:`proxflow.likelihood.channel`.

The costs of the other flows are functions of the belief and of what the process knows: bounds whatever the network
predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proxflow._math import bisect, class_cross_entropy, over_events, sum_events
from proxflow.beliefs import Categorical
from proxflow.divergences import Divergence, FisherRao, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_condition, given
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN, Flow, Masked
from proxflow.likelihood.bayesian import bayesian_bound
from proxflow.likelihood.channel import draw_uncertain, two_class_bound
from proxflow.random import Generator, rand

_FARTHEST_CONTEXT = 10.0
"""As in :mod:`proxflow.likelihood.channel`: how far, in nats, predicted log-odds may differ from those of the own
belief."""

_LEAST_ANGLE = 1e-6
"""Angles nearer to either end are moved to this one, as formulas would lose their digits."""


def class_bound(
    predict: Predict,
    flow: Flow[Any],
    x: Tensor,
    generator: Generator,
    *,
    draws: int = 16,
    condition: Condition | None = None,
) -> Tensor:
    """Estimate an upper bound on −log p(x) of a flow of classes, in nats per example, by Monte Carlo.

    Bits per token are ``Nats(values, tokens).bits_per_dimension``. With exact predictions the mean over the data is
    their entropy, except for Fisher–Rao with more than two classes, where it may be slightly larger. For mixed data use
    :func:`~proxflow.mixed_bound`.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted classes.
        flow: :class:`~proxflow.DiscreteBFN` (:func:`bayesian_bound`), :class:`~proxflow.Masked`, or :class:`~proxflow.GPFN`
            with ``ReverseKL`` or ``FisherRao`` and ``CategoricalEndpoints`` (:func:`two_class_bound` for two classes).
        x: Classes, int64 (batch, *event).
        generator: Random generator of times and noise, on the device of ``x``. With
            :class:`~proxflow.random.SampleStreams` an example's result does not depend on its batch.
        draws: Times per example, one in each of ``draws`` equal parts, ≥ 1, each an evaluation.
        condition: Condition of the predictions, one row per example.

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
    """Return whether :func:`class_bound` supports a flow."""
    if isinstance(flow, GPFN):
        known = type(flow.divergence) in (ReverseKL, FisherRao) and flow.energy is None
        return known and isinstance(flow.endpoints, CategoricalEndpoints)
    return isinstance(flow, DiscreteBFN | Masked)


def _masked_cost(predict: Predict, flow: Masked, x: Tensor, generator: Generator, uniform: Tensor) -> Tensor:
    """Return the bound's integrand at one time per example, divided by the time's density, and the cost at the end."""
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
    """Return the bound's integrand at one time per example, divided by the time's density."""
    classes: int = flow.endpoints.classes  # type: ignore[attr-defined]
    left, weight = simplex_times(flow.divergence, classes, uniform)
    belief, cost = simplex_beliefs(flow.divergence, classes, x, left, generator)
    t = flow.schedule.time_of(1 - left)
    return cost(predict(belief.map(Tensor.float), t.float()).logits.double()) * weight


Cost = Callable[[Tensor], Tensor]
"""From logits of predictions, (batch, *event, K), to the cost of each example, (batch,), in nats."""


def simplex_times(divergence: Divergence, classes: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return c = 1 − τ at times drawn with uniform numbers (batch,), and the weights of the costs there.

    The mean of costs times weights is the bound of the flow with ``ReverseKL`` or ``FisherRao``.
    """
    share, density = draw_uncertain(uniform)
    if isinstance(divergence, FisherRao):
        left, slope = _arc_time(share, classes)
        return left, slope / density
    slope = share ** (1 / (classes - 1) - 1) / (classes - 1)
    return 1 / (2 - share ** (1 / (classes - 1))), slope / density


def simplex_beliefs(
    divergence: Divergence, classes: int, x: Tensor, left: Tensor, generator: Generator
) -> tuple[Categorical, Cost]:
    """Draw beliefs about classes ``x`` (batch, *event) at c = 1 − τ (batch,), float64, and the cost of predictions."""
    start = rand(torch.Size([*x.shape, classes]), generator, torch.float64, x.device).log().neg()
    start, left = start / start.sum(-1, keepdim=True), over_events(left, start)
    if isinstance(divergence, FisherRao):
        logits, cost = _arc(start, x, left)
    else:
        logits, cost = _erased(start, x, (1 - left) / left)
    return Categorical(logits), lambda predicted: sum_events(cost(predicted))


_Cost = Callable[[Tensor], Tensor]
"""As :data:`Cost`, for each coordinate, (batch, *event)."""


def _erased(start: Tensor, x: Tensor, ratio: Tensor) -> tuple[Tensor, _Cost]:
    """Return log θ of the linear flow's beliefs from θ₀ at ρ, (batch, *event, K), and the cost of predictions."""
    own = x[..., None]
    over = (start - ratio).scatter_add(-1, own, ratio.expand(own.shape))  # θ/(1 − τ) − ρ
    alive = (over >= 0).scatter(-1, own, True)
    others = alive.scatter(-1, own, False)
    hazard = others.sum(-1) / torch.where(alive, over, 0).sum(-1).clamp_min(torch.finfo(torch.float64).tiny)

    def cost(logits: Tensor) -> Tensor:
        predicted = logits.masked_fill(~alive, -torch.inf).softmax(-1)
        return hazard * torch.where(others, -torch.log1p(-predicted.clamp(max=1 - 1e-15)), 0).sum(-1)

    return ((over + ratio) / (1 + ratio)).log(), cost


def _arc_time(share: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return c = 1 − τ at which about a share of the wrong classes is left on the Fisher–Rao flow, and dc/d(share).

    Exact for two classes. For more, inexactness only raises the variance of the estimate.
    """

    def of(c: Tensor) -> tuple[Tensor, Tensor]:
        return math.pi / 2 * (1 / c - 1), torch.tan(math.pi / 2 * (1 - c))

    def left(c: Tensor) -> Tensor:
        angle, reached = of(c)
        return angle.cos().square() * (1 - reached.square()).clamp_min(0) ** (classes - 2)

    c = bisect(left, share, 0.5, 1.0)
    angle, reached = of(c)
    by_reached = 2 * (classes - 2) * reached * (1 + reached.square()) / (1 - reached.square())
    return c, 1 / (math.pi / 2 * share * (2 * angle.tan() / c.square() + by_reached))


def _arc(start: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, _Cost]:
    """Return log θ of the Fisher–Rao flow's beliefs from θ₀ at c, (batch, *event, K), and the cost of predictions."""
    classes, own = start.shape[-1], x[..., None]
    power = 2 * classes - 3
    before = start.gather(-1, own)
    angle = torch.atan2((1 - before).clamp_min(0).sqrt(), before.sqrt())
    others = (start.log() + 2 * ((c * angle).sin() / angle.sin()).log()).scatter(-1, own, -torch.inf)
    logits = others.scatter(-1, own, 2 * (c * angle).cos().log())
    theta = logits.exp()
    phi = torch.atan2((1 - theta).clamp_min(0).sqrt(), theta.sqrt()).clamp_min(_LEAST_ANGLE)
    back = phi / c
    alive = (back < math.pi / 2).scatter(-1, own, True)
    back = back.clamp(max=math.pi / 2 - _LEAST_ANGLE)
    likelihood = back.cos().log() + power * back.sin().log() - phi.cos().log() - power * phi.sin().log()
    drift = 2 * back / phi.tan()
    slope = (back.tan() / c - phi.tan() + power * (1 / phi.tan() - 1 / (c * back.tan()))) / (2 * phi).sin()
    drift, pull, weight = (torch.where(alive, a, 0) for a in (drift, slope * theta, drift * slope))
    scale = _least_scale(drift, pull, weight)

    def cost(logits: Tensor) -> Tensor:
        context = (logits - likelihood).masked_fill(~alive, -torch.inf)
        context = (context - context.amax(-1, keepdim=True)).clamp_min(-_FARTHEST_CONTEXT)
        predicted = (context + likelihood).masked_fill(~alive, -torch.inf).softmax(-1)
        missed = -predicted.scatter_add(-1, own, -torch.ones_like(before))
        return scale * (weight * missed.square()).sum(-1) - (drift * missed).sum(-1) * (pull * missed).sum(-1)

    return logits, cost


def _least_scale(f: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """Return the least κ ≥ 1 with κ Σ weight δ² ≥ (Σ f δ)(Σ g δ) for all δ that sum to 0 and are 0 where the weight is."""
    inverse = torch.where(weight > 0, 1 / weight, 0)
    total = inverse.sum(-1, keepdim=True)
    # Functionals of such δ are vectors up to a constant; inverse weights give their inner products.
    f, g = (torch.where(weight > 0, a - (a * inverse).sum(-1, keepdim=True) / total, 0) for a in (f, g))
    ff, fg, gg = ((a * b * inverse).sum(-1) for a, b in ((f, f), (f, g), (g, g)))
    return (((ff * gg).sqrt() + fg) / 2).clamp_min(1)
