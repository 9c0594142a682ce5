"""Toy data with a known distribution: draws, the exact density, and the exact posterior mean.

With a flow of Gaussian beliefs, a network reads y = a x + b ε and predicts E[x | y]. For mixtures of Gaussians this is
Gaussian conditioning in each component; for a curve with Gaussian noise a one-dimensional integral along it; for the
checkerboard the mean of truncated Gaussians. Computations are in float64, results in the precision of the argument. The
2-D sets are within about [−1, 1]².
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.random import Generator, gumbel_max, rand, randn


class Law(ABC):
    """A distribution over vectors, (dimension,), known in closed form or by quadrature of negligible error."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Coordinates of an event."""

    @abstractmethod
    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        """Draw events (number, dimension), float64."""

    @abstractmethod
    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(y), (batch,), and E[x | y], (batch, dimension), of y = a x + b ε, float64; a and b are (batch, 1)."""

    def sample(
        self,
        number: int,
        generator: Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw events (number, dimension); a generator gives the same in every precision.

        Raises:
            ArgumentError: ``number`` < 1.
        """
        if number < 1:
            raise ArgumentError(f"the number of samples must be at least 1, got {number}")
        return self._draw(number, generator, torch.device(device)).to(dtype)

    def log_density(self, x: Tensor, noise: float = 0.0) -> Tensor:
        """Return the log density in nats of the data, or of the data with N(0, noise²) added to each coordinate.

        Args:
            x: Events (batch, dimension).
            noise: Standard deviation ≥ 0.

        Returns:
            (batch,); −∞ outside the support.

        Raises:
            ArgumentError: The shape is wrong, or ``noise`` negative.
        """
        self._check(x)
        if not noise >= 0:
            raise ArgumentError(f"noise must not be negative, got {noise}")
        one = x.new_ones(len(x), 1, dtype=torch.float64)
        return self._condition(x.double(), one, noise * one)[0].to(x.dtype)

    def posterior_mean(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Return the posterior mean E[x | y] for y = a x + b ε, ε standard normal: the optimal denoiser, Tweedie's formula.

        Args:
            y: Noisy data (batch, dimension).
            a: Signal ≥ 0, a scalar or (batch,).
            b: Noise ≥ 0, a scalar or (batch,); a and b are not both 0.

        Returns:
            (batch, dimension), in the precision of ``y``.

        Raises:
            ArgumentError: The shape is wrong.
        """
        return self._condition(*self._noisy(y, a, b))[1].to(y.dtype)

    def _noisy(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        self._check(y)
        a, b = (torch.as_tensor(c, dtype=torch.float64, device=y.device).expand(len(y))[:, None] for c in (a, b))
        return y.double(), a, b

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point() or x.ndim != 2 or x.shape[1] != self.dimension:
            raise ArgumentError(
                f"events of {type(self).__name__} are floating point (batch, {self.dimension}), "
                f"got {x.dtype} {tuple(x.shape)}"
            )


# Mixtures of Gaussians ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GaussianMixtureLaw(Law):
    """A mixture of Gaussians, Σ_k w_k N(means_k, covariances_k), in any dimension.

    Args:
        weights: w, positive, (components,), summing to 1.
        means: (components, dimension).
        covariances: Symmetric positive definite, (components, dimension, dimension).

    Raises:
        ArgumentError: The shapes do not fit, a covariance is not positive definite, or the weights do not sum to 1.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    _axes: Tensor = field(init=False, repr=False)
    _variances: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        components, dimension = self.means.shape if self.means.ndim == 2 else (0, 0)
        if (
            components < 1
            or self.weights.shape != (components,)
            or self.covariances.shape != (components, dimension, dimension)
        ):
            raise ArgumentError(
                "a mixture needs weights (K,), means (K, d) and covariances (K, d, d), got "
                f"{tuple(self.weights.shape)}, {tuple(self.means.shape)} and {tuple(self.covariances.shape)}"
            )
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise ArgumentError("weights must be positive and sum to 1")
        variances, axes = torch.linalg.eigh(self.covariances.double())
        if not torch.allclose(self.covariances, self.covariances.mT) or not bool((variances > 0).all()):
            raise ArgumentError("covariances must be symmetric and positive definite")
        object.__setattr__(self, "_axes", axes)
        object.__setattr__(self, "_variances", variances)

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        which = gumbel_max(self.weights.double().log().to(device).expand(number, -1), generator)
        noise = randn(torch.Size([number, self.dimension]), generator, torch.float64, device)
        axes, scales = self._axes.to(device)[which], self._variances.to(device).sqrt()[which]
        return self.means.to(noise)[which] + (axes @ (scales * noise)[..., None]).squeeze(-1)

    def posterior_sample(self, y: Tensor, a: Tensor | float, b: Tensor | float, generator: Generator) -> Tensor:
        """Draw from p(x | y), itself a mixture of Gaussians, for y = a x + b ε; shapes as in :meth:`posterior_mean`.

        Raises:
            ArgumentError: The shape is wrong.
        """
        log_joint, means, variances = self._components(*self._noisy(y, a, b))
        which = gumbel_max(log_joint.log_softmax(1), generator)
        rows = torch.arange(len(y), device=y.device)
        noise = randn(y.shape, generator, torch.float64, y.device)
        turned = self._axes.to(means)[which] @ (variances[rows, which].sqrt() * noise)[..., None]
        return (means[rows, which] + turned.squeeze(-1)).to(y.dtype)

    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        log_joint, means, _ = self._components(y, a, b)
        return log_joint.logsumexp(1), (log_joint.softmax(1)[..., None] * means).sum(1)

    def _components(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each component: log(weight · density of y), mean of x given y, and its variances along the axes."""
        means, variances, axes = self.means.to(y), self._variances.to(y), self._axes.to(y)
        a, b = a[..., None], b[..., None]
        total = a.square() * variances + b.square()  # (batch, components, dimension), along the axes of each covariance
        gap = torch.einsum("bkd,kde->bke", y[:, None] - a * means, axes)
        log_joint = self.weights.to(y).log() - 0.5 * (gap.square() / total + (2 * math.pi * total).log()).sum(-1)
        mean = means + torch.einsum("bke,kde->bkd", a * variances / total * gap, axes)
        return log_joint, mean, variances * b.square() / total


def eight_gaussians(radius: float = 0.8, std: float = 0.08) -> GaussianMixtureLaw:
    """Return a mixture of eight equal isotropic Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixtureLaw(means.new_full((8,), 1 / 8), means, (std**2 * torch.eye(2).double()).expand(8, 2, 2))


# Curves with noise ---------------------------------------------------------------------------------------------------

_NODES = 320
# Gauss–Legendre nodes along each arm. Their largest distance is that of the least noise, so that densities and means of
# smooth curves are exact to about 1e-8.


@cache
def _gauss_legendre(number: int) -> tuple[Tensor, Tensor]:
    """Return nodes in [0, 1] and weights that sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(number)
    return torch.from_numpy(nodes / 2 + 0.5), torch.from_numpy(weights / 2)


class NoisyCurves(Law):
    """Two equally likely curves in the plane with Gaussian noise around them."""

    noise: float

    @abstractmethod
    def _arms(self, u: Tensor) -> Tensor:
        """Return points of both curves, (2, number, 2), at parameters u in [0, 1], over which the data are uniform."""

    def __post_init__(self) -> None:
        if not self.noise >= 0.03:
            raise ArgumentError(f"noise must be at least 0.03, which the quadrature resolves, got {self.noise}")

    @property
    def dimension(self) -> int:
        return 2

    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        u = rand(torch.Size([number, 2]), generator, torch.float64, device)
        one, other = self._arms(u[:, 0])
        points = torch.where(u[:, 1:] < 0.5, one, other)
        return points + self.noise * randn(points.shape, generator, points.dtype, device)

    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights = (c.to(y) for c in _gauss_legendre(_NODES))
        points = self._arms(nodes).flatten(0, 1)  # a uniform mixture of as many isotropic Gaussians
        total = (a * self.noise).square() + b.square()
        squared = y.square().sum(1, keepdim=True) - 2 * a * (y @ points.mT) + a.square() * points.square().sum(1)
        log_joint = (weights / 2).log().repeat(2) - 0.5 * squared / total - (2 * math.pi * total).log()
        centre = log_joint.softmax(1) @ points
        return log_joint.logsumexp(1), centre + a * self.noise**2 / total * (y - a * centre)


@dataclass(frozen=True)
class Moons(NoisyCurves):
    """Two interleaved half circles, centred and scaled to the unit square's size.

    Args:
        noise: Standard deviation of the Gaussian noise, ≥ 0.03.
    """

    noise: float = 0.05

    def _arms(self, u: Tensor) -> Tensor:
        angle = math.pi * u
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)
        return torch.stack([upper, -upper]) / 1.5


@dataclass(frozen=True)
class Spirals(NoisyCurves):
    """Two opposite Archimedean spirals of one and a half turns, with radii uniform from 0.1 to 0.95.

    Args:
        noise: Standard deviation of the Gaussian noise, ≥ 0.03.
    """

    noise: float = 0.03

    def _arms(self, u: Tensor) -> Tensor:
        angle = 3 * math.pi * u
        arm = (0.1 + 0.85 * u)[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
        return torch.stack([arm, -arm])


# Checkerboard ---------------------------------------------------------------------------------------------------------


def _truncated(centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return log ½∫φ(c + δv) dv and the mean of v under φ(c + δv), v in [−1, 1]; c is ``centre``, δ is ``half`` ≥ 0."""
    sign, c = torch.where(centre < 0, -1.0, 1.0), centre.abs()
    # Short intervals by quadrature, as the closed forms cancel there; long or far ones by the closed forms.
    short = (half <= 1) & (half * c <= 40)
    nodes, weights = (a.to(c) for a in _gauss_legendre(64))
    v = 2 * nodes - 1
    c_short, d_short = (torch.where(short, a, 0)[..., None] for a in (c, half))
    # The factor e^{−c²/2 + cδ} is taken out.
    integrand = weights * torch.exp(-c_short * d_short * (v + 1) - 0.5 * (d_short * v).square())
    mass_short = integrand.sum(-1)
    mean_short = (integrand * v).sum(-1) / mass_short
    log_short = mass_short.log() - 0.5 * c.square() + c * half

    c_long, d_long = torch.where(short, 3.0, c), torch.where(short, 2.0, half)
    low, high = c_long - d_long, c_long + d_long
    tail = low > 0
    # Tails relative to φ(low), with the Mills ratio R = Q/φ = √(π/2) erfcx(·/√2).
    a, decay = torch.where(tail, low, 1.0), torch.exp(-2 * c_long * d_long)
    mills = math.sqrt(math.pi / 2) * (
        torch.special.erfcx(a / math.sqrt(2)) - decay * torch.special.erfcx(high / math.sqrt(2))
    )
    mean_tail = (1 - decay) / mills
    inside = torch.where(tail, 0.0, low)
    mass_inside = torch.special.ndtr(high) - torch.special.ndtr(inside)
    mean_inside = (torch.exp(-inside.square() / 2) - torch.exp(-high.square() / 2)) / (
        math.sqrt(2 * math.pi) * mass_inside
    )
    mean_long = (torch.where(tail, mean_tail, mean_inside) - c_long) / d_long
    log_inside = mass_inside.log() + 0.5 * math.log(2 * math.pi)
    log_long = torch.where(tail, mills.log() - 0.5 * low.square(), log_inside) - (2 * d_long).log()
    log_mass = torch.where(short, log_short, log_long) - 0.5 * math.log(2 * math.pi)
    return log_mass, sign * torch.where(short, mean_short, mean_long)


@dataclass(frozen=True)
class Checkerboard(Law):
    """The uniform distribution on the eight squares of one colour of a 4 × 4 board on [−1, 1]²."""

    @property
    def dimension(self) -> int:
        return 2

    def _draw(self, number: int, generator: Generator, device: torch.device) -> Tensor:
        u = rand(torch.Size([number, 3]), generator, torch.float64, device)
        row = (4 * u[:, 2]).floor()
        column = 2 * (2 * u[:, 0]).floor() + row % 2
        within = torch.stack([(2 * u[:, 0]) % 1, u[:, 1]], dim=1)
        return (torch.stack([column, row], dim=1) + within) / 2 - 1

    def _condition(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        middles = torch.arange(4, dtype=y.dtype, device=y.device) / 2 - 0.75
        exact = (b == 0)[:, 0]
        b = b.clamp_min(1e-12)[..., None]
        # For each coordinate and each of its four intervals, (batch, 2, 4).
        log_mass, mean = _truncated(
            (a[..., None] * middles - y[..., None]) / b, (0.25 * a[..., None] / b).expand(-1, 2, 4)
        )
        log_mass = log_mass - b.log()
        mean = middles + 0.25 * mean
        places = torch.arange(4, device=y.device)
        filled = (places[:, None] + places) % 2 == 0
        log_joint = (log_mass[:, 0, :, None] + log_mass[:, 1, None]).masked_fill(~filled, -torch.inf).flatten(1)
        weights = log_joint.softmax(1).reshape(-1, 4, 4)
        means = torch.stack([(weights.sum(2) * mean[:, 0]).sum(1), (weights.sum(1) * mean[:, 1]).sum(1)], dim=1)
        place = ((y / a + 1) * 2).floor()
        there = ((place >= 0) & (place < 4)).all(1) & (place.sum(1) % 2 == 0)
        plain = (math.log(0.5) - 2 * a[:, 0].log()).masked_fill(~there, -torch.inf)
        return torch.where(exact, plain, log_joint.logsumexp(1) - math.log(8)), means
