"""Inverse problems with known posteriors, and of images: observations and the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow.data.toy import GaussianMixtureLaw, Law
from proxflow.examples import Predict
from proxflow.flows import GPFN, Flow
from proxflow.inverse import Blur, Matrix, Operator
from proxflow.predictors.exact import ExactMean
from proxflow.random import Generator, gumbel_max, rand, randn


@dataclass(frozen=True, eq=False)
class Problem:
    """One observation, with a predictor of the data.

    Args:
        predictor: Predictor of the data's mean.
        flow: Its flow.
        operator: A.
        observation: y, (1, *observed).
        noise: Standard deviation of the noise.
        event: Shape of an event.
        covariance: Covariance of the data, (d, d), if known.
        scale: Factor from events of the flow to those of the problem.
        dtype: Precision of the samples.
    """

    predictor: Predict
    flow: Flow[Any]
    operator: Operator
    observation: Tensor
    noise: float
    event: tuple[int, ...]
    covariance: Tensor | None = None
    scale: float = 1.0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Normal:
    """A Gaussian posterior.

    Args:
        mean: (d,).
        covariance: (d, d), float64.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviations of the coordinates, (d,)."""
        return self.covariance.diagonal().sqrt()

    def below(self, at: Tensor) -> Tensor:
        """Return the distribution function of each coordinate at a value for each, (d,)."""
        found: Tensor = torch.special.ndtr((at - self.mean) / self.std)
        return found


def seeded(*parts: int) -> torch.Generator:
    """Return a generator for a seed of several numbers, each below a million."""
    seed = 0
    for part in parts:
        seed = seed * 1_000_003 + part
    return torch.Generator().manual_seed(seed % 2**63)


def conditioned(mean: Tensor, covariance: Tensor, a: Tensor, y: Tensor, noise: float) -> Normal:
    """Return N(mean, covariance) given y = A x + N(0, noise²)."""
    seen = noise**2 * torch.eye(len(a), dtype=a.dtype) + a @ covariance @ a.mT
    gain = torch.linalg.solve(seen, a @ covariance).mT
    left = covariance - gain @ a @ covariance
    return Normal(mean + gain @ (y - a @ mean), (left + left.mT) / 2)


# Gaussian data ---------------------------------------------------------------------------------------------------------

OPERATORS = ("few", "square", "deficient")
"""Observations of half the data's dimension; of the same; of the same, with rank an eighth of it."""


def operator(kind: str, d: int, noise: torch.Generator) -> Tensor:
    """Return a random matrix of a kind in :data:`OPERATORS`, entries of variance 1/d, float64."""

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=noise, dtype=torch.float64)

    if kind == "deficient":
        rank = max(1, d // 8)
        return drawn(d, rank) @ drawn(rank, d) / math.sqrt(rank * d)
    return drawn(d if kind == "square" else d // 2, d) / math.sqrt(d)


def gaussian(law: str, d: int, kind: str, noise: float, seed: int) -> tuple[Problem, Normal]:
    """Return a problem of Gaussian data and its posterior.

    Args:
        law: ``standard``, N(0, I), or ``correlated``, a random mean and covariance.
        d: Dimension.
        kind: Of the operator.
        noise: Standard deviation of the noise.
        seed: Seed of all random choices.
    """
    draws = seeded(seed, d, OPERATORS.index(kind), round(1000 * noise), int(law == "standard"))
    mean, covariance = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    if law == "correlated":
        root = torch.randn(d, d, generator=draws, dtype=torch.float64)
        mean = 0.5 * torch.randn(d, generator=draws, dtype=torch.float64)
        covariance = 0.9 * root @ root.mT / d + 0.1 * covariance
    a = operator(kind, d, draws)
    known = GaussianMixtureLaw(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])
    x = known.sample(1, draws, dtype=torch.float64)[0]
    y = a @ x + noise * torch.randn(len(a), generator=draws, dtype=torch.float64)
    flow = GPFN()
    problem = Problem(
        ExactMean(flow, known), flow, Matrix(a), y[None], noise, (d,), covariance, dtype=torch.float64
    )  # fmt: skip
    return problem, conditioned(mean, covariance, a, y, noise)


# The field's mixture ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RoundMixture(Law):
    """A mixture of Gaussians of unit covariance, Σ_k w_k N(means_k, I), divided by ``scale``.

    Args:
        weights: w, (components,).
        means: (components, dimension).
        scale: Divisor of the events.
    """

    weights: Tensor
    means: Tensor
    scale: float = 1.0

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        which = gumbel_max(self.weights.double().log().to(device).expand(number, -1), generator)
        noise = randn(torch.Size([number, self.dimension]), generator, torch.float64, device)
        return (self.means.to(noise)[which] + noise) / self.scale

    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, means = a / self.scale, self.means.to(y)
        total = a.square() + b.square()
        # log(weight · density of y), up to a constant common to all components
        log_joint = self.weights.to(y).log() + (a * (y @ means.mT) - a.square() / 2 * means.square().sum(1)) / total
        same = y.square().sum(1) / total[:, 0] + self.dimension * (2 * math.pi * total[:, 0]).log()
        centre = log_joint.softmax(1) @ means
        return log_joint.logsumexp(1) - same / 2, (centre + a / total * (y - a * centre)) / self.scale

    def posterior_mean(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        # In the precision of the input: in hundreds of dimensions double precision would take most of a study's time.
        _, a, b = self._noisy(y, a, b)
        return self._condition(y, a.to(y.dtype), b.to(y.dtype))[1]


def mixture(d: int, observed: int, number: int, seed: int) -> tuple[Problem, Callable[[int, torch.Generator], Tensor]]:
    """Return a problem of the Gaussian mixture benchmark of this field, and a function that draws from its posterior.

    Twenty-five components at (−8 i, −8 j), i and j from −2 to 2, repeated along all dimensions, of unit covariance,
    weights proportional to squares of normals; a random matrix with sorted uniform singular values; noise a uniform
    times the largest of them. "Monte Carlo guided Diffusion for Bayesian linear inverse problems" (Cardoso et al.,
    2023), arXiv 2308.07983, section 4.

    The flow reads the data divided by 8 √2, the standard deviation of the components' means, as usual before training.

    Args:
        d: Dimension, even.
        observed: Number of observations.
        number: Index of the problem.
        seed: Seed of all problems.
    """
    draws = seeded(seed, d, observed, number)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    weights = normal(25).square()
    weights = weights / weights.sum()
    places = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)], dtype=torch.float64)
    means = places.repeat(1, d // 2)
    values = torch.rand(observed, generator=draws, dtype=torch.float64).sort(descending=True).values
    left, right = torch.linalg.qr(normal(observed, observed))[0], torch.linalg.qr(normal(d, observed))[0]
    a = left * values @ right.mT
    noise = float(torch.rand((), generator=draws, dtype=torch.float64) * values[0])
    x = RoundMixture(weights, means).sample(1, draws, dtype=torch.float64)[0]
    y = a @ x + noise * normal(observed)
    scale = 8 * math.sqrt(2)
    flow, law = GPFN(), RoundMixture(weights, means, scale)
    problem = Problem(
        ExactMean(flow, law), flow, Matrix((scale * a).float()), y[None].float(), noise, (d,), None, scale
    )  # fmt: skip
    seen = noise**2 * torch.eye(observed, dtype=torch.float64) + a @ a.mT
    wrong, factor = y - means @ a.mT, torch.linalg.cholesky(seen)
    likelihood = -0.5 * torch.cholesky_solve(wrong.mT, factor).mT.mul(wrong).sum(1)
    gain = torch.linalg.solve(seen, a).mT
    share = (weights.log() + likelihood).softmax(0)

    def posterior(samples: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(share, samples, replacement=True, generator=generator)
        prior = means[which] + torch.randn(samples, d, generator=generator, dtype=torch.float64)
        told = torch.randn(samples, observed, generator=generator, dtype=torch.float64)
        moved: Tensor = prior + (y - prior @ a.mT - noise * told) @ gain.mT
        return moved

    return problem, posterior


# Signals of independent increments -------------------------------------------------------------------------------------

SIGNAL_LAWS = ("gaussian", "laplace")
SIGNAL_OPERATORS = ("identity", "convolution", "sampling", "fourier")
SIGNAL_NOISE = 0.3


@dataclass(frozen=True)
class LaplaceLaw(Law):
    """Independent Laplace numbers of variance 1, of density exp(−√2 |x|)/√2.

    Given v = x + s ε, the parts x > 0 and x < 0 are Gaussians truncated at 0, of means v ∓ √2 s² and weights w± ∝
    exp(∓√2 v) Φ(± v/s − √2 s). The effects of truncation on their means cancel, so that E[x | v] = v − √2 s² (w₊ −
    w₋)/(w₊ + w₋).

    Args:
        size: Coordinates.
    """

    size: int

    @property
    def dimension(self) -> int:
        return self.size

    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        u = rand(torch.Size([number, self.size]), generator, torch.float64, device) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs()) / math.sqrt(2)

    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        # With hardly any signal the formula loses digits; the best linear estimate differs by less than 1e-5 of it.
        faint = a * _FAINT < b
        v, s = y / torch.where(faint, b, a), torch.where(faint, 1.0, b / a)
        root = math.sqrt(2)
        up = -root * v + torch.special.log_ndtr(v / s - root * s)
        down = root * v + torch.special.log_ndtr(-v / s - root * s)
        mean = v - root * s.square() * torch.tanh((up - down) / 2)
        each = torch.logaddexp(up, down) + s.square() - math.log(root)
        total = torch.where(faint, -0.5 * (y / b).square() - (math.sqrt(2 * math.pi) * b).log(), each - a.log())
        return total.sum(1), torch.where(faint, a * y / (a.square() + b.square()), mean)


_FAINT = 300.0


def gibbs(
    a: Tensor, y: Tensor, noise: float, chains: int, sweeps: int, generator: torch.Generator, *, burn: int = 300
) -> Tensor:
    """Draw x given y = A x + N(0, noise²) for x of :class:`LaplaceLaw`, (chains, sweeps, d), by Gibbs sampling.

    A Laplace number is a Gaussian whose variance τ is exponential, of mean 1. Given the variances x is Gaussian; given x the
    1/τ are independent inverse Gaussians, of means √2/|x| and shape 2. "The Bayesian Lasso" (Park and Casella, 2008),
    section 2.

    Args:
        a: A, (observed, d), float64.
        y: (observed,).
        noise: Standard deviation, > 0.
        chains: Number of parallel chains, started from draws of the prior.
        sweeps: Draws kept of each, one per sweep.
        generator: Random generator.
        burn: Sweeps discarded before.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    d, kept = a.shape[1], []
    variances = -torch.log1p(-uniform(chains, d))
    eye = noise**2 * torch.eye(len(a), dtype=torch.float64)
    for sweep in range(burn + sweeps):
        prior = variances.sqrt() * normal(chains, d)
        wrong = y - prior @ a.mT - noise * normal(chains, len(a))
        factor = torch.linalg.cholesky((a * variances[:, None]) @ a.mT + eye)
        x = prior + variances * (torch.cholesky_solve(wrong[..., None], factor).squeeze(-1) @ a)
        # The inverse Gaussian by the root of its χ² ("Generating Random Variates Using Transformations with Multiple Roots"
        # (Michael, Schucany and Haas, 1976)), in a form that loses no digits for x near 0.
        mean = math.sqrt(2) / x.abs().clamp_min(1e-150)
        r = mean * normal(chains, d).square() / 4
        larger = 1 + r + (2 * r + r.square()).sqrt()
        small = uniform(chains, d) * (1 + 1 / larger) <= 1
        variances = torch.where(small, larger, 1 / larger) / mean
        if sweep >= burn:
            kept.append(x)
    return torch.stack(kept, 1)


def signal_operator(kind: str, length: int) -> Tensor:
    """Return a matrix of signals: identity, convolution (Gaussian, two samples wide), sampling or fourier (16 numbers)."""
    eye = torch.eye(length, dtype=torch.float64)
    if kind == "identity":
        return eye
    if kind == "convolution":
        return Blur(2.0).axis(length)
    if kind == "sampling":
        return eye[:: length // 16]
    at = torch.arange(length, dtype=torch.float64)
    angles = 2 * math.pi * at * torch.arange(1, 9, dtype=torch.float64)[:, None] / length
    return torch.cat([angles.cos(), angles.sin()]) * math.sqrt(2 / length)


def running_sum(length: int) -> Tensor:
    """Return the matrix from increments of variance 1 to the signal, whose increments have variance 1/length."""
    return torch.ones(length, length, dtype=torch.float64).tril() / math.sqrt(length)


@dataclass(frozen=True, eq=False)
class Signal:
    """A problem of a signal, and its posterior.

    Args:
        problem: Of the signal, or of its increments.
        back: Matrix from the problem's events to signals, (length, length).
        below: The posterior's distribution functions: from a value for each coordinate, (length,), to probabilities.
        draw: Function of a number that draws as many signals from the posterior.
    """

    problem: Problem
    back: Tensor
    below: Callable[[Tensor], Tensor]
    draw: Callable[[int], Tensor]


def signal(law: str, kind: str, length: int, number: int, seed: int, chains: int, sweeps: int) -> Signal:
    """Return a problem of a signal with independent increments, as of arXiv 2509.12821.

    With Gaussian increments the flow reads the signal, and the posterior has a closed form. With Laplace increments it
    reads the increments, times √length: their exact prediction has a closed form, unlike that of the signal. The
    running sum is then part of the operator, and the posterior is that of a long run of :func:`gibbs`.

    Args:
        law: In :data:`SIGNAL_LAWS`.
        kind: Of the operator, in :data:`SIGNAL_OPERATORS`.
        length: Numbers of a signal, a multiple of 16.
        number: Index of the signal.
        seed: Seed of all.
        chains: Chains of the Gibbs sampler.
        sweeps: Sweeps of each chain, without discarded ones.
    """
    draws = seeded(seed, length, number, SIGNAL_LAWS.index(law))
    a, total, flow = signal_operator(kind, length), running_sum(length), GPFN()
    mean, eye = torch.zeros(length, dtype=torch.float64), torch.eye(length, dtype=torch.float64)
    normal, laplace = GaussianMixtureLaw(eye.new_ones(1), mean[None], (total @ total.mT)[None]), LaplaceLaw(length)
    x = (
        normal.sample(1, draws, dtype=torch.float64)[0]
        if law == "gaussian"
        else total @ laplace._draw(1, draws, mean.device)[0]
    )
    y = a @ x + SIGNAL_NOISE * torch.randn(len(a), generator=draws, dtype=torch.float64)
    if law == "gaussian":
        exact = conditioned(mean, total @ total.mT, a, y, SIGNAL_NOISE)
        problem = Problem(
            ExactMean(flow, normal),
            flow,
            Matrix(a),
            y[None],
            SIGNAL_NOISE,
            (length,),
            total @ total.mT,
            1.0,
            mean.dtype,
        )
        factor = torch.linalg.cholesky(exact.covariance)

        def drawn(samples: int) -> Tensor:
            fresh = torch.randn(samples, length, generator=seeded(seed, number, 3), dtype=torch.float64)
            found: Tensor = exact.mean + fresh @ factor.mT
            return found

        return Signal(problem, eye, exact.below, drawn)
    seen = a @ total
    problem = Problem(
        ExactMean(flow, laplace), flow, Matrix(seen), y[None], SIGNAL_NOISE, (length,), eye, 1.0, mean.dtype
    )  # fmt: skip
    long = gibbs(seen, y, SIGNAL_NOISE, chains, sweeps, seeded(seed, number, 4)) @ total.mT
    # The first chain is set aside, to measure the coverage of draws from the posterior itself.
    ordered = long[1:].flatten(0, 1).sort(dim=0).values.mT.contiguous()

    def below(at: Tensor) -> Tensor:
        return torch.searchsorted(ordered, at[:, None].contiguous()).squeeze(1) / ordered.shape[1]

    return Signal(problem, total, below, lambda samples: long[0, -samples:])
