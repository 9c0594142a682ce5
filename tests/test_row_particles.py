"""Rows given some of their columns, by weighted particles: against enumeration of a law of numbers and classes."""

import math
from dataclasses import replace

import pytest
import torch
from test_mixed_bound import CENTRES, EVENTS, FLOWS, PROBS, SPREAD, Exact, rows

from proxflow import GPFN, KL, GaussianEndpoints, Posterior, Wasserstein2, row_particles
from proxflow.errors import ArgumentError
from proxflow.inverse import Mask
from proxflow.samplers import sample, weighs_rows

NOISE = 0.1
MIXED = {
    "mixed": FLOWS["mixed"],
    "cosine": FLOWS["cosine"],
    "kl-of-numbers": replace(FLOWS["kl-of-numbers"], schedule=KL().schedule(GaussianEndpoints())),
}


def observed(row, known):
    return torch.tensor([row], dtype=torch.float64), Mask(torch.tensor(known))


def laws(row, known, spread):
    """Probabilities of the events given what is known of one row, and the density of that."""
    weights = PROBS.clone()
    for k in range(3):
        if known[k + 1]:
            weights = weights * (EVENTS[:, k] == row[k + 1])
    classes = weights.sum()
    if known[0]:
        weights = weights * (-((row[0] - CENTRES) ** 2) / (2 * spread**2)).exp() / math.sqrt(2 * math.pi) / spread
    return weights / weights.sum(), float((weights.sum() / classes).log())


def found_law(particles):
    """Weights of the events among the particles of the first row."""
    same = (particles.events[0, :, None, 1:] == EVENTS).all(-1)
    return (particles.log_weights[0].exp()[:, None] * same).sum(0)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize(
    ("row", "known"),
    [
        ([0.9, 0, 0, 0], [True, False, False, False]),
        ([-0.4, 1, 0, 2], [True, True, False, True]),
        ([0.0, 0, 2, 0], [False, False, True, False]),
    ],
)
def test_missing_columns_have_the_law_that_enumeration_gives(name, row, known):
    flow = MIXED[name]
    y, mask = observed(row, known)
    posterior = Posterior(Exact(flow), mask, y, flow=flow)
    found = row_particles(posterior, flow, (1, 4), number=3000, nfe=60, noise=NOISE, seed=1)
    expected, evidence = laws(row, known, math.hypot(SPREAD, NOISE))
    weight = found.log_weights[0].exp()
    error = float((weight * weight).sum() ** 0.5)  # of a share, at most
    assert float((found_law(found) - expected).abs().sum()) / 2 < 0.03 + 3 * error
    assert float(found.log_evidence[0]) == pytest.approx(evidence, abs=0.05)
    if known[0]:
        assert bool((found.events[0, :, 0] == row[0]).all())
    else:
        mean = float((expected * CENTRES).sum())
        assert float(found.mean[0, 0]) == pytest.approx(mean, abs=0.04 + 3 * error)
        spread = float((weight * (found.events[0, :, 0] - mean).square()).sum())
        truth = SPREAD**2 + float((expected * (CENTRES - mean).square()).sum())
        assert spread == pytest.approx(truth, rel=0.12)
    for k in range(1, 4):
        if known[k]:
            assert bool((found.events[0, :, k] == row[k]).all())


def test_rows_only_drawn_toward_what_is_known_have_another_law():
    # What particles are for: the categories are decided before the known number is seen well.
    flow, row, known = FLOWS["mixed"], [-1.6, 0, 0, 0], [True, False, False, False]
    y, mask = observed(row, known)
    expected, _ = laws(row, known, math.hypot(SPREAD, NOISE))
    posterior = Posterior(Exact(flow), mask, y, flow=flow)
    plain = sample(posterior, flow, (2000, 4), nfe=60, seed=1, sampler="stochastic")
    shares = (plain[:, None, 1:] == EVENTS).all(-1).double().mean(0)
    found = row_particles(posterior, flow, (1, 4), number=2000, nfe=60, noise=NOISE, seed=1)
    assert float((found_law(found) - expected).abs().sum()) / 2 < 0.1
    assert float((shares - expected).abs().sum()) / 2 > 0.2


def test_the_same_rows_however_they_are_divided_and_each_with_its_own_mask():
    flow = FLOWS["mixed"]
    x = rows(5, numeric=True)
    known = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    posterior = Posterior(Exact(flow), Mask(known, each=True), x, flow=flow)
    whole = row_particles(posterior, flow, (5, 4), number=24, nfe=6, seed=4)
    parts = row_particles(posterior, flow, (5, 4), number=24, nfe=6, seed=4, batch_size=50)
    torch.testing.assert_close(parts.events, whole.events, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.log_weights, whole.log_weights, rtol=0, atol=1e-9)
    kept = known[:, None].expand(5, 24, 4)
    assert torch.equal(whole.events[kept], x[:, None].expand(5, 24, 4)[kept])
    other = row_particles(posterior, flow, (5, 4), number=24, nfe=6, seed=5)
    assert not torch.equal(other.events, whole.events)
    drawn = whole.draw(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 3, 4)


def test_what_it_does_not_know_is_refused():
    flow = FLOWS["mixed"]
    y, mask = observed([0.0, 0, 0, 0], [True, False, False, False])
    posterior = Posterior(Exact(flow), mask, y, flow=flow)
    for settings, said in (
        ({"number": 1}, "at least 2 of them"),
        ({"nfe": 0}, "1 evaluation"),
        ({"noise": -1.0}, "noise"),
        ({"noise": math.inf}, "noise"),
        ({"threshold": 2.0}, "threshold"),
        ({"batch_size": 0}, "batch"),
    ):
        with pytest.raises(ArgumentError, match=said):
            row_particles(posterior, flow, (1, 4), **settings)
    for shape in ((4,), (1, 4, 1), (0, 4)):
        with pytest.raises(ArgumentError, match="shape"):
            row_particles(posterior, flow, shape)
    with pytest.raises(ArgumentError, match="2 posteriors are asked for"):
        row_particles(Posterior(Exact(flow), mask, y.expand(3, 4), flow=flow), flow, (2, 4))
    with pytest.raises(ArgumentError, match="follow a Posterior"):
        row_particles(Exact(flow), flow, (1, 4))
    assert not weighs_rows(GPFN(Wasserstein2()))
    with pytest.raises(ArgumentError, match=r"take proxflow\.sample"):
        row_particles(posterior, GPFN(Wasserstein2()), (1, 4))
