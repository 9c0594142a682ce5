"""Couplings: how prior draws and data points are paired in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proxflow.divergences._plans import optimal_plans, pot
from proxflow.errors import ArgumentError, ConvergenceError
from proxflow.examples import Condition


class Coupling(Protocol):
    """A rule that pairs prior draws with data, within a batch."""

    def pair(self, prior_mean: Tensor, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return a permutation (batch,), int64: data point i is paired with prior draw ``permutation[i]``."""


@dataclass(frozen=True)
class MinibatchOT:
    """Minibatch optimal transport: the pairing of least total squared distance within a batch.

    "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport" (Tong et al., 2023),
    arXiv 2302.00482, and "Multisample Flow Matching: Straightening Flows with Minibatch Couplings" (Pooladian et al., 2023),
    arXiv 2304.14772. Known elsewhere as OT-CFM.

    The assignment is exact, by POT's network simplex (extra ``transport``), and only depends on the batch. It only
    permutes the prior draws of a batch, so prior and data keep their distributions, and the paths between them become
    straighter: fewer evaluations are enough. The network then learns the mean of the data under this coupling. This is
    enough for deterministic samplers and for the density along the deterministic flow. Methods that add noise which
    must be independent of the data are refused.

    The assignment is computed on the host, in double precision, only in training; 128 pairs take some milliseconds,
    1024 some tenths of a second. It pairs within what one process computes at a time: its share of the batch, or a part
    of that with gradient accumulation. So, unlike the rest of training, it depends on the number of processes and
    parts.

    Args:
        condition_weight: How the prior stays independent of conditions. ``None``: only data with equal conditions are
            exchanged, which is exact, and right for labels. A weight w > 0 is for continuous ones: w times their
            squared distance is added to the cost (in the manner of "The Curse of Conditions: Analyzing and Improving
            Optimal Transport for Conditional Flow-Based Generation", Cheng & Schwing, 2025, arXiv 2503.10636). Then the
            prior given a condition c is still shifted toward its data, less for larger w: with c ~ N(0, 1) and data of
            mean kc its mean is about kc/w, for w ≫ k. Toward w = ∞ nothing is exchanged. Conditions are best scaled to
            variance 1.

    Raises:
        ArgumentError: The weight is not positive and finite.
    """

    condition_weight: float | None = None

    def __post_init__(self) -> None:
        if self.condition_weight is not None and not 0 < self.condition_weight < math.inf:
            raise ArgumentError(f"condition_weight must be positive and finite, or None, got {self.condition_weight}")

    def check(self) -> None:
        """Check that the solver is installed.

        Raises:
            MissingPackageError: POT is not installed.
        """
        pot()

    def pair(self, prior_mean: Tensor, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the assignment of least total squared distance.

        With conditions, draw i gets the condition of data point i, of which it is independent, and is paired with data
        of that condition or, with a weight, a similar one. So the prior given a condition is unchanged, or nearly, and
        training starts from the same draws as sampling. Pairing without conditions would shift the prior of each toward
        its data (Cheng & Schwing, 2025). Without a weight, a batch in which all conditions differ is left unchanged.

        Args:
            prior_mean: Means of the prior draws, (batch, *event).
            x: Data, real numbers of the same shape.
            condition: Condition of the data, (batch, …): class labels, or with a weight real numbers.

        Returns:
            Permutation (batch,), int64, on the device of ``x``: ``prior_mean[permutation]`` is paired with ``x``.

        Raises:
            ArgumentError: The shapes do not fit, prior draws or data are not finite real numbers, or there is a weight
                and the conditions are not real numbers.
            MissingPackageError: POT is not installed.
            ConvergenceError: No assignment was found.
        """
        if prior_mean.shape != x.shape or x.ndim < 1 or not (x.is_floating_point() and prior_mean.is_floating_point()):
            raise ArgumentError(
                f"prior draws and data must be real numbers of one shape (batch, *event), got {prior_mean.dtype} "
                f"{tuple(prior_mean.shape)} and {x.dtype} {tuple(x.shape)}"
            )
        if isinstance(condition, Mapping):
            condition = torch.cat([part.detach().double().cpu().reshape(len(x), -1) for part in condition.values()], 1)
        if condition is not None and (condition.ndim < 1 or len(condition) != len(x)):
            raise ArgumentError(f"expected one condition for each of {len(x)} examples, got {tuple(condition.shape)}")
        start, end = (z.detach().double().cpu().reshape(len(z), -1) for z in (prior_mean, x))
        if condition is not None and self.condition_weight is not None:
            if not condition.is_floating_point():
                raise ArgumentError(
                    f"conditions weighed by their distance must be real numbers, got {condition.dtype}: for labels leave "
                    "condition_weight at None"
                )
            # Extra coordinates for the condition: their squared distance is added to that of prior and data.
            near = self.condition_weight**0.5 * condition.detach().double().cpu().reshape(len(condition), -1)
            # Those without a condition are exchanged among themselves, as if they had a label.
            lacks = near.isnan().any(1)
            start, end = (torch.cat([z, near.masked_fill(lacks[:, None], 0)], 1) for z in (start, end))
            condition = lacks if bool(lacks.any()) else None
        permutation = torch.arange(len(x))
        for members in _groups(len(x), condition):
            permutation[members] = members[_assign(start[members], end[members])]
        return permutation.to(x.device)


@dataclass(frozen=True)
class Reflowed:
    """The coupling of reflow: pairs of prior draw and sample from an earlier model, see ``proxflow reflow``.

    It records how a flow's network was trained. The pairs are part of the data, so it cannot pair others.
    """

    def pair(self, prior_mean: Tensor, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Refuse to pair.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "this flow was trained on pairs of its own: give prior draws as start, as proxflow.make_pairs makes them"
        )


def _groups(number: int, condition: Tensor | None) -> Iterator[Tensor]:
    """Yield the indices of the examples of each condition."""
    if condition is None:
        yield torch.arange(number)
        return
    _, group = torch.unique(condition.detach().cpu(), dim=0, return_inverse=True)
    for k in range(int(group.max()) + 1 if number else 0):
        yield (group == k).nonzero().squeeze(1)


def _assign(start: Tensor, end: Tensor) -> Tensor:
    """Return for each row of ``end`` (n, d) the row of ``start`` (n, d) in the pairing of least total squared distance."""
    if len(start) < 2:
        return torch.arange(len(start))
    squares = start.square().sum(1)[None, :] + end.square().sum(1)[:, None]
    costs = (squares - 2 * end @ start.T).clamp_min(0)
    if not bool(costs.isfinite().all()):
        raise ArgumentError(
            "cannot pair what is not finite: prior draws, data or conditions hold NaN or infinite values"
        )
    masses = costs.new_full((1, len(start)), 1 / len(start))
    plan, _, _ = optimal_plans(costs[None], masses, masses)
    # Between equal masses a vertex of the transport polytope is a permutation (Birkhoff).
    permutation = plan[0].argmax(1)
    if not torch.equal(permutation.sort().values, torch.arange(len(start))):
        raise ConvergenceError(f"no assignment of {len(start)} prior draws to data was found")
    return permutation
