"""Fisher–Rao: the geodesic distance of the Fisher information metric.

A univariate Gaussian (μ, σ) is the point (u, σ) = (μ/√2, σ) of the hyperbolic half-plane with metric 2(du² + dσ²)/σ².
In the coordinates (1/σ, u/σ, (u² + σ²)/σ) of the hyperboloid model a geodesic of length d is

    X(f) = [sinh((1−f) d) X₀ + sinh(f d) X₁] / sinh d,

from which the step follows without the semicircle's centre, whose formula divides by the difference of the means: the
new 1/σ is a weighted sum of the old ones, and the new mean the matching weighted average. Classes with probabilities θ
are the point √θ of the unit sphere, whose geodesics are great circles.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proxflow._math import (
    log_weighted_sum,
    sin_ratio,
    sinh_ratio,
    squared_arcsin_sqrt,
    squared_arcsinh_sqrt,
    sum_events,
)
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences.base import Divergence, Over, closed_form, value


@dataclass(frozen=True)
class FisherRao(Divergence):
    """Squared Fisher–Rao distance d²(p, q), along geodesics of the Fisher information metric.

    On the simplex as in "Fisher Flow Matching for Generative Modeling over Discrete Data" (Davis et al., 2024),
    arXiv 2405.14664. Known elsewhere as the information or Rao distance.

    Gaussians: d = 2√2 arcsinh √(((μ − μ')²/2 + (σ − σ')²) / (4σσ')) in each coordinate. Categories: d = 2 arccos Σ√(θθ').
    """

    additive = True
    composes = True


def _squared_hyperbolic(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    """Compute the squared distance of each coordinate in the half-plane of curvature −1."""
    # Each factor is divided by one standard deviation: no overflow and no underflow of the product σσ'.
    shift = (p.mean - q.mean) / p.std * ((p.mean - q.mean) / q.std)
    spread = (p.std - q.std) / p.std * ((p.std - q.std) / q.std)
    return 4 * squared_arcsinh_sqrt((shift / 2 + spread) / 4)


def _squared_angle(p: Categorical, q: Categorical) -> Tensor:
    """Compute the squared angle between √θ and √θ', for each coordinate."""
    half_chord_squared = ((p.log_probs / 2).exp() - (q.log_probs / 2).exp()).square().sum(-1) / 4
    return 4 * squared_arcsin_sqrt(half_chord_squared)


@value(FisherRao, DiagonalGaussian)
def _(_: FisherRao, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return sum_events(2 * _squared_hyperbolic(p, q))


@value(FisherRao, Categorical)
def _(_: FisherRao, p: Categorical, q: Categorical) -> Tensor:
    return sum_events(4 * _squared_angle(p, q))


@closed_form(FisherRao, DiagonalGaussian)
def _(_: FisherRao, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    squared = _squared_hyperbolic(belief, target)
    f = over(belief.mean)
    keep, take = sinh_ratio(1 - f, squared) / belief.std, sinh_ratio(f, squared) / target.std
    total = keep + take
    return DiagonalGaussian(keep / total * belief.mean + take / total * target.mean, 1 / total)


@closed_form(FisherRao, Categorical)
def _(_: FisherRao, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    squared = _squared_angle(belief, target)[..., None]
    f = over(belief.logits)
    keep, take = sin_ratio(1 - f, squared), sin_ratio(f, squared)
    return Categorical(2 * log_weighted_sum(belief.log_probs / 2, target.log_probs / 2, keep, take))
