"""Entropic Wasserstein-2: entropy-regularised optimal transport, debiased."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences.base import Divergence, value
from proxflow.errors import ArgumentError

_POLISHING = 4


@dataclass(frozen=True, eq=False)
class SinkhornDivergence(Divergence):
    """S_ε(p, q) = OT_ε(p, q) − ½ OT_ε(p, p) − ½ OT_ε(q, q), **summed over the coordinates** of an event.

    OT_ε = min_π ⟨π, c⟩ + ε KL(π ‖ p ⊗ q) over plans π from p to q: "Interpolating between Optimal Transport and MMD
    using Sinkhorn Divergences" (Feydy et al., 2019), arXiv 1810.08278. Between W₂² at ε → 0 and the squared difference
    of means at ε → ∞. On Gaussians with independent coordinates c is the squared distance, the whole event's value is
    the sum over its coordinates, and each has a closed form: "Entropic Optimal Transport between Unbalanced Gaussian
    Measures has a Closed Form" (Janati et al., 2020), arXiv 2006.02572, thm. 1. On categories c is a matrix; Sinkhorn's
    iteration in log space, polished by Newton's method, finds OT_ε, and its derivatives are exact by the implicit
    function theorem. Steps need a solver.

    Args:
        epsilon: ε > 0, in units of the cost: squared units of the data for Gaussians.
        cost: Cost of moving mass between classes, symmetric (classes, classes); ``None`` is (i − j)², classes as levels.
        iterations: Sinkhorn iterations on categories, ≥ 1. Far fewer than the largest cost over ε may not be enough.

    Raises:
        ArgumentError: A number out of range, or a cost that is not a finite symmetric matrix.
    """

    epsilon: float = 1.0
    cost: Tensor | None = None
    iterations: int = 50
    additive = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ArgumentError(f"epsilon is positive and finite, got {self.epsilon}")
        if self.iterations < 1:
            raise ArgumentError(f"iterations must be at least 1, got {self.iterations}")
        if (cost := self.cost) is not None:
            square = cost.ndim == 2 and cost.shape[0] == cost.shape[1]
            if not (square and bool(cost.isfinite().all()) and torch.equal(cost, cost.mT)):
                raise ArgumentError(f"a cost is a finite symmetric matrix (classes, classes), got {tuple(cost.shape)}")


@value(SinkhornDivergence, DiagonalGaussian)
def _(divergence: SinkhornDivergence, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    # With u = σ², v = σ'², w = σσ', e = ε/2 and D_x = √(4x² + e²), the spreads give
    # P − (e/2) ln((D_u + e)(D_v + e)/(D_w + e)²), P = (D_u + D_v)/2 − D_w. Written with (u − v)², nothing cancels.
    e = divergence.epsilon / 2
    u, v = p.std.square(), q.std.square()
    gap = ((p.std - q.std) * (p.std + q.std)).square()
    at_u, at_v, at_w = (torch.hypot(2 * x, torch.full_like(x, e)) for x in (u, v, p.std * q.std))
    product = 4 * e**2 * gap / (at_u * at_v + at_w.square())
    spread = (gap + product / 2) / ((at_u + at_v) / 2 + at_w)
    entropy = e / 2 * ((product + 2 * e * spread) / (at_w + e).square()).log1p()
    return sum_events((p.mean - q.mean).square() + spread - entropy)


@value(SinkhornDivergence, Categorical)
def _(divergence: SinkhornDivergence, p: Categorical, q: Categorical) -> Tensor:
    # In double precision, as a small difference of larger terms; all three come from one computation, so that equal beliefs
    # are at a distance of exactly 0.
    a, b = (belief.logits.double().log_softmax(-1) for belief in (p, q))
    start, end = torch.stack([a, a, b]), torch.stack([b, a, b])
    across, near, far = _entropic(start, end, _cost(divergence, p), divergence.epsilon, divergence.iterations)
    return sum_events(across - (near + far) / 2).to(p.logits.dtype)


def _cost(divergence: SinkhornDivergence, belief: Categorical) -> Tensor:
    if divergence.cost is None:
        levels = torch.arange(belief.classes, dtype=torch.float64, device=belief.logits.device)
        return (levels[:, None] - levels).square()
    if len(divergence.cost) != belief.classes:
        raise ArgumentError(f"the cost is for {len(divergence.cost)} classes, the beliefs have {belief.classes}")
    return divergence.cost.to(device=belief.logits.device, dtype=torch.float64)


def _entropic(log_p: Tensor, log_q: Tensor, cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute OT_ε of log-probabilities (…, classes) → (…), by the dual ⟨f, p⟩ + ⟨g, q⟩ with g the best response to f.

    The potential f is the fixed point of f = T(f), the best response to the best response to f. It is found without
    gradients; one Newton step on f − T(f) = 0, with its matrix held constant, then has f's exact first derivatives.
    Since the dual is flat at its maximum this gives its first two.
    """

    def answer(log_weights: Tensor, potential: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best potential against another, and the plan's conditional probabilities, (…, to, from)."""
        terms = log_weights[..., None, :] + (potential[..., None, :] - cost) / epsilon
        return -epsilon * terms.logsumexp(-1), terms.softmax(-1)

    def step(f: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return f after one Newton step, and how much T moves it, (…)."""
        g, back = answer(log_p, f, cost.mT)
        again, there = answer(log_q, g, cost)
        # T maps constants to themselves: the row of means fixes the constant, on which the dual does not depend.
        identity = torch.eye(len(cost), dtype=cost.dtype, device=cost.device) + 1 / len(cost)
        move = torch.linalg.solve((identity - there @ back).detach(), (again - f)[..., None]).squeeze(-1)
        return f + move, (again - f).detach().abs().amax(-1)

    with torch.no_grad():
        f = torch.zeros_like(log_p)
        for _ in range(iterations):
            f = answer(log_q, answer(log_p, f, cost.mT)[0], cost)[0]
        for _ in range(_POLISHING):
            better, before = step(f, log_p, log_q)
            after = step(better, log_p, log_q)[1]
            f = torch.where((after < before)[..., None], better, f)
    f, _moved = step(f.detach(), log_p, log_q)
    g, _back = answer(log_p, f, cost.mT)
    return (log_p.exp() * f).sum(-1) + (log_q.exp() * g).sum(-1)
