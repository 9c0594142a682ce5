"""Exponential multistep: its weights, its order of convergence, and the corrector."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from test_flows import seeded
from test_sampler_errors import END, LAW, measured_order, trajectory_ends

from proxflow import BFN, GPFN, Deterministic, Diffusion, Multistep
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.predictors.exact import ExactMean
from proxflow.samplers.multistep import step_shares


@pytest.mark.parametrize("h", [1e-3, 0.3, 2.0, 9.0])
@pytest.mark.parametrize("nodes", [(0.0,), (0.0, -0.4), (0.0, -0.1, -0.7), (0.0, -0.2, -0.3, -1.1), (0.5, 0.0, -0.3)])
def test_shares_are_the_integrals_of_lagranges_polynomials(h, nodes):
    for j, share in enumerate(step_shares(h, nodes)):

        def integrand(s, j=j):
            others = [node for i, node in enumerate(nodes) if i != j]
            return math.exp(s - h) * math.prod((s - other) / (nodes[j] - other) for other in others)

        assert share == pytest.approx(quad(integrand, 0, h, epsabs=0)[0] / -math.expm1(-h), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("sampler", [Multistep(order, c) for order in (1, 2, 3, 4) for c in (False, True)], ids=str)
def test_a_polynomial_prediction_is_followed_exactly_once_the_order_is_reached(sampler):
    # x̂(u) of degree ``order`` − 1, one more where corrected: with y of the exact solution, no later step may add an error.
    degree = sampler.order - 1
    coefficients = [0.3, -0.7, 0.4, 0.1][: degree + 1]
    times = [0.0, 0.1, 0.35, 0.5, 0.55, 0.9]

    def u(t):
        return -math.log1p(-t)

    def moved(y, start, end):
        return (
            math.exp(start - end) * y
            + quad(
                lambda s: math.exp(s - end) * np.polynomial.polynomial.polyval(s, coefficients),
                start,
                end,
                epsabs=1e-14,
            )[0]
        )

    seen = []

    def predict(belief, t):
        seen.append(belief.mean)
        x = np.polynomial.polynomial.polyval(u(float(t[0])), coefficients)
        return DiagonalGaussian(torch.full_like(belief.mean, x), belief.mean.new_zeros(()))

    sampler(predict, GPFN(), (2, 3), len(times), seeded(), dtype=torch.float64, times=times)
    for k, (t, s) in enumerate(pairwise(times)):
        if k >= degree and not sampler.corrected:  # as many predictions as coefficients
            expected = moved(float(seen[k][0, 0]), u(t), u(s))
            assert float(seen[k + 1][0, 0]) == pytest.approx(expected, rel=1e-9)
    if sampler.corrected and sampler.order == 1:  # of a constant, every step is exact
        assert float(seen[-1][0, 0]) == pytest.approx(moved(float(seen[0][0, 0]), 0.0, u(times[-1])), rel=1e-9)


def test_order_two_is_multistep2_and_order_one_is_deterministic():
    predict = ExactMean(GPFN(), LAW)
    for times in (None, [0.0, 0.2, 0.3, 0.75, 0.8, 1.0]):
        drawn = {
            sampler: sampler(predict, GPFN(), (16, 2), 6, seeded(), dtype=torch.float64, times=times).events
            for sampler in (Multistep(1), Deterministic(), Multistep(2), Multistep(2), Multistep(3))
        }
        torch.testing.assert_close(drawn[Multistep(1)], drawn[Deterministic()], rtol=0, atol=1e-12)
        torch.testing.assert_close(drawn[Multistep(2)], drawn[Multistep(2)], rtol=0, atol=1e-12)
        assert float((drawn[Multistep(3)] - drawn[Multistep(2)]).abs().max()) > 1e-4


@pytest.mark.parametrize("flow", [GPFN(), BFN(1e-3), Diffusion()], ids=str)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(Multistep(3), 3), (Multistep(4), 4), (Multistep(1, corrected=True), 2), (Multistep(2, corrected=True), 3)],
    ids=str,
)
def test_order_where_steps_grow_from_small_ones(sampler, order, flow):
    # The first steps have lower order, so they must be as much smaller: u grows as the order's power of the step's number.
    def growing(n):
        u = END * torch.linspace(0, 1, n, dtype=torch.float64) ** 2
        return [0.0, *flow.path.time_of(-torch.expm1(-u[1:])).tolist()]

    assert measured_order(sampler, flow, trajectory_ends(steps=1000), growing) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("order", [0, 5])
def test_orders_out_of_range_are_refused(order):
    with pytest.raises(ArgumentError, match="must be 1, 2, 3 or 4"):
        Multistep(order)
