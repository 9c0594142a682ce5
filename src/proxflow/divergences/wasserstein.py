"""Wasserstein-2: moving mass costs the squared distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import DiagonalGaussian, FullGaussian
from proxflow.divergences.base import Divergence, Over, closed_form, value
from proxflow.divergences.ground import GroundMetric
from proxflow.errors import ArgumentError
from proxflow.paths import GaussianPath, Schedule


@dataclass(frozen=True)
class Wasserstein2(Divergence):
    """Squared 2-Wasserstein distance W₂²(p, q), in squared units of the data.

    Its barycentric step is displacement interpolation: for Gaussians with independent coordinates, means and standard
    deviations move on straight lines, at constant speed ("A Convexity Principle for Interacting Gases", McCann, 1997;
    "General Proximal Flow Networks" (Strunk & Assam, 2026), arXiv 2603.00751). For full covariances it is the Bures metric:
    W₂² = |μ − μ'|² + min_Q ‖L − L'Q‖² over orthogonal Q, and the factors L and L'Q move on straight lines ("On the
    Bures–Wasserstein Distance between Positive Definite Matrices", Bhatia, Jain & Lim, 2019, §3).

    With a ground metric M, moving mass from x to y costs ⟨x − y, M (x − y)⟩, and W₂² is the plain one of the beliefs
    mapped by M^½. Its barycentric step moves means on the same straight lines **for every M**, because energy and
    divergence have the same metric. For steps that depend on the metric, take :class:`AnisotropicWasserstein2`.

    Args:
        metric: M; ``None`` is the plain metric. Under a metric that mixes coordinates, a :class:`DiagonalGaussian` must
            have one standard deviation for the whole event, as otherwise the step leaves the family: others are
            refused; use :class:`FullGaussian` for them. The standard deviation is known to be one number if it was
            given as one (it broadcasts); else its values are read, which works neither with ``torch.compile`` nor with
            ``vmap``.
    """

    metric: GroundMetric | None = None
    composes = True

    @property
    def additive(self) -> bool:  # type: ignore[override]
        # A single coordinate has no access to its weight.
        return self.metric is None

    def path(self, schedule: Schedule, endpoints: object) -> GaussianPath | None:
        # Under every metric the means move on the same straight lines.
        return schedule if hasattr(endpoints, "target_std") else None


def one_std(belief: DiagonalGaussian) -> Tensor:
    """Return the standard deviation that all coordinates of an event share, (batch, 1, …).

    Raises:
        ArgumentError: They do not share one.
    """
    std = belief.std
    first = std[(slice(None), *[slice(1)] * (std.ndim - 1))]
    shared = all(size == 1 or stride == 0 for size, stride in zip(std.shape[1:], std.stride()[1:], strict=True))
    if not shared and not bool((std == first).all()):
        raise ArgumentError(
            "under a metric that mixes coordinates a diagonal Gaussian needs one standard deviation for the whole event, "
            "got several: hold it as a FullGaussian, or take a CoordinateMetric"
        )
    return first


def _aligned(factor: Tensor, other: Tensor) -> Tensor:
    """Return ``other @ Q`` with the orthogonal Q that brings it nearest to ``factor`` (Procrustes); (batch, d, d).

    Q comes from a singular value decomposition, whose own derivative is infinite where singular values meet, as they do
    for two equal spheres, although Q is smooth there. So the decomposition U S Vᵀ = factorᵀ other is held constant, and
    Q = V R Uᵀ, where R makes K R symmetric, K = Uᵀ factorᵀ other V, to first order around K = S, R = I. Since R is
    orthogonal to second order, this gives the exact derivative of Q and the exact first two of W₂².
    """
    product = factor.mT @ other
    left, sizes, right = torch.linalg.svd(product.detach())
    sums = sizes[..., :, None] + sizes[..., None, :]
    kernel = left.mT @ product @ right.mT
    turn = (kernel.mT - kernel) / torch.where(sums > 0, sums, torch.ones_like(sums))
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    aligned: Tensor = other @ (right.mT @ (identity + turn + turn @ turn / 2) @ left.mT)
    return aligned


def _scaled(metric: GroundMetric | None, x: Tensor) -> Tensor:
    """Return √m ⊙ U x of events (batch, *event): plain distances there are distances in the metric here."""
    return x if metric is None else metric.weights(x).sqrt() * metric.modes(x)


def _scaled_columns(metric: GroundMetric | None, factor: Tensor) -> Tensor:
    """Return the same of every column of factors (batch, d, d)."""
    if metric is None:
        return factor
    return _scaled(metric, factor.mT.flatten(0, 1)).reshape(factor.shape).mT


@value(Wasserstein2, DiagonalGaussian)
def _(divergence: Wasserstein2, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    metric = divergence.metric
    if metric is None or metric.coordinatewise:
        return sum_events(_scaled(metric, p.mean - q.mean).square() + _scaled(metric, p.std - q.std).square())
    spread = (one_std(p) - one_std(q)).square() * metric.mean_weight(p.mean)
    return sum_events(_scaled(metric, p.mean - q.mean).square() + spread)


@value(Wasserstein2, FullGaussian)
def _(divergence: Wasserstein2, p: FullGaussian, q: FullGaussian) -> Tensor:
    factor, other = (_scaled_columns(divergence.metric, b.scale_tril) for b in (p, q))
    spread = (factor - _aligned(factor, other)).square().sum((1, 2))
    return _scaled(divergence.metric, p.mean - q.mean).square().sum(1) + spread


@closed_form(Wasserstein2, DiagonalGaussian)
def _(divergence: Wasserstein2, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    f, metric = over(belief.mean), divergence.metric
    std, to = belief.given_std, target.given_std
    if metric is not None:
        metric.modes(belief.mean)  # refuses events of another shape
        if not metric.coordinatewise:
            std, to = one_std(belief), one_std(target)
    # Not mean + f·(target − mean): lerp is exactly the target at f = 1. It is also one pass over a batch instead of three.
    return DiagonalGaussian(torch.lerp(belief.mean, target.mean, f), torch.lerp(std, to, f.to(std.dtype)))


@closed_form(Wasserstein2, FullGaussian)
def _(divergence: Wasserstein2, belief: FullGaussian, target: FullGaussian, over: Over) -> FullGaussian:
    f = over(belief.mean)
    factor, other = (_scaled_columns(divergence.metric, b.scale_tril) for b in (belief, target))
    moved = (1 - f)[..., None] * factor + f[..., None] * _aligned(factor, other)
    if (metric := divergence.metric) is not None:
        rows = moved.mT.flatten(0, 1)
        moved = metric.events(rows / metric.weights(rows).sqrt()).reshape(moved.shape).mT
    # Any factor N of a covariance N Nᵀ becomes a Cholesky factor by a rotation: Nᵀ = Q R, so N Nᵀ = Rᵀ R.
    upper = torch.linalg.qr(moved.mT).R
    signs = torch.where(upper.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(upper)
    return FullGaussian((1 - f) * belief.mean + f * target.mean, (signs[..., None] * upper).mT)
