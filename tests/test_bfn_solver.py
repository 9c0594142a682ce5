"""BFN-Solver: against the published recursions written out here, by order of convergence, and by what it reduces to."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from support import Recorded
from test_flows import double, seeded

from proxflow import (
    BFN,
    GPFN,
    BFNSolver,
    Categorical,
    DiagonalGaussian,
    DiscreteBFN,
    ExactClasses,
    Marginal,
    Stochastic,
)
from proxflow.errors import ArgumentError

STEPS = 7
LAW = ((0.3, -0.6, 0.1), (0.7, 0.4, 0.2))  # weight, mean, standard deviation of each component of the data
CLASSES = DiscreteBFN(3, 1.5)


def curved(mean, t):
    return torch.tanh(1.3 * mean + 0.4 * t.reshape(-1, 1)) * 0.9


def curved_classes(probs, t):
    return torch.softmax(2 * torch.sin(torch.arange(1, 4) * (probs + t.reshape(-1, 1, 1))), dim=-1)


def noises(shape):
    return [torch.randn(shape, generator=seeded(k), dtype=torch.float64) for k in range(STEPS)]


# The published recursions (2404.15766, in its own time that runs from 1 to 0, and its names) -------------------------------


def published_means(order, stochastic, flow, x, drawn):
    """From x at the second evaluation: the first step begins in pure noise, where the paper begins at a small time."""
    times = [1 - k / STEPS for k in range(STEPS)]  # the paper's t
    gamma = [1 - flow.sigma1 ** (2 * (1 - t)) for t in times]
    alpha, sigma = gamma, [math.sqrt(g * (1 - g)) for g in gamma]
    lam = [-math.inf if g == 0 else math.log(a / s) for g, a, s in zip(gamma, alpha, sigma, strict=True)]
    previous, trajectory = curved(torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64)), [x]
    for k in range(1, STEPS - 1):
        predicted = curved(x, torch.full((len(x),), 1 - times[k], dtype=torch.float64))
        h = lam[k + 1] - lam[k]
        r = (lam[k] - lam[k - 1]) / h
        d = predicted + (predicted - previous) / (2 * r) if order == 2 else predicted
        if stochastic:
            mean = sigma[k + 1] / sigma[k] * math.exp(-h) * x + alpha[k + 1] * (1 - math.exp(-2 * h)) * d
            x = mean + sigma[k + 1] * math.sqrt(1 - math.exp(-2 * h)) * drawn.pop(0)
        else:
            x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * math.expm1(-h) * d
        previous = predicted
        trajectory.append(x)
    return trajectory


def published_logits(order, stochastic, flow, z, drawn):
    k_, b = flow.classes, flow.max_sqrt_beta
    times = [1 - k / STEPS for k in range(STEPS)]
    start = torch.full_like(z, 1 / k_)
    previous, trajectory = curved_classes(start, torch.zeros(len(z), dtype=torch.float64)), [z]
    for k in range(1, STEPS - 1):
        t, s, r = times[k + 1], times[k], times[k - 1]
        e = curved_classes(z.softmax(-1), torch.full((len(z),), 1 - s, dtype=torch.float64))
        slope = (e - previous) / (s - r) if order == 2 else torch.zeros_like(e)
        if stochastic:
            gain = b**2 * ((1 - t) ** 2 - (1 - s) ** 2)
            bend = k_ * b**2 * (t - s) ** 2 * (s + 2 * t - 3) / 3 * slope
            z = z + gain * (k_ * e - 1) + bend + math.sqrt(k_ * gain) * drawn.pop(0)
        else:
            c = k_ * b**2 * (1 - t)
            z = (1 - t) / (1 - s) * z + c * (t - s) * (1 / k_ - e) - c * (t - s) ** 2 / 2 * slope
        previous = e
        trajectory.append(z)
    return trajectory


def trajectory_of(sampler, flow, predict, shape, draws):
    seen = []

    def watch(t, belief, target):
        seen.append(belief.mean if isinstance(belief, DiagonalGaussian) else belief.logits)

    samples = sampler(predict, flow, shape, STEPS, Recorded(*draws), dtype=torch.float64, watch=watch)
    return seen, samples.events


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("order", [1, 2])
class TestPublished:
    def test_means(self, order, stochastic):
        flow, drawn = BFN(0.03), noises((4, 3))
        seen, events = trajectory_of(
            BFNSolver(order, float(stochastic)),
            flow, lambda belief, t: DiagonalGaussian(curved(belief.mean, t), double(0.0)), (4, 3), drawn,
        )  # fmt: skip
        expected = published_means(order, stochastic, flow, seen[1], drawn[2:])
        for found, wanted in zip(seen[1:], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(events, curved(seen[-1], double([1 - 1 / STEPS]).expand(4)))

    def test_logits(self, order, stochastic):
        drawn = noises((4, 2, 3))
        seen, events = trajectory_of(
            BFNSolver(order, float(stochastic)), CLASSES,
            lambda belief, t: Categorical(curved_classes(belief.probs, t).log()), (4, 2), drawn,
        )  # fmt: skip
        # From t = 0 the paper's categorical solvers begin at z = 0 (its noise has no spread there); ours carry the noise.
        path, first = CLASSES.latent.path, torch.tensor(1 / STEPS, dtype=torch.float64)
        e = curved_classes(torch.full((4, 2, 3), 1 / 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
        a, b = path.coefficients(first)
        z = a * (3 * e - 1) + b * (drawn[1] if stochastic else drawn[0])
        torch.testing.assert_close(seen[1], z.log_softmax(-1), rtol=0, atol=1e-12)
        expected = published_logits(order, stochastic, CLASSES, z, drawn[2:])
        for found, wanted in zip(seen[1:], expected, strict=True):
            torch.testing.assert_close(found, wanted.log_softmax(-1), rtol=0, atol=1e-12)
        assert events.shape == (4, 2)


# What they reduce to ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 0.4, 1.0])
def test_first_order_is_the_marginal_sampler_on_the_papers_times(kappa):
    def predict(belief, t):
        return DiagonalGaussian(curved(belief.mean, t), double(0.0))

    flow, times = BFN(0.03), [k / STEPS for k in range(STEPS)]
    solver, marginal = (
        sampler(predict, flow, (4, 3), STEPS, seeded(), dtype=torch.float64, times=times).events
        for sampler in (BFNSolver(1, kappa), Marginal(kappa))
    )
    assert torch.equal(solver, marginal)


def test_first_order_with_noise_is_the_update_of_bayes_rule():
    # BFN's own sampler, step by step from the same belief with the same noise, where its message is around the mean.
    flow, t, s, draw = BFN(0.1), double(0.3), double(0.55), double([[0.8, -1.1]])
    belief = flow.latent.belief(double([[0.2, -0.4]]), t)
    target = DiagonalGaussian(double([[0.5, -0.3]]), double(0.0))
    sampler, (a, b) = BFNSolver(1, 1.0), flow.path.coefficients(t)
    now, new = sampler.plan(flow, belief, [0.3, 0.55], belief.mean.device)
    state = (flow.latent, belief.mean / (a + b), (False, None, None))
    moved, _ = sampler.step(flow, belief, target, now, new, Recorded(draw), state)
    updated, _ = Stochastic().step(flow, belief, target, t, s, Recorded(draw), None)
    torch.testing.assert_close(moved.mean, updated.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.std, updated.std, rtol=1e-12, atol=1e-12)


# Order of convergence ---------------------------------------------------------------------------------------------------


def exact_mean(flow):
    def predict(belief, t):
        a, b = (c.reshape(-1, 1) for c in flow.path.coefficients(t.double()))
        logs, means = [], []
        for weight, mean, std in LAW:
            total = (a * std) ** 2 + b**2
            total = torch.where(total > 0, total, 1.0)
            logs.append(math.log(weight) - 0.5 * total.log() - 0.5 * (belief.mean - a * mean).square() / total)
            means.append(mean + a * std**2 / total * (belief.mean - a * mean))
        weights = torch.stack(logs).softmax(0)
        return DiagonalGaussian((weights * torch.stack(means)).sum(0), double(0.0))

    return predict


def quantile(level, a, b):
    """Of a x + b ε for x of the law: the equation without noise keeps quantiles."""
    return optimize.brentq(
        lambda v: sum(w * stats.norm.cdf(v, a * m, math.hypot(a * s, b)) for w, m, s in LAW) - level, -9, 9, xtol=1e-14
    )


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence_of_means(order):
    # The paper's clock ln(a/b) is infinite at t = 0: from a first, tiny time on, even steps of about that clock.
    flow, errors = BFN(0.1), []
    noise = torch.randn(8, 1, generator=seeded(), dtype=torch.float64)
    a, b = (float(c) for c in flow.path.coefficients(double(0.64)))
    exact = double([[quantile(stats.norm.cdf(float(e)), a, b)] for e in noise])
    for n in (40, 80, 160):
        seen = {}
        times = [0.0, *(0.64 * 1e-8 ** (1 - k / (n - 2)) for k in range(n - 1))]
        BFNSolver(order)(
            exact_mean(flow), flow, (8, 1), n, Recorded(noise), dtype=torch.float64, times=times,
            watch=lambda t, belief, _, seen=seen: seen.update({t: belief.mean}),
        )  # fmt: skip
        errors.append(float((seen[0.64] - exact).abs().max()))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence_of_logits(order):
    predict = ExactClasses(CLASSES, torch.tensor([[0], [1], [2]]), double([0.2, 0.3, 0.5]))
    noise, b = torch.randn(6, 1, 3, generator=seeded(), dtype=torch.float64), CLASSES.max_sqrt_beta

    def slope(t, v):  # of v = z/t, from b√K ε
        probs = np.array([0.2, 0.3, 0.5]) * np.exp(t * v.reshape(6, 3))
        return (b**2 * (3 * probs / probs.sum(1, keepdims=True) - 1)).ravel()

    start = (b * math.sqrt(3) * noise).numpy().ravel()
    exact = integrate.solve_ivp(slope, (0, 0.5), start, rtol=1e-11, atol=1e-12).y[:, -1].reshape(6, 1, 3) * 0.5
    errors = []
    for n in (20, 40, 80):
        seen = {}
        BFNSolver(order)(
            predict, CLASSES, (6, 1), n, Recorded(noise), dtype=torch.float64,
            watch=lambda t, belief, _, seen=seen: seen.update({t: belief.logits}),
        )  # fmt: skip
        errors.append(float((seen[0.5] - double(exact.tolist()).log_softmax(-1)).abs().max()))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("sampler", [BFNSolver(1), BFNSolver(2), BFNSolver(1, 1.0), BFNSolver(2, 1.0)], ids=str)
def test_samples_have_the_law_of_the_data(sampler):
    flow = BFN(0.03)
    events = sampler(exact_mean(flow), flow, (4000, 1), 100, seeded(), dtype=torch.float64).events.flatten()

    def law(v):
        return sum(w * stats.norm.cdf(v, m, s) for w, m, s in LAW)

    assert stats.kstest(events.numpy(), law).statistic < 0.03
    predict = ExactClasses(CLASSES, torch.tensor([[0], [1], [2]]), double([0.2, 0.3, 0.5]))
    z = DiscreteBFN(3, 4.0)
    classes = sampler(ExactClasses(z, predict.events, predict.probs), z, (4000, 1), 60, seeded()).events
    shares = torch.bincount(classes.flatten(), minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.3, 0.5]), rtol=0, atol=0.03)


def test_a_last_time_without_noise_is_reached():
    def predict(belief, t):
        return DiagonalGaussian(curved(belief.mean, t), double(0.0))

    events = BFNSolver(2)(predict, GPFN(), (4, 3), 4, seeded(), dtype=torch.float64, times=[0, 0.3, 0.6, 1.0]).events
    assert bool(events.isfinite().all())


def test_settings_out_of_range():
    with pytest.raises(ArgumentError, match="order is 1 or 2"):
        BFNSolver(3)
    with pytest.raises(ArgumentError, match="kappa"):
        BFNSolver(2, 1.5)
