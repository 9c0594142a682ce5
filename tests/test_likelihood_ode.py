"""Likelihood by the change of variables: against known densities, scipy's solver, and the score."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from test_flows import double, seeded
from test_toy import mixture

from proxflow import (
    BFN,
    GPFN,
    KL,
    CategoricalEndpoints,
    Cosine,
    DiagonalGaussian,
    Diffusion,
    ExactMean,
    FisherRao,
    GaussianEndpoints,
    PointPredictor,
)
from proxflow.data import Moons, dequantise, eight_gaussians, load, to_bytes, to_range
from proxflow.errors import ArgumentError
from proxflow.likelihood import ode_log_likelihood
from proxflow.random import SampleStreams

FLOWS = [GPFN(), GPFN(schedule=Cosine()), GPFN(KL(), endpoints=GaussianEndpoints(0.3)), BFN(1e-3), Diffusion()]


class Network(torch.nn.Module):
    """Mixes coordinates of events of any shape, smoothly."""

    def __init__(self, size=2, dtype=torch.float64):
        super().__init__()
        generator = seeded(7)
        self.weight = torch.nn.Parameter(torch.randn(size, size, generator=generator, dtype=dtype))
        self.shift = torch.nn.Parameter(torch.randn(size, generator=generator, dtype=dtype))

    def forward(self, mean, t):
        flat = mean.flatten(1)
        hidden = torch.tanh(flat @ self.weight + self.shift * t[:, None])
        return (0.8 * hidden @ self.weight.mT / len(self.weight)).reshape(mean.shape)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_mixtures_of_known_density_with_every_path(flow):
    law = mixture(2, 3)
    x = law.sample(32, seeded(), dtype=torch.float64)
    with torch.no_grad():
        found = ode_log_likelihood(ExactMean(flow, law), flow, x)
    torch.testing.assert_close(found.log_prob, law.log_density(x), rtol=0, atol=1e-3)
    assert found.standard_error is None
    assert found.nfe == 256


@pytest.mark.parametrize("law", [mixture(1, 2), mixture(3, 1), mixture(5, 4), eight_gaussians(), Moons()], ids=str)
def test_densities_of_many_kinds_and_dimensions(law):
    x = law.sample(16, seeded(3), dtype=torch.float64)
    with torch.no_grad():
        found = ode_log_likelihood(ExactMean(GPFN(), law), GPFN(), x)
    torch.testing.assert_close(found.log_prob, law.log_density(x), rtol=0, atol=1e-3)


def test_the_resolution_is_the_noise_that_the_density_carries():
    law, x = eight_gaussians(), eight_gaussians().sample(16, seeded(), dtype=torch.float64)
    with torch.no_grad():
        found = ode_log_likelihood(ExactMean(GPFN(), law), GPFN(), x, resolution=0.1).log_prob
        bfn = ode_log_likelihood(ExactMean(BFN(0.1), law), BFN(0.1), x).log_prob
    torch.testing.assert_close(found, law.log_density(x, 0.1), rtol=0, atol=1e-4)
    assert float((found - law.log_density(x)).abs().max()) > 0.3
    # BFN never gets nearer to its data than the belief at t = 1.
    torch.testing.assert_close(bfn, law.log_density(x, 0.1 / math.sqrt(1 - 0.01)), rtol=0, atol=1e-4)


def test_a_network_by_scipys_solver():
    # dz/dt = (x̂ − z)/(1 − t) from t = 1/(1 + r) down to 0.
    model, flow, resolution = Network(), GPFN(), 0.2
    predict = PointPredictor(model, flow, clip=None, parameterisation="x")
    x = double([[0.3, -0.8]])

    def slopes(t, state):
        z = double(state[None, :2])
        with torch.no_grad():
            target = model(z, double([t]))[0].numpy()
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z, double([t])), z)
        divergence = float(jacobian.reshape(2, 2).trace()) - 2
        return np.array([*(target - state[:2]), divergence]) / (1 - t)

    end = 1 / (1 + resolution)
    way = integrate.solve_ivp(slopes, (end, 0), [*(end * x[0].numpy()), 0.0], rtol=1e-8, atol=1e-8)
    # From the data down, the integral of the divergence is minus that along the flow.
    expected = stats.norm.logpdf(way.y[:2, -1]).sum() + way.y[2, -1] + 2 * math.log(end)
    with torch.no_grad():
        found = ode_log_likelihood(predict, flow, x, resolution=resolution)
    assert float(found.log_prob) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_orders_of_the_methods(method, order):
    law = mixture(2, 2, seed=5)
    x = law.sample(16, seeded(), dtype=torch.float64)

    def found(steps, method):
        with torch.no_grad():
            return ode_log_likelihood(ExactMean(GPFN(), law), GPFN(), x, steps=steps, method=method, resolution=0.1)

    exact = law.log_density(x, 0.1)
    counts = np.array([8, 16, 32])
    errors = [float((found(int(n), method).log_prob - exact).abs().mean()) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.4)
    assert found(3, method).nfe == 3 * {"heun": 2, "rk4": 4}[method]


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_agrees_within_its_error(probe):
    predict = PointPredictor(Network(6), GPFN(), clip=None, parameterisation="x")
    x = torch.randn(3, 1, 2, 3, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        exact = ode_log_likelihood(predict, GPFN(), x, steps=8, method="heun", resolution=0.1)
        found = ode_log_likelihood(
            predict, GPFN(), x, steps=8, method="heun", resolution=0.1, probes=400, probe=probe, generator=seeded(1)
        )
    assert found.standard_error.shape == (3,)
    assert (found.log_prob - exact.log_prob).abs().max() > 1e-6
    assert ((found.log_prob - exact.log_prob).abs() < 4.5 * found.standard_error).all()


def test_probes_do_not_depend_on_the_batch():
    predict, x = (
        PointPredictor(Network(), GPFN(), clip=None, parameterisation="x"),
        torch.randn(5, 2, generator=seeded(), dtype=torch.float64),
    )

    def found(x, indices):
        with torch.no_grad():
            return ode_log_likelihood(
                predict, GPFN(), x, steps=2, probes=2, probe="gaussian", generator=SampleStreams(0, indices)
            )

    together, apart = found(x, torch.arange(5)), found(x[3:], torch.arange(3, 5))
    torch.testing.assert_close(apart.log_prob, together.log_prob[3:])
    one = ode_log_likelihood(predict, GPFN(), x, steps=2, probes=1, generator=seeded())
    assert one.standard_error is None


def test_the_gradient_by_the_data_is_the_score():
    law = mixture(2, 3)
    x = law.sample(8, seeded(), dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(law.log_density(x, 0.05).sum(), x)
    found = ode_log_likelihood(ExactMean(GPFN(), law), GPFN(), x, resolution=0.05)
    (gradient,) = torch.autograd.grad(found.log_prob.sum(), x)
    torch.testing.assert_close(gradient, score, rtol=1e-3, atol=1e-3)


def test_the_gradient_by_the_parameters_follows_differences():
    model = Network()
    predict, x = (
        PointPredictor(model, GPFN(), clip=None, parameterisation="x"),
        torch.randn(4, 2, generator=seeded(), dtype=torch.float64),
    )

    def value():
        return ode_log_likelihood(predict, GPFN(), x, steps=4, probes=2, generator=seeded(1)).log_prob.sum()

    (gradient,) = torch.autograd.grad(value(), model.weight)
    with torch.no_grad():
        model.weight[0, 1] += 1e-5
        up = float(value())
        model.weight[0, 1] -= 2e-5
        assert (up - float(value())) / 2e-5 == pytest.approx(float(gradient[0, 1]), rel=1e-5)


def test_single_precision_and_compilation_give_the_same():
    x = torch.randn(6, 2, generator=seeded())

    def found(network, x, compiler=lambda f: f):
        flow = GPFN()
        predict = PointPredictor(network, flow, clip=None, parameterisation="x")

        def run(x):
            with torch.no_grad():
                return ode_log_likelihood(predict, flow, x, steps=1, method="heun", resolution=0.1).log_prob

        return compiler(run)(x)

    single = found(Network(dtype=torch.float32), x)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, found(Network(), x.double()), rtol=0, atol=1e-4)
    compiled = found(Network(dtype=torch.float32), x, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, single)


def test_dequantised_bytes_bound_their_probability():
    images = load("mnist", "test").images[:4]
    values = dequantise(images, seeded())
    assert torch.equal(to_bytes(values.clamp(-1, 1)), images)
    offset = (values - to_range(images)) * 127.5
    assert stats.kstest(offset.flatten().numpy(), "uniform", args=(-0.5, 1)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("flow", "x", "settings", "message"),
    [
        (GPFN(FisherRao(), endpoints=CategoricalEndpoints(2)), torch.zeros(2, 2), {}, "no Gaussian path"),
        (GPFN(), torch.zeros(2, 2, dtype=torch.int64), {}, "floating point"),
        (GPFN(), torch.zeros(2), {}, "floating point"),
        (GPFN(), torch.zeros(2, 2), {"steps": 0}, "at least 1"),
        (GPFN(), torch.zeros(2, 2), {"probes": 0}, "at least 1"),
        (GPFN(), torch.zeros(2, 2), {"resolution": 0.0}, "positive"),
        (GPFN(), torch.zeros(2, 2), {"method": "euler"}, "'euler'"),
        (GPFN(), torch.zeros(2, 2), {"probe": "sphere"}, "'sphere'"),
        (GPFN(), torch.zeros(2, 2), {"probes": 2}, "generator"),
    ],
)
def test_bad_requests(flow, x, settings, message):
    with pytest.raises(ArgumentError, match=message):
        ode_log_likelihood(lambda belief, t: DiagonalGaussian(belief.mean, belief.std), flow, x, **settings)
