"""The bound for two-class flows: against quadrature, Dupire's formula by differences, and exact predictors."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from test_flows import double, seeded

from proxflow import GPFN, KL, Categorical, CategoricalEndpoints, Cosine, ExactClasses, FisherRao, Linear, ReverseKL
from proxflow.errors import ArgumentError
from proxflow.likelihood import Nats, two_class_bound
from proxflow.likelihood.channel import _arc_cost, draw_uncertain
from proxflow.paths import GaussianAccuracy, VariancePreserving
from proxflow.random import SampleStreams


def flow_of(divergence, schedule=None):
    return GPFN(divergence, schedule or Linear(), CategoricalEndpoints(2))


def law(dimensions, seed):
    """All events of {0, 1}^d, with random probabilities."""
    events = torch.cartesian_prod(*[torch.arange(2)] * dimensions).reshape(-1, dimensions)
    weights = torch.rand(len(events), generator=seeded(seed), dtype=torch.float64).square() + 0.01
    return events, weights / weights.sum()


# The tightness of the bound: with exact predictions its mean is the entropy -------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
@pytest.mark.parametrize("divergence", [ReverseKL(), FisherRao()], ids=str)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_exact_predictions_reach_the_entropy(divergence, schedule, dimensions):
    exact = ExactClasses(flow_of(divergence, schedule), *law(dimensions, dimensions))
    x = exact.sample(20_000, seeded())
    nats = two_class_bound(exact, exact.flow, x, seeded(1), draws=8, dtype=torch.float64)
    index = (x * 2 ** torch.arange(dimensions - 1, -1, -1)).sum(1)
    # Less the true −log p of each example, which takes the spread of the data out of the comparison.
    gap = Nats(nats + exact.probs.log()[index], dimensions)
    assert gap.standard_error < 0.02
    assert abs(gap.mean) < 4 * gap.standard_error
    # A wrong predictor, which takes the coordinates for independent and even, is worse than the entropy allows.
    blind = ExactClasses(exact.flow, exact.events, torch.full_like(exact.probs, 1 / len(exact.probs)))
    worse = Nats(two_class_bound(blind, exact.flow, x, seeded(1), draws=8, dtype=torch.float64), dimensions)
    assert worse.mean == pytest.approx(dimensions * math.log(2), abs=4 * worse.standard_error)


@pytest.mark.parametrize("p", [0.5, 0.2, 0.01])
def test_one_bit_by_quadrature(p):
    # ∫ dq/(1 − q) E[cost] with predictions of the exact odds p/(1 − p) · π/(1 − π), by Gauss–Legendre in √(1 − q) and w.
    nodes, weights = (double(a) for a in np.polynomial.legendre.leggauss(300))
    root, w = ((nodes + 1) / 2)[:, None], nodes
    cos_a = root  # √(1 − q)
    a, s = torch.acos(cos_a), torch.asin(w * cos_a)
    # Density of w under each class; even classes together make it uniform, 1/2 on (−1, 1).
    density = [torch.cos(a + sign * s) / (2 * cos_a * torch.cos(s)) for sign in (1, -1)]
    # Back to the flow's own coordinate: s = (1 + ρ)(2ψ − π/2) and log θ₁/θ₀ = 2 log tan ψ.
    rho = 2 * a / math.pi
    own = 2 * torch.tan((s / (1 + rho) + math.pi / 2) / 2).log()
    predicted = math.log(p / (1 - p)) + (density[1] / density[0]).log()
    # For each class the bound is −log p of that class, exactly: the model is the mixture with the prior p.
    for x, prior, sign in ((0, 1 - p, -1), (1, p, 1)):
        expected = density[x] * _arc_cost(sign * own, sign * predicted, rho)
        bound = float((weights / root[:, 0]) @ (root.square() * expected) @ weights)
        assert bound == pytest.approx(-math.log(prior), rel=2e-3)


def test_any_predictor_of_the_masked_flow_against_all_orders():
    # The linear flow's bound is the mean over all orders of revealing, here summed over all sets of masked coordinates.
    flow, x = flow_of(ReverseKL()), torch.tensor([[0, 1, 1]]).expand(20_000, 3)

    def log_odds(seen):  # of class 1, from what is seen: 0 where masked, else ±1
        return 0.7 * seen @ double([[0.0, 1.0, -0.5], [0.3, 0.0, 2.0], [-1.0, 0.4, 0.0]]) - 0.2

    def predict(belief, t):
        tau = t[:, None]
        theta = belief.probs[..., 1]
        odds = log_odds((theta > 1 - tau).double() - (theta < tau).double())
        return Categorical(torch.stack([torch.zeros_like(odds), odds], dim=-1))

    toward, total = double([-1.0, 1.0, 1.0]), 0.0
    for mask in torch.cartesian_prod(*[torch.arange(2)] * 3)[1:].double():
        masked = int(mask.sum())
        cost = torch.nn.functional.softplus(-toward * log_odds(toward * (1 - mask)))
        total += float((mask * cost).sum()) / (masked * math.comb(3, masked))
    nats = Nats(two_class_bound(predict, flow, x, seeded(), draws=4, dtype=torch.float64), 3)
    assert nats.standard_error < 0.02
    assert nats.mean == pytest.approx(total, abs=4 * nats.standard_error)


# The pieces: what a training belief says alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "certain"), [(ReverseKL(), lambda r: r), (FisherRao(), None)], ids=["ReverseKL", "FisherRao"]
)
@pytest.mark.parametrize("t", [0.1, 0.3, 0.45])
def test_training_beliefs_are_the_channel(divergence, certain, t):
    certain = certain or (lambda r: math.sin(math.pi * r / 2) ** 2)
    flow, ratio, number = flow_of(divergence), t / (1 - t), 20_000
    x = torch.arange(2).repeat(number // 2)
    theta = flow.belief(x[:, None], torch.full((number,), t, dtype=torch.float64), seeded()).probs[:, 0, 1].numpy()
    if isinstance(divergence, ReverseKL):
        known = (theta < t) | (theta > 1 - t)
        even = (theta[~known] - t) / (1 - 2 * t)
    else:
        psi = np.arcsin(np.sqrt(theta))
        c, a = 1 - t, math.pi * ratio / 2
        known = (psi > c * math.pi / 2) | (psi < math.pi / 2 - c * math.pi / 2)
        even = (np.sin((1 + ratio) * (2 * psi - math.pi / 2)) / math.cos(a) + 1) / 2
        even = even[~known]
        odds = np.cos(a - np.arcsin((2 * even - 1) * math.cos(a))) / np.cos(a + np.arcsin((2 * even - 1) * math.cos(a)))
        # The posterior alone is calibrated: among beliefs in a bin, its mean is the frequency of class 1.
        posterior = odds / (1 + odds)
        for low in (0.1, 0.5, 0.8):
            chosen = (posterior > low) & (posterior < low + 0.15)
            assert x.numpy()[~known][chosen].mean() == pytest.approx(posterior[chosen].mean(), abs=0.07)
    assert known.mean() == pytest.approx(certain(ratio), abs=4 * 0.5 / math.sqrt(number))
    assert np.array_equal(x.numpy()[known] == 1, theta[known] > 0.5)
    assert stats.kstest(even, "uniform").pvalue > 1e-4


def dupire(call, k, clock, h=1e-3):
    """Local variance 2 ∂_t C/∂²_k C of a martingale diffusion with call prices C(k, t), by central differences."""
    rate = (call(k, clock + h) - call(k, clock - h)) / (2 * h)
    density = (call(k + h, clock) - 2 * call(k, clock) + call(k - h, clock)) / h**2
    return 2 * rate / density


@pytest.mark.parametrize("b", [1.0, 2.0])
def test_dupire_gives_the_bound_of_discrete_bfn(b):
    # The log-odds of y ~ N(β(2 e_x − 1), 2βI) are N(±2β, 4β), and K b² t ‖e_x − ê‖² = 4 b² t (x − ê)².
    def call(k, t):
        beta = (b * t) ** 2
        odds = [s * 2 * beta + 2 * math.sqrt(beta) * np.linspace(-9, 9, 40_001) for s in (-1, 1)]
        normal = stats.norm.pdf(np.linspace(-9, 9, 40_001))
        return sum(
            0.5 * integrate.trapezoid(np.maximum(1 / (1 + np.exp(-o)) - k, 0) * normal, dx=18 / 40_000) for o in odds
        )

    for k, t in ((0.3, 0.5), (0.5, 0.4), (0.7, 0.6)):
        coefficient = 0.5 * dupire(call, k, t, 4e-3) / (k * (1 - k)) ** 2
        assert coefficient == pytest.approx(4 * b**2 * t, rel=0.01)


@pytest.mark.parametrize("tau", [0.15, 0.3, 0.45])
@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_dupire_gives_the_cost_of_the_arc(tau, k):
    # Call prices from the flow's definition alone: ψ = (1 − τ) ψ₀ for class 0 with density sin(2ψ₀), mirrored for class 1.
    def call(k, tau):
        c = 1 - tau
        psi = np.linspace(math.pi / 2 * (1 - c), math.pi / 2 * c, 200_001)
        zero, one = np.sin(2 * psi / c) / c, np.sin((math.pi - 2 * psi) / c) / c
        certain = integrate.trapezoid(
            np.sin(2 * np.linspace(0, math.pi / 2 * (1 - c), 20_001) / c) / c, dx=math.pi / 2 * (1 - c) / 20_000
        )
        posterior = one / (zero + one)
        inside = integrate.trapezoid(0.5 * (zero + one) * np.maximum(posterior - k, 0), psi)
        return inside + 0.5 * certain * (1 - k)

    rate = 0.5 * dupire(call, k, tau, 2e-3) / (k * (1 - k)) ** 2  # nats for each unit of τ and of (x − ê)²
    rho = tau / (1 - tau)
    a = math.pi * rho / 2
    per_tau = math.pi / 2 / (1 - tau) ** 2 * math.sin(2 * a) / math.cos(a) ** 2  # dq/(1 − q) for each unit of τ
    # The belief whose posterior alone is k: tan s = (2k − 1)/tan a.
    s = math.atan((2 * k - 1) / math.tan(a))
    own = 2 * math.log(math.tan((s / (1 + rho) + math.pi / 2) / 2))
    predicted = math.log(k / (1 - k)) - 1.0
    cost = float(_arc_cost(double(own), double(predicted), double(rho)))
    missed = 1 / (1 + math.exp(predicted))
    assert cost * per_tau == pytest.approx(rate * missed**2, rel=0.01)


def test_times_are_drawn_from_their_density():
    uniform = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    share, density = draw_uncertain(uniform)
    assert float(share[0]) > 0
    slopes = torch.gradient(share, spacing=(uniform,))[0]
    torch.testing.assert_close((slopes * density)[1:-1], torch.ones(997, dtype=torch.float64), rtol=0.02, atol=0)
    assert draw_uncertain(double([0.0, 1.0]))[0].tolist() == pytest.approx([0, 1], abs=1e-9)


@pytest.mark.parametrize("path", [Linear(), Cosine(), GaussianAccuracy(0.01), VariancePreserving()], ids=str)
def test_paths_are_inverted(path):
    t = torch.linspace(0, 0.999, 12, dtype=torch.float64)
    torch.testing.assert_close(path.time_of(path.straight(t)[0]), t, rtol=1e-9, atol=1e-12)


# Predictions of networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [ReverseKL(), FisherRao()], ids=str)
def test_certain_coordinates_cost_nothing_whatever_is_predicted(divergence):
    flow, x = flow_of(divergence), torch.randint(0, 2, (64, 5), generator=seeded())
    seen = []

    def predict(belief, t):
        theta, tau = belief.probs[..., 1], t[:, None]
        known = (theta < tau) | (theta > 1 - tau)
        if isinstance(divergence, FisherRao):
            psi = theta.sqrt().asin()
            known = (psi - math.pi / 4).abs() > (1 - tau) * math.pi / 2 - math.pi / 4
        seen.append(int(known.sum()))
        wrong = torch.where(known, torch.where(theta > 0.5, -50.0, 50.0), 0.0)
        right = torch.where(known, -wrong, 0.0)
        return Categorical(torch.stack([torch.zeros_like(theta), wrong if lie else right], dim=-1))

    lie = False
    honest = two_class_bound(predict, flow, x, seeded(2), dtype=torch.float64)
    lie = True
    torch.testing.assert_close(two_class_bound(predict, flow, x, seeded(2), dtype=torch.float64), honest)
    assert sum(seen) > 1000


def test_overlooking_an_almost_certain_belief_costs_a_limited_amount():
    # A network that always says even odds: finite, and above the ln 2 of using what is seen.
    flow, x = flow_of(FisherRao()), torch.randint(0, 2, (4000, 4), generator=seeded())
    nats = Nats(two_class_bound(lambda b, t: Categorical(torch.zeros_like(b.logits)), flow, x, seeded(1)), 4)
    assert math.log(2) < nats.mean / 4 < 8
    erased = flow_of(ReverseKL())
    even = Nats(two_class_bound(lambda b, t: Categorical(torch.zeros_like(b.logits)), erased, x, seeded(1)), 4)
    assert even.mean == pytest.approx(4 * math.log(2), abs=4 * even.standard_error)
    assert even.bits_per_dimension == pytest.approx(1, abs=0.05)


def test_an_example_does_not_depend_on_its_batch_and_images_keep_their_shape():
    flow, x = flow_of(FisherRao()), torch.randint(0, 2, (6, 1, 3, 2), generator=seeded())

    def predict(belief, t):
        assert belief.logits.dtype == t.dtype == torch.float32
        assert belief.logits.shape[1:] == (1, 3, 2, 2)
        return Categorical(belief.logits * 0.9)

    together = two_class_bound(predict, flow, x, SampleStreams(3, torch.arange(6)), draws=4)
    apart = two_class_bound(predict, flow, x[2:4], SampleStreams(3, torch.arange(2, 4)), draws=4)
    assert together.shape == (6,)
    torch.testing.assert_close(apart, together[2:4])


@pytest.mark.parametrize(
    ("flow", "x", "draws", "message"),
    [
        (
            GPFN(KL(), endpoints=CategoricalEndpoints(2)),
            torch.zeros(2, 3, dtype=torch.int64),
            1,
            "ReverseKL or FisherRao",
        ),
        (GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)), torch.zeros(2, 3, dtype=torch.int64), 1, "Endpoints"),
        (GPFN(FisherRao()), torch.zeros(2, 3), 1, "CategoricalEndpoints"),
        (flow_of(FisherRao()), torch.zeros(2, 3), 1, "class indices"),
        (flow_of(FisherRao()), torch.full((2, 3), 2), 1, "0 to 1"),
        (flow_of(FisherRao()), torch.zeros(0, 3, dtype=torch.int64), 1, "at least one"),
        (flow_of(FisherRao()), torch.zeros(2, 3, dtype=torch.int64), 0, "draws"),
    ],
)
def test_bad_requests(flow, x, draws, message):
    with pytest.raises(ArgumentError, match=message):
        two_class_bound(lambda belief, t: belief, flow, x, seeded(), draws=draws)


def test_nats_summarise_a_data_set():
    nats = Nats(double([1.0, 2.0, 3.0, 6.0]), 2)
    assert nats.mean == 3
    assert nats.standard_error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
    assert nats.bits_per_dimension == pytest.approx(3 / 2 / math.log(2))
    for values, dimensions, message in (
        (double([1.0]), 2, "at least 2"),
        (double([1.0, math.nan]), 2, "NaN"),
        (double([1.0, 2.0]), 0, "dimension"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Nats(values, dimensions)
