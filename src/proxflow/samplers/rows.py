"""Rows of mixed data given some of their columns, exact in the limit of many particles and steps.

A known category is made certain, which is Bayes' rule. A known number only reaches the network through the noise of the
current time, and other categories are decided early, when that noise is large: rows that are only pulled toward the
known values get categories that are inconsistent with them. So rows are particles, as in :func:`proxflow.particles`.
Numbers move by the ancestral kernel of their Gaussian path, known ones toward their values; categories by the flow's
own step toward a drawn class; and particles are weighed by the predicted likelihood of the known numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proxflow.beliefs import DiagonalGaussian, Product
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, check_rows, moved, rows
from proxflow.flows import GPFN, CategoricalEndpoints, Flow, GaussianEndpoints
from proxflow.inverse import Mask
from proxflow.paths import renewal
from proxflow.predictors.posterior import Posterior
from proxflow.random import SampleStreams, randn_like
from proxflow.samplers.particles import Particles, Weights


def weighs_rows(flow: Flow[Any]) -> bool:
    """Return whether :func:`row_particles` supports a flow."""
    parts = flow.parts if isinstance(flow, GPFN) else ()
    return bool(parts) and all(
        part.latent is not None and part.begins_normal
        if type(part.endpoints) is GaussianEndpoints
        else type(part.endpoints) is CategoricalEndpoints
        for part in parts
    )


@torch.no_grad()
def row_particles(
    posterior: Posterior,
    flow: Flow[Any],
    shape: Sequence[int],
    *,
    number: int = 64,
    nfe: int = 50,
    noise: float = 0.1,
    seed: int = 0,
    batch_size: int = 4096,
    condition: Condition | None = None,
    threshold: float = 0.5,
    progress: Callable[[int], None] | None = None,
) -> Particles:
    """Draw weighted rows given some of their columns; they depend on the seed, not on the batch size.

    Args:
        posterior: A predictor of mixed data given a :class:`~proxflow.inverse.Mask` of known columns.
        flow: :class:`~proxflow.GPFN` with ``ProductEndpoints`` of classes and of numbers, these on a Gaussian path from
            standard normal draws.
        shape: (rows, columns).
        number: Particles per row, ≥ 2.
        nfe: Predictions per particle, ≥ 1.
        noise: Standard deviation ≥ 0 of known numbers in the weights, in units of theirs. With 0, a network's errors at
            the end of the path, where numbers are resolved finely, have unbounded weight.
        seed: Seed.
        batch_size: Particles in a network batch; those of a row are always together.
        condition: Condition of the predictions, one row each.
        threshold: Particles are resampled if the effective sample size falls below this fraction, in [0, 1].
        progress: Called with the number of finished rows.

    Raises:
        ArgumentError: Numbers out of range, or another flow.
    """
    if number < 2 or nfe < 1 or not 0 <= threshold <= 1 or len(shape) != 2 or min(shape) < 1 or batch_size < 1:
        raise ArgumentError(
            "particles of rows take at least 2 of them, 1 evaluation, a threshold in [0, 1], a shape (rows, columns) and a "
            f"batch of at least 1, got {number}, {nfe}, {threshold}, {tuple(shape)} and {batch_size}"
        )
    if not 0 <= noise < math.inf:
        raise ArgumentError(f"the noise of known numbers is finite and not negative, got {noise}")
    if not isinstance(posterior, Posterior) or not isinstance(posterior.operator, Mask):
        raise ArgumentError(f"particles of rows follow a Posterior with a Mask, got {type(posterior).__name__}")
    if not isinstance(flow, GPFN) or not weighs_rows(flow):
        raise ArgumentError(
            "particles of rows are of mixed data, whose numbers move on a Gaussian path from normal draws, and "
            f"{flow!r:.120} is no flow of these: take proxflow.sample"
        )
    if posterior.examples not in (None, shape[0]):
        raise ArgumentError(
            f"there are observations of {posterior.examples} examples, and {shape[0]} posteriors are asked for"
        )
    check_rows(condition, shape[0], "condition")
    device = posterior.observation.device
    condition = moved(condition, device)
    found: list[Particles] = []
    for index in torch.split(torch.arange(shape[0], device=device), max(1, batch_size // number)):
        told = None if condition is None else rows(condition, index)
        found.append(_weighed(posterior.rows(index), flow, index, shape[1], number, nfe, noise, seed, told, threshold))
        if progress is not None:
            progress(int(index[-1]) + 1)
    return Particles(
        torch.cat([each.events for each in found]),
        torch.cat([each.log_weights for each in found]),
        torch.cat([each.log_evidence for each in found]),
        torch.cat([each.effective for each in found], dim=1),
    )


def _weighed(
    posterior: Posterior,
    flow: GPFN,
    index: Tensor,
    columns: int,
    number: int,
    nfe: int,
    noise: float,
    seed: int,
    condition: Condition | None,
    threshold: float,
) -> Particles:
    """Return the particles of some rows, whose indices among all are ``index``."""
    owner = torch.arange(len(index), device=index.device).repeat_interleave(number)
    total = len(owner)
    like = next((p for p in posterior.parameters() if p.is_floating_point()), posterior.observation)
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    of_each = (index[:, None] * number + torch.arange(number, device=index.device)).flatten()
    streams = SampleStreams(seed, of_each)
    weights = Weights(len(index), number, threshold, SampleStreams(seed + 2**62, index), index.device)
    each: Any = posterior.rows(owner)
    told: dict[str, Any] = {} if condition is None else {"condition": rows(condition, owner)}
    observed, known = each.observation.expand(total, -1), each.operator.known.expand(total, -1)
    belief: Any = flow.prior((total, columns), streams, dtype, index.device)
    widths = [part.mode[0].numel() for part in belief.parts]
    values, masks = (torch.split(a, widths, dim=1) for a in (observed, known))
    times = torch.tensor(flow.times(nfe), dtype=torch.float64, device=index.device)
    paths = {
        place: [c.tolist() for c in part.latent.path.straight(times)]
        for place, part in enumerate(flow.parts)
        if part.latent is not None
    }
    asked = times.to(torch.promote_types(dtype, torch.float32))[:, None].expand(nfe, total)
    for k in range(nfe):
        plain, sure = each.refined(belief, asked[k], **told)
        seen = torch.zeros(total, dtype=torch.float64, device=index.device)
        for place, path in paths.items():
            variance = _spread(path, k) + noise**2
            wrong = (values[place] - plain.parts[place].mean).double()
            density = -0.5 * (wrong.square() / variance + math.log(2 * math.pi * variance))
            seen += torch.where(masks[place], density, 0.0).sum(1)
        chosen = weights.resampled(seen)
        belief, plain, sure = (_rows(a, chosen) for a in (belief, plain, sure))
        drawn = Product(
            tuple(
                target if place in paths else part.endpoints.draw(target, streams)
                for place, (part, target) in enumerate(zip(flow.parts, sure.parts, strict=True))
            )
        )
        if k + 1 == nfe:
            break
        new = list(flow.update(belief, drawn, times[k], times[k + 1], None).parts)
        for place, path in paths.items():
            taken, left, scale = path
            keep, _, fresh = renewal((taken[k], left[k]), (taken[k + 1], left[k + 1]), 1.0)
            pull, spread = taken[k + 1] - keep * taken[k], _spread(path, k)
            x = plain.parts[place].mean
            better = torch.where(masks[place], x + spread / (spread + noise**2) * (values[place] - x), x)
            # The kernel of x ~ N(x̂, r²) and an ancestral step toward it, as of all particles.
            std = math.sqrt(fresh**2 + pull**2 * spread)
            step = std * randn_like(x, streams)
            away = step.double() + pull * (better - x).double()
            weights.change((step.double().square() - away.square()).sum(1) / (2 * std**2))
            y = keep * belief.parts[place].mean / scale[k] + pull * better + step
            new[place] = DiagonalGaussian((scale[k + 1] * y).to(dtype), new[place].given_std)
        belief = Product(tuple(new))
    found = drawn.mode
    events = torch.where(known, observed.to(found.dtype), found)
    return weights.of(events.reshape(len(index), number, columns))


def _spread(path: list[list[float]], k: int) -> float:
    """Return the variance of numbers of variance 1 given their beliefs at the k-th evaluation, r²."""
    taken, left = path[0][k], path[1][k]
    return left**2 / (taken**2 + left**2)


def _rows(belief: Any, index: Tensor) -> Any:
    return belief.map(lambda a: a[index] if len(a) > 1 else a)
