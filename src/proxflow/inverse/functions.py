"""Operators given by functions: linear ones, solved by conjugate gradients, and nonlinear ones by Gauss–Newton steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.errors import ArgumentError
from proxflow.inverse.operators import Matrix, Operator

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Functions(Operator):
    """A linear operator given by a function and its adjoint.

    Args:
        forward: From events (batch, *event) to observations (batch, *observed).
        backward: Its adjoint, which is checked once, at the first use (:meth:`check`).
    """

    forward: Function
    backward: Function
    _seen: list[bool] = field(default_factory=list, init=False, repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.backward(y)

    def check(self, event: tuple[int, ...], like: Tensor) -> None:
        """Check for one random pair that the functions are adjoint: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩.

        Args:
            event: Shape of an event.
            like: Tensor with the precision and device to use.

        Raises:
            ArgumentError: The two products differ, or an adjoint has another shape than an event.
        """
        if self._seen:
            return
        noise = torch.Generator().manual_seed(0)
        x = torch.randn(1, *event, generator=noise, dtype=torch.float64).to(like)
        there = self.forward(x)
        y = torch.randn(there.shape, generator=noise, dtype=torch.float64).to(there)
        back = self.backward(y)
        if back.shape != x.shape:
            raise ArgumentError(
                f"the adjoint gives events {tuple(back.shape[1:])}, expected {tuple(event)}: it maps observations "
                "back to the space of events"
            )
        one, other = float(sum_events(there * y)[0]), float(sum_events(x * back)[0])
        scale = float(there.norm() * y.norm() + x.norm() * back.norm())
        if not abs(one - other) <= 50 * math.sqrt(x.numel()) * torch.finfo(like.dtype).eps * scale + 1e-30:
            raise ArgumentError(
                f"the adjoint of the operator is wrong: ⟨A x, y⟩ = {one:.6g} and ⟨x, Aᵀ y⟩ = {other:.6g} should be equal; "
                "give the transpose of the linear map"
            )
        self._seen.append(True)


@dataclass(frozen=True, eq=False)
class Composition(Operator):
    """A composition, x → outer(inner(x)). Usually written ``outer @ inner``."""

    outer: Operator
    inner: Operator

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def at(self, x: Tensor) -> Operator:
        inner = self.inner.at(x)
        outer = self.outer.at(self.inner(x))
        return self if inner is self.inner and outer is self.outer else Composition(outer, inner)

    def seen(self, y: Tensor) -> Tensor:
        return self.outer.seen(y)

    @property
    def examples(self) -> int | None:
        return self.outer.examples or self.inner.examples

    def rows(self, index: Tensor) -> Composition:
        return Composition(self.outer.rows(index), self.inner.rows(index))


@dataclass(frozen=True, eq=False)
class Nonlinear(Operator):
    """A differentiable nonlinear map. Proximal steps are computed by Gauss–Newton iterations.

    From z = x, z ← x + r² Jᵀ (σ² + r² J Jᵀ)⁻¹ (y − f(z) + J (z − x)), with J the derivative at z. Known elsewhere as the
    iterated extended Kalman filter.

    Args:
        function: From events (batch, *event) to observations (batch, *observed); examples must be independent of each
            other.
        steps: Gauss–Newton steps, ≥ 1.

    Raises:
        ArgumentError: ``steps`` < 1, or the adjoint is called, which only the linearisation has.
    """

    function: Function
    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"a non-linear operator takes at least 1 Gauss–Newton step, got {self.steps}")

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        raise ArgumentError(
            "a non-linear operator has no adjoint; that of its linearisation at events x is at(x).adjoint"
        )

    def at(self, x: Tensor) -> Operator:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = self.function(point)
        if not value.requires_grad:
            raise ArgumentError(
                "a non-linear operator needs derivatives of its function, and this one's result has none: write it in "
                "operations of torch, without numpy and detach"
            )

        def forward(v: Tensor) -> Tensor:
            moved: Tensor = torch.func.jvp(self.function, (x.detach(),), (v,))[1]
            return moved

        def backward(v: Tensor) -> Tensor:
            return torch.autograd.grad(value, point, v, retain_graph=True)[0]

        return Functions(forward, backward)

    def prox(self, x: Tensor, y: Tensor, noise: Tensor | float, prior: Tensor | float) -> Tensor:
        z = x
        for _ in range(self.steps):
            linear = self.at(z)
            z = linear.prox(x, y - self(z) + linear(z), noise, prior)
        return z


def operator_of(given: Any) -> Operator:
    """Return an operator of this library as it is, or wrap any object with ``A`` and ``A_adjoint``, as in deepinv.

    Raises:
        ArgumentError: It is neither.
    """
    if isinstance(given, Operator):
        return given
    forward, backward = getattr(given, "A", None), getattr(given, "A_adjoint", None)
    if callable(forward) and callable(backward):
        return Functions(forward, backward)
    raise ArgumentError(
        "an operator is one of proxflow.inverse, or any object with the functions A and A_adjoint, got "
        f"{type(given).__name__}: make one of two functions by proxflow.inverse.Functions(forward, backward), backward the "
        "adjoint"
    )


def dense(operator: Operator, event: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Matrix:
    """Return a linear operator as a matrix, column by column: for small events, if a spectrum is needed.

    Args:
        operator: Linear, the same for all examples. Its observations are flattened.
        event: Shape of an event.
        dtype: Precision of the matrix.
    """
    columns = operator(torch.eye(math.prod(event), dtype=dtype).reshape(-1, *event))
    return Matrix(columns.flatten(1).mT.contiguous(), event)
