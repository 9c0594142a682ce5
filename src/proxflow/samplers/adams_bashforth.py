"""Adams–Bashforth in the velocity: for the fewest evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow.beliefs import DiagonalGaussian
from proxflow.flows import Flow
from proxflow.samplers.path import PathSampler, Point, Step


@dataclass(frozen=True)
class AdamsBashforth(PathSampler):
    """Adams–Bashforth of order 2 in the velocity y' = v = (x̂ − y)/(1 − τ), at squared times, one evaluation per step.

    A step of length h in τ adds h v + h²/2 · (v − v₋)/(τ − τ₋), with v₋ the velocity one step before; the first adds
    h v. The last step, from the last evaluation to τ = 1, is such a step, too. Other samplers end there on the last
    prediction, a mean over all data that the belief still allows, which is too smooth after few evaluations. What that
    step makes is clipped to the range of the data if the predictor has one; without a range it may lie far beyond the
    data. Of a single evaluation the sample is the prediction as it is.
    Predictions that are not Gaussian, such as classes or bins, are samples as they are, without that last step.

    The n evaluations are at t = (k/n)², so that the first prediction, of pure noise, is soon corrected. A Bayesian flow's
    own times end at t = 1; these do not, because the last step covers the noise that its beliefs still have there.

    Known elsewhere as azula's vABSampler of order 2, there with other times; with noise instead of the velocity as
    ρAB-DEIS: "Fast Sampling of Diffusion Models with Exponential Integrator" (Zhang & Chen, 2022), arXiv 2204.13902.
    """

    @property
    def memoryless(self) -> bool:
        return False

    def times(self, flow: Flow[Any], nfe: int) -> list[float]:
        return [(k / nfe) ** 2 for k in range(nfe)]

    def move(self, step: Step, memory: tuple[Tensor, float] | None) -> tuple[Tensor, tuple[Tensor, float]]:
        left, new_left = step.tau[1], step.new[1]
        velocity = (step.x - step.y) / left
        return advance(step.y, velocity, left, new_left, memory), (velocity, left)

    def end(self, flow: Flow[Any], target: Any, t: Point, state: Any) -> Any:
        latent, y, memory = state
        if memory is None or t.left == 0 or not isinstance(target, DiagonalGaussian):
            return target
        velocity = (latent.of_target(target) - y) / t.left
        return flow.target(advance(y, velocity, t.left, 0.0, memory))


def advance(y: Tensor, velocity: Tensor, left: float, new_left: float, before: tuple[Tensor, float] | None) -> Tensor:
    """Return the step from 1 − τ = ``left`` to ``new_left``, given the velocity there and the one before with its 1 − τ."""
    h = left - new_left
    if before is not None:
        last, last_left = before
        velocity = torch.lerp(last, velocity, 1 + h / 2 / (last_left - left))
    return torch.add(y, velocity, alpha=h)
