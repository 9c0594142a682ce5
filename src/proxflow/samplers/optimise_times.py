"""Times for few evaluations, optimised for a trained model against its own samples with many steps.

A deterministic sampler should reach in few steps the sample that many steps give from the same prior draw. The root
mean square distance between them depends only on the times of the evaluations. Minimising it is a least-squares problem
with few unknowns, without data, features or training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import reads
from proxflow.flows import Flow
from proxflow.samplers.base import Sampler
from proxflow.samplers.registry import chosen, sample

REFERENCE_STEPS = 64
"""Evaluations per reference sample."""


@dataclass(frozen=True)
class OptimisedTimes:
    """Result of a search for times: the times, their gain, and their cost.

    Args:
        times: Times of the evaluations, increasing from 0, below 1; the argument ``times`` of :func:`proxflow.sample`.
        error: Root mean square distance to the reference with them, in units of the data.
        error_before: The same with the sampler's own times.
        evaluations: Network evaluations spent, counted per event, including those of the reference if it was drawn.
        reference: The reference samples, to reuse for another number of evaluations.
    """

    times: tuple[float, ...]
    error: float
    error_before: float
    evaluations: int
    reference: Tensor = field(repr=False, compare=False)


def optimise_times(
    predictor: nn.Module,
    flow: Flow[Any],
    shape: Sequence[int],
    nfe: int,
    *,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    reference: Tensor | None = None,
    rounds: int = 10,
) -> OptimisedTimes:
    """Find the times at which few steps of a sampler end nearest to its own many steps from the same prior draws.

    Levenberg–Marquardt on the logarithms of the intervals, the last of which ends at 1, with derivatives by differences.
    Evaluations before a moved time are reused: a round costs about nfe²/2 evaluations of each event.

    Args:
        predictor: As for :func:`proxflow.sample`.
        flow: The flow it was trained for.
        shape: (number of prior draws, *event). All form one batch; 64 images are enough.
        nfe: Network evaluations per sample later, ≥ 1.
        sampler: A deterministic sampler or its name; ``None`` takes the default one.
        seed: Seed of the prior draws.
        reference: Samples of many steps, of this shape, from an earlier result of the same seed and sampler; ``None``
            draws them, with 64 evaluations per sample.
        rounds: Most rounds; the search ends earlier if a round gains less than 0.2 %.

    Raises:
        ArgumentError: A sampler that is stochastic or unknown, events that are not real numbers, a reference of another
            shape, or a number out of range.
    """
    sampler = chosen(sampler, predictor, flow)
    if getattr(sampler, "noisy", False) or getattr(sampler, "kappa", 0) > 0:
        raise ArgumentError(
            f"{sampler} draws noise on its way, so that few and many steps do not lead to one place: take one without, "
            "such as 'multistep2' or 'deterministic'"
        )
    if nfe < 1 or rounds < 0:
        raise ArgumentError(f"nfe must be at least 1 and rounds at least 0, got {nfe} and {rounds}")
    if not shape or min(shape) < 1:
        raise ArgumentError(f"shape is (number of prior draws, *event), each at least 1, got {tuple(shape)}")
    prior = flow.prior((1, *shape[1:]), torch.Generator(), torch.float32, torch.device("cpu"))
    if not prior.mode.is_floating_point():
        raise ArgumentError(
            f"between classes there is no distance to make small: {flow} must be of data that are numbers"
        )
    asked = _Replay(predictor)
    settings: dict[str, Any] = {"sampler": sampler, "seed": seed, "batch_size": shape[0]}
    if reference is None:
        reference = sample(asked, flow, shape, nfe=REFERENCE_STEPS, **settings)
    if tuple(reference.shape) != tuple(shape) or not reference.is_floating_point():
        raise ArgumentError(
            f"the reference must be numbers of shape {tuple(shape)}, got {reference.dtype} {tuple(reference.shape)}"
        )

    def residual(times: list[float], known: Sequence[Any]) -> Tensor:
        asked.known, asked.answers = known, []
        found = sample(asked, flow, shape, nfe=nfe, times=times, **settings)
        return (found - reference.to(found)).double().flatten()

    own = sampler.times(flow, nfe)
    widths = torch.tensor([s - t for t, s in pairwise([*own, max(1.0, own[-1] + 1e-3)])], dtype=torch.float64)
    logs, damping = (widths[:-1] / widths[-1]).log(), 1e-3
    times = own
    here, answers = residual(times, ()), asked.answers
    before = _root_mean_square(here)
    # If a predictor reads the end of its step, the prediction before a time depends on it, too.
    told = 1 if "end" in asked.reads else 0
    for _ in range(rounds if nfe > 1 else 0):
        columns = []
        for k in range(1, nfe):
            moved, apart = list(times), 0.01 * ((times[k + 1] if k + 1 < nfe else 1.0) - times[k])
            moved[k] += apart
            columns.append((residual(moved, answers[: k - told]) - here) / apart)
        slopes = torch.stack(columns, 1) @ _derivatives(logs).to(here)
        normal, gradient = (slopes.T @ slopes).cpu(), (slopes.T @ here).cpu()
        for _ in range(8):
            ridge = damping * normal.diagonal().clamp_min(1e-12).diag()
            move = -torch.linalg.solve(normal + ridge, gradient).clamp(-1, 1)
            tried = _times(logs + move)
            there = residual(tried, answers[: 1 - told])
            if there.norm() < here.norm():
                break
            damping = max(damping, 1e-2) * 10
        else:
            break
        gain = 1 - float(there.norm() / here.norm())
        # If the decrease is much smaller than the linear model predicted, the next step is shorter.
        promised = -float(move @ (2 * gradient + normal @ move))
        kept_promise = float(here.square().sum() - there.square().sum()) > 0.25 * promised
        damping = damping / 10 if kept_promise else max(damping, 1e-2) * 10
        logs, times, here, answers = logs + move, tried, there, asked.answers
        if gain < 2e-3 and kept_promise:
            break
    return OptimisedTimes(tuple(times), _root_mean_square(here), before, asked.evaluations, reference)


def _times(logs: Tensor) -> list[float]:
    """Return the times of given logarithms of intervals, relative to the last one."""
    shares = torch.cat([logs, logs.new_zeros(1)]).softmax(0)
    return [0.0, *shares.cumsum(0)[:-1].tolist()]


def _derivatives(logs: Tensor) -> Tensor:
    """Return the derivatives of all times but the first by the logarithms of the intervals."""
    shares = torch.cat([logs, logs.new_zeros(1)]).softmax(0)[:-1]
    return torch.tril(shares.expand(len(shares), -1)) - shares.cumsum(0)[:, None] * shares


def _root_mean_square(values: Tensor) -> float:
    return float(values.norm()) / math.sqrt(values.numel())


class _Replay(nn.Module):
    """A predictor that answers its first calls from ``known`` and others by the model; ``answers`` records all."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.reads = model, reads(model)
        self.known: Sequence[Any] = ()
        self.answers: list[Any] = []
        self.evaluations = 0
        self.train(model.training)  # sampling restores this mode

    def forward(self, belief: Any, t: Tensor, **told: Any) -> Any:
        number = len(self.answers)
        if number < len(self.known):
            answer = self.known[number]
        else:
            self.evaluations += len(t)
            answer = self.model(belief, t, **told)
        self.answers.append(answer)
        return answer
