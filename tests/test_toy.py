"""Toy data: their densities, draws and conditional means against scipy, quadrature written out, and each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from test_flows import double, seeded

from proxflow import (
    BFN,
    GPFN,
    KL,
    CategoricalEndpoints,
    DiagonalGaussian,
    DiscreteBFN,
    ExactClasses,
    ExactMean,
    FisherRao,
    GaussianEndpoints,
    ReverseKL,
)
from proxflow.data import Checkerboard, GaussianMixtureLaw, Moons, Spirals, eight_gaussians
from proxflow.data.toy import _truncated
from proxflow.divergences import Jeffreys
from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams


def mixture(dimension, components, seed=0):
    factor = torch.randn(components, dimension, dimension, generator=seeded(seed), dtype=torch.float64)
    weights = torch.rand(components, generator=seeded(seed + 1), dtype=torch.float64) + 0.2
    means = 0.5 * torch.randn(components, dimension, generator=seeded(seed + 2), dtype=torch.float64)
    covariances = factor @ factor.mT * 0.02 + 0.01 * torch.eye(dimension)
    return GaussianMixtureLaw(weights / weights.sum(), means, covariances)


LAWS = [eight_gaussians(), Moons(), Spirals(), Checkerboard(), mixture(2, 3)]


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_mixture_density_is_that_of_scipy(dimension):
    law, x = mixture(dimension, 3), torch.randn(20, dimension, generator=seeded(9), dtype=torch.float64)
    for noise in (0.0, 0.4):
        expected = sum(
            float(w) * stats.multivariate_normal(m.numpy(), c.numpy() + noise**2 * np.eye(dimension)).pdf(x.numpy())
            for w, m, c in zip(law.weights, law.means, law.covariances, strict=True)
        )
        torch.testing.assert_close(law.log_density(x, noise), double(expected).log().reshape(-1))


def test_mixture_of_one_is_gaussian_conditioning():
    law, y = mixture(3, 1), torch.randn(4, 3, generator=seeded(9), dtype=torch.float64)
    a, b, covariance = 0.3, 0.6, law.covariances[0]
    gain = a * covariance @ torch.linalg.inv(a * a * covariance + b * b * torch.eye(3))
    expected = law.means + (y - a * law.means) @ gain.mT
    torch.testing.assert_close(law.posterior_mean(y, a, b), expected)


def curve(law, u):
    """The curves' definitions once more: the same points by other words."""
    if isinstance(law, Moons):
        x, y = np.cos(np.pi * u) / 1.5 - 1 / 3, np.sin(np.pi * u) / 1.5 - 1 / 6
    else:
        x, y = ((0.1 + 0.85 * u) * f(3 * np.pi * u) for f in (np.cos, np.sin))
    return np.stack([x, y], -1)


@pytest.mark.parametrize("law", [Moons(), Moons(0.2), Spirals(), Spirals(0.06)], ids=str)
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.6, 0.4), (0.05, 0.95)])
def test_curves_are_integrals_along_them(law, a, b):
    u = np.linspace(0, 1, 40_001)
    points = np.concatenate([curve(law, u), -curve(law, u)])
    weights = np.tile(np.r_[0.5, np.ones(39_999), 0.5] / 40_000, 2) / 2
    y = a * law.sample(10, seeded(), dtype=torch.float64).numpy() + b * np.linspace(-1, 1, 20).reshape(10, 2)
    total = (a * law.noise) ** 2 + b**2
    joint = weights * np.exp(-((y[:, None] - a * points) ** 2).sum(-1) / (2 * total)) / (2 * np.pi * total)
    mean = points + a * law.noise**2 / total * (y[:, None] - a * points)
    expected = (joint[..., None] * mean).sum(1) / joint.sum(1, keepdims=True)
    torch.testing.assert_close(law.posterior_mean(double(y), a, b), double(expected), rtol=0, atol=1e-7)
    if b == 0:
        torch.testing.assert_close(law.log_density(double(y)), double(joint.sum(1)).log(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_densities_integrate_to_one_and_means_follow_tweedie(law, noise):
    # E[x | y] = y + noise² ∇ log p(y), where p is the density of the noisy data.
    edge = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(edge, edge)
    density = law.log_density(grid, noise).exp()
    assert float(density.sum()) * 0.05**2 == pytest.approx(1, abs=1e-6)
    y = (law.sample(50, seeded(), dtype=torch.float64) + noise * 0.7).requires_grad_()
    (score,) = torch.autograd.grad(law.log_density(y, noise).sum(), y)
    torch.testing.assert_close(law.posterior_mean(y, 1.0, noise), y + noise**2 * score)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_draws_follow_the_density(law):
    x = law.sample(2000, seeded(), dtype=torch.float64)
    # The entropy: the mean of −log p over the draws is ∫ −p log p over the plane.
    edge = torch.linspace(-1.6, 1.6, 129, dtype=torch.float64) + 1e-4
    log_density = law.log_density(torch.cartesian_prod(edge, edge))
    entropy = -float(torch.special.xlogy(log_density.exp(), log_density.exp()).sum()) * 0.025**2
    values = -law.log_density(x)
    assert values.isfinite().all()
    assert float(values.mean()) == pytest.approx(entropy, abs=4 * float(values.std()) / 44 + 0.01)
    mean = law.posterior_mean(x, 0.0, 1.0)[0]  # of all data
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(law.sample(2000, seeded()), x.float())
    one = law.sample(3, SampleStreams(5, torch.arange(3)))
    assert torch.equal(one[1:], law.sample(2, SampleStreams(5, torch.arange(1, 3))))


def test_checkerboard_is_uniform_on_its_squares():
    law, x = Checkerboard(), Checkerboard().sample(8000, seeded(), dtype=torch.float64)
    squares = ((x + 1) * 2).floor().long()
    counts = torch.bincount(squares[:, 0] * 4 + squares[:, 1], minlength=16).reshape(4, 4)
    filled = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert int(counts[~filled].sum()) == 0
    assert stats.chisquare(counts[filled].numpy()).pvalue > 1e-3
    assert law.log_density(x).tolist() == [math.log(0.5)] * 8000
    assert law.log_density(double([[0.3, -0.3], [1.2, 0.1], [-0.9, 0.1]])).tolist() == [
        -math.inf,
        -math.inf,
        math.log(0.5),
    ]
    # Seen without noise, a point is what it is.
    torch.testing.assert_close(law.posterior_mean(0.4 * x[:9], 0.4, 0.0), x[:9])


@given(st.floats(-300, 300), st.floats(-4, 2.5))
def test_truncated_gaussians_by_quadrature(centre, log_half):
    half = 10**log_half
    log_mass, mean = _truncated(double([centre]), double([half]))
    # The peak of φ(c + δv) within [−1, 1], and the integrals relative to it over the part that matters.
    peak = min(1.0, max(-1.0, -centre / half))
    width = 40 / max(1.0, half, half * abs(centre + half * peak))

    def integrand(v, power):
        return (v - peak) ** power * math.exp(-0.5 * ((centre + half * v) ** 2 - (centre + half * peak) ** 2))

    bounds = max(-1.0, peak - width), min(1.0, peak + width)
    parts = [p for p in ((bounds[0], peak), (peak, bounds[1])) if p[0] < p[1]]
    mass = sum(integrate.quad(integrand, *p, args=(0,), epsabs=0)[0] for p in parts)
    first = sum(integrate.quad(integrand, *p, args=(1,), epsabs=0)[0] for p in parts)
    expected = math.log(mass / 2) - 0.5 * (centre + half * peak) ** 2 - 0.5 * math.log(2 * math.pi)
    assert float(log_mass) == pytest.approx(expected, rel=1e-9, abs=1e-8)
    assert float(mean) == pytest.approx(peak + first / mass, abs=1e-9)


def test_precision_of_the_argument_is_kept():
    for law in LAWS:
        y = law.sample(5, seeded())
        assert law.posterior_mean(y, 0.5, 0.5).dtype == law.log_density(y).dtype == torch.float32


# Predictors of flows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [GPFN(), GPFN(KL(), endpoints=GaussianEndpoints(0.3)), BFN(0.05)], ids=str)
def test_exact_means_minimise_the_squared_error(flow):
    law = eight_gaussians()
    exact = ExactMean(flow, law)
    x = law.sample(4000, seeded(), dtype=torch.float64)
    t = torch.full((4000,), 0.4, dtype=torch.float64)
    belief = flow.belief(x, t, seeded(1))
    error = x - exact(belief, t).mean
    # The error of a conditional mean is uncorrelated with every function of the belief.
    functions = [belief.mean, belief.mean.flip(1), belief.mean.sin()]
    for products in [error, *(error * (seen - seen.mean(0)) for seen in functions)]:
        assert float((products.mean(0) / products.std(0)).abs().max()) * math.sqrt(4000) < 4.5


def test_a_bayesian_flow_begins_at_the_mean_of_the_data():
    exact = ExactMean(BFN(0.05), Moons())
    first = exact(DiagonalGaussian(torch.zeros(2, 2), torch.ones(())), torch.zeros(2))
    torch.testing.assert_close(first.mean, torch.zeros(2, 2))
    assert first.mean.dtype == torch.float32


@pytest.mark.parametrize(
    "flow",
    [
        GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3)),
        GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)),
        GPFN(FisherRao(), endpoints=CategoricalEndpoints(2)),
        DiscreteBFN(3, 1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("t", [0.1, 0.4])
def test_exact_classes_are_calibrated(flow, t):
    classes = flow.classes if isinstance(flow, DiscreteBFN) else flow.endpoints.classes
    events = torch.cartesian_prod(torch.arange(classes), torch.arange(classes))
    probs = torch.rand(len(events), generator=seeded(), dtype=torch.float64)
    exact = ExactClasses(flow, events, probs / probs.sum())
    x = exact.sample(20_000, seeded(1))
    times = torch.full((20_000,), t, dtype=torch.float64)
    predicted = exact(flow.belief(x, times, seeded(2)), times).probs
    torch.testing.assert_close(predicted.sum(-1), torch.ones_like(predicted[..., 0]))
    for k in range(classes):
        said = predicted[..., k].flatten()
        came = (x == k).double().flatten()
        for low in (0.0, 0.2, 0.4, 0.6, 0.8):
            chosen = (said >= low) & (said < low + 0.2)
            if int(chosen.sum()) > 50:
                tolerance = 4.5 * 0.5 / math.sqrt(int(chosen.sum()))
                assert float(came[chosen].mean()) == pytest.approx(float(said[chosen].mean()), abs=tolerance)
    assert float((-predicted.gather(-1, x[..., None]).log()).mean()) < math.log(classes)


def test_bad_requests():
    even = torch.full((2,), 0.5)
    with pytest.raises(ArgumentError, match="covariances"):
        GaussianMixtureLaw(even, torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ArgumentError, match="positive definite"):
        GaussianMixtureLaw(even, torch.zeros(2, 2), -torch.eye(2).expand(2, 2, 2))
    with pytest.raises(ArgumentError, match="sum to 1"):
        GaussianMixtureLaw(2 * even, torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2))
    with pytest.raises(ArgumentError, match="noise"):
        Moons(0.001)
    with pytest.raises(ArgumentError, match="at least 1"):
        Moons().sample(0, seeded())
    with pytest.raises(ArgumentError, match="floating point"):
        Moons().log_density(torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="negative"):
        Moons().log_density(torch.zeros(3, 2), -1.0)
    with pytest.raises(ArgumentError, match="Gaussian path"):
        ExactMean(GPFN(FisherRao(), endpoints=CategoricalEndpoints(2)), Moons())
    flow, pair = GPFN(ReverseKL(), endpoints=CategoricalEndpoints(2)), torch.tensor([[0], [1]])
    for arguments, message in (
        ((GPFN(Jeffreys(), endpoints=CategoricalEndpoints(2)), pair, even), "known for"),
        ((flow, pair.float(), even), "int64"),
        ((flow, pair + 1, even), "from 0 to 1"),
        ((flow, pair, torch.ones(2)), "sum to 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ExactClasses(*arguments)
