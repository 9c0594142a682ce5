"""Schedules: how far along its path a belief is at a time in [0, 1].

A schedule gives its value, its derivative and the size of a step between two times. For Gaussian beliefs it also gives
the coefficients (a, b) of the training beliefs μ_t = a(t) x + b(t) ε, which are used by parameterisations of networks,
marginal-preserving noise and multistep integration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from proxflow._math import bisect, on_device, over_events
from proxflow.errors import ArgumentError


class GaussianPath(ABC):
    """Means of the training beliefs given data x: μ_t = a(t) x + b(t) ε with ε standard normal.

    Known elsewhere as an interpolant, with the noise schedule a = α_t, b = σ_t.
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) at times ``t``, each of the shape of ``t``."""

    def over(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) at times ``t`` (batch,), shaped to broadcast against events ``like`` (batch, *event)."""
        a, b = self.coefficients(t)
        return over_events(a, like), over_events(b, like)

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return τ = a/(a + b), 1 − τ and a + b at times ``t``.

        In y = μ/(a + b) every Gaussian path is the straight line y = τ x + (1 − τ) ε. If a and b both vanish, as for
        BFN at t = 0, y is pure noise.
        """
        a, b = self.coefficients(t)
        total = (a + b).clamp_min(torch.finfo(a.dtype).tiny)
        return a / total, torch.where(a == 0, torch.ones_like(a), b / total), a + b

    def time_of(self, fraction: Tensor) -> Tensor:
        """Return the times of fractions τ (float64); inverse of :meth:`straight`."""
        return bisect(lambda t: self.straight(t)[0], fraction, 0, 1)


def check_path(predictor: Any, flow: Any) -> None:
    """Refuse a predictor that was made for another path than a flow's: its times would mean other beliefs.

    Raises:
        ArgumentError: They differ.
    """
    made_for, asked = getattr(predictor, "path", None), getattr(flow, "path", None)
    if made_for is not None and asked is not None and made_for != asked:
        raise ArgumentError(
            f"this predictor was made for the path {made_for!r:.120} from noise to data, and the flow has {asked!r:.120}: "
            "give the flow that the predictor was made with, or make a predictor with this one"
        )


Scalar = TypeVar("Scalar", float, Tensor)


def renewal(now: tuple[Scalar, Scalar], new: tuple[Scalar, Scalar], kappa: float) -> tuple[Scalar, Scalar, Scalar]:
    """Return the weights (k, l, m) of a step z' = k z + l x̂ + m ξ that keeps the marginal a' x + b' ε of a Gaussian path.

    With the predicted noise ε̂ = (z − a x̂)/b, z' = a' x̂ + √(b'² − m²) ε̂ + m ξ and
    m = κ b' √(1 − (a b'/(a' b))²). κ = 0 is the step of DDIM, κ = 1 the ancestral one of DDPM and of Bayesian flows
    ("Denoising Diffusion Implicit Models" (Song et al., 2020), arXiv 2010.02502, eqs. 12 and 16, here on any path).

    Args:
        now: (a, b).
        new: (a', b'), later on the path.
        kappa: Fraction of the noise replaced, in [0, 1].
    """
    (a, b), (new_a, new_b) = now, new
    ratio = a * new_b / (new_a * b)
    replaced = 1 - ratio**2
    keep = new_b * _root(1 - kappa**2 * replaced) / b
    return keep, new_a - keep * a, kappa * new_b * _root(replaced)


def _root(x: Scalar) -> Scalar:
    """Return the square root of a number, 0 if rounding made it negative."""
    return x.clamp_min(0).sqrt() if isinstance(x, Tensor) else math.sqrt(max(x, 0.0))


class Schedule(GaussianPath):
    """Barycentric schedule: the belief at time t is at the fraction τ(t) of the path from prior to target.

    As a Gaussian path (means on straight lines) it has a = τ and b = 1 − τ.
    """

    @abstractmethod
    def remaining(self, t: Tensor) -> Tensor:
        """Return 1 − τ(t), accurate near t = 1: it falls from 1 to 0, or less far if the path ends before the target."""

    def fraction(self, t: Tensor) -> Tensor:
        """Return τ(t)."""
        return 1 - self.remaining(t)

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """Return τ'(t)."""

    def step(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the fraction of the step from time t to s > t: (τ_s − τ_t)/(1 − τ_t), exactly 1 where τ_s = 1."""
        remaining = self.remaining(t)
        return (remaining - self.remaining(s)) / remaining

    def velocity_weight(self, t: Tensor, floor: float) -> Tensor:
        """Return (τ'/max(1 − τ, floor))², which makes squared errors of predicted data those of the velocity."""
        return (self.derivative(t) / self.remaining(t).clamp_min(floor)).square()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.fraction(t), self.remaining(t)


@dataclass(frozen=True)
class Linear(Schedule):
    """τ(t) = final · t: with Wasserstein-2 and ``final`` 1 this is rectified flow.

    "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow" (Liu et al., 2022), arXiv
    2209.03003.

    Args:
        final: In (0, 1]. Below 1 beliefs end before the target, as in a Bayesian Flow Network at σ₁, and the last
            prediction is the sample: training and sampling spend nothing on beliefs that already determine the data.

    Raises:
        ArgumentError: ``final`` is out of range.
    """

    final: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.final <= 1:
            raise ArgumentError(f"final must lie in (0, 1], got {self.final}")

    def remaining(self, t: Tensor) -> Tensor:
        return torch.rsub(t, 1, alpha=self.final)

    def fraction(self, t: Tensor) -> Tensor:
        return t if self.final == 1 else t * self.final

    def derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.final)

    def velocity_weight(self, t: Tensor, floor: float) -> Tensor:
        # With half the operations, which matters in the training of small networks.
        return torch.rsub(t.clamp(max=(1 - floor) / self.final), 1 / self.final).pow_(-2)


@dataclass(frozen=True)
class Cosine(Schedule):
    """τ(t) = sin²(πt/2): slow at both ends."""

    def remaining(self, t: Tensor) -> Tensor:
        # sin²(π(1−t)/2) rather than cos²(πt/2): exactly 0 at t = 1.
        return torch.sin((1 - t) * (math.pi / 2)).square()

    def derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi * t)


@dataclass(frozen=True)
class QuarterCosine(Schedule):
    """τ(t) = 1 − cos(πt/2): slow at first, so that few masked classes are revealed while little is known.

    The cosine schedule of "Simplified and Generalized Masked Diffusion for Discrete Data" (Shi et al., 2024), arXiv
    2406.04329, table 1, with reversed time.
    """

    def remaining(self, t: Tensor) -> Tensor:
        return torch.sin((1 - t) * (math.pi / 2))  # exactly 0 at t = 1

    def derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class VariancePreserving(GaussianPath):
    """Path of diffusion models, a² + b² = 1, with a(t) = sin(πt/2) and b(t) = cos(πt/2).

    Known elsewhere as the cosine noise schedule: "Improved Denoising Diffusion Probabilistic Models" (Nichol &
    Dhariwal, 2021), arXiv 2102.09672, eq. 17, here without offset. Time runs from noise (0) to data (1), in diffusion
    models in reverse.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(π(1−t)/2) rather than cos(πt/2): exactly 0 at t = 1.
        return torch.sin(t * (math.pi / 2)), torch.sin((1 - t) * (math.pi / 2))


@dataclass(frozen=True)
class Shifted(Schedule):
    """Linear schedule with shifted log-odds: ln τ/(1 − τ) = ln t/(1 − t) + ℓ(t).

    A constant ℓ is the timestep shift of "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (Esser et
    al., 2024), arXiv 2403.03206, eq. 23. A schedule whose slope is finite and positive at both ends has a bounded, smooth ℓ,
    so that a short table holds it accurately.

    Args:
        log_odds: ℓ at equally spaced times from 0 to 1, linear in between; a single number for a constant.

    Raises:
        ArgumentError: The table is empty or not finite, or decreases so steeply that τ would decrease.
    """

    log_odds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.log_odds or not all(map(math.isfinite, self.log_odds)):
            raise ArgumentError(f"log_odds must be at least one finite number, got {self.log_odds}")
        pieces = len(self.log_odds) - 1
        for k, (left, right) in enumerate(pairwise(self.log_odds)):
            # τ' > 0 where ℓ' > −1/(t(1 − t)), which within a piece is tightest at its point nearest to 1/2.
            nearest = min(max(0.5, k / pieces), (k + 1) / pieces)
            if (right - left) * pieces * nearest * (1 - nearest) <= -1:
                raise ArgumentError(
                    f"log_odds falls from {left:g} to {right:g} between t = {k / pieces:g} and {(k + 1) / pieces:g}, where "
                    "the fraction would decrease: let it fall more slowly"
                )

    def _shift(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor e^ℓ of the odds, and ℓ', at times ``t``."""
        table = on_device(self.log_odds, t.device).to(t.dtype)
        pieces = len(table) - 1
        if pieces == 0:
            return table[0].exp().expand(t.shape), torch.zeros_like(t)
        index = (t.detach() * pieces).floor().clamp(0, pieces - 1).long()
        left, right = table[index], table[index + 1]
        return torch.lerp(left, right, t * pieces - index).exp(), pieces * (right - left)

    def remaining(self, t: Tensor) -> Tensor:
        factor, _ = self._shift(t)
        return (1 - t) / (1 - t + factor * t)

    def fraction(self, t: Tensor) -> Tensor:
        factor, _ = self._shift(t)
        return factor * t / (1 - t + factor * t)

    def derivative(self, t: Tensor) -> Tensor:
        factor, slope = self._shift(t)
        return factor * (1 + slope * t * (1 - t)) / (1 - t + factor * t).square()

    def step(self, t: Tensor, s: Tensor) -> Tensor:
        # Not 1 minus a ratio: for tiny τ, as for KL, rounding would leave no digit of the step.
        before, after = self._shift(t)[0], self._shift(s)[0]
        return (after * s * (1 - t) - before * t * (1 - s)) / ((1 - s + after * s) * (1 - t))


@dataclass(frozen=True)
class GaussianAccuracy(GaussianPath):
    """Accuracy schedule of continuous Bayesian Flow Networks, β(t) = σ₁^{−2t} − 1.

    "Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037, eq. 72.
    With γ = β/(1+β) = 1 − σ₁^{2t}, beliefs started at N(0, 1) have a = γ and b = √(γ(1−γ)).

    Args:
        sigma1: Standard deviation of the belief at t = 1, in units of the data, 0 < σ₁ < 1.
    """

    sigma1: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.sigma1 < 1:
            raise ArgumentError(f"sigma1 must lie between 0 and 1, got {self.sigma1}")

    def gamma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * math.log(self.sigma1) * t)

    def precision(self, t: Tensor) -> Tensor:
        """Return the precision of the belief, 1 + β(t) = σ₁^{−2t}."""
        return torch.exp(-2 * math.log(self.sigma1) * t)

    def rate(self, t: Tensor) -> Tensor:
        """Return β'(t)."""
        return -2 * math.log(self.sigma1) * self.precision(t)

    def accuracy(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the accuracy α of the message between times t and s: β(s) − β(t)."""
        return self.precision(t) * torch.expm1(-2 * math.log(self.sigma1) * (s - t))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.gamma(t)
        return gamma, (gamma / self.precision(t)).sqrt()


@dataclass(frozen=True)
class QuadraticAccuracy:
    """Accuracy schedule of discrete Bayesian Flow Networks, β(t) = b² t² (Graves et al., 2023, eq. 181).

    Args:
        max_sqrt_beta: b = √β(1) > 0.
    """

    max_sqrt_beta: float = 3.0

    def __post_init__(self) -> None:
        if not self.max_sqrt_beta > 0:
            raise ArgumentError(f"max_sqrt_beta must be positive, got {self.max_sqrt_beta}")

    def beta(self, t: Tensor) -> Tensor:
        return (self.max_sqrt_beta * t).square()

    def rate(self, t: Tensor) -> Tensor:
        return 2 * self.max_sqrt_beta**2 * t

    def accuracy(self, t: Tensor, s: Tensor) -> Tensor:
        return self.max_sqrt_beta**2 * (s - t) * (s + t)


@dataclass(frozen=True)
class LogitPath(GaussianPath):
    """Path of the log-probabilities of discrete Bayesian Flow Networks: z = β (K e_x − 1) + √(βK) ε.

    Up to a constant the logits of a training belief are Gaussian around the data K e_x − 1, with a = β and b = √(βK):
    "Unifying Bayesian Flow Networks and Diffusion Models through Stochastic Differential Equations" (Xue et al., 2024),
    arXiv 2404.15766, §5.

    Args:
        accuracies: β(t).
        classes: Number of classes K.
    """

    accuracies: QuadraticAccuracy
    classes: int

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.accuracies.beta(t)
        return beta, (beta * self.classes).sqrt()
