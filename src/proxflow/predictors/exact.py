"""Exact optimal predictors for data with a known distribution: what a perfect network would predict.

They separate the error of a sampler or a bound from that of a network. Their cost grows with the number of events or
mixture components; they are for tests, figures and studies of samplers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import over_events
from proxflow.beliefs import Categorical, DiagonalGaussian, Revealed
from proxflow.data import GaussianMixtureLaw, Law
from proxflow.divergences import FisherRao, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.flows import GPFN, CategoricalEndpoints, DiscreteBFN, Flow, Masked
from proxflow.random import Generator


def log_likelihoods(flow: GPFN | DiscreteBFN | Masked, belief: Any, t: Tensor) -> Tensor:
    """Return log p(θ_i | x_i = k) up to a constant common to all k, (batch, *event, K)."""
    if isinstance(belief, Revealed):
        wrong = torch.arange(belief.classes, device=belief.tokens.device) != belief.tokens[..., None]
        return torch.zeros(wrong.shape, device=wrong.device).masked_fill(~belief.hidden[..., None] & wrong, -torch.inf)
    found: Tensor
    if isinstance(flow, DiscreteBFN):
        # y ~ N(β(K e_k − 1), βK I) has a density ∝ exp(y_k), and θ = softmax(y).
        found = belief.log_probs
        return found
    simplex: Any = flow
    remaining = over_events(simplex.schedule.remaining(t), belief.logits)
    slack = 8 * torch.finfo(belief.logits.dtype).eps  # rounding must not exclude the true class
    if isinstance(simplex.divergence, ReverseKL):
        # (1 − τ) θ₀ + τ e_k is uniform on the part of the simplex where θ_k ≥ τ, whose size is the same for each k.
        reached = belief.probs >= (1 - remaining) * (1 - slack)
        found = torch.zeros_like(belief.logits).masked_fill(~reached, -torch.inf)
        return found
    # On the sphere of √θ uniform θ₀ have the density cos φ sin^(2K−3) φ in the angle φ to e_k, times a function of
    # the direction. The contraction to e_k, φ → (1 − τ) φ, leaves the direction unchanged.
    probs = belief.probs
    others = probs @ (1 - torch.eye(belief.classes, dtype=probs.dtype, device=probs.device))
    tiny = torch.finfo(probs.dtype).tiny
    angle = torch.atan2(others.sqrt(), probs.sqrt())
    start = angle / remaining.clamp_min(tiny)
    power = 2 * int(belief.classes) - 3

    def log_density(phi: Tensor) -> Tensor:
        density: Tensor = phi.cos().clamp_min(tiny).log() + power * phi.sin().clamp_min(tiny).log()
        return density

    reached = start <= (math.pi / 2) * (1 + slack)
    start = start.clamp(max=math.pi / 2)
    return (log_density(start) - log_density(angle)).masked_fill(~reached, -torch.inf)


@dataclass(frozen=True, eq=False)
class ExactClasses:
    """The posterior of each coordinate's class given the whole belief, for a joint distribution over listed events.

    P(x_i = k | θ) ∝ Σ_{m: x_i = k} P(m) Π_j p(θ_j | x_j of m), the optimum of the log score and of the squared error. For
    :class:`~proxflow.flows.DiscreteBFN`, for :class:`~proxflow.flows.Masked` and for :class:`~proxflow.flows.GPFN` with
    ``ReverseKL`` or ``FisherRao`` between classes.

    Args:
        flow: The flow.
        events: All events of positive probability, int64 (number, *event).
        probs: Their probabilities, (number,), which sum to 1.

    Raises:
        ArgumentError: Another kind of flow, shapes that do not fit, classes out of range, or probabilities that do not
            sum to 1.
    """

    flow: GPFN | DiscreteBFN | Masked
    events: Tensor
    probs: Tensor

    def __post_init__(self) -> None:
        flow = self.flow
        if isinstance(flow, GPFN) and not (
            isinstance(flow.endpoints, CategoricalEndpoints) and isinstance(flow.divergence, ReverseKL | FisherRao)
        ):
            raise ArgumentError(f"exact class predictions are known for ReverseKL and FisherRao, not for {flow}")
        if self.events.dtype != torch.int64 or self.events.ndim < 2:
            raise ArgumentError(
                f"events are int64 class indices (number, *event), got {self.events.dtype} {tuple(self.events.shape)}"
            )
        if int(self.events.min()) < 0 or int(self.events.max()) >= self.classes:
            raise ArgumentError(f"events must be classes from 0 to {self.classes - 1}")
        probs = self.probs
        if probs.shape != self.events.shape[:1] or not bool((probs > 0).all()) or abs(float(probs.sum()) - 1) > 1e-6:
            raise ArgumentError("probs must be one positive probability for each event, and sum to 1")

    @property
    def classes(self) -> int:
        owner: Any = self.flow.endpoints if isinstance(self.flow, GPFN) else self.flow
        return int(owner.classes)

    @property
    def entropy(self) -> float:
        """Entropy of the data in nats, the lowest mean of −log p(x) that any model can reach."""
        return float(-(self.probs * self.probs.log()).sum())

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        """Draw events, int64 (number, *event)."""
        return self.events[torch.multinomial(self.probs, number, replacement=True, generator=generator)]

    def __call__(self, belief: Categorical | Revealed, t: Tensor) -> Categorical:
        every = log_likelihoods(self.flow, belief, t)
        seen = every.flatten(1, -2)  # (batch, sites, classes)
        one_hot = torch.nn.functional.one_hot(self.events.flatten(1), self.classes)  # (number, sites, classes)
        of_event = seen.new_zeros(len(seen), len(self.events))
        for site in range(seen.shape[1]):  # a gather, as 0 · (−∞) would be NaN in a product
            of_event += seen[:, site, self.events.flatten(1)[:, site]]
        weights = (of_event + self.probs.log().to(seen)).softmax(1)
        probs = torch.einsum("bm,msk->bsk", weights, one_hot.to(seen))
        return Categorical(probs.log().reshape(every.shape))


@dataclass(frozen=True, eq=False)
class ExactMean:
    """The posterior mean E[x | belief] of data with a known distribution, for beliefs with means μ = a x + b ε.

    Known elsewhere as the optimal denoiser, given by Tweedie's formula.

    Args:
        flow: Any flow with a Gaussian path: ``GPFN`` with Wasserstein-2 or KL, ``BFN``, ``Diffusion``.
        law: The data distribution.

    Raises:
        ArgumentError: The flow has no Gaussian path, or a coupling.
    """

    flow: Flow[Any]
    law: Law

    def __post_init__(self) -> None:
        if self.flow.path is None:
            raise ArgumentError(f"{self.flow} has no Gaussian path; exact class predictions are ExactClasses'")
        if self.flow.coupling is not None:
            raise ArgumentError(f"no exact prediction is known where prior and data are paired, as in {self.flow}")

    def __call__(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        mean = self.law.posterior_mean(belief.mean, *_noisy_path(self.flow, t))
        target: DiagonalGaussian = self.flow.target(mean)
        return target


@dataclass(frozen=True, eq=False)
class ExactDraw:
    """Exact draws from p(x | belief) for a mixture of Gaussians, as of a perfect :class:`DrawPredictor`.

    Args:
        flow: Any flow with a Gaussian path: ``GPFN`` with Wasserstein-2 or KL, ``BFN``, ``Diffusion``.
        law: The data distribution.

    Raises:
        ArgumentError: The flow has no Gaussian path, or a coupling.
    """

    flow: Flow[Any]
    law: GaussianMixtureLaw
    reads = frozenset({"noise"})

    def __post_init__(self) -> None:
        ExactMean(self.flow, self.law)  # checks the flow

    def __call__(self, belief: DiagonalGaussian, t: Tensor, *, generator: Generator) -> DiagonalGaussian:
        drawn = self.law.posterior_sample(belief.mean, *_noisy_path(self.flow, t), generator)
        target: DiagonalGaussian = self.flow.target(drawn)
        return target


def _noisy_path(flow: Flow[Any], t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients (a, b) of the beliefs' means at times (batch,), float64."""
    a, b = flow.path.coefficients(t.double())  # type: ignore[union-attr]
    nothing = (a + b) == 0  # a Bayesian flow's belief at t = 0: with b = 1 it holds no information, whatever its mean
    return a, torch.where(nothing, torch.ones_like(b), b)
