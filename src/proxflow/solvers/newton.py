"""Newton's method for proximal steps.

    x* = argmin_x  F(x) = (1 − f) D(r(x), belief) + f E(r(x); message)

over the unconstrained coordinates x of a belief r(x), with exact Hessians. Examples are independent problems, solved in
parallel in float64; each stops once it has converged. If the objective is a sum over independent coordinates, each
coordinate of each event is a separate small problem: a Hessian of 2 × 2 for a Gaussian image instead of 6144 × 6144.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proxflow.solvers.problem import CoordinateSolver, Problem, Rows, Search, check_settings, starts


@dataclass(frozen=True)
class NewtonSolver(CoordinateSolver):
    """Damped Newton method for the proximal step of every divergence and energy with a known value.

    Negative curvature is reflected ("Identifying and Attacking the Saddle Point Problem in High-Dimensional Non-Convex
    Optimization", Dauphin et al., 2014, arXiv 1406.2572) and steps are damped as in Levenberg–Marquardt, so that each
    lowers the objective. Some objectives have several minima (affinities of distant Gaussians, one minimum near each):
    each problem is solved from the belief, from the target and from points between, and the lowest minimum is returned.

    The result is differentiable once with respect to belief, target and fraction, by the implicit function theorem: memory
    does not grow with the number of iterations.

    Args:
        tolerance: An example has converged when a Newton step moves no coordinate x by more than tolerance · max(1,
            |x|). That step is still taken, and since convergence is quadratic the remaining error is far smaller.
        max_iterations: Most Newton steps per example, ≥ 1.

    Raises:
        ArgumentError: ``tolerance`` is not in (0, 1), or ``max_iterations`` not positive.
    """

    tolerance: float = 1e-8
    max_iterations: int = 100
    splits = True

    def __post_init__(self) -> None:
        check_settings(self.tolerance, self.max_iterations)

    def minimise(self, problem: Problem) -> Search:
        """Find the lowest minimum from several starts, for each example."""
        pieces = problem.pieces()
        if len(pieces) > 1:
            return Search.joined([self.minimise(piece) for piece in pieces])
        points = starts(problem)
        count = len(points)
        if problem.rows is None:
            found = self._descend(problem.repeated(count), torch.cat(points))
        else:
            found = Search.joined([self._descend(problem, x) for x in points])
        return found.lowest(count, self.max_iterations)

    def _descend(self, problem: Problem, x: Tensor) -> Search:
        """Minimise every example from its start ``x`` (batch, number), each until it converges."""
        done = Search.start(x)
        value, gradient, hessian = problem.derivatives(x)
        state = _State(
            torch.arange(len(x), device=x.device),
            x,
            value,
            gradient,
            hessian,
            damping=torch.zeros_like(value),
            stretch=torch.ones_like(value),
            reach=problem.reach(x),
        )
        keep = state.usable()  # a start with an infinite value is useless
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

    def attached(self, problem: Problem, x: Tensor) -> Tensor:
        """Take one more Newton step, whose gradient depends on the problem's data.

        At the minimum dx = −H⁻¹ ∂(∇F), which is the derivative of x − H⁻¹∇F with H and x held constant.
        """
        _, _, hessian = problem.map(Tensor.detach).derivatives(x)
        free = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.objective(free).sum(), free, create_graph=True)
        return x + _Axes.of(hessian.nan_to_num()).step(gradient)


def _advance(problem: Problem, state: _State, axes: _Axes) -> _State:
    """Try one damped step for every example; those whose objective does not decrease stay and increase the damping."""
    x, value, gradient, hessian = state.x, state.value, state.gradient, state.hessian
    step = axes.step(gradient, state.damping, state.stretch)
    # Without a target as a scale, a step may be as long as the distance covered so far.
    reach = state.reach if problem.rows is None else problem.reach(x)
    step = step / (step.abs() / reach).amax(1, keepdim=True).clamp_min(1)
    trial = state.at(x + step, *problem.derivatives(x + step))
    predicted = -(gradient * step).sum(1) - 0.5 * (step * _applied(hessian, step)).sum(1)
    rounding = 64 * torch.finfo(x.dtype).eps * value.abs()
    drop = value - trial.value
    accepted = trial.usable() & (drop >= 1e-4 * predicted.clamp_min(0) - rounding)
    good = accepted & (drop >= 0.5 * predicted - rounding)
    harder = torch.where(state.stretch > 1, state.damping, (10 * state.damping).clamp_min(0.1))
    damping = torch.where(good, state.damping / 10, torch.where(accepted, state.damping, harder))
    # Along negative curvature a quadratic model has no minimum to give a length: double it while that works.
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
class _State(Rows):
    """The unfinished examples, batch first: their indices in the whole batch, their points and derivatives."""

    index: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    hessian: Tensor
    damping: Tensor
    stretch: Tensor
    reach: Tensor

    def at(self, x: Tensor, value: Tensor, gradient: Tensor, hessian: Tensor) -> _State:
        return replace(self, x=x, value=value, gradient=gradient, hessian=hessian)

    def usable(self) -> Tensor:
        derivatives = self.gradient.isfinite().all(1) & self.hessian.isfinite().flatten(1).all(1)
        return self.value.isfinite() & derivatives


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
        """Return the Newton step −|H|⁻¹ g (batch, n), linear in the gradient."""
        curvature = self.curvature.abs().clamp_min(1e-12)
        if stretch is not None:
            curvature = torch.where(self.curvature < -1e-6, curvature / stretch[:, None], curvature)
        if damping is not None:
            curvature = curvature + damping[:, None]
        along = _applied(self.vectors.mT, gradient / self.scale) / curvature
        return -_applied(self.vectors, along) / self.scale


def _eigh_of_pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, smaller first, and eigenvectors of symmetric matrices (batch, 2, 2), by Jacobi's rotation."""
    a, b, c = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 1]
    middle, half = (a + c) / 2, (a - c) / 2
    radius, angle = torch.hypot(half, b), torch.atan2(b, half) / 2
    cos, sin = angle.cos(), angle.sin()
    vectors = torch.stack([torch.stack([-sin, cos], dim=1), torch.stack([cos, sin], dim=1)], dim=2)
    return torch.stack([middle - radius, middle + radius], dim=1), vectors


def _applied(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply matrices (batch, n, n) by vectors (batch, n), elementwise: a batched product would start threads for each."""
    return (matrix * vector[:, None, :]).sum(2)
