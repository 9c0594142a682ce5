"""Second order by two evaluations a step, without a memory of earlier steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.samplers.path import PathSampler, Step, log_step


@dataclass(frozen=True)
class Midpoint(PathSampler):
    """Second-order exponential Runge–Kutta, two evaluations a step (in the manner of DPM-Solver-2, 2206.00927).

    In u = −ln(1 − τ) a first step of length g leads to a second evaluation x̂' within the whole step of length h, which then
    starts anew: y' = e^{−h} y + (1 − e^{−h}) x̂ + (h − 1 + e^{−h})(x̂' − x̂)/g. The times of the evaluations are those of every
    other sampler, so that a step spans two of their intervals. Each evaluation counts. The last ones, where no whole step
    is left, are plain. Heun's method would put the second evaluation at the end of the step, and then evaluate there again.
    """

    @property
    def memoryless(self) -> bool:
        return False

    def move(
        self, step: Step, memory: tuple[Tensor, Tensor, float] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, float] | None]:
        (_, left), (_, new_left) = step.tau, step.new
        if memory is None:
            return torch.lerp(step.x, step.y, new_left / left), (step.y, step.x, left)
        start, first_x, rest = memory
        h, g, ahead = log_step(rest, new_left), log_step(rest, left), step.x
        # A step that lands on the target (h = ∞) lands on the newest prediction.
        if math.isfinite(h):
            ahead = torch.lerp(first_x, step.x, (-h / math.expm1(-h) - 1) / g)
        return torch.lerp(ahead, start, new_left / rest), None
