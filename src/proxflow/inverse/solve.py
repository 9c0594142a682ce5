"""Conjugate gradients in the space of observations, without a wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proxflow._math import over_events, sum_events

Normal = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From v to (S v, w): S = R + A C Aᵀ of observations, and w = C Aᵀ v, of events."""


def conjugate_gradients(
    normal: Normal, right: Tensor, iterations: int, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Solve S v = b for each example, and return v and C Aᵀ v, which comes without a further product.

    Each iteration takes one product by S. An example whose residual has fallen below ``tolerance`` ‖b‖ stays as it is; that
    is decided on the device, so the number of products is always ``iterations``. On a singular S it finds the solution of
    least norm, for b in its range.

    Args:
        normal: See :data:`Normal`. S is symmetric and not negative.
        right: b, (batch, *observed).
        iterations: Products, ≥ 1.
        tolerance: Relative residual at which an example is done.
    """
    residual, direction = right, right
    power = sum_events(residual * residual)
    enough = tolerance**2 * power
    found, moved = torch.zeros_like(right), None
    for _ in range(iterations):
        image, shift = normal(direction)
        curvature = sum_events(direction * image)
        active = (power > enough) & (curvature > 0)
        step = torch.where(active, power / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
        found = found + over_events(step, right) * direction
        moved = over_events(step, shift) * shift + (0.0 if moved is None else moved)
        residual = residual - over_events(step, right) * image
        new_power = torch.where(active, sum_events(residual * residual), power)
        ratio = torch.where(active, new_power / torch.where(active, power, torch.ones_like(power)), 0.0)
        direction = residual + over_events(ratio, right) * direction
        power = new_power
    return found, right if moved is None else moved
