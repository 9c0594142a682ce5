"""Energies: how badly a belief agrees with a message, and sums of such terms.

A proximal step minimises E(p; m) + D(p, belief)/η. Energies are small frozen objects, functions of a belief and a message to
(batch,), that add and scale: ``TargetEnergy(Wasserstein2()) + 0.5 * Potential(fn)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from torch import Tensor

from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError


class Energy(ABC):
    """E(p; m) for each example, (batch,)."""

    @property
    def additive(self) -> bool:
        """Whether, for beliefs with independent coordinates, the energy is a sum over them (see :class:`Divergence`)."""
        return False

    @abstractmethod
    def __call__(self, belief: Any, message: Any) -> Tensor:
        """Return the energy of ``belief`` given the step's ``message``, (batch,)."""

    def __add__(self, other: Energy) -> Sum:
        return Sum(((1.0, self), (1.0, other)))

    def __mul__(self, weight: float) -> Sum:
        return Sum(((weight, self),))

    __rmul__ = __mul__


@dataclass(frozen=True)
class TargetEnergy(Energy):
    """D(p, m): the barycentric energy, whose message is a target belief of the family of p.

    Args:
        divergence: D.
    """

    divergence: Divergence

    @property
    def additive(self) -> bool:
        return self.divergence.additive

    def __call__(self, belief: Any, message: Any) -> Tensor:
        return self.divergence(belief, message)


@dataclass(frozen=True)
class Potential(Energy):
    """A differentiable function of the belief, whatever the message: a guide, an observation, a constraint.

    Args:
        function: Of the mean (batch, *event), or of the belief itself, to (batch,); twice differentiable for a Newton
            solver, once for a quasi-Newton one. It always gets the whole batch in its order, so it may hold data for each
            example, and in a solver it gets float64. Examples must not depend on each other.
        of: What the function reads, ``"mean"`` or ``"belief"``.

    Raises:
        ArgumentError: The function returns something else than a tensor (batch,).
    """

    function: Callable[[Any], Tensor]
    of: Literal["mean", "belief"] = "mean"

    def __post_init__(self) -> None:
        if self.of not in ("mean", "belief"):
            raise ArgumentError(f"a potential is a function of the 'mean' or of the 'belief', got {self.of!r}")

    def __call__(self, belief: Any, message: Any) -> Tensor:
        values = self.function(belief.mean if self.of == "mean" else belief)
        if not isinstance(values, Tensor) or values.shape != (belief.batch_size,):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(f"a potential gives one number for each example, ({belief.batch_size},), got {found}")
        return values


@dataclass(frozen=True)
class Sum(Energy):
    """Σ w E. Usually written with + and ·.

    Args:
        terms: Weights w ≥ 0 and energies E.

    Raises:
        ArgumentError: No terms, or a weight that is negative or not finite.
    """

    terms: tuple[tuple[float, Energy], ...]

    def __post_init__(self) -> None:
        terms: list[tuple[float, Energy]] = []
        for weight, energy in self.terms:
            inner = energy.terms if isinstance(energy, Sum) else ((1.0, energy),)
            terms += [(float(weight) * w, e) for w, e in inner]
        if not terms or not all(isfinite(w) and w >= 0 for w, _ in terms):
            raise ArgumentError(f"energies add up with weights that are finite and not negative, got {self.terms}")
        object.__setattr__(self, "terms", tuple(terms))

    @property
    def additive(self) -> bool:
        return all(energy.additive for _, energy in self.terms)

    def __call__(self, belief: Any, message: Any) -> Tensor:
        (weight, energy), *rest = self.terms
        total = weight * energy(belief, message)
        for weight, energy in rest:
            total = total + weight * energy(belief, message)
        return total
