"""Exponential multistep samplers, with or without a corrector: one evaluation per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.samplers.path import PathSampler, Step, extrapolate, log_step

Node = tuple[Tensor, float]
"""A prediction, and 1 − τ where it was made."""


@dataclass(frozen=True)
class Multistep(PathSampler):
    """Exponential multistep of a given order, one evaluation per step.

    Known elsewhere, for order 2 and with ln(a/b) instead of u, as DPM-Solver++(2M): "DPM-Solver++: Fast Solver for
    Guided Sampling of Diffusion Probabilistic Models" (Lu et al., 2022), arXiv 2211.01095. In u = −ln(1 − τ) the
    equation is y' = x̂ − y. A step is exact if x̂ is the polynomial through the newest predictions, for any step
    lengths: the exponential Adams–Bashforth method. The first steps, with fewer predictions, have lower order. Order 2
    adds (h − 1 + e^{−h})(x̂ − x̂₋)/h₋ to e^{−h} y + (1 − e^{−h}) x̂.

    With ``corrected`` each step is repeated when the prediction at its end is known, with that prediction in the
    polynomial: one order higher, without another evaluation, the corrector of "UniPC: A Unified Predictor-Corrector
    Framework for Fast Sampling of Diffusion Models" (Zhao et al., 2023), arXiv 2302.04867. The prediction is not
    recomputed.

    Args:
        order: Number of predictions that a step extrapolates from, 1 to 4.
        corrected: Whether steps are corrected.

    Raises:
        ArgumentError: The order is out of range.
    """

    order: int = 3
    corrected: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise ArgumentError(f"the order must be 1, 2, 3 or 4, got {self.order}")

    @property
    def memoryless(self) -> bool:
        return self.order == 1 and not self.corrected

    def move(
        self, step: Step, memory: tuple[Tensor, tuple[Node, ...]] | None
    ) -> tuple[Tensor, tuple[Tensor, tuple[Node, ...]]]:
        y, left = step.y, step.tau[1]
        start, past = memory if memory is not None else (y, ())
        nodes = ((step.x, left), *past)  # the newest first
        if self.corrected and past:
            y = advance(start, past[0][1], left, nodes)
        nodes = nodes[: self.order]
        if self.order == 2 and len(nodes) == 2 and not self.corrected and step.new[1] > 0:
            # Order 2 in one pass over the batch: toward a straight line of slope (x̂ − x̂₋)/h₋.
            h = log_step(left, step.new[1])
            slope = (-h / math.expm1(-h) - 1) / log_step(nodes[1][1], left)
            ahead = extrapolate(nodes[1][0], nodes[0][0], slope)
            return torch.lerp(ahead, y, step.new[1] / left), (y, nodes)
        return advance(y, left, step.new[1], nodes), (y, nodes)


def advance(y: Tensor, left: float, new_left: float, nodes: Sequence[Node]) -> Tensor:
    """Return the exact step from 1 − τ = ``left`` to ``new_left`` for the polynomial x̂ in u through the nodes."""
    h = log_step(left, new_left)
    # A step that ends on the target (h = ∞) ends on the newest prediction, for any polynomial.
    if not math.isfinite(h):
        return nodes[0][0].clone()
    shares = step_shares(h, [log_step(left, at) for _, at in nodes])
    ahead = shares[0] * nodes[0][0]
    for share, (x, _) in zip(shares[1:], nodes[1:], strict=True):
        ahead = torch.add(ahead, x, alpha=share)
    return torch.lerp(ahead, y, new_left / left)


def step_shares(h: float, nodes: Sequence[float]) -> list[float]:
    """Return the weights of predictions in the mean toward which an exponential step goes.

    They are ∫₀ʰ e^{s−h} ℓ_j(s) ds / (1 − e^{−h}), with ℓ_j the Lagrange polynomials of the nodes, and add up to 1.

    Args:
        h: Length of the step in u, finite and positive.
        nodes: Positions of the predictions in u, relative to the start of the step.
    """
    # In units of h: mₖ = ∫₀¹ h e^{h(z−1)} zᵏ dz, by parts.
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k * moments[-1] / h)
    shares = []
    for j, own in enumerate(nodes):
        polynomial = [1.0]
        for other in [*nodes[:j], *nodes[j + 1 :]]:
            # Times (z − other)/(own − other), the lowest power first.
            width = (own - other) / h
            times_z, constant = [0.0, *polynomial], [*polynomial, 0.0]
            polynomial = [(a - other / h * b) / width for a, b in zip(times_z, constant, strict=True)]
        shares.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)) / moments[0])
    return shares
