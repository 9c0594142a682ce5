"""The variational bound of Bayesian flows: with exact predictions it is the entropy of the data."""

import math

import pytest
import torch
from test_flows import double, seeded

from proxflow import (
    BFN,
    GPFN,
    Binned,
    Categorical,
    DiagonalGaussian,
    DiscreteBFN,
    DiscretisedBFN,
    ExactClasses,
    Nats,
    Readout,
    bayesian_bound,
)
from proxflow.errors import ArgumentError
from proxflow.random import SampleStreams

PROBS = double([0.5, 0.2, 0.2, 0.1])  # of four bins, of which each coordinate holds one
ENTROPY = -float((PROBS * PROBS.log()).sum())
NUMBER = 3000


def posterior(flow):
    """Probabilities of the bins given a belief about one real coordinate, exactly."""
    centres = double([-0.75, -0.25, 0.25, 0.75])

    def probs(belief, t):
        a, b = (c[:, None, None] for c in flow.path.coefficients(t.double()))
        away = (belief.mean.double()[..., None] - a * centres) / b.clamp_min(1e-300)
        return Binned(torch.where(b > 0, -0.5 * away.square(), 0.0) + PROBS.log())

    return probs


def binned_data():
    index = torch.multinomial(PROBS, NUMBER, replacement=True, generator=seeded(7))
    return double([-0.75, -0.25, 0.25, 0.75])[index][:, None]


def is_the_entropy(values, entropy, dimensions=1):
    nats = Nats(values, dimensions)
    assert nats.standard_error < 0.04 * entropy
    assert nats.mean == pytest.approx(entropy, abs=4 * nats.standard_error)


@pytest.mark.parametrize("steps", [None, 1, 4, 25])
def test_bins(steps):
    flow = DiscretisedBFN(4, 0.02)
    is_the_entropy(bayesian_bound(posterior(flow), flow, binned_data(), seeded(), draws=25, steps=steps), ENTROPY)


def test_real_numbers_in_the_limit():
    flow = BFN(0.02, Readout(4))
    exact = posterior(flow)

    def predict(belief, t):
        return DiagonalGaussian(exact(belief, t).mean, double(0.0))

    is_the_entropy(bayesian_bound(predict, flow, binned_data(), seeded(), draws=25), ENTROPY)
    # In few messages a Gaussian receiver pays for not knowing that the data come in bins.
    few = Nats(bayesian_bound(predict, flow, binned_data(), seeded(), draws=25, steps=4), 1)
    assert few.mean > ENTROPY + 8 * few.standard_error


@pytest.mark.parametrize("steps", [None, 1, 5])
def test_classes(steps):
    flow = DiscreteBFN(4, 4.0)
    predict = ExactClasses(flow, torch.arange(4)[:, None], PROBS)
    x = predict.sample(NUMBER, seeded(3))
    is_the_entropy(bayesian_bound(predict, flow, x, seeded(), draws=25, steps=steps), ENTROPY)


def test_classes_that_depend_on_each_other():
    flow = DiscreteBFN(2, 4.0)
    predict = ExactClasses(flow, torch.tensor([[0, 0, 0], [0, 1, 1], [1, 1, 0]]), double([0.6, 0.3, 0.1]))
    x = predict.sample(NUMBER, seeded(3))
    is_the_entropy(bayesian_bound(predict, flow, x, seeded(), draws=25), predict.entropy, 3)
    # In one message each coordinate is predicted without a view of the others, so it costs the sum of their entropies.
    alone = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.1, 0.4, 0.3))
    is_the_entropy(bayesian_bound(predict, flow, x, seeded(), draws=25, steps=1), alone, 3)


def test_the_rest_is_paid_at_the_end():
    # With hardly any message before, all is told by the reconstruction.
    flow = DiscreteBFN(4, 1e-3)
    predict = ExactClasses(flow, torch.arange(4)[:, None], PROBS)
    x = predict.sample(NUMBER, seeded(3))
    values = bayesian_bound(predict, flow, x, seeded())
    torch.testing.assert_close(values, -PROBS.log()[x[:, 0]], rtol=0, atol=0.02)


def test_a_wrong_prediction_costs_more():
    flow = DiscreteBFN(4, 4.0)
    predict = ExactClasses(flow, torch.arange(4)[:, None], PROBS)
    x = predict.sample(NUMBER, seeded(3))

    def hesitant(belief, t):
        return Categorical(0.5 * predict(belief, t).logits)

    right, wrong = (Nats(bayesian_bound(p, flow, x, seeded()), 1) for p in (predict, hesitant))
    assert wrong.mean > right.mean + 8 * right.standard_error


def test_an_example_does_not_depend_on_its_batch():
    flow = DiscretisedBFN(4, 0.1)
    x = binned_data()[:6]

    def of(indices):
        return bayesian_bound(posterior(flow), flow, x[indices], SampleStreams(3, torch.tensor(indices)), steps=3)

    torch.testing.assert_close(of([2, 3]), of([0, 1, 2, 3, 4, 5])[2:4], rtol=1e-12, atol=0)


def test_events_of_any_shape_and_bits():
    flow, x = DiscretisedBFN(4, 0.02), binned_data()[:2400].reshape(200, 3, 2, 2)

    def predict(belief, t):
        flat = DiagonalGaussian(belief.mean.reshape(-1, 1), double(1.0))
        return Binned(posterior(flow)(flat, t.repeat_interleave(12)).logits.reshape(200, 3, 2, 2, 4))

    nats = Nats(bayesian_bound(predict, flow, x, seeded(), draws=25), x[0].numel())
    assert nats.bits_per_dimension == pytest.approx(ENTROPY / math.log(2), abs=0.06)
    assert nats.mean == pytest.approx(12 * ENTROPY, rel=0.05)


@pytest.mark.parametrize(
    ("flow", "x", "change", "message"),
    [
        (GPFN(), torch.zeros(2, 3), {}, "knows BFN, DiscretisedBFN and DiscreteBFN"),
        (BFN(), torch.zeros(2, 3), {"draws": 0}, "at least 1, got 0"),
        (BFN(), torch.zeros(2, 3), {"steps": 0}, "at least 1, got 16 and 0"),
        (BFN(), torch.zeros(0, 3), {}, "there must be data"),
        (BFN(), torch.zeros(2, 3, dtype=torch.int64), {}, "real numbers"),
        (DiscreteBFN(2), torch.zeros(2, 3), {}, "class indices"),
    ],
)
def test_bad_requests(flow, x, change, message):
    with pytest.raises(ArgumentError, match=message):
        bayesian_bound(lambda belief, t: belief, flow, x, seeded(), **change)
