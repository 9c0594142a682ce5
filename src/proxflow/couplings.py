"""Couplings: which prior draw a data point is paired with in training."""

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
        """Return a permutation (batch,), int64: data point i goes with prior draw ``permutation[i]``."""


@dataclass(frozen=True)
class MinibatchOT:
    """Minibatch optimal transport: the pairs of least total squared distance within a batch.

    "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport" (Tong et al., 2023),
    arXiv 2302.00482, and "Multisample Flow Matching: Straightening Flows with Minibatch Couplings" (Pooladian et al., 2023),
    arXiv 2304.14772. Known elsewhere as OT-CFM.

    The assignment is exact, by POT's network simplex (extra ``transport``), and a function of the batch alone. It only
    permutes the prior draws of a batch, so prior and data keep their laws, and the paths between them get straighter: fewer
    evaluations do. The network then learns the mean of the data under this coupling. What follows the mean needs no more:
    the samplers without noise, and the density along the deterministic flow. What adds noise that must not depend on the
    data is refused.

    The assignment is found on the host, in double precision, in training only; 128 pairs take some milliseconds, 1024 some
    tenths of a second. It pairs within what one process works through at a time: its share of the batch, or a part of that
    where a batch is accumulated in parts. So unlike all else in training it depends on the number of processes and parts.

    Args:
        condition_weight: How conditions keep a prior that does not depend on them. ``None``: only data with equal ones are
            exchanged, which is exact, and right for labels. A weight w > 0 is for continuous ones: w times their squared
            distance is added to the cost (in the manner of "The Curse of Conditions: Analyzing and Improving Optimal
            Transport for Conditional Flow-Based Generation", Cheng & Schwing, 2025, arXiv 2503.10636). Then the prior given
            a condition c still leans toward its data, by less the larger w is: with c ~ N(0, 1) and data of mean kc its mean
            is about kc/w, for w ≫ k. Toward w = ∞ nothing is exchanged. Conditions are best scaled to variance 1.

    Raises:
        ArgumentError: A weight that is not positive and finite.
    """

    condition_weight: float | None = None

    def __post_init__(self) -> None:
        if self.condition_weight is not None and not 0 < self.condition_weight < math.inf:
            raise ArgumentError(f"condition_weight must be positive and finite, or None, got {self.condition_weight}")

    def check(self) -> None:
        """Refuse to begin without the solver.

        Raises:
            MissingPackageError: POT is not installed.
        """
        pot()

    def pair(self, prior_mean: Tensor, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the assignment of least total squared distance.

        With conditions draw i is given the condition of data point i, which it does not depend on, and goes to data with
        that condition, or with a weight one near it. So the prior given a condition stays what it is, or nearly, and what is
        learned for a condition starts where sampling will. Pairing without regard to conditions would shift the prior of
        each toward its data (Cheng & Schwing, 2025). Without a weight, conditions that are all different leave the batch as
        it is.

        Args:
            prior_mean: Means of the prior draws, (batch, *event).
            x: Data, real numbers of the same shape.
            condition: What the data are conditioned on, (batch, …): class labels, or with a weight real numbers.

        Returns:
            Permutation (batch,), int64, on the device of ``x``: ``prior_mean[permutation]`` goes with ``x``.

        Raises:
            ArgumentError: The shapes do not fit, or what is to be paired is not finite real numbers,
                or there is a weight and the conditions are not real numbers.
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
            # Coordinates of its own for the condition: their squared distance is added to that of prior and data.
            near = self.condition_weight**0.5 * condition.detach().double().cpu().reshape(len(condition), -1)
            # Those that lack a condition are exchanged among themselves, as for a label of their own.
            lacks = near.isnan().any(1)
            start, end = (torch.cat([z, near.masked_fill(lacks[:, None], 0)], 1) for z in (start, end))
            condition = lacks if bool(lacks.any()) else None
        permutation = torch.arange(len(x))
        for members in _groups(len(x), condition):
            permutation[members] = members[_assign(start[members], end[members])]
        return permutation.to(x.device)


@dataclass(frozen=True)
class Reflowed:
    """The pairs of prior draw and sample that an earlier model's flow makes: what ``proxflow reflow`` trains on.

    It says of a flow how its network was trained. The pairs are data of their own, so it pairs no others.
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
