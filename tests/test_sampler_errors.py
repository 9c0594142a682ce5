"""What samplers do wrong by themselves: with exact predictors no error is a network's."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_flows import double, seeded
from test_toy import mixture

from proxflow import (
    BFN,
    GPFN,
    KL,
    CategoricalEndpoints,
    Cosine,
    Deterministic,
    Diffusion,
    DiscreteBFN,
    ExactClasses,
    ExactMean,
    FisherRao,
    GaussianEndpoints,
    Marginal,
    Midpoint,
    Multistep,
    ReverseKL,
    Stochastic,
)

LAW = mixture(2, 3, seed=5)


END = 6.0  # in u = −ln(1 − τ): noise of 0.0025 is left


@functools.cache
def trajectory_ends(end=END, steps=300):
    """The predictions where 32 draws of noise lead: dy/du = x̂ − y in u by the classical Runge–Kutta method in fine steps."""
    noise = torch.randn(32, 2, generator=seeded(), dtype=torch.float64)

    def predicted(y, u):
        return LAW.posterior_mean(y, -math.expm1(-u), math.exp(-u))

    y, h = noise, end / steps
    for k in range(steps):
        u = k * h
        one = predicted(y, u) - y
        two = predicted(y + h / 2 * one, u + h / 2) - (y + h / 2 * one)
        three = predicted(y + h / 2 * two, u + h / 2) - (y + h / 2 * two)
        four = predicted(y + h * three, u + h) - (y + h * three)
        y = y + h / 6 * (one + 2 * two + 2 * three + four)
    return predicted(y, end)


def measured_order(sampler, flow, exact, times=None):
    """Slope of the logarithm of the error against that of the evaluations; odd, so that Midpoint's steps are whole."""
    predict, counts, errors = ExactMean(flow, LAW), np.array([33, 65, 129]), []
    for n in counts.tolist():
        grid = times(n) if times else None
        events = sampler(predict, flow, exact.shape, n, seeded(), dtype=torch.float64, times=grid).events
        errors.append(float((events - exact).square().mean().sqrt()))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


PATHS = [GPFN(), GPFN(schedule=Cosine()), GPFN(KL(), endpoints=GaussianEndpoints(0.5)), BFN(1e-3), Diffusion()]


@pytest.mark.parametrize("flow", PATHS, ids=str)
@pytest.mark.parametrize(("sampler", "order"), [(Marginal(0.0), 1), (Multistep(2), 2), (Midpoint(), 2)], ids=str)
def test_order_in_even_steps_of_the_equation(sampler, order, flow):
    def even(n):
        u = END * torch.arange(n, dtype=torch.float64) / (n - 1)
        return [0.0, *flow.path.time_of(-torch.expm1(-u[1:])).tolist()]

    assert measured_order(sampler, flow, trajectory_ends(), even) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    ("sampler", "flow", "low", "high"),
    [
        (Deterministic(), GPFN(), 0.85, 1.1),
        (Marginal(0.0), Diffusion(), 0.85, 1.1),
        (Midpoint(), GPFN(), 1.7, 2.2),
        (Midpoint(), BFN(0.05), 1.7, 2.3),
        # In BFN's even times the first step in u is of the size n^(−1/2), and without a memory yet its error is its square.
        (Multistep(2), BFN(0.05), 0.85, 1.15),
    ],
    ids=str,
)
def test_order_in_the_flows_own_times(sampler, flow, low, high):
    a, b = flow.path.coefficients(torch.ones((), dtype=torch.float64))
    end = min(9.0, -float((b / (a + b)).log()))
    assert low < measured_order(sampler, flow, trajectory_ends(end)) < high


def energy_distance(x, y):
    """2 E|X − Y| − E|X − X'| − E|Y − Y'|, and its value for each of 99 random splits of both together."""
    pooled = torch.cat([x, y])
    distances = torch.cdist(pooled, pooled)
    n, generator = len(x), seeded(11)
    values = []
    for k in range(100):
        order = torch.arange(2 * n) if k == 0 else torch.randperm(2 * n, generator=generator)
        sign = torch.where(order.argsort() < n, 1.0, -1.0).double()
        values.append(-float(sign @ distances @ sign) / n**2)
    return values[0], values[1:]


@pytest.mark.parametrize(
    ("sampler", "flow"),
    [
        (Marginal(0.5), GPFN()), (Marginal(1.0), GPFN()), (Marginal(1.0), BFN(0.02)), (Stochastic(), BFN(0.02)),
        (Stochastic(), Diffusion()), (Deterministic(), GPFN()),
    ],
    ids=str,
)  # fmt: skip
def test_samples_converge_to_the_law(sampler, flow):
    predict = ExactMean(flow, LAW)
    data = LAW.sample(600, seeded(4), dtype=torch.float64)
    many, few = (sampler(predict, flow, (600, 2), nfe, seeded(1), dtype=torch.float64).events for nfe in (150, 3))
    distance, same_law = energy_distance(many, data)
    assert distance < max(same_law)
    distance, same_law = energy_distance(few, data)
    assert distance > 3 * max(same_law)


@pytest.mark.parametrize(
    ("sampler", "flow", "right"),
    [
        (Deterministic(), GPFN(ReverseKL(), endpoints=CategoricalEndpoints(2)), True),
        (Stochastic(), GPFN(ReverseKL(), endpoints=CategoricalEndpoints(2)), True),
        (Stochastic(), GPFN(FisherRao(), endpoints=CategoricalEndpoints(2)), True),
        (Stochastic(), GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)), True),
        (Stochastic(), DiscreteBFN(2, 4.0), True),
        # The geodesic toward a mean of classes is not the mean of the geodesics toward them: without noise in the message
        # Fisher–Rao does not keep the marginals, however small the steps are.
        (Deterministic(), GPFN(FisherRao(), endpoints=CategoricalEndpoints(2)), False),
    ],
    ids=str,
)
def test_classes_converge_to_their_joint_law(sampler, flow, right):
    probs, number = double([0.5, 0.2, 0.3]), 12_000
    exact = ExactClasses(flow, torch.tensor([[0, 0], [0, 1], [1, 1]]), probs)
    samples = sampler(exact, flow, (number, 2), 100, seeded(), dtype=torch.float64).events
    counts = torch.bincount(2 * samples[:, 0] + samples[:, 1], minlength=4)
    assert int(counts[2]) == 0
    value = stats.chisquare(counts[[0, 1, 3]].numpy(), (number * probs).numpy()).pvalue
    assert (value > 1e-3) == right
