"""Flows: where beliefs start, how they move, what a network is trained on.

A flow says three things. Its **prior** over beliefs; the **training belief** at time t given data x; and the **update**
that moves a belief from time t to s with a predicted target. Barycentric flows (:class:`GPFN`) move by a proximal step of
any divergence, Bayesian flows (:class:`BFN`, :class:`DiscreteBFN`) by Bayes' rule, which is the proximal step of KL with
the energy E(p; y) = E_{x~p}[−log S(y|x; α)].

A flow knows no network: ``predict`` in its loss is any function ``(belief, t) -> belief``, an exact one included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from proxflow._tensor import Generator, mean_events, over_events, rand, randn
from proxflow.beliefs import Belief, Categorical, DiagonalGaussian
from proxflow.divergences import KL, Divergence, Wasserstein2, steps_compose
from proxflow.errors import ArgumentError
from proxflow.proximal import Proximal
from proxflow.schedules import GaussianAccuracy, GaussianPath, Linear, QuadraticAccuracy, Schedule, VariancePreserving
from proxflow.solvers import NewtonSolver

B = TypeVar("B", bound=Belief)
Predict = Callable[[Any, Tensor], Any]
"""A belief of the flow's family and times (batch,) → the predicted target, a belief of the same family."""


class Flow(ABC, Generic[B]):
    """What training and sampling need to know of a proximal flow."""

    path: GaussianPath | None
    """Coefficients of the training beliefs' means where they are Gaussian around a x, else ``None``."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> B:
        """Beliefs at t = 0 for a batch of events of the given shape (batch, *event)."""

    @abstractmethod
    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> B:
        """Draw training beliefs at times ``t`` (batch,) for data ``x`` (batch, *event)."""

    @abstractmethod
    def update(self, belief: B, target: B, t: Tensor, s: Tensor, generator: Generator | None) -> B:
        """Move a belief from time ``t`` to ``s`` (scalars) toward a predicted target.

        Without a generator the message is the target itself; with one it is a noisy draw around it.
        """

    @abstractmethod
    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        """Training loss of each example, (batch,), a mean over the coordinates of an event.

        Args:
            predict: Function of a belief and times (batch,) that returns the predicted target.
            x: Data (batch, *event): real numbers for Gaussian beliefs, class indices for categorical ones.
            generator: Source of the times and of the beliefs' noise.
            t: Times (batch,) in [0, 1]; ``None`` draws them.

        Raises:
            ArgumentError: ``x`` has the wrong type for this flow's beliefs.
        """

    @abstractmethod
    def times(self, nfe: int) -> list[float]:
        """Times at which a proximal sampler that spends ``nfe`` evaluations calls the network, starting at 0.

        The prediction at the last of them is the sample.
        """

    def belief_at(self, mean: Tensor, t: Tensor) -> DiagonalGaussian:
        """The Gaussian belief with a given mean at time ``t``, for samplers that work on the path of means."""
        raise ArgumentError(f"{self} has no Gaussian path: use a proximal sampler")


def draw_times(batch: int, generator: Generator, device: torch.device) -> Tensor:
    """One time for each example, (batch,), uniform on (0, 1) and evenly spread over the batch.

    Each alone is uniform; together they share one random offset, which lowers the variance of the loss.
    """
    if not isinstance(generator, torch.Generator):
        return rand(torch.Size([batch]), generator, torch.float32, device)
    offset, order = (
        torch.rand((), generator=generator, device=device),
        torch.randperm(batch, generator=generator, device=device),
    )
    return ((order + offset) / batch).clamp(1e-6, 1 - 1e-6)


# Where barycentric flows begin and end ------------------------------------------------------------------------------


class Endpoints(ABC, Generic[B]):
    """The prior and the targets of a barycentric flow, and the proper score a prediction is trained with."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> B: ...

    @abstractmethod
    def target(self, x: Tensor, like: B) -> B:
        """The belief that knows the data point."""

    @abstractmethod
    def draw(self, target: B, generator: Generator) -> B:
        """A noisy message around a predicted target."""

    @abstractmethod
    def score(self, predicted: B, x: Tensor, weight: Tensor) -> Tensor:
        """Loss of a prediction, (batch,), mean over coordinates; ``weight`` (batch,) is that of errors of real data."""

    @abstractmethod
    def check(self, x: Tensor) -> None: ...


def _check_real(x: Tensor) -> None:
    if not x.is_floating_point() or x.ndim < 1:
        raise ArgumentError(f"this flow's data are real numbers (batch, *event), got {x.dtype} {tuple(x.shape)}")


def _check_classes(x: Tensor) -> None:
    if x.dtype != torch.int64 or x.ndim < 1:
        raise ArgumentError(f"this flow's data are int64 class indices (batch, *event), got {x.dtype} {tuple(x.shape)}")


@dataclass(frozen=True)
class GaussianEndpoints(Endpoints[DiagonalGaussian]):
    """From N(μ₀, 1) with a drawn mean μ₀ ~ N(0, 1) to N(x, target_std²).

    The score is the weighted squared error, W₂² between the point targets: its optimum is the conditional mean.

    Args:
        target_std: Standard deviation ≥ 0 of the target around the data, in units of the data; the scale of the noise in
            stochastic messages.
    """

    target_std: float = 0.02

    def __post_init__(self) -> None:
        if not self.target_std >= 0:
            raise ArgumentError(f"target_std must not be negative, got {self.target_std}")

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> DiagonalGaussian:
        mean = randn(torch.Size(shape), generator, dtype, device)
        return DiagonalGaussian(mean, mean.new_ones(()))

    def target(self, x: Tensor, like: DiagonalGaussian) -> DiagonalGaussian:
        return DiagonalGaussian(x.to(like.mean.dtype), like.mean.new_full((), self.target_std))

    def draw(self, target: DiagonalGaussian, generator: Generator) -> DiagonalGaussian:
        return DiagonalGaussian(target.sample(generator), target.std)

    def score(self, predicted: DiagonalGaussian, x: Tensor, weight: Tensor) -> Tensor:
        return weight * mean_events((predicted.mean - x).square())

    def check(self, x: Tensor) -> None:
        _check_real(x)


@dataclass(frozen=True)
class CategoricalEndpoints(Endpoints[Categorical]):
    """From probabilities drawn uniformly from the simplex, Dirichlet(1), to certainty about a class.

    The score is the log score −log θ̂_x in nats; its optimum is the posterior of the class.

    Args:
        classes: Number of classes, ≥ 2.
    """

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ArgumentError(f"categorical data need at least 2 classes, got {self.classes}")

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> Categorical:
        uniform = rand(torch.Size([*shape, self.classes]), generator, dtype, device)
        return Categorical((-uniform.log()).log().log_softmax(-1))  # normalised exponentials are Dirichlet(1)

    def target(self, x: Tensor, like: Categorical) -> Categorical:
        one_hot = torch.nn.functional.one_hot(x, self.classes)
        return Categorical(one_hot.to(like.logits.dtype).log())

    def draw(self, target: Categorical, generator: Generator) -> Categorical:
        return self.target(target.sample(generator), target)

    def score(self, predicted: Categorical, x: Tensor, weight: Tensor) -> Tensor:
        return -mean_events(predicted.log_probs.gather(-1, x[..., None]).squeeze(-1))

    def check(self, x: Tensor) -> None:
        _check_classes(x)


@dataclass(frozen=True)
class _StraightInPrecision(GaussianPath):
    """Path of the mean when precisions mix (KL): fraction τρ̂/((1−τ) + τρ̂), with prior precision 1."""

    schedule: Schedule
    target_std: float

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        take, keep = self.schedule.fraction(t), self.schedule.remaining(t) * self.target_std**2
        return take / (take + keep), keep / (take + keep)


@dataclass(frozen=True)
class GPFN(Flow[Any]):
    """General Proximal Flow Network: barycentric proximal steps of any divergence (2603.00751).

    With Wasserstein-2 and the linear schedule the means follow rectified flow exactly.

    Args:
        divergence: The geometry.
        schedule: Fraction of the way at each time.
        endpoints: Prior and targets; :class:`GaussianEndpoints` for real data, :class:`CategoricalEndpoints` for classes.
        solver: Numerical solver for divergences without a closed-form step.
        simulated_steps: Steps simulated to reach a training belief where steps do not compose.
        weight_floor: In (0, 1]. Errors of the predicted data weigh (τ'/max(1 − τ, floor))²: toward 0 this is the velocity
            loss of rectified flow, at 1 every time counts alike. Small networks learn more from early times.
    """

    divergence: Divergence = field(default_factory=Wasserstein2)
    schedule: Schedule = field(default_factory=Linear)
    endpoints: Endpoints[Any] = field(default_factory=GaussianEndpoints)
    solver: NewtonSolver | None = None
    simulated_steps: int = 8
    weight_floor: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.weight_floor <= 1:
            raise ArgumentError(f"weight_floor must lie in (0, 1], got {self.weight_floor}")
        if self.simulated_steps < 1:
            raise ArgumentError(f"simulated_steps must be at least 1, got {self.simulated_steps}")

    @property
    def proximal(self) -> Proximal:
        return Proximal(self.divergence, self.solver)

    @property
    def path(self) -> GaussianPath | None:  # type: ignore[override]
        if isinstance(self.endpoints, GaussianEndpoints):
            if isinstance(self.divergence, Wasserstein2):
                return self.schedule
            if isinstance(self.divergence, KL):
                return _StraightInPrecision(self.schedule, self.endpoints.target_std)
        return None

    def prior(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device) -> Belief:
        prior: Belief = self.endpoints.prior(shape, generator, dtype, device)
        return prior

    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> Belief:
        dtype = x.dtype if x.is_floating_point() else t.dtype
        prior = self.prior(x.shape, generator, dtype, x.device)
        target = self.endpoints.target(x, prior)
        steps = 1 if steps_compose(self.divergence, prior) else self.simulated_steps
        belief: Belief = prior
        for start, end in pairwise(t * k / steps for k in range(steps + 1)):
            belief = self.proximal(belief, target, self.schedule.step(start, end))
        return belief

    def update(self, belief: Any, target: Any, t: Tensor, s: Tensor, generator: Generator | None) -> Any:
        message = target if generator is None else self.endpoints.draw(target, generator)
        return self.proximal(belief, message, self.schedule.step(t, s))

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        self.endpoints.check(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        weight = (self.schedule.derivative(t) / self.schedule.remaining(t).clamp_min(self.weight_floor)).square()
        return self.endpoints.score(predicted, x, weight)

    def times(self, nfe: int) -> list[float]:
        # n steps end at t = 1, where the last one lands on its target: the prediction itself.
        return [k / nfe for k in range(nfe)]

    def belief_at(self, mean: Tensor, t: Tensor) -> DiagonalGaussian:
        if self.path is None:
            return super().belief_at(mean, t)
        # The spread of a belief does not depend on where its mean is, for the geometries that have a path.
        origin = DiagonalGaussian(mean.new_zeros([len(mean), *[1] * (mean.ndim - 1)]), mean.new_ones(()))
        target = self.endpoints.target(origin.mean, origin)
        return DiagonalGaussian(mean, self.proximal(origin, target, self.schedule.fraction(t)).std)


@dataclass(frozen=True)
class Diffusion(Flow[DiagonalGaussian]):
    """Diffusion on any Gaussian path μ_t = a(t) x + b(t) ε, such as a variance-preserving one (2006.11239, 2010.02502).

    Beliefs are N(μ_t, b²). Without noise the update is DDIM's: a Wasserstein-2 step of the belief μ/(a + b), as in a
    :class:`GPFN` with τ = a/(a + b). With noise it is DDPM's ancestral step, which is Bayes' rule for a message
    y ~ N(x̂, 1/α) of accuracy α = a'²/b'² − a²/b², as in a :class:`BFN`:

    ========  ============================================================
    DDIM      μ' = (b'/b) μ + (a' − a b'/b) x̂
    DDPM      μ' = (a b'²/(a' b²)) μ + (g²/a') x̂ + (b'/a') g ξ,  g² = a'² − (a b'/b)²
    ========  ============================================================

    Networks trained elsewhere on such a path fit in unchanged, by ``PointPredictor(…, parameterisation="epsilon")``.

    Args:
        path: Coefficients (a, b). It begins in noise alone, or nearly so (a(0) ≪ b(0) ≈ 1), and ends in the data.
        weight_floor: In (0, 1]. Errors of the predicted data weigh (a/max(b, floor))²: toward 0 this is the plain squared
            error of the predicted noise.
    """

    path: GaussianPath = field(default_factory=VariancePreserving)
    weight_floor: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.weight_floor <= 1:
            raise ArgumentError(f"weight_floor must lie in (0, 1], got {self.weight_floor}")

    def prior(
        self, shape: Sequence[int], generator: Generator, dtype: torch.dtype, device: torch.device
    ) -> DiagonalGaussian:
        mean = randn(torch.Size(shape), generator, dtype, device)
        return DiagonalGaussian(mean, mean.new_ones(()))

    def belief(self, x: Tensor, t: Tensor, generator: Generator) -> DiagonalGaussian:
        a, b = (over_events(c, x) for c in self.path.coefficients(t))
        return DiagonalGaussian(a * x + b * randn(x.shape, generator, x.dtype, x.device), b)

    def belief_at(self, mean: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(mean, over_events(self.path.coefficients(t)[1], mean))

    def update(
        self, belief: DiagonalGaussian, target: DiagonalGaussian, t: Tensor, s: Tensor, generator: Generator | None
    ) -> DiagonalGaussian:
        mean, x = belief.mean, target.mean
        (a, b), (new_a, new_b) = self.path.coefficients(t), self.path.coefficients(s)
        keep = new_b / b
        if generator is None:
            moved = keep.to(mean.dtype) * mean + (new_a - a * keep).to(mean.dtype) * x
        else:
            squared = new_a.square() - (a * keep).square()
            noise = new_b * squared.clamp_min(0).sqrt() * randn(x.shape, generator, x.dtype, x.device)
            moved = ((a * keep.square()).to(mean.dtype) * mean + squared.to(mean.dtype) * x + noise) / new_a
        return self.belief_at(moved.to(mean.dtype), s)

    def loss(self, predict: Predict, x: Tensor, generator: Generator, t: Tensor | None = None) -> Tensor:
        _check_real(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        a, b = self.path.coefficients(t)
        return (a / b.clamp_min(self.weight_floor)).square() * mean_events((predicted.mean - x).square())

    def times(self, nfe: int) -> list[float]:
        return [k / nfe for k in range(nfe)]


# Bayesian flows -----------------------------------------------------------------------------------------------------


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
        _check_real(x)
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
        CategoricalEndpoints(self.classes)  # refuses fewer than two classes

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
        _check_classes(x)
        t = draw_times(len(x), generator, x.device) if t is None else t
        predicted = predict(self.belief(x, t, generator), t)
        one_hot = torch.nn.functional.one_hot(x, self.classes).to(predicted.logits.dtype)
        gap = (one_hot - predicted.probs).square().sum(-1)
        return 0.5 * self.classes * self.accuracies.rate(t) * mean_events(gap)

    def times(self, nfe: int) -> list[float]:
        return _bayesian_times(nfe)
