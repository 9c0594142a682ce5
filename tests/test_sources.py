"""What flows begin with: sources of one's own, data to data, and the way back from data to what they began with."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

import proxflow
from proxflow import BFN, GPFN, DiagonalGaussian, Diffusion, GaussianEndpoints, Marginal, PointPredictor, TrainingConfig
from proxflow.errors import ArgumentError


class Gaussian(nn.Module):
    """Exact predictions for data of N(mean, std²) and independent prior draws of N(start, 1)."""

    reads = frozenset()

    def __init__(self, flow, mean, std, start=0.0):
        super().__init__()
        self.flow, self.mean, self.std, self.start = flow, mean, std, start

    def forward(self, belief, t):
        a, b = self.flow.path.over(t, belief.mean)
        gain = a * self.std**2 / (a**2 * self.std**2 + b**2)
        return DiagonalGaussian(self.mean + gain * (belief.mean - a * self.mean - b * self.start), 0.02)


@dataclass(frozen=True)
class From(GaussianEndpoints):
    """Endpoints of a user's own, which draw by torch's functions."""

    def prior(self, shape, generator, dtype, device):
        return DiagonalGaussian(3 + torch.randn(shape, generator=generator, dtype=dtype), 1.0)


SOURCES = {
    "torch's functions": From(),
    "distribution": GaussianEndpoints(source=Normal(3.0, 1.0)),
    "event": GaussianEndpoints(source=Independent(Normal(torch.full((2,), 3.0), torch.ones(2)), 1)),
    "rows": GaussianEndpoints(source=3 + torch.randn(20000, 2, generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("endpoints", SOURCES.values(), ids=SOURCES.keys())
def test_samples_come_from_another_source(endpoints):
    flow = GPFN(endpoints=endpoints)
    predictor = Gaussian(flow, -1.0, 0.5, start=3.0)
    samples = proxflow.sample(predictor, flow, (1500, 2), nfe=40, batch_size=512)
    error = 0.5 / math.sqrt(3000)
    assert samples.mean().item() == pytest.approx(-1.0, abs=4 * error)
    assert samples.std().item() == pytest.approx(0.5, abs=0.01 + 4 * error)
    first = proxflow.sample(predictor, flow, (40, 2), nfe=3, batch_size=16, first=7)
    again = proxflow.sample(predictor, flow, (33, 2), nfe=3, batch_size=32, first=14)
    assert torch.equal(first[7:], again)


@pytest.mark.parametrize("endpoints", SOURCES.values(), ids=SOURCES.keys())
def test_training_from_another_source_does_not_depend_on_the_parts_of_a_batch(endpoints):
    flow, data = GPFN(endpoints=endpoints), torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def losses(parts):
        torch.manual_seed(0)
        predictor = PointPredictor(Tiny(), flow)
        return proxflow.fit(predictor, flow, data, TrainingConfig(steps=3, batch_size=16, accumulate=parts)).losses

    assert losses(1) == pytest.approx(losses(4), rel=1e-5)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None]], 1))


def test_a_likelihood_knows_its_prior_or_refuses():
    law = MultivariateNormal(torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]]).double().float())
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Same(nn.Module):
        """The way of data that are the source moved by (1, 1): each draw goes on by as much."""

        reads = frozenset()

        def forward(self, belief, t):
            return DiagonalGaussian(belief.mean + (1 - t.to(belief.mean.dtype))[:, None], 0.02)

    double = MultivariateNormal(law.loc.double(), law.covariance_matrix.double())
    flow = GPFN(endpoints=GaussianEndpoints(source=double))
    found = proxflow.ode_log_likelihood(Same(), flow, x, resolution=1e-6).log_prob
    torch.testing.assert_close(found, double.log_prob(x - 1), rtol=0, atol=1e-4)

    for name in ("torch's functions", "rows"):
        unknown = GPFN(endpoints=SOURCES[name])
        with pytest.raises(ArgumentError, match=r"density .* not known"):
            proxflow.ode_log_likelihood(Same(), unknown, x)


def test_samplers_that_renew_noise_refuse_what_is_no_noise():
    flow = GPFN(endpoints=SOURCES["rows"])
    with pytest.raises(ArgumentError, match="standard normal noise"):
        proxflow.sample(Gaussian(flow, 0.0, 1.0), flow, (4, 2), nfe=3, sampler=Marginal(0.5))
    assert proxflow.sample(Gaussian(flow, 0.0, 1.0), flow, (4, 2), nfe=3, sampler=Marginal(0.0)).isfinite().all()


@pytest.mark.parametrize(
    "source", [Uniform(torch.zeros(3), torch.ones(3)), torch.zeros(4, 3), torch.zeros(0, 2), "normal"]
)
def test_a_source_that_does_not_fit_is_refused(source):
    def begun():
        flow = GPFN(endpoints=GaussianEndpoints(source=source))
        return flow.prior((5, 2), torch.Generator(), torch.float32, torch.device("cpu"))

    with pytest.raises(ArgumentError, match="source"):
        begun()


@pytest.mark.parametrize("flow", [GPFN(), Diffusion(), GPFN(proxflow.KL(), endpoints=GaussianEndpoints(0.5))], ids=str)
def test_from_data_to_noise_and_back(flow):
    # For Gaussian data the way is linear: ε = (x − mean)/std, whatever the path.
    predictor = Gaussian(flow, 1.0, 0.5)
    x = 1 + 0.5 * torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = proxflow.encode(predictor, flow, x, resolution=1e-5)
    if float(flow.path.coefficients(torch.ones(1))[1]) == 0:
        torch.testing.assert_close(start, (x - 1) / 0.5, rtol=0, atol=2e-3)
    back = proxflow.sample(predictor, flow, (32, 2), nfe=400, sampler="multistep2", start=start.float())
    torch.testing.assert_close(back.double(), x, rtol=0, atol=5e-3)


def test_encoding_is_refused_where_no_draw_leads_to_data():
    with pytest.raises(ArgumentError, match="no draw leads to given data"):
        proxflow.encode(Gaussian(GPFN(), 0.0, 1.0), BFN(0.1), torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="floating point"):
        proxflow.encode(Gaussian(GPFN(), 0.0, 1.0), GPFN(), torch.zeros(2, 2, dtype=torch.long))


def test_moons_become_a_ring():
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(4000, 1, generator=generator)
    ring = torch.cat([angle.cos(), angle.sin()], 1) * 2
    square = 2 * torch.rand(4000, 2, generator=generator) - 1
    flow = GPFN(endpoints=GaussianEndpoints(source=square))
    model = proxflow.build(ring, flow=flow, network="mlp:width=64,depth=2", seed=0)
    trained = proxflow.fit(model.predictor, flow, ring, TrainingConfig(steps=400, learning_rate=3e-3)).predictor
    radius = proxflow.sample(trained, flow, (1000, 2), nfe=20).norm(dim=1)
    assert radius.mean().item() == pytest.approx(2.0, abs=0.1)
    assert radius.std().item() < 0.25
