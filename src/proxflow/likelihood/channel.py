"""A likelihood bound of two-class flows on the simplex, from the information in their training beliefs.

A flow with :class:`~proxflow.flows.CategoricalEndpoints` of two classes shows the network each coordinate x_i through a
noisy channel x_i → θ_i(t), independent of the others and more informative as t grows. Any process with these marginals
that the network's predictions can drive is a latent-variable model, and its negative ELBO is an upper bound on −log
p(x). With ρ = τ/(1 − τ), and ê_i the predicted probability of the true class, both geometries lead to

    −log p(x) ≤ ∫₀¹ dq/(1 − q) E Σ_{i uncertain} cost_i,

where q is the fraction of coordinates whose own belief is certain of its class; at τ = 1/2 all are.

* **Reverse KL** (the linear flow), q = ρ. A belief is uniform on the part of the segment it can reach: it determines
  its class or holds no information. This is an erasure channel with cost = −log ê. Known elsewhere as masked diffusion:
  "Simple and Effective Masked Diffusion Language Models" (Sahoo et al., 2024), arXiv 2406.07524.
* **Fisher–Rao**, q = sin²(πρ/2). On the arc θ = (cos²ψ, sin²ψ) let s = (1 + ρ)(2ψ − π/2), a = πρ/2. Beliefs with |s| ≥
  π/2 − a are certain; for the others w = sin s / cos a is uniform on (−1, 1) for even classes, and the posterior of
  class 1 given only this belief is cos(a − s)/(cos(a − s) + cos(a + s)). These posteriors grow in convex order, so they
  are the marginals of one martingale diffusion ("Pricing with a Smile" (Dupire, 1994)), and Girsanov's theorem gives
  cost = 2 (1 − ê)²/(1 − w²).

The derivations are in docs/mathematics.md and docs/likelihood.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from proxflow._math import over_events, sum_events
from proxflow.beliefs import Categorical
from proxflow.divergences import Divergence, FisherRao, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, check_condition, given
from proxflow.flows import GPFN, CategoricalEndpoints
from proxflow.random import Generator, rand

# How far, in nats of log-odds, a prediction may differ from the posterior given only the coordinate's own belief. The bound
# is valid with any limit. An exact predictor rarely exceeds it, and then loses about e^−20 per coordinate; without a limit a
# network that ignores an almost certain belief would have unbounded cost.
_FARTHEST_CONTEXT = 10.0

# Fraction of times that are drawn denser toward the end, where few coordinates are uncertain but their weight is large.
# Without it the variance of the estimate is infinite.
_LATE_SHARE = 0.1


class _Channel(NamedTuple):
    """The information in a training belief about its own class.

    Args:
        ratio: Function from the fraction of uncertain coordinates to ρ = τ/(1 − τ).
        cost: Function from log-odds log θ_x/θ_x' of the belief for the true class, (batch, *event), those of the
            prediction, and ρ, broadcastable to them, to the cost of each coordinate in nats, 0 if its belief is
            certain.
    """

    ratio: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor, Tensor, Tensor], Tensor]


def _erasure_cost(own: Tensor, predicted: Tensor, ratio: Tensor) -> Tensor:
    # Both classes reach θ within [τ, 1 − τ] with equal density: log-odds within ± log((1 − τ)/τ) = ± log 1/ρ.
    return torch.where(own.abs() <= -ratio.log(), torch.nn.functional.softplus(-predicted), 0)


def _arc_cost(own: Tensor, predicted: Tensor, ratio: Tensor) -> Tensor:
    edge = (1 - ratio) * (math.pi / 2)
    s = (1 + ratio) * 2 * torch.atan(torch.tanh(own / 4))  # 2ψ − π/2 is the Gudermannian of half the log-odds
    uncertain = s.abs() < edge
    s = torch.where(uncertain, s, 0)
    this, other = torch.sin(edge + s), torch.sin(edge - s)  # densities of this belief for the true class, the other
    alone = this.log() - other.log()
    context = (predicted - alone).clamp(-_FARTHEST_CONTEXT, _FARTHEST_CONTEXT)
    missed = torch.sigmoid(-alone - context)
    cost = 2 * missed.square() * edge.sin().square() / (this * other)  # 1 − w² = this · other / cos²a
    return torch.where(uncertain, cost, 0)


_CHANNELS: dict[type[Divergence], _Channel] = {
    ReverseKL: _Channel(lambda uncertain: 1 - uncertain, _erasure_cost),
    FisherRao: _Channel(lambda uncertain: 1 - torch.asin(uncertain.sqrt()) * (2 / math.pi), _arc_cost),
}


def draw_uncertain(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 − q in (0, 1] from uniform numbers, and their densities (1 − c) + c/(2 √(1 − q)), c the late fraction."""
    c = _LATE_SHARE
    uniform = uniform.clamp_min(1e-12)  # keeps the square from underflow
    root = 2 * uniform / (c + (c * c + 4 * (1 - c) * uniform).sqrt())
    return root.square(), (1 - c) + c / (2 * root)


def two_class_bound(
    predict: Callable[[Categorical, Tensor], Categorical],
    flow: GPFN,
    x: Tensor,
    generator: Generator,
    *,
    draws: int = 16,
    dtype: torch.dtype = torch.float32,
    condition: Condition | None = None,
) -> Tensor:
    """Estimate an upper bound on −log p(x) for a flow between two classes, in nats per example.

    Known elsewhere as the negative ELBO. It is an unbiased estimate of ∫ dq/(1 − q) E Σ_{i uncertain} cost_i (see the
    module) from ``draws`` times per example. With exact predictions its mean over the data is their entropy. Other data
    must first be binarised: by a threshold, or drawn with the grey value as probability.

    A coordinate whose belief is certain costs nothing, whatever the network predicts there. For Fisher–Rao the log-odds
    of predictions are clipped to ± 10 around those of the coordinate's own belief, which keeps the bound valid. Its
    costs have a heavy tail (almost certain beliefs in the wrong class), which the standard error shows.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted classes.
        flow: ``GPFN(ReverseKL(), …)`` or ``GPFN(FisherRao(), …)`` with ``CategoricalEndpoints(2)``, any schedule.
        x: Classes 0 and 1, int64 (batch, *event).
        generator: Random generator of times and noise, on the device of ``x``. With
            :class:`~proxflow.random.SampleStreams` an example's result does not depend on its batch.
        draws: Evaluations of ``predict`` per example, ≥ 1.
        dtype: Precision of the inputs of ``predict``. The rest is in float64.
        condition: Condition of the predictions, one row per example.

    Returns:
        Nats per example, (batch,), float64.

    Raises:
        ArgumentError: Another kind of flow, data that are not classes 0 and 1, or ``draws`` < 1.
    """
    channel = _CHANNELS.get(type(flow.divergence))
    if channel is None or flow.endpoints != CategoricalEndpoints(2):
        raise ArgumentError(
            "two_class_bound knows GPFN with ReverseKL or FisherRao and CategoricalEndpoints(2), "
            f"got {flow.divergence} and {flow.endpoints}"
        )
    flow.endpoints.check(x)
    if x.numel() == 0 or int(x.min()) < 0 or int(x.max()) > 1:
        raise ArgumentError("the data must be classes 0 and 1, and at least one of them")
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws}")
    check_condition(predict, condition, len(x))
    predict = given(predict, condition)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    toward = (2 * x - 1).to(torch.float64)
    for k in range(draws):
        uniform = (k + rand(torch.Size([len(x)]), generator, torch.float64, x.device)) / draws
        uncertain, density = draw_uncertain(uniform)
        ratio = channel.ratio(uncertain)
        t = flow.schedule.time_of(ratio / (1 + ratio))
        belief: Categorical = flow.belief(x, t, generator)
        predicted = predict(belief.map(lambda a: a.to(dtype)), t.to(dtype)).logits.double()
        own = toward * (belief.logits[..., 1] - belief.logits[..., 0])
        cost = channel.cost(own, toward * (predicted[..., 1] - predicted[..., 0]), over_events(ratio, own))
        total += sum_events(cost) / (uncertain * density)
    return total / draws
