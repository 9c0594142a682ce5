"""BFN-Solver: first and second order, deterministic and stochastic, for Gaussian and categorical beliefs.

"Unifying Bayesian Flow Networks and Diffusion Models through Stochastic Differential Equations" (Xue et al., 2024),
arXiv 2404.15766, in this library's terms. On the path a u(x) + b ε, of means (u = x) or of logits (u = K e_x − 1), a
step with a constant prediction is exact, for the ODE (κ = 0) and for the SDE (κ = 1):

    first order     z' = (b'/b) z + (a' − a b'/b) x̂                      BFN-Solver1, BFN-Solver++1; Marginal(0)
                    z' = (a b'²/(a' b²)) z + (g²/a') x̂ + (b'/a') g ξ     SDE-BFN-Solver1; Marginal(1), BFN's own sampler

with g² = a'² − (a b'/b)². The second order replaces x̂ by x̂ + w (h/h₋) (x̂ − x̂₋), with x̂₋ and h₋ of the last step.
For means (BFN-Solver++2, SDE-BFN-Solver++2) the steps h are measured in ln(a/b), half the logarithm of the
signal-to-noise ratio; for logits in t, which is proportional to a/b. The weight w is ½; with noise on logits it is (2t'
+ t)/(3(t' + t)), the exact integral of a straight line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from proxflow.beliefs import Categorical
from proxflow.errors import ArgumentError
from proxflow.flows import Flow
from proxflow.random import Generator
from proxflow.samplers.path import Marginal, PathSampler, Step, extrapolate, renewed


@dataclass(frozen=True)
class BFNSolver(PathSampler):
    """A solver of the BFN-Solver family (Xue et al., 2024), one evaluation per step.

    Its steps are those of :class:`Marginal`; for order 2 they go toward an extrapolated prediction. It evaluates at t =
    k/n for every flow, and the prediction at (n − 1)/n is the sample, as in the paper. The paper starts with pure noise
    at a small time η; here η = 0. It works for every flow whose means or logits follow a Gaussian path.

    Args:
        order: 1 or 2.
        kappa: Fraction of the noise replaced at each step, in [0, 1]: 0 solves the ODE, 1 the SDE.
    """

    order: Literal[1, 2] = 2
    kappa: float = 0.0

    def __post_init__(self) -> None:
        Marginal(self.kappa)  # refuses κ out of range
        if self.order not in (1, 2):
            raise ArgumentError(f"the order is 1 or 2, got {self.order}")

    @property
    def memoryless(self) -> bool:
        return self.order == 1

    def times(self, flow: Flow[Any], nfe: int) -> list[float]:
        return [k / nfe for k in range(nfe)]

    def init(self, flow: Flow[Any], belief: Any, generator: Generator) -> tuple[Any, Any]:
        belief, (latent, y, _) = super().init(flow, belief, generator)
        return belief, (latent, y, (isinstance(belief, Categorical), None, None))

    def move(
        self, step: Step, memory: tuple[bool, Tensor | None, float | None]
    ) -> tuple[Tensor, tuple[bool, Tensor, float]]:
        logits, last_x, last_h = memory
        ratio, new_ratio = (taken / left if left > 0 else math.inf for taken, left in (step.tau, step.new))
        h = new_ratio - ratio if logits else _log(new_ratio) - _log(ratio)
        ahead = step.x
        # In ln(a/b) a step from t = 0 is infinite, and so is one to the end of a path without noise there.
        if self.order == 2 and last_x is not None and last_h is not None and math.isfinite(h) and math.isfinite(last_h):
            weight = (2 * new_ratio + ratio) / (3 * (new_ratio + ratio)) if logits and self.kappa > 0 else 0.5
            ahead = extrapolate(last_x, step.x, weight * h / last_h)
        return renewed(step._replace(x=ahead), self.kappa), (logits, step.x, h)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
