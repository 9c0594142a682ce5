"""Wasserstein-2 flows with steps measured in an anisotropic metric: cheap directions move first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxflow._math import over_events, sum_events
from proxflow.beliefs import DiagonalGaussian
from proxflow.divergences.base import Divergence, Over, closed_form, mixed_form, value
from proxflow.divergences.ground import GroundMetric
from proxflow.divergences.wasserstein import Wasserstein2, one_std


@dataclass(frozen=True)
class AnisotropicWasserstein2(Divergence):
    """Steps measured by W₂² in a ground metric M, toward a target whose energy is the plain W₂².

    Its value is W₂²_M(p, q) of :class:`Wasserstein2` with that metric. Its step follows the gradient flow of the energy
    E(r) = ½ W₂²(r, q) in the metric M for the time −ln(1 − f), so that steps compose. In the modes ω of M = Uᵀ diag(m) U

        Uμ'_ω = (1 − f)^{1/m_ω} Uμ_ω + (1 − (1 − f)^{1/m_ω}) Uμ̂_ω:

    cheap modes (m_ω < 1) move farther than the fraction f, expensive ones less far. This is also the proximal step
    argmin_r W₂²(r, q) + Σ_ω W₂²(r, p)_ω/η_ω with η_ω = (1 − f)^{−1/m_ω} − 1. A standard deviation common to the whole
    event stays so and moves likewise with m = tr M/d, by the flow among such Gaussians; with a
    :class:`CoordinateMetric` each coordinate's moves with its own weight. Derivation: docs/mathematics.md.

    Args:
        metric: M. The restrictions of :class:`Wasserstein2` on standard deviations apply here as well.
    """

    metric: GroundMetric
    composes = True
    barycentric = False

    def objective(self, r: Any, p: Any, q: Any, fraction: Tensor) -> Tensor:
        """Return Σ_ω (1 − f)^{1/m_ω} W₂²(r, p)_ω + (1 − (1 − f)^{1/m_ω}) W₂²(r, q)_ω, (batch,).

        This is the proximal objective, each mode multiplied by η_ω/(1 + η_ω) so that both ends f = 0 and 1 are finite.
        """
        keep, keep_std = self._kept(p, over_events(fraction, p.mean))
        mean, std = self._parts(r)
        (from_mean, from_std), (to_mean, to_std) = self._parts(p), self._parts(q)

        def mixed(keep: Tensor, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
            return keep * (x - start).square() + (1 - keep) * (x - end).square()

        return sum_events(mixed(keep, mean, from_mean, to_mean) + mixed(keep_std, std, from_std, to_std))

    def _parts(self, belief: DiagonalGaussian) -> tuple[Tensor, Tensor]:
        """Return modes of the mean, (batch, *event), and standard deviations broadcastable to them."""
        return self.metric.modes(belief.mean), belief.std if self.metric.coordinatewise else one_std(belief)

    def _kept(self, belief: DiagonalGaussian, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fraction that is kept of each mode of the mean, and of the standard deviations."""
        weights = self.metric.weights(belief.mean)
        spread = weights if self.metric.coordinatewise else self.metric.mean_weight(belief.mean)
        return (1 - fraction).pow(1 / weights), (1 - fraction).pow(1 / spread)


@value(AnisotropicWasserstein2, DiagonalGaussian)
def _(divergence: AnisotropicWasserstein2, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return Wasserstein2(divergence.metric)(p, q)


@closed_form(AnisotropicWasserstein2, DiagonalGaussian)
def _(
    divergence: AnisotropicWasserstein2, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over
) -> DiagonalGaussian:
    keep, keep_std = divergence._kept(belief, over(belief.mean))
    (mean, std), (to_mean, to_std) = divergence._parts(belief), divergence._parts(target)
    return DiagonalGaussian(
        divergence.metric.events(keep * mean + (1 - keep) * to_mean), keep_std * std + (1 - keep_std) * to_std
    )


@mixed_form(Wasserstein2, Wasserstein2, DiagonalGaussian)
def _(
    divergence: Wasserstein2, energy: Wasserstein2, belief: DiagonalGaussian, target: DiagonalGaussian, over: Over
) -> DiagonalGaussian | None:
    """Move each mode by its own fraction, η e_ω/(η e_ω + m_ω), with the weights m of the divergence and e of the energy."""
    metrics = [d.metric for d in (divergence, energy) if d.metric is not None]
    if not metrics or not metrics[0].commutes_with(metrics[-1]):
        return None
    basis = metrics[0]
    one = torch.ones((), dtype=belief.mean.dtype, device=belief.mean.device)
    f = over(belief.mean)

    def mixed(weights: list[Tensor], start: Tensor, end: Tensor) -> Tensor:
        keep, take = (1 - f) * weights[0], f * weights[1]
        return (keep * start + take * end) / (keep + take)

    weights = [one if d.metric is None else d.metric.weights(belief.mean) for d in (divergence, energy)]
    modes = mixed(weights, basis.modes(belief.mean), basis.modes(target.mean))
    if basis.coordinatewise:
        return DiagonalGaussian(modes, mixed(weights, belief.std, target.std))
    means = [one if d.metric is None else d.metric.mean_weight(belief.mean) for d in (divergence, energy)]
    return DiagonalGaussian(basis.events(modes), mixed(means, one_std(belief), one_std(target)))
