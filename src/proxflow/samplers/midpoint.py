"""Second order by two evaluations a step, without a memory of earlier steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow._tensor import Generator
from proxflow.samplers.path import PathSampler


@dataclass(frozen=True)
class Midpoint(PathSampler):
    """Second-order exponential Runge–Kutta, two evaluations a step (in the manner of DPM-Solver-2, 2206.00927).

    In u = −ln(1 − τ) a first step of length g leads to a second evaluation x̂' within the whole step of length h, which then
    starts anew: y' = e^{−h} y + (1 − e^{−h}) x̂ + (h − 1 + e^{−h})(x̂' − x̂)/g. The times of the evaluations are those of every
    other sampler, so that a step spans two of their intervals. Each evaluation counts. The last ones, where no whole step
    is left, are plain. Heun's method would put the second evaluation at the end of the step, and then evaluate there again.
    """

    def move(
        self,
        y: Tensor,
        x: Tensor,
        tau: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        generator: Generator,
        memory: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        if memory is None:
            decay = new[1] / tau[1]
            return decay * y + (1 - decay) * x, (y, x, tau[1])
        start, first_x, rest = memory
        decay = new[1] / rest
        h, g = -decay.log(), (rest / tau[1]).log()
        moved = decay * start + (1 - decay) * first_x + (h + torch.expm1(-h)) / g * (x - first_x)
        return moved, None
