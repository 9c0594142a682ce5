"""Schedules: values, derivatives and steps of one formula."""

import json
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import vectors

from proxflow.errors import ArgumentError
from proxflow.paths import Cosine, GaussianAccuracy, Linear, QuadraticAccuracy, Shifted, VariancePreserving

TIMES = st.floats(0, 0.999)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    "schedule", [Linear(), Cosine(), Shifted((-3.0,)), Shifted((8.0, 6.5, 6.0)), Shifted((0.0, 1.0, -0.8))], ids=str
)
class TestBarycentric:
    def test_ends(self, schedule):
        assert float(schedule.fraction(tensor(0.0))) == 0
        assert float(schedule.fraction(tensor(1.0))) == 1
        assert float(schedule.step(tensor(0.3), tensor(1.0))) == 1

    @given(t=st.floats(0.01, 0.99))
    def test_derivative_against_finite_differences(self, schedule, t):
        h = 1e-6
        assume(abs(t - 0.5) > h)  # where a table has its corner
        slope = (schedule.fraction(tensor(t + h)) - schedule.fraction(tensor(t - h))) / (2 * h)
        assert float(schedule.derivative(tensor(t))) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)

    @given(times=st.tuples(TIMES, TIMES, TIMES))
    def test_steps_compose(self, schedule, times):
        r, s, t = (tensor(v) for v in sorted(times))
        composed = 1 - (1 - schedule.step(r, s)) * (1 - schedule.step(s, t))
        assert float(schedule.step(r, t)) == pytest.approx(float(composed), abs=1e-9)

    @given(t=st.floats(0, 1), floor=st.floats(0.01, 1))
    def test_weight_of_the_velocity(self, schedule, t, floor):
        found = float(schedule.velocity_weight(tensor([t]), floor))
        left = max(1 - float(schedule.fraction(tensor(t))), floor)
        assert found == pytest.approx((float(schedule.derivative(tensor(t))) / left) ** 2, rel=1e-9)

    def test_coefficients_sum_to_one(self, schedule):
        a, b = schedule.coefficients(torch.linspace(0, 1, 11, dtype=torch.float64))
        torch.testing.assert_close(a + b, torch.ones_like(a))


@given(t=st.floats(0, 1), final=st.floats(0.05, 1), floor=st.floats(0.01, 1))
def test_weight_of_the_velocity_on_a_way_that_ends_early(t, final, floor):
    found = float(Linear(final).velocity_weight(tensor([t]), floor))
    assert found == pytest.approx((final / max(1 - final * t, floor)) ** 2, rel=1e-9)


def test_cosine_is_a_squared_sine():
    assert float(Cosine().fraction(tensor(1 / 3))) == pytest.approx(math.sin(math.pi / 6) ** 2, abs=1e-15)


def test_the_variance_preserving_path_is_a_quarter_of_a_circle():
    a, b = VariancePreserving().coefficients(tensor([0.0, 1 / 3, 0.5, 1.0]))
    assert a.tolist() == pytest.approx([0, 0.5, math.sqrt(0.5), 1], abs=1e-15)
    assert b.tolist() == pytest.approx([1, math.sqrt(0.75), math.sqrt(0.5), 0], abs=1e-15)
    assert (float(a[0]), float(b[-1])) == (0, 0)


@given(t=st.floats(0.001, 0.999), shift=st.floats(-8, 8))
def test_a_constant_shift_multiplies_the_odds(t, shift):
    schedule = Shifted((shift,))
    odds = float(schedule.fraction(tensor(t)) / schedule.remaining(tensor(t)))
    assert odds == pytest.approx(math.exp(shift) * t / (1 - t), rel=1e-12)
    assert float(Shifted((shift, shift, shift)).fraction(tensor(t))) == pytest.approx(
        float(schedule.fraction(tensor(t))), rel=1e-12
    )


def test_a_shift_is_read_linearly_from_its_table():
    schedule = Shifted((0.0, 1.0, -0.6))
    times = tensor([0.25, 0.5, 0.875])
    odds = schedule.fraction(times) / schedule.remaining(times) * (1 - times) / times
    torch.testing.assert_close(odds.log(), tensor([0.5, 1.0, -0.2]))


def test_small_steps_of_a_shifted_schedule_keep_their_digits_in_float32():
    # The step from t = 0 is τ itself, here 1e-5 of the way: 1 minus a ratio would leave two digits.
    schedule = Shifted((-8.0,))
    t = torch.tensor([0.03, 0.3])
    step = schedule.step(torch.zeros(2), t)
    odds = math.exp(-8) * tensor([0.03, 0.3]) / tensor([0.97, 0.7])
    torch.testing.assert_close(step.double(), odds / (1 + odds), rtol=3e-7, atol=0)


@pytest.mark.parametrize("table", [(), (math.nan,), (0.0, math.inf), (3.0, -3.0), (5.0, 5.0, 0.0, 0.0)])
def test_shifts_without_a_schedule(table):
    with pytest.raises(ArgumentError, match="log_odds"):
        Shifted(table)


def test_accuracies_of_the_reference():
    case = json.loads((vectors() / "bfn.json").read_text())["continuous"]
    schedule = GaussianAccuracy(math.sqrt(case["min_variance"]))
    n = len(case["alpha"])
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    expected = tensor(case["alpha"])
    torch.testing.assert_close(schedule.accuracy(edges[:-1], edges[1:]), expected, rtol=1e-12, atol=0)


@given(t=st.floats(0.01, 0.99), sigma1=st.floats(1e-3, 0.9))
def test_gaussian_accuracy_against_its_definition(t, sigma1):
    schedule = GaussianAccuracy(sigma1)
    beta = sigma1 ** (-2 * t) - 1
    gamma = beta / (1 + beta)
    a, b = schedule.coefficients(tensor(t))
    assert float(a) == pytest.approx(gamma, rel=1e-9)
    assert float(b) == pytest.approx(math.sqrt(gamma * (1 - gamma)), rel=1e-9)
    h = 1e-6
    slope = (schedule.precision(tensor(t + h)) - schedule.precision(tensor(t - h))) / (2 * h)
    assert float(schedule.rate(tensor(t))) == pytest.approx(float(slope), rel=1e-6)


def test_quadratic_accuracy_sums_to_its_end():
    schedule = QuadraticAccuracy(1.5)
    edges = torch.linspace(0, 1, 8, dtype=torch.float64)
    assert float(schedule.accuracy(edges[:-1], edges[1:]).sum()) == pytest.approx(2.25, abs=1e-12)
    assert float(schedule.rate(tensor(0.4))) == pytest.approx(2 * 2.25 * 0.4)


@pytest.mark.parametrize("sigma1", [0.0, 1.0, -0.1, math.nan])
def test_sigma1_out_of_range(sigma1):
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        GaussianAccuracy(sigma1)


def test_max_sqrt_beta_out_of_range():
    with pytest.raises(ArgumentError, match="positive"):
        QuadraticAccuracy(0.0)
