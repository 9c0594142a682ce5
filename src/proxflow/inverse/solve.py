"""Conjugate gradients and GMRES in the space of observations, without synchronising with the device."""

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
    """Solve S v = b for each example, and return v and C Aᵀ v, which takes no further product.

    Each iteration takes one product with S. An example whose residual is below ``tolerance`` ‖b‖ is no longer changed;
    this is decided on the device, so there are always ``iterations`` products. For a singular S and b in its range it
    finds the solution of least norm.

    Args:
        normal: See :data:`Normal`. S is symmetric and positive semidefinite.
        right: b, (batch, *observed).
        iterations: Number of products, ≥ 1.
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


def least_residual(normal: Normal, right: Tensor, iterations: int) -> Tensor:
    """Return C Aᵀ v for the v of least ‖S v − b‖ in the Krylov space of S and b. Known elsewhere as GMRES.

    S need not be symmetric. It is not if C is a network's Jacobian, where conjugate gradients break down. A basis
    vector within the span of the others is set to 0.

    Args:
        normal: See :data:`Normal`; it is called ``iterations`` times.
        right: b, (batch, *observed).
        iterations: Number of products, ≥ 1.
    """
    size = sum_events(right * right).sqrt()
    basis, images, shifts = [_unit(right, size, torch.zeros_like(size))], [], []
    for k in range(iterations):
        image, shift = normal(basis[k])
        images.append(image.flatten(1).double())
        shifts.append(shift)
        fresh = image
        for _ in range(2):  # twice is enough for an orthogonal basis in floating point
            for old in basis:
                fresh = fresh - over_events(sum_events(fresh * old), fresh) * old
        basis.append(_unit(fresh, sum_events(fresh * fresh).sqrt(), 1e-6 * sum_events(image * image).sqrt()))
    columns = torch.stack(images, 2)
    gram = columns.mT @ columns
    # For a right-hand side of 0 all is 0: the floor's inverse must then be finite.
    floor = (1e-13 * gram.diagonal(dim1=1, dim2=2).amax(1)[:, None]).clamp_min(1e-300)
    weights = torch.linalg.solve_ex(
        gram + torch.diag_embed(floor.expand(-1, iterations)), columns.mT @ right.flatten(1).double()[..., None]
    )[0].squeeze(-1)
    return sum(
        (over_events(w.to(s.dtype), s) * s for w, s in zip(weights.unbind(1), shifts, strict=True)), 0 * shifts[0]
    )


def _unit(v: Tensor, size: Tensor, least: Tensor) -> Tensor:
    """Return vectors normalised to length 1, and 0 for those too short to have a direction."""
    scale = torch.where(size > least, 1 / size.clamp_min(torch.finfo(v.dtype).tiny), 0.0)
    return over_events(scale, v) * v
