"""Bayesian flows: from one fixed belief by Bayes' rule, which is the proximal step of KL (2308.07037)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._tensor import Generator, mean_events, over_events, randn
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.flows.base import Flow, Predict, check_class_number, check_classes, check_real, draw_times
from proxflow.schedules import GaussianAccuracy, QuadraticAccuracy


def _bayesian_times(nfe: int) -> list[float]:
    """n − 1 updates and a last prediction at t = 1: the reference sampler's n + 1 for n updates, counted as spent."""
    return [k / (nfe - 1) for k in range(nfe)] if nfe > 1 else [0.0]


@dataclass(frozen=True)
class BFN(Flow[DiagonalGaussian]):
    """Bayesian Flow Network for continuous data (2308.07037, §4).

    The prior is N(0, 1), fixed; messages are y ~ N(x, 1/α); the update is Bayes' rule.

    Args:
        sigma1: Standard deviation of the belief at t = 1. The reference uses √1e-3 in its code's default and
            σ₁² = 1e-6 for fine data.
    """

    sigma1: float = 1e-3

    @property
    def path(self) -> GaussianAccuracy:  # type: ignore[override]
        return GaussianAccuracy(self.sigma1)

    def prior(
        self,
        shape: Sequence[int],
        generator: Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> DiagonalGaussian:
        mean = torch.zeros(tuple(shape), dtype=dtype, device=device)
        return DiagonalGaussian(mean, mean.new_ones(()))

    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> DiagonalGaussian:
        a, b = (over_events(c, x) for c in self.path.coefficients(t))
        return self.belief_at(a * x + b * randn(x.shape, generator, x.dtype, x.device), t)

    def belief_at(self, mean: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(mean, over_events(self.path.precision(t).rsqrt(), mean))

    def update(
        self, belief: DiagonalGaussian, target: DiagonalGaussian, t: Tensor, s: Tensor, generator: Generator | None
    ) -> DiagonalGaussian:
        alpha = self.path.accuracy(t, s).to(belief.mean.dtype)
        message = target.mean
        if generator is not None:
            message = message + alpha.rsqrt() * randn(message.shape, generator, message.dtype, message.device)
        precision = belief.std.reciprocal().square()
        total = precision + alpha
        return DiagonalGaussian(belief.mean + alpha / total * (message - belief.mean), total.rsqrt())

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Continuous-time loss −ln σ₁ σ₁^{−2t} (x − x̂)², nats per dimension (2308.07037, eq. 101)."""
        check_real(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        return 0.5 * self.path.rate(t) * mean_events((x - predicted.mean).square())

    def times(self, nfe: int) -> list[float]:
        return _bayesian_times(nfe)


@dataclass(frozen=True)
class DiscreteBFN(Flow[Categorical]):
    """Bayesian Flow Network for discrete data (2308.07037, §6).

    The prior is uniform, fixed; messages are y ~ N(α(K e_x − 1), αK I); the update adds them to the log-probabilities.

    Args:
        classes: Number of classes K ≥ 2.
        max_sqrt_beta: b = √β(1).
    """

    classes: int
    max_sqrt_beta: float = 3.0

    def __post_init__(self) -> None:
        check_class_number(self.classes)

    @property
    def path(self) -> None:  # type: ignore[override]
        return None

    @property
    def accuracies(self) -> QuadraticAccuracy:
        return QuadraticAccuracy(self.max_sqrt_beta)

    def prior(
        self,
        shape: Sequence[int],
        generator: Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Categorical:
        return Categorical(torch.zeros([*shape, self.classes], dtype=dtype, device=device).log_softmax(-1))

    def _message(self, probs: Tensor, alpha: Tensor, generator: Generator | None) -> Tensor:
        alpha = over_events(alpha, probs)
        mean = alpha * (self.classes * probs - 1)
        if generator is None:
            return mean
        return mean + (alpha * self.classes).sqrt() * randn(probs.shape, generator, probs.dtype, probs.device)

    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> Categorical:
        one_hot = torch.nn.functional.one_hot(x, self.classes).to(t.dtype)
        return Categorical(self._message(one_hot, self.accuracies.beta(t), generator).log_softmax(-1))

    def update(
        self, belief: Categorical, target: Categorical, t: Tensor, s: Tensor, generator: Generator | None
    ) -> Categorical:
        probs = target.probs
        if generator is not None:
            probs = torch.nn.functional.one_hot(target.sample(generator), self.classes).to(probs.dtype)
        message = self._message(probs, self.accuracies.accuracy(t, s), generator)
        return Categorical((belief.logits + message).log_softmax(-1))

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Continuous-time loss K b² t ‖e_x − ê‖², nats per coordinate (2308.07037, eq. 205)."""
        check_classes(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        one_hot = torch.nn.functional.one_hot(x, self.classes).to(predicted.logits.dtype)
        gap = (one_hot - predicted.probs).square().sum(-1)
        return 0.5 * self.classes * self.accuracies.rate(t) * mean_events(gap)

    def times(self, nfe: int) -> list[float]:
        return _bayesian_times(nfe)
