"""Adams–Bashforth in the velocity: against the integral it stands for, its order, its times and its end."""

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from test_flows import seeded
from test_sampler_errors import measured_order, trajectory_ends

from proxflow import (
    BFN,
    GPFN,
    AdamsBashforth,
    Diffusion,
    DiscretisedBFN,
    Guided,
    Linear,
    Marginal,
    PointPredictor,
)
from proxflow.beliefs import Binned, DiagonalGaussian
from proxflow.cli.sample import Sample
from proxflow.errors import ArgumentError


def integrated(x_hat, y, taus):
    """Integrate y' = (x̂ − y)/(1 − τ) to τ = 1, on each interval of the line through the two newest velocities."""
    seen = []
    for k, tau in enumerate(taus):
        seen = [*seen[-1:], (tau, (x_hat(y, tau) - y) / (1 - tau))]
        end = taus[k + 1] if k + 1 < len(taus) else 1.0
        moved = []
        for row, value in enumerate(y):
            line = Polynomial.fit([at for at, _ in seen], [v[row] for _, v in seen], len(seen) - 1).convert()
            moved.append(value + line.integ()(end) - line.integ()(tau))
        y = np.array(moved)
    return y


class Bent(torch.nn.Module):
    """A network whose prediction is far from linear."""

    def forward(self, x, t):
        return torch.sin(4 * x + t.view(-1, 1))


FLOWS = pytest.mark.parametrize("flow", [GPFN(), GPFN(schedule=Linear(0.7)), Diffusion()], ids=["w2", "early", "vp"])


@FLOWS
@pytest.mark.parametrize("nfe", [2, 3, 6])
def test_each_step_and_the_end_integrate_the_line_through_the_last_velocities(flow, nfe):
    start = np.linspace(-2, 2, 9)

    def x_hat(y, tau):
        return np.tanh(3 * y * tau) + 0.5 * np.sin(y)

    def predict(belief, t):
        tau, _, scale = flow.latent.path.straight(t[:1].double())
        return DiagonalGaussian(torch.from_numpy(x_hat((belief.mean / scale).numpy(), float(tau))), 0.0)

    sampler, given = AdamsBashforth(), torch.from_numpy(start)[:, None]
    found = sampler(predict, flow, (9, 1), nfe, seeded(), dtype=torch.float64, start=given).events
    times = torch.tensor([(k / nfe) ** 2 for k in range(nfe)], dtype=torch.float64)
    expected = integrated(x_hat, start, flow.latent.path.straight(times)[0].tolist())
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("flow", [GPFN(), Diffusion()], ids=["w2", "vp"])
def test_the_order_to_the_very_end_is_two(flow):
    assert measured_order(AdamsBashforth(), flow, trajectory_ends(12.0, 2000)) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("nfe", [2, 3, 4, 6])
def test_few_evaluations_keep_more_of_the_variance_than_steps_that_end_on_the_prediction(nfe):
    # Of standard normal data, x̂ = τ y/(τ² + (1 − τ)²): samples should be standard normal, too.
    def predict(belief, t):
        tau = t[0].double()
        return DiagonalGaussian(belief.mean * tau / (tau**2 + (1 - tau) ** 2), 0.0)

    def std(sampler):
        start = torch.ones(1, 1, dtype=torch.float64)  # all is linear: the standard deviation is that of what 1 becomes
        return float(sampler(predict, GPFN(), (1, 1), nfe, seeded(), dtype=torch.float64, start=start).events)

    assert abs(std(AdamsBashforth()) - 1) < 0.5 * abs(std(Marginal(0.0)) - 1) + 0.01
    if nfe == 2:  # v = −1 at τ = 0, −0.6 at 0.25
        assert std(AdamsBashforth()) == pytest.approx(0.75 - 0.75 * (2.5 * 0.6 - 1.5))


def test_one_evaluation_is_the_prediction_itself_and_more_are_at_squared_times():
    seen = []

    def predict(belief, t):
        seen.append(float(t[0]))
        return DiagonalGaussian(torch.full_like(belief.mean, 0.25), 0.0)

    assert float(AdamsBashforth()(predict, GPFN(), (1, 1), 1, seeded()).events) == 0.25
    AdamsBashforth()(predict, GPFN(), (1, 1), 4, seeded())
    assert seen == [0, 0, 1 / 16, 4 / 16, 9 / 16]
    # Given times may end at 1, where no way is left to go; a Bayesian flow's own do, with noise left.
    end = AdamsBashforth()(predict, GPFN(), (1, 1), 3, seeded(), times=[0, 0.5, 1])
    AdamsBashforth()(predict, BFN(0.05), (1, 1), 3, seeded())
    assert seen[5:] == pytest.approx([0, 0.5, 1, 0, 1 / 9, 4 / 9])
    assert bool(end.events.isfinite().all())


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "guided"])
def test_samples_keep_to_the_range_that_the_predictor_clips_to(wrapped):
    flow, network = GPFN(), Bent()
    predictor = PointPredictor(network, flow, clip=(-0.5, 0.5), parameterisation="x").eval()
    asked = Guided(predictor, weight=2.0, weak=predictor) if wrapped else predictor
    free = PointPredictor(network, flow, parameterisation="x").eval()
    drawn = {p: AdamsBashforth()(p, flow, (64, 2), 3, seeded()).events for p in (asked, free)}
    assert float(drawn[free].abs().max()) > 0.6
    assert float(drawn[asked].abs().max()) == 0.5


@pytest.mark.parametrize(("end", "found"), [(lambda target: target.mean, "Tensor"), (lambda target: None, "NoneType")])
def test_an_end_that_is_no_belief_is_refused(end, found):
    class Own(AdamsBashforth):
        def end(self, flow, target, t, state):
            return end(target)

    with pytest.raises(ArgumentError, match=f"Own.end must return a belief, .*got {found}"):
        Own()(lambda belief, t: belief, GPFN(), (2, 3), 2, seeded())


def test_two_evaluations_by_name_take_the_model_that_was_not_trained_for_one():
    assert Sample(steps=2).named == "mnist-few"
    assert Sample(steps=2, sampler="adams-bashforth2").named == "mnist"
    assert Sample(steps=1, sampler="adams-bashforth2", classes=("3",)).named == "mnist-classes-few"


def test_predictions_that_are_not_gaussian_are_the_samples():
    # Otherwise samples would lie between the bins.
    flow, bins = DiscretisedBFN(4), torch.linspace(-0.75, 0.75, 4, dtype=torch.float64)

    def predict(belief, t):
        return Binned(-8 * (belief.mean[..., None] - bins).square())

    found = AdamsBashforth()(predict, flow, (64, 2), 4, seeded(), dtype=torch.float64).events
    assert set(found.flatten().tolist()) == set(bins.tolist())
