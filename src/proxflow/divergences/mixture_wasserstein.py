"""Wasserstein-2 between Gaussian mixtures, with plans that move components as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxflow.beliefs import GaussianMixture
from proxflow.divergences._plans import least_cost, optimal_plans
from proxflow.divergences.base import Divergence, Over, closed_form, value


@dataclass(frozen=True)
class MixtureWasserstein2(Divergence):
    """Squared distance MW₂²: W₂² restricted to couplings that are Gaussian mixtures.

    "A Wasserstein-type Distance in the Space of Gaussian Mixture Models" (Delon & Desolneux, 2020), arXiv 1907.05254,
    eq. 4.4: min_w Σ_ij w_ij W₂²(p_i, q_j) over plans w between the components' weights. It is at least W₂², and at most
    that plus the components' own variances (ibid., prop. 6). The step moves each pair of components in the plan along
    its own geodesic; this is a geodesic of MW₂, so steps compose. Mixtures may have different numbers of components, K
    and L; the step has K + L − 1, the most that a plan can pair, some possibly of weight 0.

    The plan comes from the library POT (``pip install 'proxflow[transport]'``), on the host, without support for
    ``torch.compile`` and ``vmap``, and synchronises with the device. The value has exact first derivatives; those of
    the step neglect changes of the plan. MW₂² is not smooth: it grows like the difference of weights, not like its
    square, so solvers cannot be used.
    """

    composes = True
    same_sizes = False


def _costs(p: GaussianMixture, q: GaussianMixture) -> Tensor:
    """Compute W₂² between every two components, (batch, K, L)."""
    first, second = (torch.stack([b.means, b.stds], dim=2).flatten(2) for b in (p, q))
    return (first[:, :, None] - second[:, None]).square().sum(3)


@value(MixtureWasserstein2, GaussianMixture)
def _(_: MixtureWasserstein2, p: GaussianMixture, q: GaussianMixture) -> Tensor:
    return least_cost(_costs(p, q), p.weights, q.weights)


@closed_form(MixtureWasserstein2, GaussianMixture)
def _(_: MixtureWasserstein2, belief: GaussianMixture, target: GaussianMixture, over: Over) -> GaussianMixture:
    plans, _first, _second = optimal_plans(_costs(belief, target), belief.weights, target.weights)
    # The heaviest entries, as many as a vertex has; the rest is rounding.
    weights, chosen = plans.flatten(1).topk(belief.components + target.components - 1, dim=1)
    rows, columns = chosen // target.components, chosen % target.components

    def moved(start: Tensor, end: Tensor) -> Tensor:
        f = over(start)
        return (1 - f) * _picked(start, rows) + f * _picked(end, columns)

    return GaussianMixture(weights.log(), moved(belief.means, target.means), moved(belief.stds, target.stds))


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """Select the components ``index`` (batch, n) of values (batch, components, *event)."""
    return values.gather(
        1, index.reshape(*index.shape, *[1] * (values.ndim - 2)).expand(*index.shape, *values.shape[2:])
    )
