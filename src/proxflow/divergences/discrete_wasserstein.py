"""Wasserstein-2 between categories at points of a space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical
from proxflow.divergences._plans import least_cost
from proxflow.divergences.base import Divergence, value
from proxflow.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class DiscreteWasserstein2(Divergence):
    """W₂² between categories at given points, min_π Σ_jk π_jk |x_j − x_k|², **summed over the coordinates** of an event.

    Known elsewhere as the earth mover's distance with squared costs. On a line it follows from the quantile functions:
    W₂² = ∫₀¹ (F⁻¹(u) − G⁻¹(u))² du. In more dimensions the plan comes from the library POT (``pip install
    'proxflow[transport]'``), on the host, without support for ``torch.compile`` and ``vmap``. Derivatives are exact. It
    has a value but no step: it is piecewise linear in the probabilities, and so is the barycentric objective, whose
    minimiser is at a corner that solvers of smooth problems do not find. For steps use :class:`SinkhornDivergence` with
    the same costs, of which it is the limit.

    Args:
        points: Positions of the classes, (classes,) on a line or (classes, dimension), all different.

    Raises:
        ArgumentError: The shape is wrong, a point is not finite, or two classes are at one point.
    """

    points: Tensor
    additive = True

    def __post_init__(self) -> None:
        x = self.points
        if not (x.is_floating_point() and x.ndim in (1, 2) and len(x) >= 2 and bool(x.isfinite().all())):
            raise ArgumentError(
                f"points are finite, (classes,) or (classes, dimension), got {x.dtype} {tuple(x.shape)}"
            )
        if len(torch.unique(x, dim=0)) < len(x):
            raise ArgumentError("two classes lie at one point, so no mass has to move between them: merge them")


@value(DiscreteWasserstein2, Categorical)
def _(divergence: DiscreteWasserstein2, p: Categorical, q: Categorical) -> Tensor:
    if len(divergence.points) != p.classes:
        raise ArgumentError(f"the points are of {len(divergence.points)} classes, the beliefs have {p.classes}")
    points = divergence.points.to(p.logits)
    if points.ndim == 1:
        return sum_events(_on_a_line(points, p.probs, q.probs))
    costs = (points[:, None] - points).square().sum(2)
    start, end = (b.probs.reshape(-1, b.classes) for b in (p, q))
    values = least_cost(costs.expand(len(start), -1, -1), start, end)
    return sum_events(values.reshape(p.logits.shape[:-1]))


def _on_a_line(points: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Compute ∫ (F⁻¹ − G⁻¹)² of probabilities (…, classes) → (…)."""
    points, order = points.sort()
    cumulative = [a[..., order].cumsum(-1)[..., :-1] for a in (p, q)]
    # Between neighbouring levels of either distribution function both quantiles are constant.
    levels = torch.cat(cumulative, dim=-1).sort(dim=-1).values
    zero, one = torch.zeros_like(levels[..., :1]), torch.ones_like(levels[..., :1])
    edges = torch.cat([zero, levels, one], dim=-1)
    middle = (edges[..., 1:] + edges[..., :-1]).detach() / 2
    first, second = (points[(middle[..., None] > c[..., None, :]).sum(-1)] for c in cumulative)
    return (edges.diff(dim=-1) * (first - second).square()).sum(-1)
