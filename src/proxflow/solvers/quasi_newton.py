"""L-BFGS for proximal steps with many dependent coordinates, such as images under a user's potential.

Newton's method needs the Hessian, number × number for each example; this stores a few pairs of steps and gradient
changes instead ("Numerical Optimization", Nocedal & Wright, 2006, algorithm 7.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow.solvers.problem import CoordinateSolver, Problem, Search, check_settings, starts


@dataclass(frozen=True)
class QuasiNewtonSolver(CoordinateSolver):
    """Batched L-BFGS, for events with many dependent coordinates; once differentiable potentials are enough.

    Each example has its own line search and stops by itself. As with :class:`NewtonSolver` each is solved from the
    belief, from the target if there is one, and from points between, and the lowest minimum is returned. The result is
    differentiable once by the implicit function theorem, with conjugate gradients on Hessian–vector products, which
    need a twice differentiable potential and a strict minimum (a positive definite Hessian).

    Args:
        tolerance: An example has converged when the proposed step moves no coordinate x by more than tolerance · max(1,
            |x|). Convergence is linear at worst, so the error can be several times larger.
        max_iterations: Most steps per example, ≥ 1.
        memory: Pairs kept, ≥ 1.

    Raises:
        ArgumentError: A number is out of range.
    """

    tolerance: float = 1e-8
    max_iterations: int = 500
    memory: int = 10
    splits = False

    def __post_init__(self) -> None:
        check_settings(self.tolerance, self.max_iterations)
        check_settings(self.tolerance, self.memory)

    def minimise(self, problem: Problem) -> Search:
        points = starts(problem)
        return Search.joined([self._descend(problem, x) for x in points]).lowest(len(points), self.max_iterations)

    def _descend(self, problem: Problem, x: Tensor) -> Search:
        done = Search.start(x)
        value, gradient = problem.gradient(x)
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.memory)
        moving = value.isfinite() & gradient.isfinite().all(1)  # a start with an infinite value is useless
        every = torch.arange(len(x), device=x.device)
        for iteration in range(self.max_iterations + 1):
            step = -_inverse(pairs, gradient)
            downhill = _dot(step, gradient) < 0
            step = torch.where(downhill[:, None], step, -gradient)
            residual = (step.abs() / x.abs().clamp_min(1)).amax(1)
            converged = moving & (residual <= self.tolerance)
            here = every[moving]
            done.record(here, x[here], value[here], converged[here], residual[here], iteration)
            moving = moving & ~converged
            if iteration == self.max_iterations or not bool(moving.any()):
                break
            if not pairs:  # nothing is known of the curvature yet
                step = step / step.norm(dim=1, keepdim=True).clamp_min(1)
            step = step / (step.abs() / (2 + x.abs())).amax(1, keepdim=True).clamp_min(1)
            length, new_value, new_gradient = self._line_search(problem, x, value, gradient, step, moving)
            moved = length[:, None] * step
            change = torch.where(moving[:, None], new_gradient - gradient, torch.zeros_like(gradient))
            curvature = _dot(moved, change)
            known = curvature > 1e-10 * moved.norm(dim=1) * change.norm(dim=1)
            pairs.append((moved, change, torch.where(known, 1 / curvature, torch.zeros_like(curvature))))
            x = x + moved
            value, gradient = torch.where(moving, new_value, value), gradient + change
            moving = moving & (length > 0)  # if no step decreases the objective, rounding dominates
        return done

    def _line_search(
        self, problem: Problem, x: Tensor, value: Tensor, gradient: Tensor, step: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the length of each example's step (0 if it does not move), and value and gradient at its end."""
        slope, length = _dot(gradient, step), torch.where(moving, 1.0, torch.zeros_like(value))
        rounding = 64 * torch.finfo(x.dtype).eps * value.abs()
        for _ in range(40):
            new_value, new_gradient = problem.gradient(x + length[:, None] * step)
            low = new_value <= value + 1e-4 * length * slope + rounding
            good = ~moving | (low & new_gradient.isfinite().all(1))
            if bool(good.all()):
                return length, new_value, new_gradient
            length = torch.where(good, length, length / 2)
        length = torch.where(good, length, torch.zeros_like(length))
        return length, *problem.gradient(x + length[:, None] * step)

    def attached(self, problem: Problem, x: Tensor) -> Tensor:
        """Return ``x`` minus H⁻¹∇F, which is 0 there and whose derivative is that of the minimiser."""
        free = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.objective(free).sum(), free, create_graph=True)
        fixed, at = problem.map(Tensor.detach), x.detach()

        def hessian_times(v: Tensor) -> Tensor:
            with torch.enable_grad():
                free = at.clone().requires_grad_()
                (slope,) = torch.autograd.grad(fixed.objective(free).sum(), free, create_graph=True)
                product: Tensor = torch.autograd.grad((slope * v).sum(), free)[0]
            return product.detach()

        solved: Tensor = _Solve.apply(gradient, hessian_times)  # type: ignore[no-untyped-call]
        return x.detach() - solved


class _Solve(torch.autograd.Function):
    """H⁻¹ g for a g that is 0, with its derivative in g."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, hessian_times: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.hessian_times = hessian_times
        return torch.zeros_like(gradient)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        return _conjugate_gradients(ctx.hessian_times, outputs[0]), None


def _conjugate_gradients(times: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve H y = right (batch, number) for symmetric positive definite H, example by example."""
    y, rest = torch.zeros_like(right), right
    direction, size = rest, _dot(rest, rest)
    enough = 1e-24 * size
    for _ in range(4 * right.shape[1]):
        if bool((size <= enough).all()):
            break
        product = times(direction)
        bend = _dot(direction, product)
        going = (size > enough) & (bend > 0)
        length = torch.where(going, size / torch.where(going, bend, torch.ones_like(bend)), torch.zeros_like(size))
        y, rest = y + length[:, None] * direction, rest - length[:, None] * product
        new = _dot(rest, rest)
        turn = torch.where(going, new / torch.where(size > 0, size, torch.ones_like(size)), torch.zeros_like(size))
        direction, size = rest + turn[:, None] * direction, new
    return y


def _inverse(pairs: deque[tuple[Tensor, Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """Apply the inverse Hessian of the pairs (step, change of gradient, 1/curvature) to the gradient."""
    shares = []
    rest = gradient
    for step, change, share in reversed(pairs):
        part = share * _dot(step, rest)
        shares.append(part)
        rest = rest - part[:, None] * change
    scale = torch.ones_like(gradient[:, 0])
    for _, change, share in pairs:  # the newest valid pair
        scale = torch.where(share > 0, 1 / (share * _dot(change, change)).clamp_min(1e-300), scale)
    rest = scale[:, None] * rest
    for (step, change, share), part in zip(pairs, reversed(shares), strict=True):
        rest = rest + (part - share * _dot(change, rest))[:, None] * step
    return rest


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
