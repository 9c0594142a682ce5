"""Maximum mean discrepancy: the distance of two distributions' mean embeddings under a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian, FullGaussian, GaussianMixture
from proxflow.divergences._quadratic import factor_of, squared_distance
from proxflow.divergences.base import Divergence, closed_form, value
from proxflow.divergences.kl import plain_mean
from proxflow.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class MMD(Divergence):
    """Squared maximum mean discrepancy E k(X, X') + E k(Y, Y') − 2 E k(X, Y).

    "A Kernel Two-Sample Test" (Gretton et al., 2012), Lemma 6.

    On real data k(x, y) = exp(−|x − y|²/(2 h²)) with the bandwidth h: between single coordinates, and **summed over them**,
    where they are independent (``DiagonalGaussian``); between whole events where they are not (``FullGaussian``,
    ``GaussianMixture``). On categories k is a matrix, for each coordinate; the step is then the plain mean of
    probabilities, whatever the matrix. The value is bounded: beliefs much further apart than the bandwidth and their spreads
    hardly attract each other, and components of a mixture much closer than the bandwidth are hardly told apart, so that
    steps of such mixtures may not converge.

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
            object.__setattr__(self, "_factor", factor_of(self.kernel, "a kernel", "positive definite"))


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

    In double precision, for near equality this is a small difference of large terms.
    """
    return (weights[:, :, None] * log_kernel.exp() * weights[:, None]).sum((1, 2))


value(MMD, Categorical)(squared_distance)
closed_form(MMD, Categorical)(plain_mean)
