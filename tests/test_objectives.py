"""Objectives that train for few evaluations, against laws that are known."""

import math

import pytest
import torch
from torch import nn

import proxflow
from proxflow import GPFN, Autoguidance, DistributionMatching, PointPredictor, StudentAndCritic, TrainingConfig
from proxflow.beliefs import DiagonalGaussian
from proxflow.errors import ArgumentError
from proxflow.flows import BFN
from proxflow.paths import Linear
from proxflow.training.fit import fit


class Perceptron(nn.Module):
    """A small network of points and times."""

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
        )

    def forward(self, mean, t):
        return self.layers(torch.cat([mean, t[:, None].to(mean.dtype)], dim=1))


class GaussianMean(nn.Module):
    """The exact prediction for data N(centre, spread²) under rectified flow's beliefs, with both as parameters."""

    def __init__(self, centre: float, spread: float) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(centre, dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def forward(self, belief, t):
        a = t.to(belief.mean.dtype)[:, None]
        variance = (a * self.spread).square() + (1 - a).square()
        gain = a * self.spread.square() / variance
        return DiagonalGaussian(self.centre + gain * (belief.mean - a * self.centre), belief.mean.new_zeros(()))


class Affine(nn.Module):
    """Draws centre + spread · (what the belief's mean is)."""

    def __init__(self, centre: float, spread: float) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(centre, dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def forward(self, belief, t):
        return DiagonalGaussian(self.centre + self.spread * belief.mean, belief.mean.new_zeros(()))


class Pair(nn.Module):
    """A student of one form and a critic of another."""

    def __init__(self, student, critic):
        super().__init__()
        self.student, self.critic = student, critic

    def forward(self, belief, t, *, part="student"):
        return getattr(self, part)(belief, t)


def gradients(pair, t=None, teacher=(1.0, 0.5), batch=4096):
    objective = DistributionMatching(GPFN(), GaussianMean(*teacher).requires_grad_(False), adversarial=0)
    x = torch.zeros(batch, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    objective.loss(pair, x, generator, t).mean().backward()
    return pair


@pytest.mark.parametrize("centre", [-0.5, 0.8, 1.0, 2.5])
def test_a_student_of_the_right_spread_is_drawn_to_the_right_centre(centre):
    pair = gradients(Pair(Affine(centre, 0.5), GaussianMean(centre, 0.5)))
    slope = float(pair.student.centre.grad)
    if centre == 1.0:
        assert slope == pytest.approx(0, abs=1e-12)
    else:
        assert math.copysign(1, slope) == math.copysign(1, centre - 1.0)


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5, 0.9])
def test_a_student_of_the_right_centre_is_drawn_to_the_right_spread(spread):
    pair = gradients(Pair(Affine(1.0, spread), GaussianMean(1.0, spread)))
    slope = float(pair.student.spread.grad)
    if spread == 0.5:
        assert slope == pytest.approx(0, abs=1e-12)
    else:
        assert math.copysign(1, slope) == math.copysign(1, spread - 0.5)


def test_the_gradient_is_that_of_the_divergence_between_the_laws_of_beliefs():
    """At one time, with equal spreads, prediction and score differ by the same amount everywhere: d KL/d centre over it."""
    t, centre, spread = 0.4, 0.2, 0.5
    batch = 200_000
    pair = Pair(Affine(centre, spread), GaussianMean(centre, spread))
    gradients(pair, torch.full([batch], t, dtype=torch.float64), batch=batch)
    # KL of N(a m, v) from N(a, v) with v = a² s² + b² has the slope a² (m − 1)/v; predictions differ by b²/a of the scores,
    # and reach the centre through a: slope · b²/a². What remains is the mean of 1/|x̂ − q̂| over draws, by quadrature.
    a, b = t, 1 - t
    variance = (a * spread) ** 2 + b**2
    slope = a**2 * (centre - 1) / variance * b**2 / a**2
    nodes = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    weights = torch.softmax(-nodes.square() / 2, 0)
    x = centre + spread * nodes[:, None]
    belief = a * x + b * nodes[None, :]
    prediction = 1.0 + a * spread**2 / variance * (belief - a)
    inverse = (1 / (x - prediction).abs().clamp_min(1e-3) * weights[:, None] * weights[None, :]).sum()
    assert float(pair.student.centre.grad) == pytest.approx(slope * float(inverse), rel=0.03)


def test_only_the_critic_learns_from_the_critics_loss_and_only_the_student_from_the_difference():
    # A critic that is right about the student and a student that is not right: the critic's expected gradient vanishes.
    right = gradients(Pair(Affine(0.0, 0.5), GaussianMean(0.0, 0.5)), batch=200_000)
    assert abs(float(right.critic.centre.grad)) < 0.02
    assert abs(float(right.student.centre.grad)) > 0.1
    # A critic that says what the teacher says: the student has nothing to follow, whatever it draws.
    same = gradients(Pair(Affine(0.0, 0.5), GaussianMean(1.0, 0.5)))
    assert float(same.student.centre.grad) == 0
    assert abs(float(same.critic.centre.grad)) > 0.1


class Recorded(nn.Module):
    """A module that keeps what it was asked and what it said."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, []

    def forward(self, belief, t):
        said = self.module(belief, t)
        self.calls.append((belief.mean.detach(), said.mean))
        return said


def test_discriminator_and_student_each_get_the_gradient_of_their_own_loss():
    """At the end of the straight path a belief is its example, and teacher and critic agree: all losses are in the open."""
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    judging = Recorded(lambda belief, t: DiagonalGaussian(judge(belief.mean), belief.mean.new_zeros(())))
    student, truth = Recorded(Affine(0.3, 0.5)), GaussianMean(0.0, 1.0)
    models = nn.ModuleDict({"student": student, "critic": GaussianMean(0.0, 1.0), "discriminator": judging})
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = torch.ones(5, dtype=torch.float64)
    objective = DistributionMatching(GPFN(), truth.requires_grad_(False), adversarial=0.7)
    objective.loss(
        lambda belief, t, part="student": models[part](belief, t), x, torch.Generator().manual_seed(0), ends
    ).mean().backward()

    [(noise, _)] = student.calls
    assert sorted(torch.equal(asked, x) for asked, _ in judging.calls) == [False, True]
    centre, spread = (p.detach().clone().requires_grad_(True) for p in (student.module.centre, student.module.spread))
    drawn = centre + spread * noise
    of_real, of_drawn = (10 * judge(example).mean(1) for example in (x, drawn))
    wanted = torch.autograd.grad(0.7 * -nn.functional.logsigmoid(of_drawn - of_real).mean(), (centre, spread))
    found = (student.module.centre.grad, student.module.spread.grad)
    assert torch.allclose(torch.stack(found), torch.stack(wanted), rtol=1e-9, atol=0)
    of_real, of_drawn = (10 * judge(example).mean(1) for example in (x, drawn.detach()))
    wanted = torch.autograd.grad(-nn.functional.logsigmoid(of_real - of_drawn).mean(), tuple(judge.parameters()))
    for parameter, gradient in zip(judge.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-9, atol=1e-15)


def test_a_discriminator_leads_a_student_from_its_teachers_error_to_the_data():
    data = 0.5 + 0.3 * torch.randn(4096, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wrong = GaussianMean(0.0, 0.3).requires_grad_(False)
    config = TrainingConfig(steps=300, learning_rate=2e-2, batch_size=128, warmup_steps=10, ema=0.95, clip=10.0)
    centres = []
    for adversarial in (0.0, 1.0):
        trained = StudentAndCritic(wrong, discriminator=adversarial > 0)
        trained.student = Affine(0.1, 0.3)
        objective = DistributionMatching(GPFN(schedule=Linear(0.9)), wrong, adversarial)
        centres.append(float(fit(trained, objective, data, config).predictor.student.centre.detach()))
    assert abs(centres[0]) < 0.1
    assert centres[1] > 0.25


def test_a_discriminator_doubles_the_cost_and_its_lack_is_told():
    teacher = GaussianMean(0.0, 1.0).requires_grad_(False)
    costs = [DistributionMatching(GPFN(), teacher, weight).passes for weight in (0.0, 0.1)]
    assert costs == [7, 13]
    without = StudentAndCritic(teacher, discriminator=False)
    assert len(without.parameter_groups()) == 2
    with pytest.raises(ArgumentError, match="adversarial=0"):
        DistributionMatching(GPFN(), teacher).loss(without, torch.zeros(2, 1), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("discriminator", [True, False])
def test_before_a_discriminator_draws_are_clipped_as_samples_are(discriminator):
    teacher = PointPredictor(lambda mean, t: 3 * mean, GPFN(), parameterisation="x", clip=(-1.0, 1.0)).eval()
    parts = StudentAndCritic(teacher, discriminator=discriminator).train()
    belief = DiagonalGaussian(torch.tensor([[-1.0, 0.2, 1.0]]), torch.ones(()))
    last = 1.0 if discriminator else 3.0
    assert torch.equal(parts(belief, torch.zeros(1)).mean, torch.tensor([[-last, 3 * 0.2, last]]))
    assert torch.equal(parts(belief, torch.zeros(1), part="critic").mean, 3 * belief.mean)
    assert not teacher.clip_in_training


def two_clusters(number, generator):
    centres = torch.tensor([[-0.7, 0.0], [0.7, 0.3]])
    picked = torch.randint(2, (number,), generator=generator)
    return centres[picked] + 0.1 * torch.randn(number, 2, generator=generator)


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_one_evaluation_of_a_student_draws_from_both_clusters(adversarial):
    torch.manual_seed(0)
    flow, data = GPFN(schedule=Linear(0.9)), two_clusters(4096, torch.Generator().manual_seed(1))
    teacher = PointPredictor(Perceptron(2), flow, clip=None, parameterisation="x")
    quick = {"batch_size": 256, "warmup_steps": 20, "ema": 0.98, "clip": 10.0}
    teacher = fit(teacher, flow, data, TrainingConfig(steps=600, learning_rate=5e-3, **quick)).predictor
    objective = DistributionMatching(flow, teacher, adversarial)
    parts = StudentAndCritic(teacher, 0.15, discriminator=adversarial > 0)
    result = fit(parts, objective, data, TrainingConfig(steps=600, learning_rate=2e-3, **quick))
    drawn, blurred = (
        proxflow.sample(model, flow, (1000, 2), nfe=1, seed=0) for model in (result.predictor.student, teacher)
    )

    def share_near(points):
        near = torch.cdist(points, torch.tensor([[-0.7, 0.0], [0.7, 0.3]])) < 0.35
        return near.float().mean(0)

    assert share_near(drawn).min() > 0.3
    assert share_near(drawn).sum() > 0.7
    assert share_near(blurred).sum() < 0.2


def test_settings_out_of_range_are_refused():
    with pytest.raises(ArgumentError, match="first_share"):
        DistributionMatching(GPFN(), lambda belief, t: belief, first_share=1.5)
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(ArgumentError, match="adversarial"):
            DistributionMatching(GPFN(), lambda belief, t: belief, weight)
    with pytest.raises(ArgumentError, match="latest"):
        DistributionMatching(GPFN(), lambda belief, t: belief, latest=-0.1)
    with pytest.raises(ArgumentError, match="fixed belief"):
        DistributionMatching(BFN(), lambda belief, t: belief)
    with pytest.raises(ArgumentError, match="student_rate"):
        StudentAndCritic(nn.Linear(1, 1), 0)


def test_beliefs_that_are_not_gaussian_are_refused():
    flow = GPFN(proxflow.ReverseKL(), endpoints=proxflow.CategoricalEndpoints(3))
    predictor = proxflow.ClassPredictor(Perceptron(3))
    with pytest.raises(ArgumentError, match="Gaussian"):
        DistributionMatching(flow, predictor).loss(
            StudentAndCritic(predictor), torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0)
        )


def test_the_guided_target_is_beyond_the_teachers_prediction():
    """Written out by hand: teacher and worse model predict constants, the student another, at two times."""
    teacher, worse, student = (Affine(centre, 0.0) for centre in (1.0, 0.7, 2.0))  # all of them with gradients
    flow = GPFN(weight_floor=0.5)
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    x = torch.zeros(2, 3, dtype=torch.float64)
    loss = Autoguidance(flow, teacher, worse, 3.0).loss(student, x, torch.Generator().manual_seed(0), t)
    # The target is 0.7 + 3 · 0.3 = 1.6; errors weigh 1/max(1 − t, 0.5)².
    assert loss.tolist() == pytest.approx([0.4**2 / 0.8**2, 0.4**2 / 0.5**2])
    loss.sum().backward()
    assert float(student.centre.grad) > 0
    assert not any(p.grad is not None for model in (teacher, worse) for p in model.parameters())


@pytest.mark.parametrize("flow", [GPFN(schedule=Linear(0.8)), BFN(0.3)], ids=lambda flow: type(flow).__name__)
def test_a_student_of_guidance_learns_the_extrapolation(flow):
    """Predictions that are affine in the belief extrapolate to one that is, which the student finds from any start."""
    teacher, worse = Affine(0.4, 0.9).requires_grad_(False), Affine(0.1, 0.6).requires_grad_(False)
    student, data = Affine(-1.0, 0.0), torch.randn(512, 2, generator=torch.Generator().manual_seed(0)).double()
    objective = Autoguidance(flow, teacher, worse, 1.5)
    settings = {"batch_size": 64, "learning_rate": 0.1, "warmup_steps": 1, "ema": 0.9, "weight_decay": 0.0, "clip": 1e3}
    found = fit(student, objective, data, TrainingConfig(steps=300, **settings)).predictor
    assert float(found.centre.detach()) == pytest.approx(0.1 + 1.5 * 0.3, abs=1e-3)
    assert float(found.spread.detach()) == pytest.approx(0.6 + 1.5 * 0.3, abs=1e-3)


def test_guidance_undoes_an_error_that_training_halves():
    """The worse model's error is twice the teacher's, so the target of weight 2 has none."""
    flow, exact = GPFN(schedule=Linear(0.9)), GaussianMean(0.5, 0.3).requires_grad_(False)

    class Wrong(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def forward(self, belief, t):
            right = exact(belief, t).mean
            return DiagonalGaussian(right + self.error * (belief.mean - 0.5), belief.mean.new_zeros(()))

    objective = Autoguidance(flow, Wrong(0.1), Wrong(0.2))
    belief = flow.belief(torch.randn(64, 1).double(), torch.full([64], 0.4).double(), torch.Generator().manual_seed(0))
    x, t = torch.zeros(64, 1, dtype=torch.float64), torch.full([64], 0.4, dtype=torch.float64)
    assert float(objective.loss(exact, x, torch.Generator().manual_seed(0), t).max()) < 1e-20
    assert float((Wrong(0.1)(belief, t).mean - exact(belief, t).mean).abs().max()) > 0.01


@pytest.mark.parametrize("weight", [0.9, math.inf, math.nan])
def test_weights_of_guidance_out_of_range_are_refused(weight):
    with pytest.raises(ArgumentError, match="at least 1 and finite"):
        Autoguidance(GPFN(), lambda belief, t: belief, lambda belief, t: belief, weight)


def test_guidance_of_classes_is_refused():
    flow = GPFN(proxflow.ReverseKL(), endpoints=proxflow.CategoricalEndpoints(3))
    predictor = proxflow.ClassPredictor(Perceptron(3))
    with pytest.raises(ArgumentError, match="Gaussian"):
        Autoguidance(flow, predictor, predictor).loss(
            predictor, torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0)
        )
