"""The proximal step of a belief.

    p' = argmin_p  E(p; message) + D(p, belief)/η = argmin_p  (1 − f) D(p, belief) + f E(p; message),   η = f/(1 − f)

With the barycentric energy E = D(·, message) this is (1 − f) D(p, belief) + f D(p, message): "General Proximal Flow
Networks" (Strunk & Assam, 2026), arXiv 2603.00751. Known elsewhere as a JKO step (with Wasserstein-2), a mirror descent step
(with KL) or a backward Euler step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from proxflow.beliefs import Belief
from proxflow.divergences import Divergence, mixed_step
from proxflow.energies import Energy, TargetEnergy
from proxflow.errors import ArgumentError, UnsupportedPairError
from proxflow.solvers import CoordinateSolver, Solver

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True)
class Proximal:
    """The proximal operator of a divergence and an energy.

    Args:
        divergence: D, which keeps the new belief near the old one.
        solver: ``None`` takes the closed form and refuses pairs without one; a solver minimises numerically. Solvers
            are never chosen silently, since they make sampling slower.
        energy: E, which pulls the belief; ``None`` is D(·, message), for which most closed forms are known.
    """

    divergence: Divergence
    solver: Solver | None = None
    energy: Energy | None = None

    def __call__(self, belief: B, message: Any, fraction: Tensor | float) -> B:
        """Move ``belief`` by ``fraction`` f, a scalar or (batch,) in [0, 1]; the step size is f/(1 − f).

        Args:
            belief: Where the step starts.
            message: The energy's argument: for barycentric energies the target belief.
            fraction: f, the step size η = f/(1 − f). With f = 1 only the energy is minimised.

        Raises:
            ArgumentError: A number outside [0, 1] as the fraction.
            UnsupportedPairError: No closed form is known and no solver was given.
            ConvergenceError: The solver did not converge for some example.
        """
        if not isinstance(fraction, Tensor) and not 0 <= fraction <= 1:
            raise ArgumentError(f"a proximal step goes a fraction in [0, 1] of the way, got {fraction}")
        energy = self.energy
        if isinstance(energy, TargetEnergy) and energy.divergence == self.divergence and self.divergence.barycentric:
            energy = None
        if self.solver is not None and energy is None:
            solved: B = self.solver(self.divergence, belief, message, fraction).belief_or_raise()
            return solved
        if isinstance(self.solver, CoordinateSolver):
            return self.solver(self.divergence, belief, message, fraction, energy).belief_or_raise()
        if self.solver is not None:
            raise UnsupportedPairError(
                f"{type(self.solver).__name__} solves steps toward a target alone: for the energy {energy} take "
                "NewtonSolver() or QuasiNewtonSolver()"
            )
        if energy is None:
            moved: B = self.divergence.interpolate(belief, message, fraction)
            return moved
        if isinstance(energy, TargetEnergy):
            mixed: B = mixed_step(self.divergence, energy.divergence, belief, message, fraction)
            return mixed
        raise UnsupportedPairError(
            f"no closed form is known for a step with {self.divergence} and the energy {energy}; closed forms are known for "
            "TargetEnergy alone. A solver takes any energy: Proximal(…, solver=NewtonSolver()), or QuasiNewtonSolver() "
            "where the coordinates are many"
        )
