"""A second-order sampler with two evaluations per step and no memory of earlier steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.samplers.path import PathSampler, Step, log_step


@dataclass(frozen=True)
class Midpoint(PathSampler):
    """Second-order exponential Runge–Kutta, two evaluations per step.

    Known elsewhere, with ln(a/b) instead of u, as DPM-Solver++(2S), close to DPM-Solver-2 of "DPM-Solver: A Fast ODE
    Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps" (Lu et al., 2022), arXiv 2206.00927. In u =
    −ln(1 − τ) a step of length g leads to the second evaluation x̂'. The whole step, of length h, then starts again
    from y: y' = e^{−h} y + (1 − e^{−h}) x̂ + (h − 1 + e^{−h})(x̂' − x̂)/g. It spans two intervals of other samplers'
    times. Remaining evaluations at the end make first-order steps.
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
        # A step that ends on the target (h = ∞) ends on the newest prediction.
        if math.isfinite(h):
            ahead = torch.lerp(first_x, step.x, (-h / math.expm1(-h) - 1) / g)
        return torch.lerp(ahead, start, new_left / rest), None
