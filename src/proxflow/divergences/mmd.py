"""Maximum mean discrepancy, the distance of kernel mean embeddings, and energy distance, its analogue for costs.

On categories both are squared distances of probabilities, induced by a kernel or a cost between the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian, FullGaussian, GaussianMixture
from proxflow.divergences.base import Divergence, closed_form, value
from proxflow.divergences.kl import plain_mean
from proxflow.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class MMD(Divergence):
    """Squared maximum mean discrepancy E k(X, X') + E k(Y, Y') − 2 E k(X, Y).

    "A Kernel Two-Sample Test" (Gretton et al., 2012), Lemma 6.

    On real data k(x, y) = exp(−|x − y|²/(2 h²)) with the bandwidth h: between single coordinates, and **summed over
    them**, if they are independent (``DiagonalGaussian``); between whole events if they are not (``FullGaussian``,
    ``GaussianMixture``). On categories k is a matrix, for each coordinate; the step is then the arithmetic mean of
    probabilities, for every matrix. The value is bounded: beliefs much further apart than the bandwidth and their
    standard deviations hardly attract each other, and components of a mixture much closer than the bandwidth are hardly
    distinguished, so that steps of such mixtures may not converge.

    Args:
        bandwidth: h > 0, in units of the data.
        kernel: Similarity of the classes, symmetric (classes, classes), strictly positive definite on differences of
            probabilities; ``None`` for the identity, |θ − θ'|².

    Raises:
        ArgumentError: A bandwidth or kernel out of range.
    """

    bandwidth: float = 1.0
    kernel: Tensor | None = None
    _factor: Tensor | None = field(init=False, repr=False, default=None)
    additive = True
    composes = (Categorical,)

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and math.isfinite(self.bandwidth)):
            raise ArgumentError(f"a bandwidth is positive and finite, got {self.bandwidth}")
        if self.kernel is not None:
            object.__setattr__(self, "_factor", _factor_of(self.kernel, "a kernel", "positive definite"))


@dataclass(frozen=True, eq=False)
class EnergyDistance(Divergence):
    """2 E c(X, Y) − E c(X, X') − E c(Y, Y'), **summed over the coordinates** of an event.

    "Energy Statistics: A Class of Statistics Based on Distances" (Székely & Rizzo, 2013). Known elsewhere as twice the
    Cramér distance or, if one of the two is a point, twice the continuous ranked probability score.

    On real data c = |x − y|, in units of the data, and the value is twice the squared L² distance of the distribution
    functions. On categories c is a matrix; the step is then the arithmetic mean of probabilities, for every matrix.

    Args:
        cost: Distance of the classes, symmetric (classes, classes), zero between a class and itself, strictly of negative
            type as |i − j| is and every Euclidean distance; ``None`` for 1 between any two classes, |θ − θ'|².

    Raises:
        ArgumentError: A cost out of range.
    """

    cost: Tensor | None = None
    _factor: Tensor | None = field(init=False, repr=False, default=None)
    additive = True
    composes = (Categorical,)

    def __post_init__(self) -> None:
        if self.cost is not None:
            if self.cost.ndim == 2 and bool((self.cost.diagonal() != 0).any()):
                raise ArgumentError("a cost is zero between a class and itself")
            object.__setattr__(self, "_factor", _factor_of(-self.cost, "a cost", "of negative type"))


def _factor_of(matrix: Tensor, name: str, kind: str) -> Tensor:
    """Return F with (θ − θ')ᵀ M (θ − θ') = |Fᵀ(θ − θ')|² for all probabilities, (classes, classes), float64.

    Raises:
        ArgumentError: M is not a finite symmetric matrix of at least 2 classes, or the form is not positive for some
            difference of probabilities, so that two beliefs would have zero or negative distance.
    """
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2
    if not (square and bool(matrix.isfinite().all()) and torch.equal(matrix, matrix.mT)):
        raise ArgumentError(f"{name} is a finite symmetric matrix (classes, classes), got {tuple(matrix.shape)}")
    # Differences of probabilities sum to 0: only the centred matrix matters, and it has one eigenvalue 0.
    centred = matrix.double() - matrix.double().mean(0, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    sizes, vectors = torch.linalg.eigh(centred)
    order = sizes.abs().argsort(descending=True)[:-1]
    sizes, vectors = sizes[order], vectors[:, order]
    if not bool(sizes.min() > 1e-12 * sizes.abs().max()):
        raise ArgumentError(f"{name} must be {kind}: some difference of probabilities has no positive size under it")
    factor: Tensor = vectors * sizes.sqrt()
    return factor


@value(MMD, DiagonalGaussian)
def _(divergence: MMD, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    # With x = √(1 + 2σ²/h²), y alike and m² = (x² + y²)/2, the terms of means equal are 1/x + 1/y − 2/m, a second
    # difference. Written as d = x − y times what is positive, neither it nor d cancels.
    a, b = p.std / divergence.bandwidth, q.std / divergence.bandwidth
    x, y = (1 + 2 * a.square()).sqrt(), (1 + 2 * b.square()).sqrt()
    middle = ((x.square() + y.square()) / 2).sqrt()
    d = 2 * (a - b) * ((a + b) / (x + y))
    bend = (x.square() + y.square() + 4 * x * y) / (middle * (x + y) + 2 * x * y)
    spreads = d / x * (d / y) * bend / (2 * middle)
    shift = ((p.mean - q.mean) / (divergence.bandwidth * middle)).square()
    return sum_events(spreads - 2 / middle * torch.expm1(-shift / 2))


@value(MMD, FullGaussian)
def _(divergence: MMD, p: FullGaussian, q: FullGaussian) -> Tensor:
    means = torch.stack([p.mean, q.mean], dim=1).double() / divergence.bandwidth
    covariances = torch.stack([p.covariance, q.covariance], dim=1).double() / divergence.bandwidth**2
    identity = torch.eye(means.shape[2], dtype=means.dtype, device=means.device)
    factor = torch.linalg.cholesky(identity + covariances[:, :, None] + covariances[:, None])
    gap = torch.linalg.solve_triangular(factor, (means[:, :, None] - means[:, None])[..., None], upper=False)
    log_kernel = -factor.diagonal(dim1=3, dim2=4).log().sum(3) - gap.square().sum((3, 4)) / 2
    return _discrepancy(log_kernel, log_kernel.new_tensor([1.0, -1.0]).expand(len(means), 2)).to(p.mean.dtype)


@value(MMD, GaussianMixture)
def _(divergence: MMD, p: GaussianMixture, q: GaussianMixture) -> Tensor:
    means = torch.cat([p.means, q.means], dim=1).double() / divergence.bandwidth
    variances = (torch.cat([p.stds, q.stds], dim=1).double() / divergence.bandwidth).square()
    total = variances[:, :, None] + variances[:, None]
    gap = means[:, :, None] - means[:, None]
    log_kernel = -(total.log1p() + gap.square() / (1 + total)) / 2
    whole = log_kernel.flatten(3).sum(3) if log_kernel.ndim > 3 else log_kernel
    return _discrepancy(whole, torch.cat([p.weights, -q.weights], dim=1).double()).to(p.means.dtype)


def _discrepancy(log_kernel: Tensor, weights: Tensor) -> Tensor:
    """Compute Σ_ij c_i c_j K_ij of the components' ln K, (batch, n, n), and both beliefs' signed weights c, (batch, n).

    In double precision, as near equality this is a small difference of large terms.
    """
    return (weights[:, :, None] * log_kernel.exp() * weights[:, None]).sum((1, 2))


@value(EnergyDistance, DiagonalGaussian)
def _(_: EnergyDistance, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    # E|N(δ, s²)| = √(2/π) s exp(−z²/2) + δ erf(z/√2) with z = δ/s (the folded normal). Both differences, of this from its
    # value at δ = 0 and of s from the mean of the spreads, are written without cancellation.
    gap, s = p.mean - q.mean, torch.hypot(p.std, q.std)
    z = gap / s.clamp_min(torch.finfo(s.dtype).tiny)
    root = math.sqrt(2 / math.pi)
    shift = root * s * torch.expm1(-z.square() / 2) + gap * torch.erf(z / math.sqrt(2))
    total = 2 * s + math.sqrt(2) * (p.std + q.std)
    spread = (p.std - q.std) * ((p.std - q.std) / total.clamp_min(torch.finfo(s.dtype).tiny))
    return sum_events(2 * (shift + root * spread))


@value(MMD, Categorical)
@value(EnergyDistance, Categorical)
def _(divergence: MMD | EnergyDistance, p: Categorical, q: Categorical) -> Tensor:
    """Compute |Fᵀ(θ − θ')|², or |θ − θ'|² without F, summed over the coordinates of an event, (batch,)."""
    gap, factor = p.probs - q.probs, divergence._factor
    if factor is not None:
        if len(factor) != p.classes:
            raise ArgumentError(f"the matrix is for {len(factor)} classes, the beliefs have {p.classes}")
        gap = gap @ factor.to(gap)
    return sum_events(gap.square().sum(-1))


closed_form(MMD, Categorical)(plain_mean)
closed_form(EnergyDistance, Categorical)(plain_mean)
