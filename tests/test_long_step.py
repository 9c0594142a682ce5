"""Long steps, against the flow map of Gaussian data, which is linear."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    Deterministic,
    LongStep,
    LongStepPredictor,
    PointPredictor,
    TrainingConfig,
    models,
)
from proxflow.beliefs import DiagonalGaussian
from proxflow.cli import main
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.nn import UNet
from proxflow.paths import Linear, Shifted
from proxflow.samplers import SAMPLERS
from proxflow.training.fit import fit
from proxflow.training.recipes import recipe

CENTRE, SPREAD = 0.3, 0.4
SCHEDULES = [Linear(), Shifted((0.7,))]


class Exact(nn.Module):
    """Effective targets and predictions for data N(centre, spread²), in closed form; parameters, to look at gradients."""

    reads = frozenset({"end"})

    def __init__(self, schedule=SCHEDULES[0], centre=CENTRE, spread=SPREAD):
        super().__init__()
        self.schedule = schedule
        self.centre = nn.Parameter(torch.tensor(centre, dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def std(self, tau):
        return ((tau * self.spread).square() + (1 - tau).square()).sqrt()

    def map(self, z, t, s):
        """Where the trajectory through z at t is at s: the law stays Gaussian, and keeps quantiles."""
        tau, to = (self.schedule.fraction(time).reshape(-1, 1) for time in (t, s))
        return to * self.centre + self.std(to) / self.std(tau) * (z - tau * self.centre)

    def mean(self, z, t):
        tau = self.schedule.fraction(t).reshape(-1, 1)
        return self.centre + tau * self.spread.square() / self.std(tau).square() * (z - tau * self.centre)

    def forward(self, belief, t, end=None):
        end, z = t if end is None else end, belief.mean
        step = self.schedule.step(t, end).reshape(-1, 1)
        safe = torch.where(step > 0, step, torch.ones_like(step))
        far = z + (self.map(z, t, end) - z) / safe
        return DiagonalGaussian(torch.where(step > 0, far, self.mean(z, t)), z.new_zeros(()))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def times(number, seed=1):
    return torch.rand(number, generator=seeded(seed), dtype=torch.float64) * 0.98 + 0.01


def data(number, seed=2):
    return CENTRE + SPREAD * torch.randn(number, 3, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("kind", ["shortcut", "meanflow"])
def test_the_exact_targets_are_the_fixed_point(kind, schedule):
    exact = Exact(schedule)
    objective = LongStep(GPFN(schedule=schedule), kind, teacher=exact, knee=None)
    assert objective.loss(exact, data(512), seeded(), times(512)).max() < 1e-12
    # Others are not: the loss sees a wrong mean, and a target that is right for plain examples alone.
    assert objective.loss(Exact(schedule, CENTRE + 0.1), data(512), seeded(), times(512)).mean() > 1e-4
    plain_only = objective.loss(lambda belief, t, end: exact(belief, t), data(512), seeded(), times(512))
    assert plain_only[1::2].mean() < 1e-12
    assert plain_only[::2].mean() > 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_exact_targets_are_the_fixed_point_of_consistency_as_its_gap_shrinks(schedule):
    """A first step toward the prediction at its start is wrong by the square of its length, and so is the target."""
    exact = Exact(schedule)
    errors = [
        LongStep(GPFN(schedule=schedule), "consistency", exact, knee=None, gap=gap)
        .loss(exact, data(512), seeded(), times(512))
        .max()
        .sqrt()
        for gap in (1e-2, 1e-3, 1e-4)
    ]
    errors = [float(error.detach()) for error in errors]
    assert errors[2] < 1e-6
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.1)


def test_consistency_with_a_first_step_of_any_length_composes():
    """With the effective target of the first step in place of a prediction nothing is left, whatever the gap."""
    exact, t = Exact(), times(64)
    end = t + 0.8 * (1 - t)
    belief = GPFN().belief(data(64), t, seeded())
    for gap in (0.05, 0.5, 0.9):
        first = exact(belief, t, torch.lerp(t, end, gap))
        composed = LongStep(GPFN())._composed(exact, belief, first, t, end, gap)
        torch.testing.assert_close(composed, exact(belief, t, end).mean)


def test_without_a_teacher_the_derivatives_condition_holds_on_average():
    """The mean of the right-hand side over data given the belief; so regressing on it gives the exact target."""
    exact = Exact()
    objective = LongStep(GPFN(), "meanflow", plain_share=0.0, knee=None)
    t = torch.full((200_000,), 0.45, dtype=torch.float64)
    generator = seeded(3)
    x = CENTRE + SPREAD * torch.randn(len(t), 1, generator=generator, dtype=torch.float64)
    objective.loss(exact, x, generator, t).mean().backward()
    wrong = Exact(centre=CENTRE + 0.2, spread=SPREAD + 0.1)
    objective.loss(wrong, x, generator, t).mean().backward()
    assert abs(float(exact.centre.grad)) < 0.02 * abs(float(wrong.centre.grad))
    assert abs(float(exact.spread.grad)) < 0.05 * abs(float(wrong.spread.grad))


def test_targets_of_two_steps_make_that_of_both():
    exact, t = Exact(), torch.tensor([0.0, 0.2, 0.5, 0.5], dtype=torch.float64)
    middle, end = t + 0.2, torch.tensor([1.0, 0.7, 1.0, 0.9], dtype=torch.float64)
    z = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    flow, objective = GPFN(), LongStep(GPFN())
    halves = objective._halves(exact, DiagonalGaussian(z, z.new_ones(())), t, end)
    torch.testing.assert_close(halves, exact(DiagonalGaussian(z, z.new_ones(())), t, end).mean)
    for k in range(4):
        belief = DiagonalGaussian(z[k : k + 1], z.new_ones(()))
        for start, to in ((t[k], middle[k]), (middle[k], end[k])):
            belief = flow.update(belief, exact(belief, start[None], to[None]), start, to, None)
        torch.testing.assert_close(belief.mean, exact.map(z[k : k + 1], t[k : k + 1], end[k : k + 1]))


def test_the_target_of_a_short_step_is_the_prediction():
    exact, t, x = Exact(), times(64), data(64)
    belief = GPFN().belief(x, t, seeded())
    near = exact(belief, t, t + 1e-6).mean
    torch.testing.assert_close(near, exact.mean(belief.mean, t), atol=1e-4, rtol=0)
    torch.testing.assert_close(exact(belief, t, t).mean, exact.mean(belief.mean, t))
    # And a step of length 0 has finite halves and derivatives.
    objective = LongStep(GPFN())
    torch.testing.assert_close(objective._halves(exact, belief, t, t), exact.mean(belief.mean, t))
    _, wanted = objective._differential(exact, belief, t, t, x)
    assert torch.equal(wanted, x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_ends_where_the_equation_does(steps, schedule):
    exact, flow = Exact(schedule), GPFN(schedule=schedule)
    drawn = Deterministic()(exact, flow, (50, 3), steps, seeded(), dtype=torch.float64)
    noise = flow.prior((50, 3), seeded(), torch.float64, torch.device("cpu")).mean
    torch.testing.assert_close(drawn.events, CENTRE + SPREAD * noise)
    assert drawn.nfe == steps


def test_the_last_evaluation_is_asked_for_the_end():
    asked = []

    def predict(belief, t, end):
        asked.append((t.tolist(), end.tolist()))
        return belief

    predict.reads = {"end"}
    Deterministic()(predict, GPFN(), (2, 1), 3, seeded(), times=[0.0, 0.25, 0.5])
    assert asked == [([0.0] * 2, [0.25] * 2), ([0.25] * 2, [0.5] * 2), ([0.5] * 2, [1.0] * 2)]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "deterministic"])
def test_samplers_that_leave_the_target_are_refused(name):
    with pytest.raises(ArgumentError, match="use Deterministic"):
        SAMPLERS[name](Exact(), GPFN(), (2, 1), 2, seeded())


@pytest.mark.parametrize("kind", ["shortcut", "meanflow", "consistency"])
def test_gradients_flow_through_the_prediction_alone(kind):
    flow, x, t = GPFN(), data(64), times(64)
    teacher, learner = Exact(), Exact(centre=0.0, spread=0.7)
    objective = LongStep(flow, kind, teacher=teacher, knee=None)
    objective.loss(learner, x, seeded(), t).sum().backward()
    assert teacher.centre.grad is None
    assert teacher.spread.grad is None

    # The same by hand: predictions of one module against right-hand sides of another with equal parameters.
    frozen, moving = copy.deepcopy(learner).requires_grad_(False), Exact(centre=0.0, spread=0.7)
    belief = flow.belief(x, t, (generator := seeded()))
    chance, share = torch.rand(64, 2, generator=generator, dtype=torch.float64).unbind(1)
    end = torch.where(chance < 0.5, 1.0, t + (1 - t) * share)
    end[1::2] = t[1::2]
    if kind == "shortcut":
        wanted = objective._halves(frozen, belief, t, end)
    elif kind == "consistency":
        wanted = objective._composed(frozen, belief, teacher(belief, t), t, end, objective.gap)
    else:
        wanted = objective._differential(frozen, belief, t, end, teacher(belief, t).mean)[1]
    wanted[1::2] = teacher(belief, t).mean[1::2]
    error = (moving(belief, t, end).mean - wanted.detach()).square().mean(1)
    (flow.weight(t) * error).sum().backward()
    torch.testing.assert_close(learner.centre.grad, moving.centre.grad)
    torch.testing.assert_close(learner.spread.grad, moving.spread.grad)


def test_the_derivative_along_the_trajectory_is_that_of_differences():
    learner, t = Exact(centre=0.0, spread=0.7), times(16)
    end, x = t + 0.7 * (1 - t), data(16)
    belief = GPFN().belief(x, t, seeded())
    found, wanted = LongStep(GPFN())._differential(learner, belief, t, end, x)
    # One step of length h in −ln r toward x, the end held.
    h = 1e-5
    later = 1 - (1 - t) * (1 - h)
    moved = DiagonalGaussian(torch.lerp(belief.mean, x, h), belief.std)
    change = (learner(moved, later, end).mean - found) / h
    step = GPFN().schedule.step(t, end)[:, None]
    torch.testing.assert_close(wanted, (1 - step) * x + step * (found + change), atol=1e-4, rtol=1e-4)


def test_the_knee_weights_gradients_and_leaves_small_errors():
    belief = {"x": data(64), "t": times(64)}
    losses = {
        knee: LongStep(GPFN(), teacher=Exact(), knee=knee).loss(Exact(centre=0.0), belief["x"], seeded(), belief["t"])
        for knee in (None, 1e6, 1e-3)
    }
    torch.testing.assert_close(losses[1e6], losses[None], rtol=1e-4, atol=1e-9)
    assert torch.equal(losses[1e-3][1::2], losses[None][1::2])
    weight = GPFN().weight(belief["t"])[::2]
    torch.testing.assert_close(losses[1e-3][::2], weight * 1e-3 * (losses[None][::2] / weight / 1e-3).log1p())


def test_passes_are_counted():
    calls = []

    def counting(belief, t, end=None):
        calls.append(len(t))
        return DiagonalGaussian(belief.mean * 1.0, belief.std)

    for kind, teacher, passes in (
        ("shortcut", None, 4),
        ("shortcut", counting, 4.5),
        ("meanflow", None, 3.5),
        ("meanflow", counting, 4.5),
        ("consistency", None, 3.5),
        ("consistency", counting, 4.5),
    ):
        objective = LongStep(GPFN(), kind, teacher=teacher)
        assert objective.passes == passes
        calls.clear()
        objective.loss(counting, data(8), seeded(), times(8))
        tangents = 4 if kind == "meanflow" else 0
        assert sum(calls) + tangents == (passes - 2) * 8  # forward passes; a backward one is two


class Perceptron(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        sizes = (4, width, width, width, 2)
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, mean, t, end):
        return self.layers(torch.cat([mean, t[:, None], (end - t)[:, None]], dim=1).to(mean.dtype))


@pytest.mark.parametrize("kind", ["shortcut", "meanflow", "consistency"])
def test_one_evaluation_draws_from_both_clusters(kind):
    torch.manual_seed(0)
    centres = torch.tensor([[-0.7, 0.0], [0.7, 0.3]])
    generator = seeded(1)
    points = centres[torch.randint(2, (4096,), generator=generator)] + 0.1 * torch.randn(4096, 2, generator=generator)
    flow = GPFN()
    config = TrainingConfig(steps=800, batch_size=256, learning_rate=5e-3, warmup_steps=20, ema=0.98, clip=10.0)
    result = fit(LongStepPredictor(Perceptron(), flow, clip=None), LongStep(flow, kind), points, config)

    def near(drawn):
        return (torch.cdist(drawn, centres) < 0.35).float().mean(0)

    whole = proxflow.sample(result.predictor, flow, (1000, 2), nfe=1, sampler="deterministic", seed=0)
    blurred = proxflow.sample(PlainView(result.predictor), flow, (1000, 2), nfe=1, sampler="deterministic", seed=0)
    assert near(whole).min() > 0.3
    assert near(whole).sum() > 0.8
    assert near(blurred).sum() < 0.2


class PlainView(nn.Module):
    """A long-step predictor as an ordinary one."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, belief, t):
        return self.predictor(belief, t)


SMALL = "unet:channels=8,multipliers=1,patch=4"


def test_a_plain_networks_weights_serve_as_they_did():
    torch.manual_seed(0)
    plain = UNet((1, 8, 8), channels=8, blocks=1)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    flow = GPFN()
    predictor = LongStepPredictor(UNet((1, 8, 8), channels=8, blocks=1, reads_end=True), flow).eval()
    predictor.begin_from(PointPredictor(plain, flow, parameterisation="x").state_dict())
    belief, t = DiagonalGaussian(torch.randn(3, 1, 8, 8), torch.ones(())), torch.tensor([0.1, 0.5, 0.9])
    for end in (None, t, torch.ones(3)):
        assert torch.equal(
            predictor(belief, t, end).mean, PointPredictor(plain, flow, parameterisation="x").eval()(belief, t).mean
        )
    with pytest.raises(ArgumentError, match="no place"):
        predictor.begin_from(
            PointPredictor(UNet((1, 8, 8), channels=16, blocks=1), flow, parameterisation="x").state_dict()
        )
    with pytest.raises(ArgumentError, match="no place"):
        predictor.begin_from({"network.other": torch.zeros(1)})


def test_the_end_matters_to_a_network_and_each_weight_is_used():
    torch.manual_seed(0)
    network = UNet((1, 8, 8), channels=8, blocks=1, attention=(1,), reads_end=True).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.2, 0.4], dtype=torch.float64)
    assert not torch.allclose(network(x, t, t + 0.3), network(x, t, t))
    assert torch.equal(network(x, t), network(x, t, t))
    flow = GPFN()
    for kind in ("shortcut", "meanflow"):
        network.zero_grad()
        objective = LongStep(flow, kind)
        objective.loss(LongStepPredictor(network, flow), x.clamp(-1, 1), seeded(), t).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    with pytest.raises(ArgumentError, match="reads_end"):
        UNet((1, 8, 8))(x.float(), t.float(), t.float())


def test_a_saved_model_samples_in_one_step(tmp_path):
    torch.manual_seed(0)
    built = models.build((1, 8, 8), network=SMALL, predictor="long-step")
    learning = recipe("flow", built)
    assert isinstance(learning.objective, LongStep)
    for parameter in built.predictor.parameters():
        nn.init.normal_(parameter, std=0.1)
    built.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    one = proxflow.sample(loaded.predictor, loaded.flow, (4, 1, 8, 8), nfe=1)
    torch.testing.assert_close(one, proxflow.sample(built.predictor, built.flow, (4, 1, 8, 8), nfe=1))
    assert not torch.allclose(one, proxflow.sample(PlainView(loaded.predictor), loaded.flow, (4, 1, 8, 8), nfe=1))

    words = [
        "sample",
        str(tmp_path),
        "--n",
        "2",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "drawn.png"),
    ]
    assert main(words) == 0
    assert main([*words, "--sampler", "multistep2"]) == 2

    content = json.loads((tmp_path / "config.json").read_text())
    content["flow"]["schedule"]["final"] = 0.6
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="final = 1"):
        models.load(tmp_path)
    with pytest.raises(ArgumentError, match="straight lines"):
        models.build((1, 8, 8), flow="bfn", network=SMALL, predictor="long-step")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "other"}, "kind"),
        ({"plain_share": 0.0}, "plain_share"),
        ({"plain_share": 1.0}, "plain_share"),
        ({"whole_share": 1.5}, "whole_share"),
        ({"knee": 0.0}, "knee"),
        ({"gap": 0.0}, "gap"),
        ({"gap": 1.0}, "gap"),
        ({"flow": GPFN(schedule=Linear(0.6))}, "final = 1"),
        ({"flow": GPFN(KL())}, "Wasserstein2"),
        ({"flow": BFN()}, "GPFN"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        LongStep(**{"flow": GPFN(), **settings})


def test_predictors_refused():
    with pytest.raises(ArgumentError, match="final = 1"):
        LongStepPredictor(Perceptron(), GPFN(schedule=Linear(0.6)))
    with pytest.raises(ArgumentError, match="straight lines"):
        LongStepPredictor(Perceptron(), GPFN(KL()))
    with pytest.raises(ArgumentError, match="clip"):
        LongStepPredictor(Perceptron(), GPFN(), clip=(1.0, -1.0))
    with pytest.raises(ArgumentError, match="keep the shape"):
        LongStepPredictor(lambda mean, t, end: mean[:, :1], GPFN())(
            DiagonalGaussian(torch.zeros(2, 2), torch.ones(())), torch.zeros(2)
        )
