"""Energies: how much a belief disagrees with a message, and sums of such terms.

A proximal step minimises E(p; m) + D(p, belief)/η. Energies are small frozen objects, functions of a belief and a
message to (batch,), that can be added and scaled: ``TargetEnergy(Wasserstein2()) + 0.5 * Potential(fn)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

from torch import Tensor

from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, rows


class Energy(ABC):
    """E(p; m) for each example, (batch,)."""

    @property
    def additive(self) -> bool:
        """Whether, for beliefs with independent coordinates, the energy is a sum over them (see :class:`Divergence`)."""
        return False

    @abstractmethod
    def __call__(self, belief: Any, message: Any) -> Tensor:
        """Return the energy of ``belief`` given the step's ``message``, (batch,)."""

    def rows(self, index: Tensor) -> Energy:
        """Return the energy for some examples of a batch, with the rows of what it holds per example."""
        return self

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


@dataclass(frozen=True, eq=False)
class Potential(Energy):
    """A differentiable function of the belief, independent of the message: guidance, an observation, a constraint.

    Args:
        function: Function of the mean (batch, *event), or of the belief itself, and of ``data`` if given, to (batch,).
            Twice differentiable for a Newton solver, once for a quasi-Newton one. In a solver it gets float64. Examples
            must be independent of each other.
        of: What the function reads, ``"mean"`` or ``"belief"``.
        data: Data of the function, one row per example, such as observations. Each sample gets its own row, however
            sampling divides them into batches.

    Raises:
        ArgumentError: The function does not return a tensor (batch,).
    """

    function: Callable[..., Tensor]
    of: Literal["mean", "belief"] = "mean"
    data: Condition | None = None

    def __post_init__(self) -> None:
        if self.of not in ("mean", "belief"):
            raise ArgumentError(f"a potential is a function of the 'mean' or of the 'belief', got {self.of!r}")

    def rows(self, index: Tensor) -> Potential:
        return self if self.data is None else replace(self, data=rows(self.data, index))

    def __call__(self, belief: Any, message: Any) -> Tensor:
        read = belief.mean if self.of == "mean" else belief
        values = self.function(read) if self.data is None else self.function(read, self.data)
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

    def rows(self, index: Tensor) -> Sum:
        return Sum(tuple((weight, energy.rows(index)) for weight, energy in self.terms))

    def __call__(self, belief: Any, message: Any) -> Tensor:
        (weight, energy), *rest = self.terms
        total = weight * energy(belief, message)
        for weight, energy in rest:
            total = total + weight * energy(belief, message)
        return total
