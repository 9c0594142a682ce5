"""Wasserstein-2: mass moves over the ground, and moving costs the squared distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._tensor import sum_events
from proxflow.beliefs import DiagonalGaussian, FullGaussian
from proxflow.divergences.base import Divergence, closed_form, value


@dataclass(frozen=True)
class Wasserstein2(Divergence):
    """Squared 2-Wasserstein distance W₂²(p, q), in squared units of the data.

    Its barycentric step is displacement interpolation: for Gaussians with independent coordinates, means and standard
    deviations move on straight lines, at constant speed (McCann, 1997; GPFN, 2603.00751). For full covariances it is the
    Bures metric: W₂² = |μ − μ'|² + min_Q ‖L − L'Q‖² over orthogonal Q, and the factors L and L'Q move on straight lines
    (Bhatia, Jain & Lim, 2019, §3).
    """

    additive = True
    composes = True


def _aligned(factor: Tensor, other: Tensor) -> Tensor:
    """``other @ Q`` with the orthogonal Q that brings it nearest to ``factor`` (Procrustes); (batch, d, d).

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


@value(Wasserstein2, DiagonalGaussian)
def _(_: Wasserstein2, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return sum_events((p.mean - q.mean).square() + (p.std - q.std).square())


@value(Wasserstein2, FullGaussian)
def _(_: Wasserstein2, p: FullGaussian, q: FullGaussian) -> Tensor:
    spread = (p.scale_tril - _aligned(p.scale_tril, q.scale_tril)).square().sum((1, 2))
    return (p.mean - q.mean).square().sum(1) + spread


@closed_form(Wasserstein2, DiagonalGaussian)
def _(
    _: Wasserstein2, belief: DiagonalGaussian, target: DiagonalGaussian, over: Callable[[Tensor], Tensor]
) -> DiagonalGaussian:
    f = over(belief.mean)
    # In products, not mean + f·(target − mean): exactly the target at f = 1.
    return DiagonalGaussian((1 - f) * belief.mean + f * target.mean, (1 - f) * belief.std + f * target.std)


@closed_form(Wasserstein2, FullGaussian)
def _(_: Wasserstein2, belief: FullGaussian, target: FullGaussian, over: Callable[[Tensor], Tensor]) -> FullGaussian:
    f = over(belief.mean)
    aligned = _aligned(belief.scale_tril, target.scale_tril)
    moved = (1 - f)[..., None] * belief.scale_tril + f[..., None] * aligned
    # Any factor N of a covariance N Nᵀ becomes a Cholesky factor by turning it: Nᵀ = Q R, so N Nᵀ = Rᵀ R.
    upper = torch.linalg.qr(moved.mT).R
    signs = torch.where(upper.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(upper)
    return FullGaussian((1 - f) * belief.mean + f * target.mean, (signs[..., None] * upper).mT)
