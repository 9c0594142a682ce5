"""Numerical proximal steps, for geometries and families without a closed form.

    x* = argmin_x  F(x) = (1 − f) D(r(x), belief) + f D(r(x), target)

over the unconstrained coordinates x of a belief r(x), by Newton's method with exact Hessians. Examples are independent
problems, solved side by side in float64; each stops moving once it has converged. Where the divergence adds up over
independent coordinates, each coordinate of each event is a small problem of its own: a Hessian of 2 × 2 for a Gaussian
image instead of one of 6144 × 6144.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from proxflow.beliefs import Belief, Product
from proxflow.divergences import KL, Divergence, ReverseKL, has_closed_form
from proxflow.divergences.base import check_pair, independent_parts
from proxflow.errors import ArgumentError, ConvergenceError

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True, eq=False)
class Solution(Generic[B]):
    """Result of a numerical step.

    Args:
        belief: The minimiser, in the precision of the input; of examples that did not converge, the best point met.
        converged: Which examples converged, bool (batch,).
        iterations: Newton steps tried for each example (its slowest coordinate), int64 (batch,).
        residual: Largest relative move of a coordinate that a further Newton step asked for, float64 (batch,); the last
            one below the tolerance is carried out as well.
    """

    belief: B
    converged: Tensor
    iterations: Tensor
    residual: Tensor

    def belief_or_raise(self) -> B:
        """The minimiser.

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


class Solver(Protocol):
    """What minimises a proximal step numerically: :class:`NewtonSolver`, or a faster method for the pairs it knows."""

    def __call__(self, divergence: Divergence, belief: B, target: B, fraction: Tensor | float) -> Solution[B]:
        """Minimise (1 − f) D(r, belief) + f D(r, target) over beliefs r of the family."""


@dataclass(frozen=True)
class NewtonSolver:
    """Damped Newton method on the barycentric proximal step, for every divergence whose value is known.

    Negative curvature is mirrored (Dauphin et al., 1406.2572) and steps are damped as by Levenberg and Marquardt, so that
    each lowers the objective. Some objectives have several minima (affinities of Gaussians far apart, one minimum near
    each): each problem starts at the belief, at the target and between them, and the lowest minimum found is returned.

    The result is differentiable once with respect to belief, target and fraction, by the implicit function theorem: memory
    does not grow with the number of iterations.

    Args:
        tolerance: An example has converged when a Newton step moves no coordinate x by more than tolerance · max(1, |x|).
            That step is carried out, and since convergence is quadratic its own error is far smaller.
        max_iterations: Newton steps after which an example is given up, ≥ 1.

    Raises:
        ArgumentError: ``tolerance`` is not in (0, 1), or ``max_iterations`` not positive.
    """

    tolerance: float = 1e-8
    max_iterations: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ArgumentError(f"tolerance must lie between 0 and 1, got {self.tolerance}")
        if self.max_iterations < 1:
            raise ArgumentError(f"max_iterations must be at least 1, got {self.max_iterations}")

    def __call__(self, divergence: Divergence, belief: B, target: B, fraction: Tensor | float) -> Solution[B]:
        """Minimise (1 − f) D(r, belief) + f D(r, target) over beliefs r.

        Args:
            divergence: D.
            belief: The belief to move, (batch, …); its coordinates must be finite.
            target: Where to, a belief of the same family and shape. It may lie at the edge of the family (a point mass,
                a class ruled out) where the divergence to it is finite.
            fraction: A scalar or (batch,), in [0, 1].

        Raises:
            UnsupportedPairError: The value of the divergence is not known on this family.
            ArgumentError: Something is not finite, shapes differ, or the fraction is out of range.
        """
        check_pair(belief, target)
        if belief.batch_size == 0:
            raise ArgumentError("a numerical step needs at least one example, got an empty batch")
        if parts := independent_parts(divergence, belief, target):
            return cast(Solution[B], _together([self(divergence, p, q, fraction) for p, q in parts]))
        with_gradient = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradient):
            p, q = (b.map(lambda a: _usable_in_autograd(a).double()) for b in (belief, target))
            f = _checked_fraction(fraction, p)
            _check_finite(p, q)
            split = p.factorised and divergence.additive
            problem = _Problem(divergence, p, q, f)
            if split:
                sites = p.sites()
                repeated = f.repeat_interleave(sites.batch_size // p.batch_size)
                problem = _Problem(divergence, sites, q.sites(), repeated)
            found = self._search(problem)
            x = found.x
            if with_gradient:
                x = _attached(problem, x)
            # The minimiser at f = 0 and f = 1 is known, also where it lies at the edge of the family, out of Newton's reach.
            at_end = ((problem.fraction == 0) | (problem.fraction == 1)) & ~found.converged
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

    def _search(self, problem: _Problem) -> _Search:
        """The lowest minimum met from several starts, for each example."""
        with torch.no_grad():
            problem = problem.map(torch.Tensor.detach)
            pieces = problem.pieces()
            if len(pieces) > 1:
                return _Search.joined([self._search(piece) for piece in pieces])
            starts = _starts(problem)
            count, batch = len(starts), problem.belief.batch_size
            found = self._descend(problem.map(lambda a: a.repeat(count, *[1] * (a.ndim - 1))), torch.cat(starts))
            by_start = found.map(lambda a: a.reshape(count, batch, *a.shape[1:]))
            lowest = by_start.value.amin(0)
            # Of runs that tie but for rounding, the converged one that needed fewest steps.
            tied = by_start.value <= lowest + 1e-12 * lowest.abs() + torch.finfo(lowest.dtype).tiny
            merit = torch.where(by_start.converged, self.max_iterations + 2 - by_start.iterations, 1)
            best = (merit * tied).argmax(0)
            return by_start.map(lambda a: a[best, torch.arange(batch, device=a.device)])

    def _descend(self, problem: _Problem, x: Tensor) -> _Search:
        """Minimise every example from its start ``x`` (batch, number), each for as long as it needs."""
        done = _Search.start(x)
        value, gradient, hessian = problem.derivatives(x)
        state = _State(
            torch.arange(len(x), device=x.device),
            x,
            value,
            gradient,
            hessian,
            damping=torch.zeros_like(value),
            stretch=torch.ones_like(value),
            reach=problem.reach(),
        )
        keep = state.usable()  # a start with an infinite value leads nowhere
        for iteration in range(self.max_iterations + 1):
            if not bool(keep.all()):
                problem, state = problem.take(keep), state.take(keep)
            if len(state.index) == 0:
                break
            axes = _Axes.of(state.hessian)
            newton = axes.step(state.gradient)
            residual = (newton.abs() / state.x.abs().clamp_min(1)).amax(1)
            converged = axes.convex & (residual <= self.tolerance)
            x = torch.where(converged[:, None], state.x + newton, state.x)
            done.record(state.index, x, state.value, converged, residual, iteration)
            keep = ~converged
            if iteration < self.max_iterations:
                state = _advance(problem, state, axes)
        return done


def _advance(problem: _Problem, state: _State, axes: _Axes) -> _State:
    """Try one damped step for every example; those whose objective it does not lower stay and damp more."""
    x, value, gradient, hessian = state.x, state.value, state.gradient, state.hessian
    step = axes.step(gradient, state.damping, state.stretch)
    step = step / (step.abs() / state.reach).amax(1, keepdim=True).clamp_min(1)
    trial = state.at(x + step, *problem.derivatives(x + step))
    predicted = -(gradient * step).sum(1) - 0.5 * (step * _applied(hessian, step)).sum(1)
    rounding = 64 * torch.finfo(x.dtype).eps * value.abs()
    drop = value - trial.value
    accepted = trial.usable() & (drop >= 1e-4 * predicted.clamp_min(0) - rounding)
    good = accepted & (drop >= 0.5 * predicted - rounding)
    harder = torch.where(state.stretch > 1, state.damping, (10 * state.damping).clamp_min(0.1))
    damping = torch.where(good, state.damping / 10, torch.where(accepted, state.damping, harder))
    # Along negative curvature a quadratic model has no minimum to tell a length from: double it while that works.
    stretch = torch.where(good & ~axes.convex, 2 * state.stretch, torch.ones_like(drop))

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return replace(
        state,
        x=choose(trial.x, x),
        value=choose(trial.value, value),
        gradient=choose(trial.gradient, gradient),
        hessian=choose(trial.hessian, hessian),
        damping=damping.masked_fill(damping < 1e-3, 0),
        stretch=stretch,
    )


@dataclass(frozen=True)
class _State:
    """The examples still moving, batch first: their number in the whole batch, the point and what is known there."""

    index: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    hessian: Tensor
    damping: Tensor
    stretch: Tensor
    reach: Tensor

    def take(self, keep: Tensor) -> _State:
        return _State(*(getattr(self, f.name)[keep] for f in fields(self)))

    def at(self, x: Tensor, value: Tensor, gradient: Tensor, hessian: Tensor) -> _State:
        return replace(self, x=x, value=value, gradient=gradient, hessian=hessian)

    def usable(self) -> Tensor:
        derivatives = self.gradient.isfinite().all(1) & self.hessian.isfinite().flatten(1).all(1)
        return self.value.isfinite() & derivatives


@dataclass(frozen=True)
class _Search:
    """Where each example stands: point (batch, number), objective, and how it went, (batch,) each."""

    x: Tensor
    value: Tensor
    converged: Tensor
    iterations: Tensor
    residual: Tensor

    @classmethod
    def start(cls, x: Tensor) -> _Search:
        infinite = torch.full_like(x[:, 0], torch.inf)
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(x.clone(), infinite.clone(), none.bool(), none, infinite)

    @classmethod
    def joined(cls, parts: list[_Search]) -> _Search:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Search:
        return _Search(*(fn(getattr(self, f.name)) for f in fields(self)))

    def record(
        self, index: Tensor, x: Tensor, value: Tensor, converged: Tensor, residual: Tensor, iteration: int
    ) -> None:
        """Write down, in place, where the examples ``index`` stand."""
        self.x[index], self.value[index], self.converged[index], self.residual[index] = x, value, converged, residual
        self.iterations[index] = iteration


@dataclass(frozen=True)
class _Problem:
    """A batch of independent minimisations over coordinates x (batch, number)."""

    divergence: Divergence
    belief: Belief
    target: Belief
    fraction: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Problem:
        return _Problem(self.divergence, self.belief.map(fn), self.target.map(fn), fn(self.fraction))

    def reach(self) -> Tensor:
        """How far one step may move each coordinate, (batch, number): about the way from belief to target.

        Without it, one step along a direction of almost no curvature can end where the objective is flat for good.
        """
        return 2 + (self.belief.coordinates() - self.target.coordinates()).abs().nan_to_num(0, 0)

    def take(self, keep: Tensor | slice) -> _Problem:
        return self.map(lambda a: a[keep])

    def pieces(self) -> list[_Problem]:
        """The batch in pieces that fit a processor's cache; an accelerator takes it whole.

        Tensors of this size are also too small for torch to share out over threads, which costs more than it gives in the
        many small operations of an iteration, and very much where other work keeps the processor busy.
        """
        batch, number = self.belief.coordinates().shape
        size = max(1, 2**14 // (3 * number**2)) if self.fraction.device.type == "cpu" else batch
        return [self.take(slice(first, first + size)) for first in range(0, batch, size)]

    def objective(self, x: Tensor) -> Tensor:
        return self.divergence.objective(self.belief.at(x), self.belief, self.target, self.fraction)

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective (batch,), gradient (batch, n) and Hessian (batch, n, n), detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.objective(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            # Examples do not see each other: one backward pass gives a row of every example's Hessian.
            rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in gradient.unbind(1)]
        return value.detach(), gradient.detach(), torch.stack(rows, dim=1)


@dataclass(frozen=True)
class _Axes:
    """Eigenvectors and curvatures of Hessians whose diagonals are scaled to ±1."""

    scale: Tensor
    curvature: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> _Axes:
        diagonal = hessian.diagonal(dim1=1, dim2=2).abs().sqrt()
        scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))
        scaled = hessian / scale[:, :, None] / scale[:, None, :]
        return cls(scale, *(_eigh_of_pairs(scaled) if scaled.shape[1] == 2 else torch.linalg.eigh(scaled)))

    @property
    def convex(self) -> Tensor:
        return self.curvature.amin(1) > 1e-12

    def step(self, gradient: Tensor, damping: Tensor | None = None, stretch: Tensor | None = None) -> Tensor:
        """Newton step −|H|⁻¹ g (batch, n), linear in the gradient."""
        curvature = self.curvature.abs().clamp_min(1e-12)
        if stretch is not None:
            curvature = torch.where(self.curvature < -1e-6, curvature / stretch[:, None], curvature)
        if damping is not None:
            curvature = curvature + damping[:, None]
        along = _applied(self.vectors.mT, gradient / self.scale) / curvature
        return -_applied(self.vectors, along) / self.scale


def _eigh_of_pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, smaller first, and eigenvectors of symmetric matrices (batch, 2, 2), by Jacobi's rotation."""
    a, b, c = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 1]
    middle, half = (a + c) / 2, (a - c) / 2
    radius, angle = torch.hypot(half, b), torch.atan2(b, half) / 2
    cos, sin = angle.cos(), angle.sin()
    vectors = torch.stack([torch.stack([-sin, cos], dim=1), torch.stack([cos, sin], dim=1)], dim=2)
    return torch.stack([middle - radius, middle + radius], dim=1), vectors


def _applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (batch, n, n) times vectors (batch, n): in the open, as a library's product starts threads for each."""
    return (matrix * vector[:, None, :]).sum(2)


def _attached(problem: _Problem, x: Tensor) -> Tensor:
    """``x`` with the derivative of the minimiser: one more Newton step, whose gradient depends on the problem's data.

    At the minimum dx = −H⁻¹ ∂(∇F), which is the derivative of x − H⁻¹∇F with H and x held constant.
    """
    inputs = [problem.fraction, *problem.belief.tensors().values(), *problem.target.tensors().values()]
    if not any(a.requires_grad for a in inputs):
        return x
    _, _, hessian = problem.map(torch.Tensor.detach).derivatives(x)
    free = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.objective(free).sum(), free, create_graph=True)
    return x + _Axes.of(hessian.nan_to_num()).step(gradient)


def _starts(problem: _Problem) -> list[Tensor]:
    """The belief, the target, and the best of some points between them, (batch, number) each."""
    belief, target = problem.belief.coordinates(), problem.target.coordinates()
    between = [torch.lerp(belief, target, w) for w in (0.25, 0.5, 0.75)]
    between += [
        guess.interpolate(problem.belief, problem.target, problem.fraction).coordinates()
        # Not with the closed form of the problem itself: the two are there to check each other.
        for guess in (KL(), ReverseKL())
        if guess != problem.divergence and has_closed_form(guess, problem.belief)
    ]
    candidates = torch.stack(between)
    values = torch.stack([problem.objective(x) for x in between])
    values = values.masked_fill(~(values.isfinite() & candidates.isfinite().all(2)), torch.inf)
    best = candidates[values.argmin(0), torch.arange(len(belief), device=belief.device)]
    # A target at the edge of its family has infinite coordinates, and so may all that lies between.
    return [belief, *(torch.where(x.isfinite().all(1, keepdim=True), x, belief) for x in (target, best))]


def _landed(at_end: Tensor, problem: _Problem, minimiser: Belief) -> Belief:
    """``minimiser``, but the belief or target itself in the examples ``at_end``, with f = 0 or f = 1."""
    take = problem.fraction == 1

    def choose(solved: Tensor, start: Tensor, end: Tensor) -> Tensor:
        end_mask, take_mask = (m.reshape(-1, *[1] * (solved.ndim - 1)) for m in (at_end, take))
        return torch.where(end_mask, torch.where(take_mask, end, start), solved)

    starts, ends = problem.belief.tensors(), problem.target.tensors()
    return minimiser.with_tensors({n: choose(a, starts[n], ends[n]) for n, a in minimiser.tensors().items()})


def _together(solutions: list[Solution[Belief]]) -> Solution[Product]:
    """The solution for a product from those for its parts: done when all are."""
    return Solution(
        Product(tuple(s.belief for s in solutions)),
        torch.stack([s.converged for s in solutions]).all(0),
        torch.stack([s.iterations for s in solutions]).amax(0),
        torch.stack([s.residual for s in solutions]).amax(0),
    )


def _checked_fraction(fraction: Tensor | float, belief: Belief) -> Tensor:
    """The fraction as float64 (batch,)."""
    f = _usable_in_autograd(torch.as_tensor(fraction, dtype=torch.float64, device=belief.coordinates().device))
    if f.ndim > 1 or (f.ndim == 1 and len(f) != belief.batch_size):
        raise ArgumentError(f"a fraction is a scalar or has shape ({belief.batch_size},), got {tuple(f.shape)}")
    if not bool(((f >= 0) & (f <= 1)).all()):
        raise ArgumentError("a fraction lies in [0, 1]; got one outside, or not a number")
    return f.expand(belief.batch_size)


def _usable_in_autograd(tensor: Tensor) -> Tensor:
    # Inference tensors cannot take part in autograd, which the Hessian needs; their copies can.
    return tensor.clone() if tensor.is_inference() else tensor


def _check_finite(belief: Belief, target: Belief) -> None:
    if not bool(belief.coordinates().isfinite().all()):
        raise ArgumentError(
            "a numerical step starts from a belief with finite coordinates: no NaN, no infinite parameter, no standard "
            "deviation of 0, no class ruled out"
        )
    # A target may have infinite coordinates (a ruled-out class is a logit of −∞), but it must be a distribution.
    if not bool(target.mean.isfinite().all()) or any(
        bool((a.isnan() | a.isposinf()).any()) for a in target.tensors().values()
    ):
        raise ArgumentError("the target of a numerical step has a parameter that is infinite or not a number")
