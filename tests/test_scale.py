"""Real data of any place and scale: trained rightly by default, or refused before work."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import Gaussian
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    DiagonalGaussian,
    Diffusion,
    ExactMean,
    GaussianEndpoints,
    PointPredictor,
    TrainingConfig,
    Wasserstein2,
)
from proxflow.data.toy import GaussianMixtureLaw
from proxflow.errors import ArgumentError
from proxflow.paths import Cosine, Linear


class Net(nn.Module):
    def __init__(self, columns=2, width=64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(columns + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, columns)
        )  # fmt: skip

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


class Zero(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


def rows(mean, std, number=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.tensor(mean), torch.tensor(std)
    return torch.randn(number, len(mean), generator=generator) * std + mean


def trained(data, steps=600, flow=None, **settings):
    flow = flow or GPFN()
    torch.manual_seed(0)
    predictor = PointPredictor(Net(data.shape[1]), flow, **settings)
    return proxflow.fit(predictor, flow, data, TrainingConfig(steps=steps, learning_rate=3e-3)).predictor, flow


@pytest.mark.parametrize(
    ("mean", "std"), [((4.0, 0.0), (1.5, 1.5)), ((-0.3, 0.2), (0.2, 0.3)), ((90.0, 9.0), (9.0, 1.0))]
)
def test_samples_have_place_and_spread_of_the_data(mean, std):
    data = rows(mean, std)
    predictor, flow = trained(data)
    samples = proxflow.sample(predictor, flow, (4000, 2), batch_size=4000)
    for column in range(2):
        spread = data[:, column].std().item()
        assert samples[:, column].mean().item() == pytest.approx(data[:, column].mean().item(), abs=0.07 * spread)
        assert samples[:, column].std().item() == pytest.approx(spread, rel=0.07)
    with torch.no_grad():
        found = (
            proxflow.ode_log_likelihood(predictor, flow, data[:256], steps=16 if max(std) < 2 else 64)
            .log_prob.mean()
            .item()
        )
    truth = torch.distributions.Normal(torch.tensor(mean), torch.tensor(std)).log_prob(data[:256]).sum(1).mean().item()
    assert found == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("divergence", [KL(), Wasserstein2()])
def test_the_default_schedule_brings_samples_from_exact_predictions_to_the_spread_of_the_data(divergence):
    flow, law = (
        GPFN(divergence),
        GaussianMixtureLaw(torch.ones(1), torch.full((1, 1), 4.0), torch.full((1, 1, 1), 2.25)),
    )
    predictor = Exactly(ExactMean(flow, law))
    for nfe, within in ((20, 0.03), (100, 0.01)):
        samples = proxflow.sample(predictor, flow, (4000, 1), nfe=nfe, batch_size=4000)
        assert samples.mean().item() == pytest.approx(4.0, abs=0.1)
        assert samples.std().item() == pytest.approx(1.5, rel=within + 2 / math.sqrt(2 * 4000))


class Exactly(nn.Module):
    """A function of belief and time as a predictor."""

    reads = frozenset()

    def __init__(self, predict):
        super().__init__()
        self.predict = predict

    def forward(self, belief, t):
        return self.predict(belief, t)


def test_a_network_trained_with_kl_draws_the_spread_of_the_data():
    predictor, flow = trained(rows((4.0, 0.0), (1.5, 1.5)), flow=GPFN(KL()))
    samples = proxflow.sample(predictor, flow, (4000, 2), batch_size=4000)
    assert samples.mean(0).tolist() == pytest.approx([4.0, 0.0], abs=0.1)
    assert samples.std(0).tolist() == pytest.approx([1.5, 1.5], rel=0.07)


def test_more_evaluations_do_not_spread_samples():
    predictor, flow = trained(rows((0.0, 0.0), (1.0, 1.0)), steps=800)
    for nfe in (20, 100, 400):
        samples = proxflow.sample(predictor, flow, (4000, 2), nfe=nfe, batch_size=4000)
        # 3 % of bias, and twice the standard error of a spread over 8000 numbers.
        assert samples.std().item() == pytest.approx(1.0, abs=0.03 + 2 / math.sqrt(2 * 8000))


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_a_model_of_rows_keeps_their_units_whatever_they_are(scale):
    data = rows((4.0 * scale, -scale), (1.5 * scale, 0.1 * scale)).double()
    model = proxflow.build(data, seed=0).fit(data, steps=400, learning_rate=3e-3)
    samples = model.sample(4000, batch_size=4000)
    for column in range(2):
        spread = data[:, column].std().item()
        assert samples[:, column].mean().item() == pytest.approx(data[:, column].mean().item(), abs=0.07 * spread)
        assert samples[:, column].std().item() == pytest.approx(spread, rel=0.07)


@pytest.mark.parametrize("scale", [1e-3, 0.05, 20.0, 1e6])
def test_a_scale_that_no_number_of_steps_would_reach_is_refused(scale):
    with pytest.raises(ArgumentError, match=r"column or channel 0 .* proxflow\.build\(data\)\.fit\(data\)"):
        trained(rows((0.0, 0.0), (scale, 1.0)))


def test_a_place_too_far_away_is_refused_and_constant_columns_are_not():
    with pytest.raises(ArgumentError, match="mean 1e"):
        trained(rows((0.0, 1e4), (1.0, 1.0)))
    data = rows((0.0, 2.0), (1.0, 1e-30))
    predictor, flow = trained(data, steps=50)
    assert proxflow.sample(predictor, flow, (100, 2))[:, 1].tolist() == pytest.approx([2.0] * 100, abs=0.02)


FLOWS = [GPFN(), GPFN(schedule=Cosine()), Diffusion(), GPFN(KL(), endpoints=GaussianEndpoints(0.3)), BFN(0.3)]


@given(
    mean=st.floats(-50, 50),
    std=st.floats(0.1, 10),
    t=st.floats(0, 1),
    flow=st.sampled_from(
        [GPFN(), GPFN(schedule=Cosine()), Diffusion(), GPFN(KL(), endpoints=GaussianEndpoints(0.3)), BFN(0.3)]
    ),
)
@settings(max_examples=60, deadline=None)
def test_without_a_network_edm_is_the_posterior_mean_of_gaussian_data(mean, std, t, flow):
    time = torch.tensor([t], dtype=torch.float64)
    a, b = (float(c) for c in flow.path.coefficients(time))
    mu = torch.tensor([[0.7]], dtype=torch.float64)
    predict = PointPredictor(Zero(), flow, parameterisation="edm", mean=(mean,), std=(std,)).double()
    found = float(predict(DiagonalGaussian(mu, torch.ones(())), time).mean)
    precision = 1 / std**2 + (a * a / b**2 if b else math.inf)  # of the data, by Bayes' rule
    expected = mean if a == 0 else 0.7 / a if b == 0 else (mean / std**2 + a * 0.7 / b**2) / precision
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_edm_equals_the_published_preconditioning():
    # Karras et al. (2022), table 1, where data lie at σ: μ = x + σ ε, so a = 1 and b = σ after division by a.
    flow, net = GPFN(), Net()
    predict = PointPredictor(net, flow, parameterisation="edm", mean=(0.0, 0.0), std=(0.5, 0.5))
    t = torch.tensor([0.2, 0.6])
    mu = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    sigma = ((1 - t) / t)[:, None]
    noisy, data_std = mu / t[:, None], 0.5
    root = (sigma**2 + data_std**2).sqrt()
    expected = data_std**2 / root**2 * noisy + sigma * data_std / root * net(noisy / root, t)
    torch.testing.assert_close(predict(DiagonalGaussian(mu, torch.ones(())), t).mean, expected)


def test_moments_are_those_of_the_first_training_and_stand_in_the_file(tmp_path):
    data = rows((4.0, -2.0), (1.5, 0.5)).double()
    predictor = PointPredictor(Net(), GPFN())
    proxflow.fit(predictor, GPFN(), data, TrainingConfig(steps=2))
    assert predictor.mean == pytest.approx(data.mean(0).tolist())
    assert predictor.std == pytest.approx(data.std(0, correction=0).tolist())
    proxflow.fit(predictor, GPFN(), data + 1, TrainingConfig(steps=2))
    assert predictor.mean == pytest.approx(data.mean(0).tolist())

    model = proxflow.build(data, seed=0).fit(data, steps=2)
    model.save_pretrained(tmp_path)
    again = proxflow.load(tmp_path)
    assert again.predictor.mean == model.predictor.mean
    assert torch.equal(again.sample(5), model.sample(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.bool])
def test_every_number_type_is_taken(dtype):
    data = rows((0.0, 0.0), (1.0, 1.0)).mul(3 if dtype == torch.int32 else 1).to(dtype)
    predictor, flow = trained(data, steps=2)
    assert proxflow.sample(predictor, flow, (4, 2)).dtype == torch.float32


@pytest.mark.parametrize("flow", [GPFN(), Diffusion(), Diffusion(Linear()), GPFN(KL())], ids=str)
def test_predicted_noise_is_refused_where_a_belief_knows_nothing(flow):
    with pytest.raises(ArgumentError, match="divide by a = 0"):
        PointPredictor(Net(), flow, parameterisation="epsilon")


@pytest.mark.parametrize("flow", [Diffusion(), Diffusion(Linear())], ids=str)
def test_predicted_noise_learns_where_its_weights_allow(flow):
    data = rows((0.2, -0.1), (0.3, 0.3))
    predictor, _ = trained(data, flow=flow, parameterisation="epsilon", clip=(-1.5, 1.5))
    samples = proxflow.sample(predictor, flow, (2000, 2), batch_size=2000)
    assert samples.isfinite().all()
    assert samples.std().item() == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(
    ("std", "spread"), [(0.001, 0.02), (0.1, 0.9), (1.0, 1.02), (3.0, 1.01), (10.0, 0.96), (30.0, 0.67)]
)
def test_scales_that_a_flow_from_standard_noise_sees(std, spread):
    # The share of the data's spread that samples have by exact predictions, as docs/mathematics.md states it.
    flow = GPFN()
    samples = proxflow.sample(
        Gaussian(flow, 0.0, std), flow, (20000, 2), nfe=20, sampler="multistep2", batch_size=20000
    )
    assert samples.std().item() / std == pytest.approx(spread, abs=0.012)
