"""The proximal step: how a belief moves.

    p' = argmin_p  (1 − f) D(p, belief) + f D(p, message)                         (barycentric energy, GPFN 2603.00751)

which is argmin E(p; m) + D(p, belief)/η with the energy E = D(·, m) and η = f/(1 − f).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from proxflow.beliefs import Belief
from proxflow.divergences import Divergence
from proxflow.solvers import Solver

B = TypeVar("B", bound=Belief)


@dataclass(frozen=True)
class Proximal:
    """The barycentric proximal operator of a divergence.

    Args:
        divergence: What keeps the new belief near the old one, and near the message.
        solver: ``None`` takes the closed form and refuses pairs without one; a solver minimises numerically. It is never
            chosen silently: an iterative solve inside a sampling loop is a cost its user should have asked for.
    """

    divergence: Divergence
    solver: Solver | None = None

    def __call__(self, belief: B, message: B, fraction: Tensor | float) -> B:
        """The step from ``belief`` toward ``message`` by ``fraction`` (a scalar or (batch,), in [0, 1]).

        Raises:
            UnsupportedPairError: No closed form is known and no solver was given.
            ConvergenceError: The solver did not converge for some example.
        """
        if self.solver is None:
            return self.divergence.interpolate(belief, message, fraction)
        return self.solver(self.divergence, belief, message, fraction).belief_or_raise()
