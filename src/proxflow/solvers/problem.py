"""Problems and solutions of numerical proximal steps, and the parts that all solvers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from proxflow.beliefs import Belief, Product
from proxflow.divergences import KL, Divergence, ReverseKL, has_closed_form
from proxflow.divergences.base import check_pair, independent_parts
from proxflow.energies import Energy
from proxflow.errors import ArgumentError, ConvergenceError

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True, eq=False)
class Solution(Generic[B]):
    """Result of a numerical step.

    Args:
        belief: The minimiser, in the precision of the input; for examples that did not converge, the best point found.
        converged: Which examples converged, bool (batch,).
        iterations: Newton steps tried for each example (its slowest coordinate), int64 (batch,).
        residual: Largest relative change of a coordinate in the last Newton step, float64 (batch,); the one below the
            tolerance is still taken.
    """

    belief: B
    converged: Tensor
    iterations: Tensor
    residual: Tensor

    def belief_or_raise(self) -> B:
        """Return the minimiser.

        Raises:
            ConvergenceError: Some examples did not converge.
        """
        failed = (~self.converged).nonzero().flatten().tolist()
        if failed:
            listed = ", ".join(map(str, failed[:8])) + (", …" if len(failed) > 8 else "")
            raise ConvergenceError(
                f"{len(failed)} of {len(self.converged)} proximal steps did not converge within "
                f"{int(self.iterations.max())} iterations: examples {listed} (largest relative move left "
                f"{float(self.residual.max()):.1e}). Raise max_iterations, take a smaller fraction, or move beliefs and "
                "targets away from point masses and ruled-out classes."
            )
        return self.belief


class Rows:
    """A base of frozen dataclasses whose fields are tensors, batch first."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``fn`` to every tensor."""
        return type(self)(*(fn(getattr(self, f.name)) for f in fields(self)))  # type: ignore[arg-type]

    def take(self, keep: Tensor) -> Self:
        """Select some of the examples."""
        return self.map(lambda a: a[keep])


@dataclass(frozen=True)
class Search(Rows):
    """The state of each example: point (batch, number), objective, convergence and iterations, (batch,) each."""

    x: Tensor
    value: Tensor
    converged: Tensor
    iterations: Tensor
    residual: Tensor

    @classmethod
    def start(cls, x: Tensor) -> Search:
        infinite = torch.full_like(x[:, 0], torch.inf)
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(x.clone(), infinite.clone(), none.bool(), none, infinite)

    @classmethod
    def joined(cls, parts: list[Search]) -> Search:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def lowest(self, starts: int, max_iterations: int) -> Search:
        """Return for each example the lowest of the runs from several starts (starts · batch)."""
        by_start = self.map(lambda a: a.reshape(starts, -1, *a.shape[1:]))
        lowest = by_start.value.amin(0)
        # Of runs that are equal up to rounding, the converged one with the fewest steps.
        tied = by_start.value <= lowest + 1e-12 * lowest.abs() + torch.finfo(lowest.dtype).tiny
        merit = torch.where(by_start.converged, max_iterations + 2 - by_start.iterations, 1)
        best = (merit * tied).argmax(0)
        return by_start.map(lambda a: a[best, torch.arange(len(best), device=a.device)])

    def record(
        self, index: Tensor, x: Tensor, value: Tensor, converged: Tensor, residual: Tensor, iteration: int
    ) -> None:
        """Record, in place, the state of the examples ``index``."""
        self.x[index], self.value[index], self.converged[index], self.residual[index] = x, value, converged, residual
        self.iterations[index] = iteration


_FEW = 2**12
"""Entries of a batch's Hessians up to which the time of an operation does not depend on their number."""


@dataclass(frozen=True)
class Problem:
    """A batch of independent minimisations over coordinates x (batch, number).

    Args:
        divergence: D.
        belief: Where the step starts.
        message: The energy's argument; without an energy, a target belief.
        fraction: f, (batch,).
        energy: E of (1 − f) D + f E; ``None`` for the divergence's own step toward a target.
        rows: For a problem that cannot be split, the examples that x describes, (number of them,). A user's energy may
            hold data per example and so always gets the whole batch; the others' coordinates are those of the belief.
    """

    divergence: Divergence
    belief: Belief
    message: Any
    fraction: Tensor
    energy: Energy | None = None
    rows: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Problem:
        return replace(self, belief=self.belief.map(fn), message=_mapped(self.message, fn), fraction=fn(self.fraction))

    def reach(self, x: Tensor) -> Tensor:
        """Return how far one step from the start ``x`` may move each coordinate, (batch, number).

        About the distance from belief to target, if there is one. Without this limit, a step along a direction of
        almost no curvature can end where the objective is flat.
        """
        if self.rows is not None:
            return 5 + x.abs()
        way: Tensor = self.message.coordinates() - self.belief.coordinates()
        return 2 + way.abs().nan_to_num(0, 0)

    def take(self, keep: Tensor | slice) -> Problem:
        """Select some of the examples."""
        if self.rows is not None:
            return replace(self, rows=self.rows[keep])
        return self.map(lambda a: a[keep])

    def repeated(self, count: int) -> Problem:
        """Repeat the batch."""
        return self.map(lambda a: a.repeat(count, *[1] * (a.ndim - 1)))

    def pieces(self) -> list[Problem]:
        """Split the batch into pieces that fit a CPU's cache; a GPU gets it whole.

        Tensors of this size are also too small for torch to use several threads, which would cost more than it gains in
        the many small operations of an iteration, above all on a busy CPU.
        """
        batch, number = self.belief.coordinates().shape
        size = max(1, 2**14 // (3 * number**2))
        if self.rows is not None or self.fraction.device.type != "cpu":
            size = batch
        return [self.take(slice(first, first + size)) for first in range(0, batch, size)]

    def objective(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            whole = self.belief.coordinates().detach().index_copy(0, self.rows, x)
            return self._objective(self.belief.at(whole))[self.rows]
        return self._objective(self.belief.at(x))

    def _objective(self, free: Belief) -> Tensor:
        if self.energy is None:
            return self.divergence.objective(free, self.belief, self.message, self.fraction)
        near, far = self.divergence(free, self.belief), self.energy(free, self.message)
        objective: Tensor = (1 - self.fraction) * near + self.fraction * far
        return objective

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return objective (batch,) and gradient (batch, n), detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.objective(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient.detach()

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return objective (batch,), gradient (batch, n) and Hessian (batch, n, n), detached."""
        batch, n = x.shape
        if self.rows is None and batch * n * n <= _FEW:
            # With so few entries overhead dominates: all rows at once, each from a copy of the batch.
            with torch.enable_grad():
                copies = x.detach().repeat(n, 1).requires_grad_()
                value = self.repeated(n).objective(copies)
                (gradient,) = torch.autograd.grad(value.sum(), copies, create_graph=True)
                own = gradient.reshape(n, batch, n).diagonal(dim1=0, dim2=2)
                (hessian,) = torch.autograd.grad(own.sum(), copies)
            return value[:batch].detach(), gradient[:batch].detach(), hessian.reshape(n, batch, n).transpose(0, 1)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.objective(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            # Examples are independent: one backward pass gives a row of every example's Hessian.
            rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in gradient.unbind(1)]
        return value.detach(), gradient.detach(), torch.stack(rows, dim=1)


class Solver(Protocol):
    """A numerical method for proximal steps: a :class:`CoordinateSolver`, or a faster one for the pairs that it supports."""

    def __call__(self, divergence: Divergence, belief: B, target: B, fraction: Tensor | float, /) -> Solution[B]:
        """Minimise (1 − f) D(r, belief) + f D(r, target) over beliefs r of the family."""


class CoordinateSolver(ABC):
    """Base of solvers of proximal steps of any divergence and energy over unconstrained coordinates, in float64.

    Each example of a batch is a separate problem.
    """

    splits: ClassVar[bool]
    """Whether independent coordinates are solved as separate small problems, if the objective is their sum."""

    @abstractmethod
    def minimise(self, problem: Problem) -> Search:
        """Find the lowest minimum for each example; no gradients."""

    @abstractmethod
    def attached(self, problem: Problem, x: Tensor) -> Tensor:
        """Return the minimiser ``x`` with its derivative in the problem's data, by the implicit function theorem."""

    def __call__(
        self, divergence: Divergence, belief: B, message: Any, fraction: Tensor | float, energy: Energy | None = None
    ) -> Solution[B]:
        """Minimise (1 − f) D(r, belief) + f E(r; message) over beliefs r; that is E + D/η with η = f/(1 − f).

        Args:
            divergence: D.
            belief: The belief to move, (batch, …); its coordinates must be finite.
            message: The energy's argument. With ``energy=None`` the target, a belief of the same family and shape. It
                may be at the edge of the family (a point mass, an excluded class) if the divergence to it is finite.
            fraction: f, a scalar or (batch,), in [0, 1].
            energy: E; ``None`` takes the divergence from the target.

        Raises:
            UnsupportedPairError: The value of the divergence is unknown on this family.
            ArgumentError: A value is not finite, shapes differ, or the fraction is out of range.
        """
        if energy is None or (energy.additive and divergence.additive):
            check_pair(belief, message)
        if belief.batch_size == 0:
            raise ArgumentError("a numerical step needs at least one example, got an empty batch")
        if energy is None and (parts := independent_parts(divergence, belief, message)):
            return cast(Solution[B], _together([self(d, p, q, fraction) for d, p, q in parts]))
        with_gradient = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            p = belief.map(lambda a: _usable_in_autograd(a).double())
            m = _mapped(message, lambda a: _usable_in_autograd(a).double() if a.is_floating_point() else a)
            f = _checked_fraction(fraction, p)
            _check_finite(p, m)
            adds_up = p.factorised and divergence.additive and (energy is None or energy.additive)
            split = self.splits and adds_up
            whole = energy is not None and not adds_up
            problem = Problem(divergence, p, m, f, energy, torch.arange(len(f), device=f.device) if whole else None)
            if split:
                sites = p.sites()
                repeated = f.repeat_interleave(sites.batch_size // p.batch_size)
                problem = Problem(divergence, sites, m.sites(), repeated, energy)
            with torch.no_grad():
                found = self.minimise(problem.map(Tensor.detach))
            x = found.x
            # Whether anything needs a gradient, including what a user's function holds, shows in the objective.
            if with_gradient and problem.objective(x).requires_grad:
                x = self.attached(problem, x)
            # The minimiser at f = 0 and f = 1 is known, also if it is at the edge of the family, out of reach; but at
            # f = 1 only if the energy is the divergence.
            at_end = (problem.fraction == 0) | ((problem.fraction == 1) & (energy is None))
            at_end = at_end & ~found.converged
            minimiser = cast(B, problem.belief.at(x))
            if bool(at_end.any()):
                minimiser = cast(B, _landed(at_end, problem, minimiser))
        dtype = belief.coordinates().dtype
        per_example = (belief.batch_size, -1)
        return Solution(
            (p.unsites(minimiser) if split else minimiser).map(lambda a: a.to(dtype)),
            (found.converged | at_end).reshape(per_example).all(1),
            found.iterations.reshape(per_example).amax(1),
            found.residual.masked_fill(at_end, 0).reshape(per_example).amax(1),
        )


def check_settings(tolerance: float, max_iterations: int) -> None:
    """Refuse a tolerance or a number of iterations out of range."""
    if not 0 < tolerance < 1:
        raise ArgumentError(f"tolerance must lie between 0 and 1, got {tolerance}")
    if max_iterations < 1:
        raise ArgumentError(f"max_iterations must be at least 1, got {max_iterations}")


def _mapped(message: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    return message.map(fn) if isinstance(message, Belief) else fn(message) if isinstance(message, Tensor) else message


def starts(problem: Problem) -> list[Tensor]:
    """Return starting points, (batch, number) each: the belief, the target and the best of some between them."""
    belief = problem.belief.coordinates()
    if type(problem.message) is not type(problem.belief):
        return [belief]
    target = problem.message.coordinates()
    if target.shape != belief.shape:
        return [belief]
    between = [torch.lerp(belief, target, w) for w in (0.25, 0.5, 0.75)]
    between += [
        guess.interpolate(problem.belief, problem.message, problem.fraction).coordinates()
        # Not from the closed form of the problem itself: the two serve to check each other.
        for guess in (KL(), ReverseKL())
        if guess != problem.divergence and has_closed_form(guess, problem.belief)
    ]
    candidates = torch.stack(between)
    values = torch.stack([problem.objective(x) for x in between])
    values = values.masked_fill(~(values.isfinite() & candidates.isfinite().all(2)), torch.inf)
    best = candidates[values.argmin(0), torch.arange(len(belief), device=belief.device)]
    # A target at the edge of its family has infinite coordinates, and so may all points between.
    return [belief, *(torch.where(x.isfinite().all(1, keepdim=True), x, belief) for x in (target, best))]


def _landed(at_end: Tensor, problem: Problem, minimiser: Belief) -> Belief:
    """Replace the minimiser by the belief or target itself in the examples ``at_end``, with f = 0 or f = 1."""
    take = problem.fraction == 1

    def choose(solved: Tensor, start: Tensor, end: Tensor) -> Tensor:
        end_mask, take_mask = (m.reshape(-1, *[1] * (solved.ndim - 1)) for m in (at_end, take))
        return torch.where(end_mask, torch.where(take_mask, end, start), solved)

    starts = problem.belief.tensors()
    ends = problem.message.tensors() if problem.energy is None else starts
    return minimiser.with_tensors({n: choose(a, starts[n], ends[n]) for n, a in minimiser.tensors().items()})


def _together(solutions: list[Solution[Belief]]) -> Solution[Product]:
    """Join the solutions for the parts of a product: converged if all are."""
    return Solution(
        Product(tuple(s.belief for s in solutions)),
        torch.stack([s.converged for s in solutions]).all(0),
        torch.stack([s.iterations for s in solutions]).amax(0),
        torch.stack([s.residual for s in solutions]).amax(0),
    )


def _checked_fraction(fraction: Tensor | float, belief: Belief) -> Tensor:
    """Return the fraction as float64 (batch,)."""
    f = _usable_in_autograd(torch.as_tensor(fraction, dtype=torch.float64, device=belief.coordinates().device))
    if f.ndim > 1 or (f.ndim == 1 and len(f) != belief.batch_size):
        raise ArgumentError(f"a fraction is a scalar or has shape ({belief.batch_size},), got {tuple(f.shape)}")
    if not bool(((f >= 0) & (f <= 1)).all()):
        raise ArgumentError("a fraction lies in [0, 1]; got one outside, or not a number")
    return f.expand(belief.batch_size)


def _usable_in_autograd(tensor: Tensor) -> Tensor:
    # Inference tensors do not support autograd, which the Hessian needs; their copies do.
    return tensor.clone() if tensor.is_inference() else tensor


def _check_finite(belief: Belief, message: Any) -> None:
    if not bool(belief.coordinates().isfinite().all()):
        raise ArgumentError(
            "a numerical step starts from a belief with finite coordinates: no NaN, no infinite parameter, no standard "
            "deviation of 0, no class ruled out"
        )
    # A target may have infinite coordinates (an excluded class is a logit of −∞), but it must be a distribution.
    if not isinstance(message, Belief):
        return
    if not bool(message.mean.isfinite().all()) or any(
        bool((a.isnan() | a.isposinf()).any()) for a in message.tensors().values()
    ):
        raise ArgumentError("the target of a numerical step has a parameter that is infinite or not a number")
