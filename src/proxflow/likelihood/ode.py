"""Log-likelihood of flows with a Gaussian path, by the instantaneous change of variables.

Known elsewhere as the likelihood of a continuous normalising flow, "Neural Ordinary Differential Equations" (Chen et
al., 2018), arXiv 1806.07366, eq. 8, or of the probability-flow ODE, "Score-Based Generative Modeling through Stochastic
Differential Equations" (Song et al., 2020), arXiv 2011.13456. In the straight coordinate y = μ/(a + b) = τ x + (1 − τ)
ε all such flows, as rectified flow, BFN and diffusion, follow one ODE. In u = −ln(1 − τ),

    dy/du = x̂(y, u) − y,        d log p(y)/du = d − tr ∂x̂/∂y,

from ε ~ N(0, I) at τ = 0. The trace is exact (one vector–Jacobian product per coordinate) or Hutchinson's estimate
vᵀ(∂x̂/∂y)v, with random signs or normal draws v that are fixed along the path: "FFJORD: Free-form Continuous Dynamics
for Scalable Reversible Generative Models" (Grathwohl et al., 2018), arXiv 1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from proxflow._math import sum_events
from proxflow.errors import ArgumentError
from proxflow.examples import Condition, check_condition, given
from proxflow.flows import Flow
from proxflow.paths import GaussianPath
from proxflow.random import Generator, rand, randn

Method = Literal["rk4", "heun"]
Probe = Literal["rademacher", "gaussian"]

# Butcher tableaux with stages at 0, 1/2 or 1 of a step, each using the one before: (position, weight) of each stage.
_STAGES: dict[str, list[tuple[float, float]]] = {
    "rk4": [(0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)],
    "heun": [(0.0, 1 / 2), (1.0, 1 / 2)],
}


@dataclass(frozen=True, eq=False)
class OdeLikelihood:
    """Log-likelihoods by the probability-flow ODE.

    Args:
        log_prob: log p of each example, (batch,), nats, float64, a density in the units of the data.
        standard_error: Standard error of ``log_prob`` over the random probes, (batch,); ``None`` for an exact trace or
            a single probe.
        nfe: Network evaluations per example, not counting derivatives.
    """

    log_prob: Tensor
    standard_error: Tensor | None
    nfe: int


def _draw(probe: Probe, shape: torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Draw probes (batch, …) with identity covariance."""
    if probe == "gaussian":
        return randn(shape, generator, like.dtype, like.device)
    return torch.where(rand(shape, generator, like.dtype, like.device) < 0.5, -1.0, 1.0).to(like.dtype)


def ode_log_likelihood(
    predict: Callable[[Any, Tensor], Any],
    flow: Flow[Any],
    x: Tensor,
    *,
    steps: int = 64,
    method: Method = "rk4",
    resolution: float = 3e-4,
    probes: int | None = None,
    probe: Probe = "rademacher",
    generator: Generator | None = None,
    condition: Condition | None = None,
) -> OdeLikelihood:
    """Return log p(x) under the deterministic flow that ``predict`` defines.

    At τ = 1 the flow of a network need not have a density, so the path ends at τ = 1/(1 + r) with r the ``resolution``. The
    result is the log density at x of the *data with N(0, r²) added to each coordinate*; for smooth densities the difference
    is O(r²). Bytes must be dequantised (``proxflow.data.dequantise``); take a resolution well below their bin width.

    The result is differentiable in ``x`` and in the network's parameters. Under ``torch.no_grad()`` it needs far less
    memory.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted target, differentiable in
            the belief.
        flow: A flow with a Gaussian path: ``GPFN`` with Wasserstein-2 or KL, ``BFN``, ``Diffusion``.
        x: Data (batch, *event); its precision is the network's. Traces are summed in float64.
        steps: Number of steps, equal in u = −ln(1 − τ), ≥ 1.
        method: "rk4" (four evaluations per step, fourth order) or "heun" (two, second order).
        resolution: r > 0 in units of the data. A path that itself ends in noise (BFN: σ₁/√(1 − σ₁²)) is followed at
            most to its end.
        probes: Number of random probes of Hutchinson's estimate, ≥ 1; ``None`` takes the exact trace.
        probe: Distribution of the probes.
        generator: Random generator of the probes, on the device of ``x``; required with ``probes``.
        condition: Condition of the predictions, one row per example.

    Raises:
        ArgumentError: The flow has no Gaussian path, ``x`` is not floating point, or a setting is out of range.
    """
    latent, path = flow.latent, flow.path
    if latent is None or path is None:
        raise ArgumentError(
            f"{flow!r:.120} has no Gaussian path, so no density to follow: class_bound and mixed_bound bound "
            "the likelihood of classes and of rows of tables"
        )
    _check_way(x, steps, method, resolution)
    if probe not in get_args(Probe):
        raise ArgumentError(f"probe is one of {get_args(Probe)}, got {probe!r}")
    if probes is not None and probes < 1:
        raise ArgumentError(f"probes must be at least 1, got {probes}")
    check_condition(predict, condition, len(x))
    asked, size = given(predict, condition), math.prod(x.shape[1:])
    if probes is None:
        vectors = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
    elif generator is None:
        raise ArgumentError("random probes need a generator")
    else:
        vectors = _draw(probe, torch.Size([len(x), probes, *x.shape[1:]]), generator, x).movedim(1, 0)

    way = _way(path, steps, resolution, x)

    def slope(y: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Return dy/du, and the trace or each probe's estimate of it, (probes or 1, batch)."""

        def predicted(y: Tensor) -> Tensor:
            mean: Tensor = asked(way.belief(latent, y, stage), way.clock[stage].expand(len(y))).mean
            return mean

        pair = torch.func.vjp(predicted, y)
        x_hat, pull = pair[0], pair[1]

        def along(v: Tensor) -> Tensor:
            return sum_events((pull(v.expand_as(y))[0] * v).double())

        products = torch.func.vmap(along, chunk_size=16)(vectors)
        return x_hat - y, products.sum(0, keepdim=True) if probes is None else products

    trace = torch.zeros(1 if probes is None else probes, len(x), dtype=torch.float64, device=x.device)
    y, trace = _followed(slope, x * way.last.to(x.dtype), trace, way, steps, method)
    spread = way.spread
    log_prior = flow.log_prior(y.double() * spread) + size * spread.log()
    # The step is negative, so that `trace` is −∫ tr du. The last term is the change from y = τ x to x.
    log_probs = log_prior + size * way.length + trace + size * way.last.log()
    error = log_probs.std(0) / math.sqrt(len(log_probs)) if len(log_probs) > 1 else None
    return OdeLikelihood(log_probs.mean(0), error, steps * len(_STAGES[method]))


@torch.no_grad()
def encode(
    predictor: Callable[[Any, Tensor], Any],
    flow: Flow[Any],
    x: Tensor,
    *,
    steps: int = 64,
    method: Method = "rk4",
    resolution: float = 3e-4,
    condition: Condition | None = None,
) -> Tensor:
    """Return the prior draws that map to data, the inverse of deterministic sampling. Known elsewhere as inversion.

    ``proxflow.sample(predictor, flow, x.shape, start=encode(predictor, flow, x), sampler="multistep2", nfe=…)`` returns
    the data, more accurately the more evaluations are spent in both directions.

    Args:
        predictor: Function of a belief and times (batch,) that returns the predicted target.
        flow: A flow with a Gaussian path from a drawn prior: ``GPFN`` with Wasserstein-2 or KL, ``Diffusion``.
        x: Data (batch, *event), encoded.
        steps: As for :func:`ode_log_likelihood`; so are ``method``, ``resolution`` and ``condition``.
        method: Method of the steps.
        resolution: Where the path ends.
        condition: Condition of the predictions, one row per example.

    Returns:
        The means of the prior draws, (batch, *event), the argument ``start`` of :func:`proxflow.sample`.

    Raises:
        ArgumentError: The flow has no Gaussian path or starts from a fixed belief, ``x`` is not floating point, or a
            setting is out of range.
    """
    latent, path = flow.latent, flow.path
    if latent is None or path is None or flow.begins_fixed:
        raise ArgumentError(f"{flow!r:.120} has no Gaussian path from a drawn prior, so no draw leads to given data")
    _check_way(x, steps, method, resolution)
    asked, way = given(predictor, condition), _way(path, steps, resolution, x)

    def slope(y: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        mean: Tensor = asked(way.belief(latent, y, stage), way.clock[stage].expand(len(y))).mean
        return mean - y, nothing

    was_training = getattr(predictor, "training", False)
    nothing = torch.zeros((), dtype=torch.float64, device=x.device)
    try:
        if was_training:
            predictor.eval()  # type: ignore[attr-defined]
        y, _ = _followed(slope, x * way.last.to(x.dtype), nothing, way, steps, method)
    finally:
        if was_training:
            predictor.train()  # type: ignore[attr-defined]
    return y * way.spread.to(y.dtype)


def _check_way(x: Tensor, steps: int, method: Method, resolution: float) -> None:
    """Refuse data or settings that are out of range."""
    if not x.is_floating_point() or x.ndim < 2:
        raise ArgumentError(f"the data must be floating point (batch, *event), got {x.dtype} {tuple(x.shape)}")
    if method not in get_args(Method):
        raise ArgumentError(f"method is one of {get_args(Method)}, got {method!r}")
    if steps < 1 or not resolution > 0:
        raise ArgumentError(f"steps must be at least 1 and resolution positive, got {steps} and {resolution}")


@dataclass(frozen=True)
class _Way:
    """The path from the data to the prior, at the times of all stages: the ends and the middle of every step.

    Args:
        t: Times, float64.
        clock: The same in the precision of the data.
        scale: a + b there.
        step: Length of a step in u, negative.
        length: Length of the path in u.
        last: τ at its start, at the data.
        spread: Factor from the straight coordinate at its end to the prior draw.
    """

    t: Tensor
    clock: Tensor
    scale: Tensor
    step: Tensor
    length: Tensor
    last: Tensor
    spread: Tensor

    def belief(self, latent: Any, y: Tensor, stage: int) -> Any:
        return latent.belief(self.scale[stage] * y, self.t[stage])


def _way(path: GaussianPath, steps: int, resolution: float, x: Tensor) -> _Way:
    span = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
    ends = path.straight(span)[0].clamp(max=1 / (1 + resolution))
    first, last = ends[0], ends[1]
    length = torch.log1p(-first) - torch.log1p(-last)
    u = -torch.log1p(-last) - length * torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64, device=x.device)
    t = torch.cat([path.time_of(-torch.expm1(-u[:-1])), span[:1]])
    total = path.straight(t)[2]
    # The prior draw is (a + b) y; on a path with a = b = 0 at first y itself is drawn.
    spread = torch.where(total[-1] > 0, total[-1], 1.0)
    return _Way(t, t.to(x.dtype), total.to(x.dtype), -length / steps, length, last, spread)


def _followed(
    slope: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    y: Tensor,
    trace: Tensor,
    way: _Way,
    steps: int,
    method: Method,
) -> tuple[Tensor, Tensor]:
    """Integrate y and the trace along the path."""
    for k in range(steps):
        moved, direction = y, torch.zeros_like(y)
        for place, weight in _STAGES[method]:
            start = y + place * way.step.to(y.dtype) * direction
            direction, part = slope(start, 2 * k + round(2 * place))
            moved = moved + weight * way.step.to(y.dtype) * direction
            trace = trace + weight * way.step * part
        y = moved
    return y, trace
