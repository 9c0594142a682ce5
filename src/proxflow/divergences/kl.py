"""Kullback–Leibler divergence: in both directions, and the sum of the two.

KL mixes natural parameters (precisions, or logarithms of probabilities), reverse KL mixes moments. Values are sums of
terms eˣ − 1 − x ≥ 0, which neither cancel nor become negative for close beliefs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._math import exp_excess, log_mix, log_ratio, sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian, FullGaussian
from proxflow.divergences.base import Divergence, Over, closed_form, value
from proxflow.paths import GaussianPath, Linear, Schedule, Shifted


@dataclass(frozen=True)
class KL(Divergence):
    """KL(p ‖ q) = E_p[log p − log q], in nats.

    Its barycentric step is the normalised geometric mean p^{1−f} q^f. Known elsewhere as relative entropy; the free belief
    is its first argument, as in variational inference.
    """

    additive = True
    composes = True

    def schedule(self, endpoints: object) -> Schedule:
        """Return the schedule of uniformly moving means, ln τ/(1 − τ) = ln t/(1 − t) − ln ρ, ρ the target's precision.

        On the linear one all but 1/ρ of the path is done by t = 1/2, with ρ = 2500 by default, so that a sampler's
        first step would end at the first prediction, the mean of all data.
        """
        target_std = getattr(endpoints, "target_std", None)
        return Linear() if not target_std else Shifted((2 * math.log(target_std),))

    def path(self, schedule: Schedule, endpoints: object) -> GaussianPath | None:
        target_std = getattr(endpoints, "target_std", None)
        return None if target_std is None else _StraightInPrecision(schedule, target_std)


@dataclass(frozen=True)
class _StraightInPrecision(Schedule):
    """Path of the mean if precisions mix: the fraction τρ/((1 − τ) + τρ), with initial precision 1 and final ρ."""

    schedule: Schedule
    target_std: float

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        take, keep = self.schedule.fraction(t), self.schedule.remaining(t) * self.target_std**2
        return take / (take + keep), keep / (take + keep)

    def fraction(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[0]

    def remaining(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[1]

    def derivative(self, t: Tensor) -> Tensor:
        take, keep = self.schedule.fraction(t), self.schedule.remaining(t) * self.target_std**2
        return self.schedule.derivative(t) * self.target_std**2 / (take + keep).square()


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(q ‖ p), in nats: the free belief of a proximal step is the second argument of KL.

    Its barycentric step matches the moments of the mixture (1 − f) p + f q. Known elsewhere as the moment projection, as in
    expectation propagation.
    """

    additive = True
    composes = True


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(p ‖ q) + KL(q ‖ p), in nats. Its step needs a solver. Known elsewhere as the symmetrised KL divergence."""

    additive = True


@value(Jeffreys, DiagonalGaussian)
@value(Jeffreys, FullGaussian)
@value(Jeffreys, Categorical)
def _(_: Jeffreys, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return KL()(p, q) + KL()(q, p)


@value(KL, DiagonalGaussian, reverse=ReverseKL)
def _(_: KL | ReverseKL, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    spread = exp_excess(2 * log_ratio(p.std, q.std))
    return 0.5 * sum_events(spread + ((p.mean - q.mean) / q.std).square())


@value(KL, Categorical, reverse=ReverseKL)
def _(_: KL | ReverseKL, p: Categorical, q: Categorical) -> Tensor:
    log_p, log_q = p.log_probs, q.log_probs
    # Classes that p excludes contribute 0 to E_p[log p − log q], whatever q is.
    gap = torch.where(log_p.isneginf(), torch.zeros_like(log_p), log_q - log_p)
    close = gap.abs() < 1
    # Σ (q − p) = 0 is added, so that no term is negative.
    near = log_p.exp() * exp_excess(torch.where(close, gap, torch.zeros_like(gap)))
    return sum_events(torch.where(close & ~log_p.isneginf(), near, log_q.exp() - log_p.exp() * (1 + gap)).sum(-1))


@value(KL, FullGaussian, reverse=ReverseKL)
def _(_: KL | ReverseKL, p: FullGaussian, q: FullGaussian) -> Tensor:
    whitened = torch.linalg.solve_triangular(
        q.scale_tril, torch.cat([p.scale_tril, (p.mean - q.mean)[..., None]], dim=2), upper=False
    )
    spread = exp_excess(2 * log_ratio(p.scale_tril.diagonal(dim1=1, dim2=2), q.scale_tril.diagonal(dim1=1, dim2=2)))
    # The diagonal of L_q⁻¹ L_p is in ``spread``; below it are correlations, and next to it the difference of the means.
    return 0.5 * (spread.sum(1) + torch.cat([whitened.tril(-1)[..., :-1], whitened[..., -1:]], 2).square().sum((1, 2)))


@closed_form(KL, DiagonalGaussian)
def _(_: KL, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    f = over(belief.mean)
    # Precisions relative to the larger one, so that neither overflows: σ from 1e-4 to 1e4 stays exact in float32.
    std, to = belief.given_std, target.given_std
    scale = torch.minimum(std, to)
    weight, target_weight = (1 - f) * (scale / std).square(), f * (scale / to).square()
    total = weight + target_weight
    mean = weight / total * belief.mean + target_weight / total * target.mean
    return DiagonalGaussian(mean, scale / total.sqrt())


@closed_form(ReverseKL, DiagonalGaussian)
def _(_: ReverseKL, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    f = over(belief.mean)
    # The law of total variance: no difference of large second moments.
    spread = f * (1 - f) * (target.mean - belief.mean).square()
    variance = (1 - f) * belief.given_std.square() + f * target.given_std.square() + spread
    # The mean moves by the same operation as for Wasserstein-2: a network that only reads means cannot distinguish them.
    return DiagonalGaussian(torch.lerp(belief.mean, target.mean, f), variance.sqrt())


@closed_form(KL, Categorical)
def _(_: KL, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    f = over(belief.logits)
    log_p, log_q = belief.log_probs, target.log_probs
    no_p, no_q = log_p.isneginf(), log_q.isneginf()
    # At an end of the path the other belief has no weight, whatever it excludes: 0 · (−∞) is 0 here.
    ruled_out = (no_p & (f < 1)) | (no_q & (f > 0))
    mixed = (1 - f) * log_p.masked_fill(no_p, 0) + f * log_q.masked_fill(no_q, 0)
    return Categorical(mixed.masked_fill(ruled_out, -torch.inf).log_softmax(-1))


@closed_form(ReverseKL, Categorical)
def plain_mean(_: Divergence, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    """Return (1 − f) θ + f θ'; it is also the step of every squared distance and reverse Bregman divergence in θ."""
    return Categorical(log_mix(belief.log_probs, target.log_probs, over(belief.logits)))


@closed_form(KL, FullGaussian)
def _(_: KL, belief: FullGaussian, target: FullGaussian, over: Over) -> FullGaussian:
    f = over(belief.mean)[..., None]
    factor, target_factor = belief.scale_tril, target.scale_tril
    # With W = L̂⁻¹ L the mixed precision is L⁻ᵀ B L⁻¹, B = (1 − f) I + f WᵀW. Cholesky of B with its rows and columns
    # reversed gives B = U Uᵀ with U upper triangular, hence the new factor L U⁻ᵀ is lower triangular.
    whitened = torch.linalg.solve_triangular(
        target_factor, torch.cat([factor, (target.mean - belief.mean)[..., None]], dim=2), upper=False
    )
    ratio, shift = whitened[..., :-1], whitened[..., -1:]
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    mixed = (1 - f) * identity + f * ratio.mT @ ratio
    upper = torch.linalg.cholesky(mixed.flip(1, 2)).flip(1, 2)
    moved = torch.linalg.solve_triangular(upper, torch.cat([factor.mT, f * ratio.mT @ shift], dim=2), upper=True)
    new_factor = moved[..., :-1].mT
    return FullGaussian(belief.mean + (new_factor @ moved[..., -1:]).squeeze(-1), new_factor)


@closed_form(ReverseKL, FullGaussian)
def _(_: ReverseKL, belief: FullGaussian, target: FullGaussian, over: Over) -> FullGaussian:
    f = over(belief.mean)
    shift = (target.mean - belief.mean)[..., None]
    mixed = (1 - f)[..., None] * belief.covariance + f[..., None] * target.covariance
    spread = (f * (1 - f))[..., None] * shift @ shift.mT
    return FullGaussian((1 - f) * belief.mean + f * target.mean, torch.linalg.cholesky(mixed + spread))
