"""A likelihood bound of mixed data, numbers and classes, each part by its own channel.

Given the data, the parts of a belief move independently of each other. A model that drives each part by predictions
from the whole belief has, at any time, the sum of the parts' costs, and so

    −log p(x) ≤ Σ_parts ∫ cost of the part.

The cost of a part of classes is that of :mod:`proxflow.likelihood.classes`. A part of d numbers with the Gaussian path
a x + b ε has the signal-to-noise ratio λ = (a/b)², from 0 to Λ, and costs

    ½ ∫₀^Λ E |x − x̂|² dλ + (d/2) (1 + log(2π/Λ)),

where the last term is E −log N(x; ·, 1/Λ), for x read from the last belief. "Variational Diffusion Models" (Kingma et
al., 2021), arXiv 2107.00630; "Mutual Information and Minimum Mean-Square Error in Gaussian Channels" (Guo et al.,
2005), arXiv cs/0412108.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Belief, Product
from proxflow.divergences import Divergence, FisherRao, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_condition, given
from proxflow.flows import GPFN, CategoricalEndpoints, Flow, GaussianEndpoints, ProductEndpoints
from proxflow.flows.base import Means
from proxflow.likelihood.classes import simplex_beliefs, simplex_times
from proxflow.paths import Schedule
from proxflow.random import Generator, rand, randn_like


class _Part(NamedTuple):
    """The cost of a part of mixed data.

    Args:
        times: Function from uniform numbers (batch,) to times and the weights of costs there.
        beliefs: Function from the part's data (batch, columns), times (batch,) and a generator to beliefs, and the cost
            of predictions, (batch,).
        last: Cost of reading the last belief, in nats.
    """

    times: Callable[[Tensor], tuple[Tensor, Tensor]]
    beliefs: Callable[[Tensor, Tensor, Generator], tuple[Belief, Callable[[Any], Tensor]]]
    last: float


def mixed_bound(
    predict: Predict,
    flow: Flow[Any],
    x: Tensor,
    generator: Generator,
    *,
    draws: int = 16,
    condition: Condition | None = None,
) -> Tensor:
    """Estimate an upper bound on −log p(x) of a flow of mixed data, in nats per example, by Monte Carlo.

    p(x) is the probability of the classes times the density of the numbers, read with a noise of their ``target_std``.
    With exact predictions its mean over the data is their entropy, plus the effect of that noise.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted row.
        flow: :class:`~proxflow.GPFN` with ``ProductEndpoints`` of Gaussian parts without a source, whose divergence has a
            Gaussian path (``Wasserstein2``, ``KL``), and of parts of classes, whose divergence is ``ReverseKL`` or
            ``FisherRao``.
        x: Rows (batch, columns), floating point.
        generator: Random generator of times and noise, on the device of ``x``. With
            :class:`~proxflow.random.SampleStreams` an example's result does not depend on its batch.
        draws: Times per example and part, one in each of ``draws`` equal parts, ≥ 1, each an evaluation.
        condition: Condition of the predictions, one row per example.

    Returns:
        Nats per example, (batch,), float64.

    Raises:
        ArgumentError: Another kind of flow, data that are not its rows, no data, or ``draws`` < 1.
    """
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws}")
    parts = _parts(flow)
    if not (isinstance(flow, GPFN) and isinstance(flow.endpoints, ProductEndpoints) and parts):
        raise ArgumentError(
            "mixed_bound knows GPFN with ProductEndpoints of numbers that move on a Gaussian path, and of classes that "
            f"move by ReverseKL or FisherRao, got {flow!r:.120}"
        )
    flow.check(x)
    if not x.numel():
        raise ArgumentError(f"there must be data, (batch, columns), got {tuple(x.shape)}")
    check_condition(predict, condition, len(x))
    asked = given(predict, condition)
    columns = torch.split(x, [number for _, number in flow.endpoints.parts], dim=1)
    total = torch.full([len(x)], sum(part.last for part in parts), dtype=torch.float64, device=x.device)
    for place, part in enumerate(parts):
        for k in range(draws):
            uniform = (k + rand(torch.Size([len(x)]), generator, torch.float64, x.device)) / draws
            t, weight = part.times(uniform)
            found = [each.beliefs(a, t, generator) for each, a in zip(parts, columns, strict=True)]
            belief = Product(tuple(own.map(lambda a: a.to(x.dtype)) for own, _ in found))
            target = asked(belief, t.to(x.dtype))
            total += weight * found[place][1](target.parts[place]) / draws
    return total


def has_mixed_bound(flow: Flow[Any]) -> bool:
    """Return whether :func:`mixed_bound` supports a flow."""
    return bool(_parts(flow))


def _parts(flow: Flow[Any]) -> list[_Part]:
    """Return the costs of the parts of a flow of mixed data; empty if one is unknown, or for another flow."""
    if not (isinstance(flow, GPFN) and isinstance(flow.endpoints, ProductEndpoints)):
        return []
    found: list[_Part] = []
    for part, (ends, number) in zip(flow.parts, flow.endpoints.parts, strict=bool(flow.parts)):
        if type(ends) is CategoricalEndpoints and type(part.divergence) in (ReverseKL, FisherRao):
            found.append(_classes(part.divergence, flow.schedule, ends.classes))
        elif type(ends) is GaussianEndpoints and ends.source is None:
            latent = part.latent
            if latent is not None and ends.target_std > 0:
                found.append(_numbers(latent, ends.target_std, number))
    return found if len(found) == len(flow.endpoints.parts) else []


def _classes(divergence: Divergence, schedule: Schedule, classes: int) -> _Part:
    def times(uniform: Tensor) -> tuple[Tensor, Tensor]:
        left, weight = simplex_times(divergence, classes, uniform)
        return schedule.time_of(1 - left), weight

    def beliefs(x: Tensor, t: Tensor, generator: Generator) -> tuple[Belief, Callable[[Any], Tensor]]:
        belief, cost = simplex_beliefs(divergence, classes, x.long(), schedule.remaining(t), generator)
        return belief, lambda predicted: cost(predicted.logits.double())

    return _Part(times, beliefs, 0.0)


def _numbers(latent: Means, std: float, number: int) -> _Part:
    path = latent.path
    a, b = path.coefficients(torch.ones((), dtype=torch.float64))
    most = min(std**-2, float((a / b).square()))

    def times(uniform: Tensor) -> tuple[Tensor, Tensor]:
        # For numbers of variance 1 the errors are about 1/(1 + λ), so log(1 + λ) is drawn uniformly.
        above = math.log1p(most) * uniform
        return path.time_of(1 / (1 + above.expm1().rsqrt())), math.log1p(most) / 2 * above.exp()

    def beliefs(x: Tensor, t: Tensor, generator: Generator) -> tuple[Belief, Callable[[Any], Tensor]]:
        a, b = path.over(t, x)
        x = x.double()
        belief = latent.belief(a * x + b * randn_like(x, generator), t)
        return belief, lambda predicted: sum_events((predicted.mean.double() - x).square())

    return _Part(times, beliefs, number / 2 * (1 + math.log(2 * math.pi / most)))
