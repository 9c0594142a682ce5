"""Optimal transport plans between weighted points, by POT's network simplex."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxflow.errors import ConvergenceError, MissingPackageError

_PIVOTS = 10_000_000
"""Most pivots of the network simplex: far more than thousands of points need."""


def pot() -> Any:
    """Import the library POT.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return import_module("ot")  # takes seconds, so it is imported only if needed
    except ImportError as error:
        raise MissingPackageError(
            "optimal transport between discrete sets needs the library POT: pip install 'proxflow[transport]'"
        ) from error


def optimal_plans(costs: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find plans of least cost, and the dual potentials: the derivatives of the least cost in the weights.

    A plan is a vertex of the transport polytope, so at most n + m − 1 of its entries are nonzero. It is found on the
    host, in double precision, and without gradients.

    Args:
        costs: Cost of moving a unit of mass from i to j, (batch, n, m).
        start: Mass at each i, (batch, n), ≥ 0 with the sum 1.
        end: Mass at each j, (batch, m).

    Returns:
        Plans (batch, n, m), and potentials (batch, n) and (batch, m), of the precision and on the device of ``costs``.

    Raises:
        MissingPackageError: POT is not installed.
        ConvergenceError: POT found no optimal plan.
    """
    ot, found = pot(), []
    for cost, a, b in zip(*(x.detach().double().cpu().numpy() for x in (costs, start, end)), strict=True):
        plan, log = ot.emd(a / a.sum(), b / b.sum(), np.ascontiguousarray(cost), numItermax=_PIVOTS, log=True)
        if log["warning"] is not None:
            raise ConvergenceError(f"no optimal transport plan was found: {log['warning']}")
        found.append((plan, log["u"], log["v"]))
    plans, first, second = (torch.from_numpy(np.stack(parts)).to(costs) for parts in zip(*found, strict=True))
    return plans, first, second


def least_cost(costs: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Compute the least cost of transport (batch,), with exact first derivatives in costs and weights (envelope theorem)."""
    plans, first, second = optimal_plans(costs, start, end)
    by_weights = (first * (start - start.detach())).sum(1) + (second * (end - end.detach())).sum(1)
    return (plans * costs).sum((1, 2)) + by_weights
