"""Bregman divergences of any convex function, in both directions.

The function is one of a coordinate's parameters, x: the probabilities θ of a category, (…, classes), and mean and standard
deviation (μ, σ) of a Gaussian, (…, 2). There the divergence is

    B(x, y) = φ(x) − φ(y) − ⟨∇φ(y), x − y⟩,

summed over the coordinates of an event, with ∇φ by automatic differentiation. With φ = |x|² it is W₂² between
Gaussians, with φ = Σ θ ln θ the KL divergence of categories. It is a difference of φ's values, computed in double
precision: for nearly equal x and y its absolute accuracy is that of φ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences.base import Divergence, Over, closed_form, value
from proxflow.divergences.kl import plain_mean
from proxflow.errors import ArgumentError

Potential = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Bregman(Divergence):
    """Bregman divergence B_φ(p, q): the free belief of a proximal step is the first argument.

    "The Relaxation Method of Finding the Common Point of Convex Sets" (Bregman, 1967) and "Clustering with Bregman
    Divergences" (Banerjee et al., 2005).

    Its barycentric step mixes gradients, ∇φ(r) = (1 − f) ∇φ(p) + f ∇φ(q) (mirror descent; on categories up to a
    constant). It is a closed form if ∇φ can be inverted; else it needs a solver.

    Args:
        potential: φ, strictly convex and twice differentiable: parameters (…, n) → (…), on the parameters given in this
            module's docstring. For beliefs at the edge of the family φ must be finite there.
        inverse_gradient: The x with ∇φ(x) = y, (…, n) → (…, n); on categories the probabilities whose gradient is y up
            to a constant, for φ = Σ θ ln θ the softmax. ``None`` if unknown.
    """

    potential: Potential
    inverse_gradient: Potential | None = None
    additive = True
    composes = True


@dataclass(frozen=True)
class ReverseBregman(Divergence):
    """Bregman divergence B_φ(q, p): the free belief of a proximal step is the second argument.

    For every φ its barycentric step is the arithmetic mean of the parameters ("Clustering with Bregman Divergences",
    Banerjee et al., 2005, Proposition 1).

    Args:
        potential: φ, as for :class:`Bregman`.
    """

    potential: Potential
    additive = True
    composes = True


def _gradient(potential: Potential, x: Tensor) -> Tensor:
    def total(x: Tensor) -> Tensor:
        values = potential(x)
        if values.shape != x.shape[:-1]:
            raise ArgumentError(
                f"a potential maps parameters (…, n) to numbers (…): from {tuple(x.shape)} it made {tuple(values.shape)}"
            )
        return values.sum()

    gradient: Tensor = torch.func.grad(total)(x)
    return gradient


def _bregman(potential: Potential, x: Tensor, y: Tensor) -> Tensor:
    dtype, x, y = x.dtype, x.double(), y.double()
    gap, gradient = x - y, _gradient(potential, y)
    # An infinite slope at the edge of the family is ignored if both are there: 0 · ∞ is 0 here.
    gradient = gradient.masked_fill(gradient.isinf() & (gap == 0), 0)
    return sum_events(potential(x) - potential(y) - (gradient * gap).sum(-1)).to(dtype)


def _mixed_gradients(divergence: Bregman, x: Tensor, y: Tensor, over: Over) -> Tensor:
    """Return the parameters whose gradient is the mixture of those at x and y."""
    x, y = x.double(), y.double()
    f, start, end = over(x), _gradient(divergence.potential, x), _gradient(divergence.potential, y)
    start, end = start.masked_fill(start.isinf() & (f == 1), 0), end.masked_fill(end.isinf() & (f == 0), 0)
    inverse = cast(Potential, divergence.inverse_gradient)  # the rules below are for those that have one
    return inverse((1 - f) * start + f * end)


def _parameters(belief: DiagonalGaussian) -> Tensor:
    return torch.stack([belief.mean, belief.std], dim=-1)


def _invertible(divergence: Bregman) -> bool:
    return divergence.inverse_gradient is not None


@value(Bregman, DiagonalGaussian, reverse=ReverseBregman)
def _(divergence: Bregman | ReverseBregman, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return _bregman(divergence.potential, _parameters(p), _parameters(q))


@value(Bregman, Categorical, reverse=ReverseBregman)
def _(divergence: Bregman | ReverseBregman, p: Categorical, q: Categorical) -> Tensor:
    return _bregman(divergence.potential, p.probs, q.probs)


@closed_form(Bregman, DiagonalGaussian, when=_invertible)
def _(divergence: Bregman, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    moved = _mixed_gradients(divergence, _parameters(belief), _parameters(target), over).to(belief.mean.dtype)
    return DiagonalGaussian(moved[..., 0], moved[..., 1])


@closed_form(Bregman, Categorical, when=_invertible)
def _(divergence: Bregman, belief: Categorical, target: Categorical, over: Over) -> Categorical:
    moved = _mixed_gradients(divergence, belief.probs, target.probs, over)
    return Categorical(moved.log().to(belief.logits.dtype))


@closed_form(ReverseBregman, DiagonalGaussian)
def _(_: ReverseBregman, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over) -> DiagonalGaussian:
    f = over(belief.mean)
    return DiagonalGaussian((1 - f) * belief.mean + f * target.mean, (1 - f) * belief.std + f * target.std)


closed_form(ReverseBregman, Categorical)(plain_mean)
