"""Rényi steps between Gaussians by their moment equations, for orders between 0 and 1: much faster than the general solver.

For r free in an exponential family with statistics T, the gradient of log ∫ r^α q^{1−α} in r's natural parameters is α
(E_s[T] − E_r[T]) with s ∝ r^α q^{1−α}. So r minimises Σ_i f_i D_α(r ‖ q_i) if its moments are those of the mixture of
the s_i:

    E_r[T] = Σ_i f_i E_{s_i}[T],      s_i ∝ r^α q_i^{1−α}.

Taking the right side as the next r is the EM algorithm of the bound

    log ∫ r^α q^{1−α} ≥ E_s[α log r + (1 − α) log q] + H(s),

so it never raises the objective. For Gaussian coordinates the equations are two, in mean and logarithm of the
precision, and Newton's method solves them; if a Newton step would raise the objective, an extended EM step replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from proxflow._math import over_events
from proxflow.beliefs import Belief, DiagonalGaussian
from proxflow.divergences import Divergence, FisherRao, Renyi
from proxflow.divergences.base import check_pair
from proxflow.errors import UnsupportedPairError
from proxflow.solvers import Solution
from proxflow.solvers.problem import Rows, check_settings

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True)
class MomentSolver:
    """Solver of the step of ``Renyi(order)``, 0 < order < 1, on :class:`DiagonalGaussian`, in the precision of the belief.

    The objective can have two minima, one near the belief and one near the target, and which of them is lower changes
    near the fraction 1 − order: each coordinate is solved from the belief and from the Fisher–Rao step (the target,
    past that fraction), and the lower minimum is returned. The result is not differentiable, unlike that of
    :class:`~proxflow.solvers.NewtonSolver`.

    Args:
        tolerance: A coordinate has converged when both sides of its equations differ by less, in units of its own
            standard deviation and as logarithm of the precision; at least 64 rounding errors.
        max_iterations: Most steps per example, ≥ 1. Converged coordinates are removed after each.

    Raises:
        ArgumentError: ``tolerance`` is not in (0, 1), or ``max_iterations`` not positive.
    """

    tolerance: float = 1e-10
    max_iterations: int = 200

    def __post_init__(self) -> None:
        check_settings(self.tolerance, self.max_iterations)

    @torch.no_grad()
    def __call__(self, divergence: Divergence, belief: B, target: B, fraction: Tensor | float) -> Solution[B]:
        """Minimise (1 − f) D(r, belief) + f D(r, target) over beliefs r.

        Args:
            divergence: ``Renyi(order)`` with an order below 1.
            belief: The belief to move.
            target: The target.
            fraction: A scalar or (batch,), in [0, 1].

        Raises:
            UnsupportedPairError: The divergence or family differs.
        """
        check_pair(belief, target)
        if not (
            isinstance(divergence, Renyi)
            and divergence.order < 1
            and isinstance(belief, DiagonalGaussian)
            and isinstance(target, DiagonalGaussian)
        ):
            raise UnsupportedPairError(
                f"MomentSolver solves Renyi of an order below 1 on DiagonalGaussian, got {divergence} on "
                f"{type(belief).__name__}: take NewtonSolver()"
            )
        f = over_events(fraction, belief.mean).expand(belief.mean.shape)
        between = FisherRao().interpolate(belief, target, fraction)
        # In units of the belief: it is N(0, 1), and the target N(shift, 1/precision).
        shift = (target.mean - belief.mean) / belief.std
        precision = (belief.std / target.std).square()
        early = f < 1 - divergence.order
        starts = (
            (torch.zeros_like(shift), torch.zeros_like(shift)),
            (
                torch.where(early, (between.mean - belief.mean) / belief.std, shift),
                torch.where(early, 2 * (belief.std / between.std).log(), precision.log()),
            ),
        )
        equations = _Equations(*(a.reshape(1, -1).expand(len(starts), -1).flatten() for a in (f, shift, precision)))
        mean, log_precision = (torch.stack(parts).reshape(-1) for parts in zip(*starts, strict=True))
        found = self._solve(divergence.order, equations, mean, log_precision)
        value, *others = (a.reshape(len(starts), -1) for a in found)
        best = value.nan_to_num(torch.inf, torch.inf).argmin(0, keepdim=True)
        mean, log_precision, residual, iterations = (a.gather(0, best).reshape(f.shape) for a in others)
        end = f == 1
        moved = DiagonalGaussian(
            torch.where(end, target.mean, belief.mean + belief.std * mean),
            torch.where(end, target.std, belief.std * (-log_precision / 2).exp()),
        )
        residual = torch.where(end, 0, residual).flatten(1)
        return Solution(
            moved,  # type: ignore[arg-type]
            (residual <= self._tolerance(residual)).all(1),
            iterations.flatten(1).amax(1),
            residual.amax(1).double(),
        )

    def _tolerance(self, like: Tensor) -> float:
        return max(self.tolerance, 64 * torch.finfo(like.dtype).eps)

    def _solve(
        self, order: float, equations: _Equations, mean: Tensor, log_precision: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Find objective, mean, logarithm of the precision, residual and number of steps of each problem, (number,)."""
        result = tuple(torch.full_like(mean, torch.inf) for _ in range(4))
        iterations = torch.zeros_like(mean, dtype=torch.int64)
        index = torch.arange(len(mean), device=mean.device)
        newton, stretch = torch.ones_like(mean, dtype=torch.bool), torch.ones_like(mean)
        tolerance, slack = self._tolerance(mean), 64 * torch.finfo(mean.dtype).eps
        value = equations.objective(order, mean, log_precision)
        for iteration in range(self.max_iterations + 1):
            at = equations.at(order, mean, log_precision)
            for kept, now in zip(result, (value, mean, log_precision, at.residual), strict=True):
                kept[index] = now
            iterations[index] = iteration
            moving = at.residual > tolerance
            if not bool(moving.all()):
                equations, at = equations.take(moving), at.take(moving)
                index, mean, log_precision, value = index[moving], mean[moving], log_precision[moving], value[moving]
                newton, stretch = newton[moving], stretch[moving]
            if len(index) == 0:
                break
            step_mean = torch.where(newton, at.newton_mean, stretch * at.mean)
            step_log = torch.where(newton, at.newton_log, stretch * at.log_precision)
            length = (step_log.abs() / 3).clamp_min(1)  # no further than e³ at a time
            new_mean, new_log = mean + step_mean / length, log_precision + step_log / length
            new_value = equations.objective(order, new_mean, new_log)
            accepted = new_value <= value + slack * (1 + value.abs())  # false if a step is NaN
            stretch = torch.where(newton, stretch, torch.where(accepted, 2 * stretch, torch.ones_like(stretch)))
            newton = accepted
            mean, log_precision = torch.where(accepted, new_mean, mean), torch.where(accepted, new_log, log_precision)
            value = torch.where(accepted, new_value, value)
        return (*result, iterations)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Point(Rows):
    """The equations at a point: the EM step, the Newton step, and the residual."""

    mean: Tensor
    log_precision: Tensor
    newton_mean: Tensor
    newton_log: Tensor
    residual: Tensor


@dataclass(frozen=True)
class _Equations(Rows):
    """Independent problems in one coordinate each: from N(0, 1) toward N(shift, 1/precision) by ``fraction``."""

    fraction: Tensor
    shift: Tensor
    precision: Tensor

    def objective(self, order: float, mean: Tensor, log_precision: Tensor) -> Tensor:
        """Compute Σ_i f_i D_α(r ‖ q_i) in nats."""

        def value(gap: Tensor, log_q: Tensor | float, q: Tensor | float) -> Tensor:
            r = log_precision.exp()
            mixed = order * r + (1 - order) * q
            spread = mixed.log() - order * log_precision - (1 - order) * log_q
            return (spread / (1 - order) + order * r * q * gap.square() / mixed) / 2

        near = value(mean, 0.0, 1.0)
        far = value(mean - self.shift, self.precision.log(), self.precision)
        return (1 - self.fraction) * near + self.fraction * far

    def at(self, order: float, mean: Tensor, log_precision: Tensor) -> _Point:
        """Return the steps of EM and Newton from a point."""
        f, precision = self.fraction, log_precision.exp()
        own = order * precision
        total0, total1 = own + (1 - order), own + (1 - order) * self.precision
        # Means of s₀ and s₁; those of the mixture's moments.
        mean0, mean1 = own * mean / total0, (own * mean + (1 - order) * self.precision * self.shift) / total1
        gap = mean1 - mean0
        mixed_mean = mean0 + f * gap
        variance = (1 - f) / total0 + f / total1 + f * (1 - f) * gap.square()
        to_mean, to_log = mixed_mean - mean, -variance.log() - log_precision
        # Derivatives of both in mean and logarithm of the precision.
        mean_by_mean = own * ((1 - f) / total0 + f / total1) - 1
        mean0_by_log, mean1_by_log = own * (mean - mean0) / total0, own * (mean - mean1) / total1
        mean_by_log = (1 - f) * mean0_by_log + f * mean1_by_log
        spread = 2 * f * (1 - f) * gap
        log_by_mean = -spread * own * (1 / total1 - 1 / total0) / variance
        narrower = own * ((1 - f) / total0.square() + f / total1.square())
        log_by_log = (narrower - spread * (mean1_by_log - mean0_by_log)) / variance - 1
        determinant = mean_by_mean * log_by_log - mean_by_log * log_by_mean
        return _Point(
            to_mean,
            to_log,
            (mean_by_log * to_log - log_by_log * to_mean) / determinant,
            (log_by_mean * to_mean - mean_by_mean * to_log) / determinant,
            torch.maximum(to_mean.abs() * precision.sqrt(), to_log.abs()),
        )
