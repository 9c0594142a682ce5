"""Flows: training beliefs, updates and losses against recorded values, hand formulas and each other."""

import json
import math
from itertools import pairwise

import pytest
import torch
from support import Recorded, vectors

from proxflow import (
    BFN,
    GPFN,
    KL,
    Categorical,
    CategoricalEndpoints,
    Cosine,
    DiagonalGaussian,
    Diffusion,
    DiscreteBFN,
    FisherRao,
    GaussianEndpoints,
    Linear,
    NewtonSolver,
    PointPredictor,
    ReverseKL,
    TargetEnergy,
    Wasserstein2,
)
from proxflow.divergences import CoordinateMetric, Jeffreys
from proxflow.errors import ArgumentError
from proxflow.flows import draw_times

CPU = torch.device("cpu")


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class ReferenceNetwork(torch.nn.Module):
    """The network that the recorded values were made with."""

    def forward(self, mean, t):
        t = t.reshape(-1, *[1] * (mean.ndim - 1)).to(mean.dtype)
        return 0.5 * torch.tanh(0.7 * mean + 0.3 * t) - 0.2 * t


def same_probabilities(belief, recorded):
    """Of two classes the reference keeps the probability of the first alone."""
    expected = double(recorded)
    found = belief.probs if expected.numel() == belief.probs.numel() else belief.probs[..., 0]
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def recorded():
    return json.loads((vectors() / "bfn.json").read_text())


class TestContinuousBFN:
    @pytest.fixture
    def case(self, recorded):
        return recorded["continuous"]

    @pytest.fixture
    def flow(self, case):
        return BFN(math.sqrt(case["min_variance"]))

    def test_training_belief(self, case, flow):
        belief = flow.belief(double(case["x"]), double(case["t"]).flatten(1)[:, 0], Recorded(double(case["noise"])))
        torch.testing.assert_close(belief.mean, double(case["mean"]), rtol=0, atol=1e-10)

    def test_prediction_and_continuous_time_loss(self, case, flow):
        predict = PointPredictor(
            ReferenceNetwork(), flow, parameterisation="epsilon", clip=(-1.0, 1.0), clip_in_training=True
        )
        x, t = double(case["x"]), double(case["t"]).flatten(1)[:, 0]
        belief = flow.belief(x, t, Recorded(double(case["noise"])))
        torch.testing.assert_close(predict(belief, t).mean, double(case["x_hat"]), rtol=0, atol=1e-10)
        loss = flow.loss(predict, x, Recorded(double(case["noise"])), t)
        torch.testing.assert_close(loss, double(case["loss_continuous"]).flatten(1).mean(1), rtol=0, atol=1e-10)

    def test_update_is_bayes_rule(self, flow):
        # Conjugate update of N(μ, 1/ρ) with an observation of precision α, written with moments.
        belief, t, s = DiagonalGaussian(double([[0.3, -0.2]]), double(0.7)), double(0.2), double(0.6)
        target = DiagonalGaussian(double([[1.0, -1.0]]), double(0.0))
        alpha = float(flow.path.accuracy(t, s))
        updated = flow.update(belief, target, t, s, None)
        variance = 1 / (1 / 0.49 + alpha)
        expected = variance * (belief.mean / 0.49 + alpha * target.mean)
        torch.testing.assert_close(updated.mean, expected)
        torch.testing.assert_close(updated.std, double([[math.sqrt(variance)] * 2]))

    def test_prior_is_fixed(self, flow):
        one, two = (flow.prior((2, 3), seeded(k), torch.float64, CPU) for k in (0, 1))
        assert torch.equal(one.mean, two.mean)
        assert float(one.std.min()) == float(one.std.max()) == 1


class TestDiscreteBFN:
    @pytest.fixture
    def case(self, recorded):
        return recorded["discrete"]

    @pytest.fixture
    def flow(self, case):
        return DiscreteBFN(case["classes"], case["max_sqrt_beta"])

    @staticmethod
    def predict(belief, t):
        k = torch.arange(1, belief.classes + 1, dtype=torch.float64)
        return Categorical(2 * torch.sin(k * (belief.probs + t.reshape(-1, 1, 1))))

    def test_training_belief(self, case, flow):
        belief = flow.belief(
            torch.tensor(case["x"]), double(case["t"]).flatten(1)[:, 0], Recorded(double(case["noise"]))
        )
        same_probabilities(belief, case["theta"])

    def test_continuous_time_loss(self, case, flow):
        loss = flow.loss(
            self.predict, torch.tensor(case["x"]), Recorded(double(case["noise"])), double(case["t"]).flatten(1)[:, 0]
        )
        torch.testing.assert_close(loss, double(case["loss_continuous"]).flatten(1).mean(1), rtol=0, atol=1e-10)

    def test_update_multiplies_probabilities(self, flow):
        belief = Categorical(torch.randn(2, 3, flow.classes, generator=seeded(), dtype=torch.float64))
        target = Categorical(torch.randn(2, 3, flow.classes, generator=seeded(1), dtype=torch.float64))
        updated = flow.update(belief, target, double(0.1), double(0.4), None)
        alpha = flow.max_sqrt_beta**2 * (0.16 - 0.01)
        unnormalised = belief.probs * (alpha * (flow.classes * target.probs - 1)).exp()
        torch.testing.assert_close(updated.probs, unnormalised / unnormalised.sum(-1, keepdim=True))

    def test_no_overflow_in_single_precision(self):
        flow = DiscreteBFN(8, 1e3)
        x = torch.randint(0, 8, (4, 5), generator=seeded())
        belief = flow.belief(x, torch.ones(4), seeded())
        assert torch.equal(belief.mode, x)
        assert belief.log_probs.isfinite().any(-1).all()


class TestBarycentric:
    def test_wasserstein_belief_is_a_straight_line(self):
        x, t = torch.randn(4, 3, generator=seeded(), dtype=torch.float64), double([0.0, 0.3, 0.7, 1.0])
        flow = GPFN(endpoints=GaussianEndpoints(0.1))
        belief = flow.belief(x, t, seeded(1))
        noise = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
        torch.testing.assert_close(belief.mean, (1 - t)[:, None] * noise + t[:, None] * x)
        torch.testing.assert_close(belief.std, ((1 - t) + 0.1 * t)[:, None].expand(4, 3))

    @pytest.mark.parametrize("divergence", [KL(), ReverseKL(), FisherRao()], ids=str)
    def test_training_belief_is_where_updates_lead(self, divergence):
        flow = GPFN(divergence, Cosine(), GaussianEndpoints(0.2))
        x = torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
        times = torch.linspace(0, 0.8, 6, dtype=torch.float64)
        belief = flow.prior(x.shape, seeded(1), torch.float64, CPU)
        target = flow.endpoints.target(x, belief)
        for t, s in pairwise(times):
            belief = flow.update(belief, target, t, s, None)
        at_once = flow.belief(x, times[-1].expand(3), seeded(1))
        torch.testing.assert_close(belief.mean, at_once.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(belief.std, at_once.std, rtol=1e-9, atol=1e-9)

    def test_kl_path_has_the_declared_coefficients(self):
        flow = GPFN(KL(), endpoints=GaussianEndpoints(0.3))
        x, t = torch.randn(5, 2, generator=seeded(), dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
        noise = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
        a, b = flow.path.coefficients(t)
        belief = flow.belief(x, t, seeded(1))
        torch.testing.assert_close(belief.mean, a[:, None] * x + b[:, None] * noise)
        rebuilt = flow.latent.belief(belief.mean[2:3], t[2])
        torch.testing.assert_close(rebuilt.std, belief.std[2:3])

    def test_categorical_flow_on_the_simplex(self):
        # Reverse KL moves probabilities on straight lines: (1 − t) θ₀ + t e_x.
        flow = GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3))
        x, t = torch.tensor([[0, 2], [1, 1]]), double([0.25, 0.75])
        prior = flow.prior(x.shape, seeded(), torch.float64, CPU)
        belief = flow.belief(x, t, seeded())
        one_hot = torch.nn.functional.one_hot(x, 3)
        weight = t[:, None, None]
        torch.testing.assert_close(belief.probs, (1 - weight) * prior.probs + weight * one_hot)

    def test_dirichlet_prior_is_uniform_on_the_simplex(self):
        prior = CategoricalEndpoints(3).prior((4000,), seeded(), torch.float64, CPU)
        torch.testing.assert_close(prior.probs.sum(-1), torch.ones(4000, dtype=torch.float64))
        # Dirichlet(1, 1, 1) has mean 1/3 and variance 1/18 in each class.
        torch.testing.assert_close(prior.probs.mean(0), double([1 / 3] * 3), rtol=0, atol=0.015)
        torch.testing.assert_close(prior.probs.var(0), double([1 / 18] * 3), rtol=0.1, atol=0)

    def test_geometry_without_semigroup_simulates(self):
        flow = GPFN(Jeffreys(), endpoints=GaussianEndpoints(0.3), solver=NewtonSolver(), simulated_steps=3)
        x = torch.randn(2, 2, generator=seeded(), dtype=torch.float64)
        belief = flow.belief(x, double([0.0, 1.0]), seeded(1))
        noise = torch.randn(2, 2, generator=seeded(1), dtype=torch.float64)
        torch.testing.assert_close(belief.mean[0], noise[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(belief.mean[1], x[1], rtol=0, atol=1e-6)

    def test_loss_is_that_of_the_velocity(self):
        # ‖x − x̂‖²/(1 − t)² with x̂ = μ + (1 − t) v̂ is ‖(x − ε) − v̂‖².
        flow, t = GPFN(weight_floor=0.05), double([0.1, 0.4, 0.6, 0.9])
        x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
        noise = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
        velocity = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64)

        def predict(belief, t):
            return DiagonalGaussian(belief.mean + (1 - t)[:, None] * velocity, double(0.0))

        loss = flow.loss(predict, x, seeded(1), t)
        torch.testing.assert_close(loss, ((x - noise) - velocity).square().mean(1))

    def test_log_score_of_classes(self):
        flow = GPFN(FisherRao(), endpoints=CategoricalEndpoints(4))
        x, logits = torch.tensor([[0, 3]]), torch.randn(1, 2, 4, generator=seeded(), dtype=torch.float64)
        loss = flow.loss(lambda belief, t: Categorical(logits), x, seeded(), double([0.5]))
        expected = torch.nn.functional.cross_entropy(logits[0], x[0])
        torch.testing.assert_close(loss, expected[None])


def test_times_are_uniform_and_spread_evenly():
    times = draw_times(64, seeded(), CPU)
    assert torch.equal((times * 64).floor().sort().values, torch.arange(64.0))
    assert not torch.equal(times, times.sort().values)


@pytest.mark.parametrize(
    ("flow", "x", "message"),
    [
        (GPFN(), torch.zeros(2, 3, dtype=torch.int64), "real numbers"),
        (BFN(), torch.zeros(2, 3, dtype=torch.int64), "real numbers"),
        (DiscreteBFN(3), torch.zeros(2, 3), "class indices"),
        (GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)), torch.zeros(2, 3), "class indices"),
    ],
)
def test_data_of_the_wrong_kind(flow, x, message):
    with pytest.raises(ArgumentError, match=message):
        flow.loss(lambda belief, t: belief, x, seeded())


def test_weight_of_errors_stops_growing_at_the_floor():
    flow, x, t = GPFN(weight_floor=0.5), torch.zeros(3, 2, dtype=torch.float64), double([0.0, 0.5, 0.9])
    loss = flow.loss(lambda belief, _: DiagonalGaussian(torch.ones_like(belief.mean), double(0.0)), x, seeded(), t)
    torch.testing.assert_close(loss, double([1.0, 4.0, 4.0]))


@pytest.mark.parametrize("schedule", [Linear(), Linear(final=0.6), Cosine()])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 1, 4, 4)])
def test_a_plain_training_belief_is_the_proximal_step(schedule, shape):
    flow, t = GPFN(schedule=schedule, endpoints=GaussianEndpoints(0.1)), double([0.0, 0.2, 0.5, 0.9, 1.0])
    x = torch.randn(shape, generator=seeded(1), dtype=torch.float64)
    found = flow.belief(x, t, seeded(2))
    prior = flow.prior(shape, seeded(2), torch.float64, CPU)
    expected = flow.walk(prior, flow.endpoints.target(x, prior), t)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-14, atol=1e-15)


def test_training_beliefs_follow_the_metric_and_the_energy_where_there_is_one():
    x, t = torch.zeros(2, 3, dtype=torch.float64), double([0.2, 0.5])
    metric = CoordinateMetric((0.5, 2.0))
    with pytest.raises(ArgumentError, match="events of 2 coordinates"):
        GPFN(Wasserstein2(metric)).belief(x, t, seeded())
    stretched = TargetEnergy(Wasserstein2(CoordinateMetric((4.0, 1.0, 1.0))))
    found, plain = (GPFN(energy=energy).belief(x, t, seeded()).mean for energy in (stretched, None))
    torch.testing.assert_close(found[:, 1:], plain[:, 1:], rtol=0.2, atol=0)  # eight steps, not one
    assert (found[:, 0].abs() < 0.8 * plain[:, 0].abs()).all()


def test_a_belief_about_whole_numbers_is_in_the_precision_of_time():
    belief = GPFN().belief(torch.arange(6).reshape(3, 2), double([0.1, 0.5, 1.0]), seeded())
    assert belief.mean.dtype == torch.float64
    assert torch.equal(belief.mean[2], double([4.0, 5.0]))


class TestDiffusion:
    def test_loss_is_the_squared_error_of_the_predicted_noise(self):
        x, noise, t = double([[0.4, -0.7]]), double([[0.3, -1.2]]), double([0.35])

        class Noise(torch.nn.Module):
            def forward(self, mean, t):
                return torch.tanh(mean)

        flow = Diffusion(weight_floor=1e-9)
        predict = PointPredictor(Noise(), flow, parameterisation="epsilon", clip=(-1.0, 1.0))
        a, b = math.sin(0.35 * math.pi / 2), math.cos(0.35 * math.pi / 2)
        expected = (noise - torch.tanh(a * x + b * noise)).square().mean(1)
        torch.testing.assert_close(flow.loss(predict, x, Recorded(noise), t), expected, rtol=1e-12, atol=0)

    def test_belief_is_the_mean_of_the_path_with_the_spread_of_its_noise(self):
        belief = Diffusion().belief(double([[1.0], [1.0]]), double([1.0, 1 / 3]), Recorded(double([[3.0], [2.0]])))
        torch.testing.assert_close(belief.mean, double([[1.0], [0.5 + 2 * math.sqrt(0.75)]]))
        torch.testing.assert_close(belief.std, double([[0.0], [math.sqrt(0.75)]]))

    def test_update_with_a_message_is_bayes_rule(self):
        # Precisions of x add: a²/b² from the belief and α from the message y ~ N(x̂, 1/α); the mean moves back by a'.
        flow, t, s, draw = Diffusion(), double(0.3), double(0.6), double([[0.8]])
        (a, b), (new_a, new_b) = (tuple(map(float, flow.path.coefficients(u))) for u in (t, s))
        before, after = (a / b) ** 2, (new_a / new_b) ** 2
        message = 1.5 + float(draw) / math.sqrt(after - before)
        mean = (before * 0.7 / a + (after - before) * message) / after
        belief, target = DiagonalGaussian(double([[0.7]]), double(b)), DiagonalGaussian(double([[1.5]]), double(0.0))
        moved = flow.update(belief, target, t, s, Recorded(draw))
        assert float(moved.mean) == pytest.approx(new_a * mean, rel=1e-12)
        assert float(moved.std) == pytest.approx(new_b, rel=1e-12)


def test_settings_out_of_range():
    with pytest.raises(ArgumentError, match="weight_floor"):
        GPFN(weight_floor=0.0)
    with pytest.raises(ArgumentError, match="weight_floor"):
        Diffusion(weight_floor=1.5)
    with pytest.raises(ArgumentError, match="simulated_steps"):
        GPFN(simulated_steps=0)
    with pytest.raises(ArgumentError, match="target_std"):
        GaussianEndpoints(-1.0)
    with pytest.raises(ArgumentError, match="at least 2 classes"):
        DiscreteBFN(1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"divergence": "kl"}, "got the word 'kl': words are for proxflow.build, as flow=\"gpfn:divergence=kl\"$"),
        ({"schedule": "linear"}, "the schedule of GPFN.* got the word 'linear'"),
        ({"divergence": Wasserstein2}, r"the divergence of GPFN.* got a class: give Wasserstein2\(…\)$"),
    ],
)
def test_words_and_classes_in_the_place_of_parts_are_refused(settings, said):
    with pytest.raises(ArgumentError, match=said):
        GPFN(**settings)
