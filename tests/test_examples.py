"""What is given for each example reaches that example: conditions, prior draws, observations, whatever the batch."""

from dataclasses import dataclass, replace

import pytest
import torch
from support import GaussianData
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    Autoguidance,
    DistributionMatching,
    DrawPredictor,
    EnergyScore,
    Examples,
    LongStep,
    LongStepPredictor,
    MinibatchOT,
    NewtonSolver,
    PointPredictor,
    Potential,
    StudentAndCritic,
    TargetEnergy,
    TrainingConfig,
    Wasserstein2,
    bayesian_bound,
    fit,
    given,
    ode_log_likelihood,
    sample,
)
from proxflow.errors import ArgumentError
from proxflow.samplers import SAMPLERS, default_sampler


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Labelled(nn.Module):
    """Predicts its condition, a number for each coordinate, whatever else it reads."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x, t, *, end=None, condition=None):
        self.seen.append(condition)
        return self.scale * condition.to(x.dtype)


def points(number):
    return torch.arange(2.0 * number).reshape(number, 2) / (2 * number) - 0.5


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 10, 16, 37])
@pytest.mark.parametrize("batch_size", [16, 128])
def test_each_sample_has_its_own_condition(number, batch_size):
    flow, wanted = GPFN(), points(number)
    predictor = PointPredictor(Labelled(), flow, parameterisation="x")
    drawn = sample(predictor, flow, (number, 2), nfe=3, batch_size=batch_size, condition=wanted)
    torch.testing.assert_close(drawn, wanted)


def test_a_condition_may_be_a_dictionary():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t, *, condition=None):
            return self.scale * (condition["vector"] + condition["label"][:, None])

    flow = GPFN()
    condition = {"vector": points(20), "label": torch.arange(20) / 100}
    drawn = sample(
        PointPredictor(Sum(), flow, parameterisation="x"), flow, (20, 2), nfe=2, batch_size=16, condition=condition
    )
    torch.testing.assert_close(drawn, condition["vector"] + condition["label"][:, None])


def test_samples_begin_with_the_draws_that_are_given():
    flow = GPFN()
    seen = []

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            seen.append(x.clone())
            return self.scale * x

    start = points(21)
    drawn = sample(
        PointPredictor(First(), flow, parameterisation="x"), flow, (21, 2), nfe=4, batch_size=16, start=start
    )
    torch.testing.assert_close(torch.cat([seen[0], seen[4]])[:21], start)
    torch.testing.assert_close(drawn, start)  # a prediction of the belief itself leaves it where it is


def test_observations_of_their_own_guide_each_sample():
    # argmin (1 − f) D(r, p) + f (D(r, q) + w |μ − c|²): with W2 a mean of three points, each sample's with its own c.
    centres, flow = points(10), GPFN()
    predict = GaussianData(flow, 0.0, 1e-4)

    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, belief, t):
            return predict(belief, t)

    pull = Potential(lambda mean, centre: (mean - centre).square().sum(1), data=centres.double())
    guided = replace(flow, energy=TargetEnergy(Wasserstein2()) + 4.0 * pull, solver=NewtonSolver())
    beliefs = []
    sample(
        Exact(),
        guided,
        (10, 2),
        nfe=12,
        sampler="deterministic",
        watch=lambda t, belief, target: beliefs.append(belief),
    )
    found = beliefs[-1].mean[:10]
    # Targets are at 0; the last belief is drawn far toward 4/5 of the way from them to its own centre.
    assert float((found - 0.8 * centres).abs().max()) < 0.1
    whole = torch.cat(
        [
            sample(Exact(), replace(guided, energy=guided.energy.rows(torch.arange(k, k + 1))), (1, 2), nfe=3, first=k)
            for k in range(10)
        ]
    )
    together = sample(Exact(), guided, (10, 2), nfe=3)
    torch.testing.assert_close(whole, together, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": points(3)}, "one row an example, 4; got 3"),
        ({"condition": {"a": points(4), "b": points(5)}}, r"condition\['b'\] has one row"),
        ({"condition": 7}, "a tensor with one row"),
        ({"start": points(3)}, "the shape of the samples"),
        ({"start": torch.zeros(4, 3)}, "the shape of the samples"),
        ({"start": torch.full((4, 2), torch.nan)}, "finite numbers"),
        ({"sampler": proxflow.Marginal}, "expected a sampler or the name of one"),
    ],
)
def test_what_has_not_one_row_a_sample_is_refused(change, message):
    flow = GPFN()
    with pytest.raises(ArgumentError, match=message):
        sample(
            PointPredictor(Labelled(), flow, parameterisation="x"),
            flow,
            (4, 2),
            nfe=2,
            **{"condition": points(4), **change},
        )


def test_a_condition_that_nothing_reads_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return x

    flow = GPFN()
    predictor = PointPredictor(Plain(), flow, parameterisation="x")
    with pytest.raises(ArgumentError, match="PointPredictor of Plain reads none"):
        sample(predictor, flow, (4, 2), nfe=2, condition=points(4))
    with pytest.raises(ArgumentError, match="reads none"):
        flow.loss(predictor, points(4), seeded(), condition=points(4))
    assert given(predictor, None) is predictor


# Training and likelihood ----------------------------------------------------------------------------------------------


def test_the_loss_is_told_the_condition_and_the_start():
    flow, x, condition, start = GPFN(), points(6), points(6) * 0.5, points(6) + 1
    t = torch.linspace(0.1, 0.8, 6)
    predictor = PointPredictor(Labelled(), flow, parameterisation="x")
    found = flow.loss(predictor, x, seeded(), t, condition=condition, start=start)
    torch.testing.assert_close(found, flow.weight(t) * (condition - x).square().mean(1))
    belief = flow.belief(x, t, seeded(), start=start)
    torch.testing.assert_close(belief.mean, torch.lerp(start, x, t[:, None]))


@pytest.mark.parametrize("flow", [BFN(0.1), proxflow.DiscreteBFN(3)], ids=str)
def test_a_fixed_prior_takes_no_start(flow):
    x = points(4) if isinstance(flow, BFN) else torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ArgumentError, match="no start can be given"):
        flow.loss(lambda belief, t: belief, x, seeded(), start=torch.zeros(4, 2))


def test_fit_learns_from_conditions_alone_what_data_do_not_tell():
    # The data are their condition times 2: a network that multiplies it learns the factor.
    condition = torch.rand(256, 2, generator=seeded()) - 0.5
    flow = GPFN()
    predictor = PointPredictor(Labelled(), flow, clip=None, parameterisation="x")
    config = TrainingConfig(steps=150, batch_size=32, learning_rate=5e-2, warmup_steps=1, ema=0.9, weight_decay=0)
    held_out = Examples(2 * condition[:32], condition[:32])
    trained = fit(predictor, flow, Examples(2 * condition, condition), config, held_out=held_out).predictor
    assert float(trained.network.scale.detach()) == pytest.approx(2, abs=0.02)
    drawn = sample(trained, flow, (5, 2), nfe=2, condition=condition[:5])
    torch.testing.assert_close(drawn, 2 * condition[:5], atol=0.03, rtol=0)


def test_every_objective_takes_conditions():
    flow, x, condition = GPFN(), points(8), points(8) * 0.5
    teacher = PointPredictor(Labelled(), flow, parameterisation="x").eval()
    t = torch.linspace(0.1, 0.8, 8)

    student = PointPredictor(Labelled(), flow, parameterisation="x")
    loss = Autoguidance(flow, teacher, teacher, 3.0).loss(student, x, seeded(), t, condition=condition)
    torch.testing.assert_close(loss, torch.zeros(8))  # all three say the same of the same condition

    both = StudentAndCritic(teacher, discriminator=False)
    loss = DistributionMatching(flow, teacher, 0.0).loss(both, x, seeded(), t, condition=condition)
    torch.testing.assert_close(loss, torch.zeros(8))

    long = LongStepPredictor(Labelled(), flow)
    loss = LongStep(flow, teacher=teacher).loss(long, x, seeded(), t, condition=condition)
    torch.testing.assert_close(loss, torch.zeros(8))

    class Drawn(Labelled):
        def forward(self, x, t, *, condition=None):
            return super().forward(x, t, condition=condition)

    draws = DrawPredictor(Drawn(), flow)
    loss = EnergyScore(flow).loss(draws, condition, seeded(), t, condition=condition)
    torch.testing.assert_close(loss, torch.zeros(8))


def test_likelihoods_and_bounds_take_conditions():
    x, condition = points(4).double(), points(4).double()

    class Constant(nn.Module):
        def forward(self, x, t, *, condition=None):
            return condition.expand_as(x) + 0 * x

    flow = GPFN()
    told = ode_log_likelihood(
        PointPredictor(Constant(), flow, clip=None, parameterisation="x"), flow, x, condition=condition, steps=8
    )
    away = ode_log_likelihood(
        PointPredictor(Constant(), flow, clip=None, parameterisation="x"), flow, x, condition=condition + 1, steps=8
    )
    assert bool((told.log_prob > away.log_prob + 100).all())
    bayesian = BFN(0.1)
    right, wrong = (
        bayesian_bound(PointPredictor(Constant(), bayesian, parameterisation="x"), bayesian, x, seeded(), condition=c)
        for c in (condition, condition + 0.3)
    )
    assert bool((right < wrong).all())


def test_a_coupling_is_told_the_labels():
    labels = torch.tensor([0, 0, 1, 1] * 8)
    x = torch.where(labels[:, None] == 0, -5.0, 5.0) + 0.1 * torch.randn(32, 1, generator=seeded())
    flow = GPFN(coupling=MinibatchOT())
    t = torch.full((32,), 1e-6)
    blind, told = (flow.belief(x, t, seeded(3), condition=c).mean for c in (None, labels))
    # Without labels low draws go to low data; with them each label's draws are its own, and stay where they were.
    assert float(blind[labels == 0].max()) < float(blind[labels == 1].min())
    drawn = flow.prior((32, 1), seeded(3), torch.float32, torch.device("cpu")).mean
    for label in (0, 1):
        torch.testing.assert_close(
            told[labels == label].sort(0).values, drawn[labels == label].sort(0).values, atol=1e-4, rtol=0
        )


# Weights and default samplers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(GPFN):
    """A flow whose errors weigh twice as much."""

    def weight(self, t):
        return 2 * super().weight(t)


@pytest.mark.parametrize("start", [None, points(5) + 1])
def test_an_overridden_weight_is_the_losses_own(start):
    x, t = points(5), torch.linspace(0.1, 0.9, 5)

    def predict(belief, time):
        return proxflow.DiagonalGaussian(belief.mean * 0.5, 0.0)

    plain, doubled = (flow.loss(predict, x, seeded(), t, start=start) for flow in (GPFN(), Doubled()))
    torch.testing.assert_close(doubled, 2 * plain)


@dataclass(frozen=True)
class Strange(proxflow.Divergence):
    """Squared distance of means and of standard deviations, by another's rule."""

    composes = True

    def interpolate(self, p, q, fraction):
        return Wasserstein2().interpolate(p, q, fraction)

    def __call__(self, p, q):
        return Wasserstein2()(p, q)


@dataclass(frozen=True)
class StrangeWithPath(Strange):
    """The same, with its path stated."""

    def path(self, schedule, endpoints):
        return schedule


@pytest.mark.parametrize(
    ("flow", "name"),
    [
        (GPFN(), "multistep2"),
        (GPFN(proxflow.KL()), "multistep2"),
        (GPFN(proxflow.FisherRao()), "deterministic"),
        (GPFN(proxflow.ReverseKL()), "deterministic"),
        (GPFN(energy=TargetEnergy(Wasserstein2())), "deterministic"),
        (BFN(0.1), "multistep2"),
        (GPFN(StrangeWithPath()), "multistep2"),
    ],
    ids=str,
)
def test_the_default_is_the_best_sampler_that_a_flow_can_take(flow, name):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return self.scale * x / 2

    predictor = PointPredictor(Half(), flow, parameterisation="x")
    assert default_sampler(predictor, flow) == name
    drawn = sample(predictor, flow, (5, 2), nfe=4)
    torch.testing.assert_close(drawn, sample(predictor, flow, (5, 2), nfe=4, sampler=SAMPLERS[name]))
    assert drawn.isfinite().all()
