"""The lists of members that must satisfy the contracts of ``proxflow.testing``, and what is particular to some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support import vectors
from torch import Tensor

from proxflow.beliefs import Belief, Binned, Categorical, DiagonalGaussian, FullGaussian, GaussianMixture, Product
from proxflow.divergences import (
    KL,
    MMD,
    Alpha,
    AnisotropicWasserstein2,
    Bregman,
    ChiSquared,
    CoordinateMetric,
    DiscreteWasserstein2,
    Divergence,
    EnergyDistance,
    FisherRao,
    FrequencyMetric,
    HellingerSquared,
    Jeffreys,
    MixtureWasserstein2,
    PerPart,
    Renyi,
    ReverseBregman,
    ReverseChiSquared,
    ReverseKL,
    SinkhornDivergence,
    Wasserstein2,
    has_closed_form,
    has_value,
)
from proxflow.solvers import NewtonSolver
from proxflow.testing import BELIEFS, uniform

SOLVER = NewtonSolver()


def alike(belief: Any) -> Any:
    """Gaussians with standard deviations between 1 and 1.3: the ratio of any two variances is below 2."""
    if isinstance(belief, Product):
        return Product(tuple(map(alike, belief.parts)))
    if not isinstance(belief, DiagonalGaussian):
        return belief
    return DiagonalGaussian(belief.mean, 1.15 + 0.15 * belief.std.log().tanh())


class SideBySide(torch.distributions.Distribution):
    """Independent laws of one column of numbers each."""

    def __init__(self, *columns: torch.distributions.Distribution) -> None:
        super().__init__(validate_args=False)
        self.columns = columns

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([law.log_prob(a) for law, a in zip(self.columns, x.unbind(1), strict=True)]).sum(0)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.stack([law.sample(sample_shape).double() for law in self.columns], dim=-1)


def _sites(law: torch.distributions.Distribution) -> torch.distributions.Distribution:
    return torch.distributions.Independent(law, 1)


@dataclass(frozen=True)
class Family:
    """An independent account of a family's law.

    ``law(belief)`` is a distribution over ``events(x)``, which are the belief's events x unless something is given.
    """

    law: Callable[[Any], torch.distributions.Distribution]
    events: Callable[[Tensor], Tensor] = lambda x: x


def _mixture_law(belief: GaussianMixture) -> torch.distributions.Distribution:
    parts = _sites(torch.distributions.Normal(belief.means, belief.stds))
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=belief.logits), parts)


def _product_law(belief: Product) -> torch.distributions.Distribution:
    numbers, classes = belief.parts
    columns = [torch.distributions.Normal(numbers.mean[:, i], numbers.std[:, i]) for i in range(2)]
    return SideBySide(*columns, torch.distributions.Categorical(logits=classes.logits[:, 0]))


# A family joins every contract by joining BELIEFS of proxflow.testing and this list.
FAMILIES: dict[type[Belief], Family] = {
    DiagonalGaussian: Family(lambda b: _sites(torch.distributions.Normal(b.mean, b.std))),
    FullGaussian: Family(lambda b: torch.distributions.MultivariateNormal(b.mean, scale_tril=b.scale_tril)),
    Categorical: Family(lambda b: _sites(torch.distributions.Categorical(logits=b.logits))),
    Binned: Family(  # numbers of three bins, from their centres
        lambda b: _sites(torch.distributions.Categorical(logits=b.logits)),
        lambda x: (1.5 * (x + 1) - 0.5).round().long(),
    ),
    GaussianMixture: Family(_mixture_law),
    Product: Family(_product_law),
}


# The list of members: a divergence joins every contract by joining it ---------------------------------------------------


def squared_norm(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def half(y: Tensor) -> Tensor:
    return y / 2


def negative_entropy(x: Tensor) -> Tensor:
    return -torch.special.entr(x).sum(-1)


def softmax(y: Tensor) -> Tensor:
    return y.softmax(-1)


def cubic(x: Tensor) -> Tensor:
    return (x.pow(3) + x.square()).sum(-1)


def barrier(x: Tensor) -> Tensor:
    """ln cosh of the mean, minus the logarithm of the standard deviation."""
    mean, std = x.unbind(-1)
    return torch.logaddexp(mean, -mean) - std.log()


Member = Divergence | tuple[Any, ...]
"""A divergence, or (divergence, family, …) where it is one on these families alone."""

DIVERGENCES: list[Member] = [
    KL(),
    ReverseKL(),
    Wasserstein2(),
    Wasserstein2(CoordinateMetric((0.5, 2.0))),
    # Of diagonal Gaussians it takes those with one standard deviation alone, which the contracts do not keep to.
    (Wasserstein2(FrequencyMetric(1, 2, 2.0)), FullGaussian),
    AnisotropicWasserstein2(CoordinateMetric((0.5, 2.0))),
    FisherRao(),
    Jeffreys(),
    Renyi(0.5),
    Renyi(0.9),
    Renyi(2.0),
    HellingerSquared(),
    Alpha(0.5),
    Alpha(-0.5),
    Alpha(3.0),
    ChiSquared(),
    ReverseChiSquared(),
    MixtureWasserstein2(),
    DiscreteWasserstein2(torch.tensor([0.0, 2.0, 0.7])),
    (SinkhornDivergence(), DiagonalGaussian),
    (SinkhornDivergence(0.7, torch.tensor([[0.0, 1.0, 2.5], [1.0, 0.0, 1.2], [2.5, 1.2, 0.0]]), 8), Categorical),
    MMD(),
    (MMD(1.0, torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.5], [0.1, 0.5, 1.0]])), Categorical),
    EnergyDistance(),
    (EnergyDistance((torch.arange(3.0) - torch.arange(3.0)[:, None]).abs()), Categorical),
    Bregman(squared_norm, half),
    (Bregman(negative_entropy, softmax), Categorical),
    (Bregman(cubic), Categorical),
    (Bregman(barrier), DiagonalGaussian),
    ReverseBregman(squared_norm),
    (ReverseBregman(negative_entropy), Categorical),
    (ReverseBregman(barrier), DiagonalGaussian),
    PerPart((Wasserstein2(), FisherRao())),
    PerPart((EnergyDistance(), KL())),
]


@dataclass(frozen=True)
class Pair:
    divergence: Divergence
    family: type[Belief]

    def __str__(self) -> str:
        parameters = ",".join(
            "matrix" if isinstance(a, Tensor) else getattr(a, "__name__", str(a))
            for name, a in vars(self.divergence).items()
            if not name.startswith("_") and a is not None
        )
        return f"{type(self.divergence).__name__}({parameters})-{self.family.__name__}"

    @property
    def often_infinite(self) -> bool:
        """Whether the value is infinite between Gaussians unless their spreads are alike: orders above 1."""
        unlike = (Renyi(2.0), Alpha(3.0), ChiSquared(), ReverseChiSquared())
        return self.family in (DiagonalGaussian, Product) and self.divergence in unlike

    @property
    def smooth(self) -> bool:
        """Whether the value is smooth; transport of discrete weights is not: it grows like their difference."""
        return not isinstance(self.divergence, MixtureWasserstein2 | DiscreteWasserstein2)

    @property
    def has_step(self) -> bool:
        """Whether there is a step, by formula or by the solver, which needs an objective that is not piecewise linear."""
        return not isinstance(self.divergence, DiscreteWasserstein2)

    @property
    def traces(self) -> bool:
        """Whether values and steps are tensor operations all through; plans of POT are found on the host."""
        return not isinstance(self.divergence, MixtureWasserstein2)

    @property
    def least_difference(self) -> float:
        """Relative difference of parameters down to which the value keeps its relative accuracy, in double precision."""
        # These are small differences of sums, of determinants, and of any function's values; their accuracy is absolute.
        absolute = self.family in (FullGaussian, GaussianMixture) and isinstance(self.divergence, MMD)
        absolute |= self.family is Categorical and isinstance(self.divergence, SinkhornDivergence)
        return 1e-6 if absolute or isinstance(self.divergence, Bregman | ReverseBregman) else 1e-7

    @property
    def closed(self) -> bool:
        return has_closed_form(self.divergence, self.beliefs(1)[0])

    def draw(self, seed: int, batch: int) -> Any:
        belief = BELIEFS[self.family](seed, batch)
        return alike(belief) if self.often_infinite else belief

    def beliefs(self, batch: int, seed: int = 0) -> tuple[Any, Any, Tensor]:
        """Two random beliefs, and a fraction for each example."""
        return self.draw(seed + 1, batch), self.draw(seed + 2, batch), 0.1 + 0.8 * uniform(seed + 3, batch)

    def step(self, p: Any, q: Any, fraction: Tensor | float) -> Any:
        """The step by closed form where there is one, else by the solver."""
        if self.closed:
            return self.divergence.interpolate(p, q, fraction)
        return solve(self.divergence, p, q, fraction)

    def objective(self, r: Any, p: Any, q: Any, fraction: Tensor | float) -> Tensor:
        if isinstance(self.divergence, AnisotropicWasserstein2):  # its energy is the plain distance: see its docstring
            return self.divergence.objective(r, p, q, torch.as_tensor(fraction))
        return (1 - fraction) * self.divergence(r, p) + fraction * self.divergence(r, q)


def pairs(members: list[Member]) -> list[Pair]:
    """Every pair with a known value; of products, which take the rules of their parts, some for all."""
    entries = [m if isinstance(m, tuple) else (m, *BELIEFS) for m in members]

    def held(divergence: Divergence, family: type[Belief]) -> bool:
        some = family is not Product or isinstance(divergence, KL | FisherRao | Jeffreys | PerPart)
        return some and has_value(divergence, BELIEFS[family](0, 1))

    return [Pair(d, family) for d, *families in entries for family in families if held(d, family)]


def solve(divergence: Divergence, p: Any, q: Any, fraction: Tensor | float) -> Any:
    return SOLVER(divergence, p, q, fraction).belief_or_raise()


# Recorded reference values -------------------------------------------------------------------------------------------

_BY_NAME: dict[str, type[Divergence]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(pair.divergence).__name__).lower(): type(pair.divergence)
    for pair in pairs(DIVERGENCES)
}


def divergence_named(key: str) -> Divergence:
    """``wasserstein2``, ``renyi_0.5``, ``alpha_-0.5``, …"""
    name, _, parameter = key.rpartition("_")
    return _BY_NAME[key]() if key in _BY_NAME else _BY_NAME[name](float(parameter))  # type: ignore[call-arg]


def recorded() -> dict[str, list[dict[str, Any]]]:
    """Cases of prox.json, by family."""
    content = json.loads((vectors() / "prox.json").read_text())
    return {family: cases for family, cases in content.items() if isinstance(cases, list)}


def belief_from(family: str, parameters: Any) -> Belief:
    if family == "gaussian":
        mean, std = (torch.tensor(a, dtype=torch.float64).reshape(1, -1) for a in parameters)
        return DiagonalGaussian(mean, std)
    if family == "categorical":
        return Categorical.from_probs(torch.tensor([parameters], dtype=torch.float64))
    mean, covariance = (torch.tensor([a], dtype=torch.float64) for a in parameters)
    return FullGaussian.from_covariance(mean, covariance)
