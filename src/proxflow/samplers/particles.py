"""Posterior samples that are exact in the limit of many particles: twisted sequential Monte Carlo.

"Practical and Asymptotically Exact Conditional Sampling in Diffusion Models" (Wu et al., 2023), arXiv 2306.17775. A
particle moves by the flow's ancestral kernel, with its target refined by the observation, and its weight corrects for
that:

    w ← w · p(z' | z, x̂) ψ(z') / (p(z' | z, x*) ψ(z)),   ψ(z) = N(y; A x̂, σ² + r² A Aᵀ).

The refined targets x* are those of any :class:`~proxflow.Posterior`; the weights correct its bias. The twist ψ is the
likelihood of the observation for x ~ N(x̂, r²); r² also increases the kernel's variance, and the last step is drawn as
well. With a method by Tweedie's formula (mmps, tmpd, pigdm, dps) r² is estimated for each particle by one further
product; with the others it is the path's b²/(a² + b²), exact for data N(0, I), and too large for data of lower
dimension than their space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from proxflow._math import over_events, sum_events
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, check_rows, moved, rows
from proxflow.flows import Flow
from proxflow.inverse import Diagonalised, Gaussian, Mask
from proxflow.paths import renewal
from proxflow.predictors.posterior import METHODS, Posterior
from proxflow.random import Generator, SampleStreams, rand, randn_like


@dataclass(frozen=True)
class Particles:
    """Weighted samples of a posterior.

    Args:
        events: (number, particles, *event).
        log_weights: Normalised log weights, (number, particles).
        log_evidence: Estimate of log p(y) in nats, (number,); its exponential is unbiased for the flow's own
            distribution.
        effective: Effective sample size after each evaluation, (evaluations, number), between 1 and the particles.
    """

    events: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    effective: Tensor

    @property
    def mean(self) -> Tensor:
        """Weighted means, (number, *event)."""
        mean = torch.einsum("nk,nk...->n...", self.log_weights.exp(), self.events.double())
        return mean.to(self.events.dtype)

    def draw(self, draws: int, generator: Generator) -> Tensor:
        """Draw from each posterior with systematic resampling, (number, draws, *event)."""
        number = len(self.events)
        offset = rand(torch.Size([number]), generator, torch.float64, self.events.device)
        index = _systematic(self.log_weights, offset, draws)
        return self.events[torch.arange(number, device=index.device)[:, None], index]


@torch.no_grad()
def particles(
    posterior: Posterior,
    flow: Flow[Any],
    shape: Sequence[int],
    *,
    number: int = 64,
    nfe: int = 20,
    seed: int = 0,
    batch_size: int = 128,
    condition: Condition | None = None,
    threshold: float = 0.5,
    times: Sequence[float] | None = None,
) -> Particles:
    """Draw weighted samples of each posterior; they depend on the seed, not on the batch size.

    Args:
        posterior: A predictor given observations, of real numbers with Gaussian noise of one variance and an operator
            with a known spectrum. The more accurate its targets, the more even the weights.
        flow: The flow it was trained for.
        shape: (number of posteriors, *event), one for each observation.
        number: Particles per posterior, ≥ 2.
        nfe: Predictions per particle, ≥ 1.
        seed: Seed.
        batch_size: Particles in a network batch, rounded up to a multiple of 16.
        condition: Condition of the predictions, one row per posterior.
        threshold: Particles are resampled if the effective sample size falls below this fraction, in [0, 1].
        times: Times of the evaluations, increasing from 0; ``None`` takes the flow's own.

    Raises:
        ArgumentError: Numbers out of range; an operator without a known spectrum, or another noise; a flow without a
            Gaussian path from standard normal draws.
    """
    if number < 2 or nfe < 1 or batch_size < 1:
        raise ArgumentError(
            f"particles take number ≥ 2, nfe ≥ 1 and batch_size ≥ 1, got number={number}, nfe={nfe}, batch_size={batch_size}"
        )
    if not 0 <= threshold <= 1 or not shape or min(shape) < 1:
        raise ArgumentError(
            f"particles take a threshold in [0, 1] and a shape (posteriors, *event) of sizes ≥ 1, got {threshold} and "
            f"{tuple(shape)}"
        )
    if not hasattr(posterior, "operator"):
        raise ArgumentError(f"particles follow a Posterior, got {type(posterior).__name__}")
    latent, operator = flow.latent, posterior.operator
    if latent is None or flow.path is None or not flow.begins_normal or flow.coupling is not None or not posterior.real:
        raise ArgumentError(f"particles move on a Gaussian path from standard normal draws, which {flow} has not")
    if not isinstance(posterior.noise, Gaussian):
        raise ArgumentError(
            "particles are weighed by the density of the observation, which is known for Gaussian noise, and this is "
            f"{type(posterior.noise).__name__}: give the standard deviation of a Gaussian near it as noise="
        )
    if not isinstance(operator, Diagonalised):
        raise ArgumentError(
            "particles are weighed by the density of the observation, which is known for operators of a known spectrum: "
            "make a small one a matrix by proxflow.inverse.dense(operator, event)"
        )
    if posterior.draw:
        raise ArgumentError("particles draw by themselves around refined means: give a posterior with draw=False")
    spread = posterior.variance
    if spread is not None and spread.ndim and spread[0].numel() > 1 and not isinstance(operator, Mask):
        raise ArgumentError(
            "particles take one size of noise for all numbers of an observation, but for a Mask: make the operator a matrix "
            "by proxflow.inverse.dense, and the noise a covariance"
        )
    posteriors, *event = shape
    if posterior.examples not in (None, posteriors):
        raise ArgumentError(
            f"there are observations of {posterior.examples} examples, and {posteriors} posteriors are asked for"
        )
    check_rows(condition, posteriors, "condition")
    parameter = next((p for p in posterior.parameters() if p.is_floating_point()), None)
    like = posterior.observation if parameter is None else parameter
    dtype, device = like.dtype if like.dtype == torch.float64 else torch.float32, like.device
    condition = moved(condition, device)
    total, unit = posteriors * number, -(-batch_size // 16) * 16
    everyone = torch.arange(total, device=device)
    streams = SampleStreams(seed, everyone, expected=2 * nfe + 1)
    draws = SampleStreams(seed + 2**62, torch.arange(posteriors, device=device), expected=nfe)
    owner = everyone // number
    times = flow.times(nfe) if times is None else list(times)
    if len(times) != nfe or times[0] != 0 or times[-1] > 1 or not all(t < s for t, s in pairwise(times)):
        raise ArgumentError(f"times must be {nfe} numbers increasing from 0, at most 1, got {times}")
    taken, left, scale = (c.tolist() for c in flow.path.straight(torch.tensor(times, dtype=torch.float64)))
    whole = posterior.rows(owner)
    noise = torch.zeros((), device=device) if whole.variance is None else whole.variance

    own = METHODS[posterior.method].products != 0  # r² is estimated for each particle

    def predicted(y: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the targets without and with the observation, and r², (particles,), part by part of the particles."""
        found, probes = [], randn_like(y, streams).sign() if own else torch.ones_like(y[:1]).expand_as(y)
        for begin in range(0, total, unit):
            part = slice(begin, min(begin + unit, total))
            t = torch.full(
                (part.stop - begin,), times[k], dtype=torch.promote_types(dtype, torch.float32), device=device
            )
            belief = latent.belief(scale[k] * y[part], t)
            told: dict[str, Any] = {} if condition is None else {"condition": rows(condition, owner[part])}
            plain, refined = whole.rows(everyone[part]).refined(belief, t, probe=probes[part], **told)
            spreads = plain.given_std.square().flatten(1)[:, 0].expand(len(t))
            found.append((plain.mean, refined.mean, spreads))
        x, better, spreads = map(torch.cat, zip(*found, strict=True))
        return x, better, spreads

    def twist(x: Tensor, spreads: Tensor) -> Tensor:
        """Return log ψ, (particles,), float64."""
        wrong = (whole.observation.to(x.dtype) - whole.operator(x)).double()
        weighed: Any = whole.operator
        seen: Tensor = weighed.log_normal(wrong, noise.double(), spreads.double())
        return seen

    y = randn_like(torch.empty(total, *event, dtype=dtype, device=device), streams)
    weights = Weights(posteriors, number, threshold, draws, device)
    for k in range(nfe):
        x, better, spreads = predicted(y, k)
        index = weights.resampled(twist(x, spreads))
        y, x, better, spreads = y[index], x[index], better[index], spreads[index]
        if k + 1 == nfe:
            break
        keep, _, fresh = renewal((taken[k], left[k]), (taken[k + 1], left[k + 1]), 1.0)
        pull = taken[k + 1] - keep * taken[k]
        # The kernel of x ~ N(x̂, r²) and an ancestral step toward it.
        std = over_events((fresh**2 + pull**2 * spreads).sqrt(), y).to(y.dtype)
        step = std * randn_like(y, streams)
        y = keep * y + pull * better + step
        away = (step + pull * (better - x)).double()
        weights.change(sum_events((step.double().square() - away.square()) / (2 * std.double().square())))
    variance = noise.to(dtype)
    x = x + over_events(spreads.sqrt(), x).to(x.dtype) * randn_like(x, streams)
    goal = whole.observation.to(dtype).expand_as(whole.operator(x))
    goal = goal + variance.sqrt() * randn_like(goal, streams)
    events = whole.operator.prox(x, goal, variance, spreads.to(dtype))
    return weights.of(events.reshape(posteriors, number, *event))


class Weights:
    """The weights of particles of several posteriors, from their twists ψ and the kernels of their steps.

    Args:
        posteriors: Number of posteriors.
        number: Particles per posterior.
        threshold: Particles are resampled if the effective sample size falls below this fraction.
        draws: Random streams of the posteriors, for resampling.
        device: Device of the particles.
    """

    def __init__(self, posteriors: int, number: int, threshold: float, draws: Generator, device: torch.device) -> None:
        self.number, self.threshold, self.draws = number, threshold, draws
        self.log_weights = torch.zeros(posteriors, number, dtype=torch.float64, device=device)
        self.evidence = self.log_weights.new_zeros(posteriors)
        self.effective: list[Tensor] = []
        self.last = torch.zeros_like(self.log_weights)

    def resampled(self, twist: Tensor) -> Tensor:
        """Weigh by log ψ, (all particles,), and return the indices of the resampled particles."""
        now = twist.reshape_as(self.log_weights)
        posteriors, number = now.shape
        weighed = self.log_weights + now - self.last
        normal = weighed.log_softmax(1)
        size = (-(2 * normal).logsumexp(1)).exp()
        self.effective.append(size)
        # Decided on the device: without resampling each particle chooses itself.
        again = size < self.threshold * number
        offset = rand(torch.Size([posteriors]), self.draws, torch.float64, now.device)
        chosen = torch.where(
            again[:, None], _systematic(normal, offset, number), torch.arange(number, device=now.device)
        )
        self.evidence = self.evidence + torch.where(again, weighed.logsumexp(1) - math.log(number), 0.0)
        self.log_weights = torch.where(again[:, None], torch.zeros_like(weighed), weighed)
        index = (chosen + number * torch.arange(posteriors, device=now.device)[:, None]).flatten()
        self.last = now.flatten()[index].reshape_as(now)
        return index

    def change(self, change: Tensor) -> None:
        """Weigh by the log ratio of a step's kernels, (all particles,)."""
        self.log_weights = self.log_weights + change.reshape_as(self.log_weights)

    def of(self, events: Tensor) -> Particles:
        """Return particles (posteriors, particles, *event) with these weights."""
        evidence = self.evidence + self.log_weights.logsumexp(1) - math.log(self.number)
        return Particles(events, self.log_weights.log_softmax(1), evidence, torch.stack(self.effective))


def _systematic(log_weights: Tensor, offset: Tensor, draws: int) -> Tensor:
    """Draw indices by systematic resampling: (rows, particles), one uniform number per row (rows,) → (rows, draws)."""
    edges = log_weights.softmax(1).cumsum(1)
    edges = edges / edges[:, -1:]
    at = (torch.arange(draws, dtype=edges.dtype, device=edges.device) + offset[:, None]) / draws
    return torch.searchsorted(edges, at).clamp(max=log_weights.shape[1] - 1)
