"""The moment equations of Rényi steps, against the general solver and their own statement."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxflow.beliefs import Categorical, DiagonalGaussian
from proxflow.divergences import KL, Renyi
from proxflow.errors import ArgumentError, ConvergenceError, UnsupportedPairError
from proxflow.flows import GPFN
from proxflow.solvers import NewtonSolver
from proxflow.solvers.renyi import MomentSolver


def problems(number, seed=0):
    """Beliefs of widths from 1/20 to 2 and data of width 1/50, as an image flow meets them."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, number, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(number, 1, generator=generator, dtype=torch.float64)
    target = torch.where(draw[0] < 0.7, -1.0, 2 * draw[1] - 1)
    return DiagonalGaussian(noise, 0.05 + 2 * draw[2]), DiagonalGaussian(target, torch.full_like(target, 0.02))


def objective(divergence, r, p, q, f):
    return (1 - f) * divergence(r, p) + f * divergence(r, q)


@pytest.mark.parametrize("order", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.6, 0.95])
def test_the_step_is_that_of_the_newton_solver(order, fraction):
    p, q = problems(300)
    found = MomentSolver()(Renyi(order), p, q, fraction)
    general = NewtonSolver()(Renyi(order), p, q, fraction)
    assert bool(found.converged.all())
    assert bool(general.converged.all())
    assert float(found.residual.max()) <= 1e-10
    torch.testing.assert_close(found.belief.mean, general.belief.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.belief.std, general.belief.std, rtol=1e-8, atol=0)


def test_no_minimum_is_missed_where_two_compete():
    p, q = problems(300)
    found = MomentSolver()(Renyi(0.75), p, q, 0.3).belief_or_raise()
    general = NewtonSolver()(Renyi(0.75), p, q, 0.3).belief_or_raise()
    values = [objective(Renyi(0.75), r, p, q, 0.3) for r in (found, general)]
    assert bool((values[0] <= values[1] + 1e-9).all())


@given(order=st.floats(0.1, 0.9), fraction=st.floats(0, 1), log_width=st.floats(-4, 4), shift=st.floats(-30, 30))
@settings(max_examples=60)
def test_no_point_nearby_is_lower(order, fraction, log_width, shift):
    def one(value):
        return torch.tensor([[value]], dtype=torch.float64)

    p, q = DiagonalGaussian(one(0.5), one(2.0)), DiagonalGaussian(one(0.5 + shift), one(2 * math.exp(log_width)))
    divergence = Renyi(order)
    best = MomentSolver()(divergence, p, q, fraction).belief_or_raise()
    lowest = objective(divergence, best, p, q, fraction)
    for moved in (0.99, 1.01):
        assert objective(divergence, DiagonalGaussian(best.mean, best.std * moved), p, q, fraction) >= lowest - 1e-12
        shifted = DiagonalGaussian(best.mean + (moved - 1) * best.std, best.std)
        assert objective(divergence, shifted, p, q, fraction) >= lowest - 1e-12


def test_the_ends_and_single_precision():
    p, q = problems(200)
    for fraction, end in ((0.0, p), (1.0, q)):
        found = MomentSolver()(Renyi(0.5), p, q, fraction).belief_or_raise()
        torch.testing.assert_close(found.mean, end.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.std, end.std, rtol=1e-12, atol=0)
    fractions = torch.linspace(0.01, 0.4, 200, dtype=torch.float64)
    wide = MomentSolver()(Renyi(0.5), p, q, fractions).belief_or_raise()
    narrow = MomentSolver()(Renyi(0.5), *(b.map(torch.Tensor.float) for b in (p, q)), fractions.float())
    assert narrow.belief.mean.dtype == torch.float32
    assert bool(narrow.converged.all())
    torch.testing.assert_close(narrow.belief.mean.double(), wide.mean, rtol=0, atol=2e-4)


def test_small_steps_follow_a_schedule_of_wasserstein():
    # Toward a narrow target each small step dτ moves the mean by dτ/(1 − order) of the way, whatever the way is, so that
    # 1 − m = (1 − τ)^{1/(1 − order)} in the limit: nothing but a schedule.
    p, q = DiagonalGaussian(*problems(50)[0].map(torch.zeros_like).tensors().values()), problems(50)[1]
    belief = DiagonalGaussian(p.mean + 1.5, torch.ones_like(p.std))
    start, steps, order, end = belief.mean, 64, 0.5, 0.4
    for k in range(steps):
        fraction = end / steps / (1 - end * k / steps)
        belief = MomentSolver()(Renyi(order), belief, q, fraction).belief_or_raise()
    gone = (belief.mean - start) / (q.mean - start)
    torch.testing.assert_close(gone, torch.full_like(gone, 1 - (1 - end) ** 2), rtol=0, atol=0.01)
    assert float(gone.max() - gone.min()) < 0.005


def test_a_flow_takes_it_as_its_solver():
    flow = GPFN(Renyi(0.5), solver=MomentSolver(), simulated_steps=2)
    x = torch.full((4, 3), -1.0)
    belief = flow.belief(x, torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.Generator().manual_seed(0))
    other = GPFN(Renyi(0.5), solver=NewtonSolver(), simulated_steps=2)
    same = other.belief(x, torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(belief.mean, same.mean, rtol=0, atol=1e-4)


def test_what_it_does_not_solve():
    p, q = problems(2)
    for divergence, belief in ((KL(), p), (Renyi(2.0), p), (Renyi(0.5), Categorical(torch.zeros(2, 3)))):
        with pytest.raises(UnsupportedPairError, match="NewtonSolver"):
            MomentSolver()(divergence, belief, belief, 0.5)
    with pytest.raises(ConvergenceError):
        MomentSolver(max_iterations=1)(Renyi(0.5), p, q, 0.5).belief_or_raise()
    for wrong in ({"tolerance": 0.0}, {"max_iterations": 0}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            MomentSolver(**wrong)
