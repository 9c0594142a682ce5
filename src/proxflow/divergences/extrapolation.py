"""Extrapolation: the barycentre of two beliefs with one negative weight, as used for guidance.

    r = argmin_r  w D(r, toward) − (w − 1) D(r, away),  w > 1,

is the barycentric step from ``away`` to ``toward`` with the fraction w beyond 1. For points under Wasserstein-2 it is
classifier-free guidance, x = x_u + w (x_c − x_u). Unlike a step it may leave the family, as when a variance would be
negative. A divergence defines its extrapolation by registering a rule for a family, as for values and steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor

from proxflow._math import over_events, sin_ratio, sinh_ratio
from proxflow.beliefs import Belief, Binned, Categorical, DiagonalGaussian, FullGaussian, Product
from proxflow.divergences.anisotropic import AnisotropicWasserstein2
from proxflow.divergences.base import Divergence, Pair, check_pair, independent_parts
from proxflow.divergences.fisher_rao import FisherRao, _squared_angle, _squared_hyperbolic
from proxflow.divergences.kl import KL, ReverseKL
from proxflow.divergences.wasserstein import Wasserstein2
from proxflow.errors import ArgumentError, UnsupportedPairError

B = TypeVar("B", bound=Belief)
Outside = Literal["refuse", "clip"]

LEAST = 0.5
"""Least precision of a clipped extrapolation under KL, relative to that of ``toward``."""


@dataclass(frozen=True, eq=False)
class Extrapolation(Generic[B]):
    """An extrapolation, and whether it stays within the family.

    Args:
        belief: The belief; if the extrapolation leaves the family, the clipped one.
        leaves: Whether it leaves the family, bool, of any shape; ``None`` if it never does.
        largest: Function that returns the largest weight within the family, of any shape.
        clipping: What clipping does, as a clause after "which".
    """

    belief: B
    leaves: Tensor | None = None
    largest: Callable[[], Tensor] | None = None
    clipping: str = ""


Rule = TypeVar("Rule", bound=Callable[..., Any])
EXTRAPOLATIONS: dict[Pair, Callable[[Any, Any, Any, Callable[[Tensor], Tensor]], Extrapolation[Any]]] = {}


def extrapolated(divergence: type[Divergence], family: type[Belief]) -> Callable[[Rule], Rule]:
    """Register ``rule(divergence, away, toward, over) -> Extrapolation``.

    ``over(tensor)`` is the weight w in the precision and on the device of a parameter tensor: a scalar, or one number
    per row, in a shape that broadcasts.
    """

    def add(rule: Rule) -> Rule:
        if (divergence, family) in EXTRAPOLATIONS:
            raise ArgumentError(f"a rule for ({divergence.__name__}, {family.__name__}) is registered already")
        EXTRAPOLATIONS[divergence, family] = rule
        return rule

    return add


def has_extrapolation(divergence: Divergence, family: type[Belief]) -> bool:
    """Return whether :func:`extrapolate` supports this pair."""
    return (type(divergence), family) in EXTRAPOLATIONS


def extrapolate(divergence: Divergence, away: B, toward: B, weight: float | Tensor, outside: Outside = "refuse") -> B:
    """Return argmin_r w D(r, toward) − (w − 1) D(r, away); for w ≤ 1 it is the barycentric step by w.

    Args:
        divergence: The geometry.
        away: The belief to lead away from.
        toward: The belief to lead toward; at w = 1 it is the result.
        weight: w ≥ 0; or a tensor (batch,), one w ≥ 1 per row, which is not checked.
        outside: What to do if the extrapolation leaves the family. "refuse" checks this, which synchronises with the
            device if it can happen; "clip" changes the result as the rule says, without synchronising.

    Raises:
        UnsupportedPairError: No rule is known for this divergence and family.
        ArgumentError: The beliefs differ in shape; a weight below 0; with "refuse", the extrapolation leaves the
            family: the message has the largest weight that does not.
    """
    check_pair(away, toward, same_sizes=divergence.same_sizes)
    each = isinstance(weight, Tensor)
    if not each and not 0 <= weight < math.inf:
        raise ArgumentError(f"the weight of guidance must be at least 0 and finite, got {weight}")
    if not each and weight == 1:
        return toward
    points = isinstance(away, DiagonalGaussian) and isinstance(toward, DiagonalGaussian) and _same_number(away, toward)
    # Points are at infinite distance under KL; its rule has the limit of Gaussians with equal standard deviation.
    if not each and weight < 1 and not (points and isinstance(divergence, KL)):
        return divergence.interpolate(away, toward, weight)
    if parts := independent_parts(divergence, away, toward):
        return cast(B, Product(tuple(extrapolate(d, a, b, weight, outside) for d, a, b in parts)))
    rule = EXTRAPOLATIONS.get((type(divergence), type(toward)))
    if rule is None:
        known = sorted(f"{d.__name__} on {f.__name__}" for d, f in EXTRAPOLATIONS)
        raise UnsupportedPairError(
            f"no extrapolation is known for {type(divergence).__name__} on {type(toward).__name__}, so no guidance in this "
            f"geometry: known are {', '.join(known)}; choose one by divergence="
        )
    # Filled on the device: copying the number would synchronise.
    found = rule(
        divergence,
        away,
        toward,
        lambda like: over_events(weight, like) if isinstance(weight, Tensor) else like.new_full((), weight),
    )
    if outside == "refuse" and found.leaves is not None and found.largest is not None and bool(found.leaves.any()):
        largest = math.floor(float(found.largest().min()) * 1e6) / 1e6
        most = float(weight.max()) if isinstance(weight, Tensor) else weight
        raise ArgumentError(
            f"guidance of weight {most:g} leaves {type(toward).__name__} under {type(divergence).__name__}: the largest "
            f"weight that does not is {largest:.10g}; lower it, or take outside='clip', which {found.clipping}"
        )
    belief: B = found.belief
    return belief


def _same_number(p: DiagonalGaussian, q: DiagonalGaussian) -> bool:
    """Return whether two Gaussians were given the same number as standard deviation, without reading any tensor."""
    return isinstance(p._std, int | float) and isinstance(q._std, int | float) and p._std == q._std


def _limit(top: Tensor, bottom: Tensor) -> Tensor:
    """Return top/bottom for positive bottom, else infinity."""
    positive = bottom > 0
    return torch.where(positive, top / torch.where(positive, bottom, 1), torch.inf)


def _straight(_: Any, away: DiagonalGaussian, toward: DiagonalGaussian, over: Any) -> Extrapolation[DiagonalGaussian]:
    w = over(toward.mean)
    mean = torch.lerp(away.mean, toward.mean, w)
    if _same_number(away, toward):
        return Extrapolation(DiagonalGaussian(mean, toward._std))
    start, end = away.given_std, toward.given_std
    std = torch.lerp(start, end, w.to(end.dtype))
    # Clipped, it is the minimiser among standard deviations ≥ 0: the objective is quadratic in them.
    return Extrapolation(
        DiagonalGaussian(mean, std.clamp_min(0)),
        std < 0,
        lambda: _limit(start, start - end),
        "takes the nearest standard deviation, 0",
    )


extrapolated(Wasserstein2, DiagonalGaussian)(_straight)
extrapolated(AnisotropicWasserstein2, DiagonalGaussian)(_straight)


@extrapolated(Wasserstein2, FullGaussian)
def _(_: Wasserstein2, away: FullGaussian, toward: FullGaussian, over: Any) -> Extrapolation[FullGaussian]:
    # The optimal map from ``away``, x ↦ μ' + T (x − μ), continues as x ↦ … + ((1 − w) I + w T)(x − μ) while that is the
    # gradient of a convex function.
    w, start = over(toward.mean), away.scale_tril
    inside = start.mT @ toward.scale_tril
    values, vectors = torch.linalg.eigh(inside @ inside.mT)
    root = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    half = torch.linalg.solve_triangular(start.mT, root, upper=True)  # L⁻ᵀ root
    map_ = torch.linalg.solve_triangular(start.mT, half.mT, upper=True)  # L⁻ᵀ root L⁻¹, symmetric
    stretch, basis = torch.linalg.eigh((map_ + map_.mT) / 2)
    further = 1 + w * (stretch - 1)
    moved = (basis * further.clamp_min(0)[..., None, :]) @ basis.mT @ start
    return Extrapolation(
        FullGaussian(torch.lerp(away.mean, toward.mean, w), _triangular(moved)),
        further < 0,
        lambda: _limit(torch.ones_like(stretch), 1 - stretch),
        "flattens the directions that would turn over",
    )


def _triangular(factor: Tensor) -> Tensor:
    """Return the Cholesky factor of N Nᵀ for any factor N: Nᵀ = Q R, so N Nᵀ = Rᵀ R."""
    upper = torch.linalg.qr(factor.mT).R
    signs = torch.where(upper.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(upper)
    found: Tensor = (signs[..., None] * upper).mT
    return found


def _precise(w: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Extrapolate precisions 1 (toward) and a (away): the weight used, the precision, and whether it leaves."""
    leaves = w - (w - 1) * ratio <= 0
    within = torch.minimum(w.expand_as(ratio), _limit(ratio - LEAST, ratio - 1))
    taken = torch.where(leaves, within, w)
    return taken, taken - (taken - 1) * ratio, leaves


_TO_HALF = f"lowers the weight of a coordinate to where its precision is {LEAST:g} of the conditional one"


@extrapolated(KL, DiagonalGaussian)
def _(_: KL, away: DiagonalGaussian, toward: DiagonalGaussian, over: Any) -> Extrapolation[DiagonalGaussian]:
    w = over(toward.mean)
    if _same_number(away, toward):  # also points: the limit of equal standard deviations
        return Extrapolation(DiagonalGaussian(torch.lerp(away.mean, toward.mean, w), toward._std))
    start, end = away.std, toward.std
    equal = start == end
    ratio = torch.where(equal, 1, (end / torch.where(equal, 1, start)).square()).clamp(max=1e30)
    taken, precision, leaves = _precise(w, ratio)
    mean = toward.mean + (taken - 1) * ratio / precision * (toward.mean - away.mean)
    return Extrapolation(
        DiagonalGaussian(mean, end * precision.rsqrt()), leaves, lambda: _limit(ratio, ratio - 1), _TO_HALF
    )


@extrapolated(KL, FullGaussian)
def _(_: KL, away: FullGaussian, toward: FullGaussian, over: Any) -> Extrapolation[FullGaussian]:
    # In coordinates where ``toward`` is N(0, I), along the axes of the precision of ``away``.
    factor, w = toward.scale_tril, over(toward.mean)
    both = torch.linalg.solve_triangular(away.scale_tril, factor, upper=False)
    ratio, basis = torch.linalg.eigh(both.mT @ both)
    taken, precision, leaves = _precise(w, ratio)
    shift = torch.linalg.solve_triangular(factor, (toward.mean - away.mean)[..., None], upper=False)
    along = ((taken - 1) * ratio / precision)[..., None] * (basis.mT @ shift)
    mean = toward.mean + (factor @ basis @ along).squeeze(-1)
    moved = factor @ (basis * precision.rsqrt()[..., None, :])
    return Extrapolation(FullGaussian(mean, _triangular(moved)), leaves, lambda: _limit(ratio, ratio - 1), _TO_HALF)


_TO_POINT = "takes the limit of what minimises, in which the variance is 0"


@extrapolated(ReverseKL, DiagonalGaussian)
def _(_: ReverseKL, away: DiagonalGaussian, toward: DiagonalGaussian, over: Any) -> Extrapolation[DiagonalGaussian]:
    w, apart = over(toward.mean), (toward.mean - away.mean).square()
    start, end = away.std.square(), toward.std.square()
    variance = torch.lerp(start, end, w) - w * (w - 1) * apart

    def largest() -> Tensor:
        # The positive root of the quadratic −w² Δ² + w b + σ_u², b = σ_c² − σ_u² + Δ²; without a shift it is linear.
        b = end - start + apart
        root = (b.square() + 4 * apart * start).sqrt()
        return torch.where(apart > 0, (b + root) / (2 * apart.clamp_min(1e-300)), _limit(start, start - end))

    mean = torch.lerp(away.mean, toward.mean, w)
    return Extrapolation(DiagonalGaussian(mean, variance.clamp_min(0).sqrt()), variance < 0, largest, _TO_POINT)


@extrapolated(ReverseKL, FullGaussian)
def _(_: ReverseKL, away: FullGaussian, toward: FullGaussian, over: Any) -> Extrapolation[FullGaussian]:
    shift = (toward.mean - away.mean)[..., None]
    start, end, outer = away.covariance, toward.covariance, shift @ shift.mT

    def spectrum(w: Tensor) -> tuple[Tensor, Tensor]:
        w = w[..., None]
        found: tuple[Tensor, Tensor] = torch.linalg.eigh(torch.lerp(start, end, w) - w * (w - 1) * outer)
        return found

    w = over(toward.mean).expand(len(shift), 1)
    values, basis = spectrum(w)

    def largest() -> Tensor:
        low, high = torch.ones_like(w), w
        for _ in range(60):
            middle = (low + high) / 2
            good = spectrum(middle)[0][:, :1] >= 0
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return low

    factor = _triangular(basis * values.clamp_min(0).sqrt()[..., None, :])
    mean = torch.lerp(away.mean, toward.mean, w)
    return Extrapolation(FullGaussian(mean, factor), values < 0, largest, _TO_POINT)


@extrapolated(FisherRao, DiagonalGaussian)
def _(_: FisherRao, away: DiagonalGaussian, toward: DiagonalGaussian, over: Any) -> Extrapolation[DiagonalGaussian]:
    # The half-plane is complete: every geodesic extends infinitely.
    w = over(toward.mean)
    if _same_number(away, toward) and not toward._std:
        return Extrapolation(toward)  # the limit of small standard deviations: no circle continues beyond its end
    squared = _squared_hyperbolic(away, toward)
    keep, take = -sinh_ratio(w - 1, squared) / away.std, sinh_ratio(w, squared) / toward.std
    total = keep + take
    mean = toward.mean + keep / total * (away.mean - toward.mean)
    return Extrapolation(DiagonalGaussian(mean, 1 / total))


def _logits(_: Any, away: Any, toward: Any, over: Any) -> Extrapolation[Any]:
    w = over(toward.logits)
    start, end = away.log_probs, toward.log_probs
    gone, ruled_out = start.isneginf(), end.isneginf()
    leaves = gone & ~ruled_out
    # If both exclude a class, or if clipped, nothing is added.
    added = torch.where(gone | ruled_out, 0, end - torch.where(gone, 0, start))
    guided = torch.where(ruled_out, -torch.inf, end + (w - 1) * added).log_softmax(-1)
    return Extrapolation(
        toward.with_tensors({"logits": guided}),
        leaves,
        lambda: torch.where(leaves, 1.0, torch.inf),
        "leaves the odds of classes as they are that the unconditional prediction alone rules out",
    )


extrapolated(KL, Categorical)(_logits)
extrapolated(KL, Binned)(_logits)

_TO_FACE = "lowers the weight of a coordinate to where the first of its classes has probability 0"


@extrapolated(ReverseKL, Categorical)
def _(_: ReverseKL, away: Categorical, toward: Categorical, over: Any) -> Extrapolation[Categorical]:
    start, end = away.probs, toward.probs
    most = _limit(start, start - end).amin(-1, keepdim=True)
    w = over(end).expand_as(most)
    taken = torch.minimum(w, most)
    probs = (end + (taken - 1) * (end - start)).clamp_min(0)
    return Extrapolation(Categorical(probs.log()), w > most, lambda: most, _TO_FACE)


@extrapolated(FisherRao, Categorical)
def _(_: FisherRao, away: Categorical, toward: Categorical, over: Any) -> Extrapolation[Categorical]:
    # On the sphere of √θ, with b cos ψ + n sin ψ the point at the angle ψ beyond ``toward``, n the unit tangent there.
    squared = _squared_angle(away, toward)[..., None]
    start, end = ((b.log_probs / 2).exp() for b in (away, toward))
    angle = squared.sqrt()
    # sin(φ) n = b cos φ − a; for φ = 0 there is no direction.
    tangent = end * angle.cos() - start
    reach = torch.atan2(end * angle.sin(), -tangent)  # for each class, the angle at which it is 0: π if it grows
    most = torch.where(squared > 0, 1 + _limit(reach.amin(-1, keepdim=True), angle), torch.inf)
    w = over(end).expand_as(most)
    taken = torch.minimum(w, most)
    root = sin_ratio(taken, squared) * end - sin_ratio(taken - 1, squared) * start
    return Extrapolation(Categorical(2 * root.clamp_min(0).log()), w > most, lambda: most, _TO_FACE)


__all__ = ["EXTRAPOLATIONS", "Extrapolation", "Outside", "extrapolate", "extrapolated", "has_extrapolation"]
