"""Bayesian flows of all three data types: recorded values of the public reference, hand formulas, and limits."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from support import Recorded, vectors
from test_flows import ReferenceNetwork, double, same_probabilities, seeded

from proxflow import (
    BFN,
    Binned,
    BinnedPredictor,
    Categorical,
    DiagonalGaussian,
    Diffusion,
    DiscreteBFN,
    DiscretisedBFN,
    PointPredictor,
    Readout,
    Stochastic,
)
from proxflow.beliefs import bin_centre, bin_of, gaussian_bin_log_prob
from proxflow.errors import ArgumentError

RECORDED = json.loads((vectors() / "bfn.json").read_text())
CPU = torch.device("cpu")


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, double(expected).reshape(found.shape), rtol=0, atol=atol)


def single(case, key, event=()):
    """A recorded array (examples, coordinates, …) with every coordinate as an example of its own."""
    return double(case[key]).reshape(-1, 1, *event)


def before(case):
    """Times of the recorded messages i, and their number."""
    return (double(case["i"]).flatten() - 1) / case["n"], case["n"]


class ReferenceBins(torch.nn.Module):
    """The network that the recorded values of discretised data were made with."""

    def forward(self, mean, t):
        t = t.reshape(-1, *[1] * (mean.ndim - 1)).to(mean.dtype)
        return torch.stack([0.5 * torch.tanh(0.7 * mean + 0.3 * t) - 0.2 * t, -0.5 + 0.3 * torch.sin(2 * mean - t)], -1)


def reference_classes(belief, t):
    k = torch.arange(1, belief.classes + 1, dtype=torch.float64)
    return Categorical(2 * torch.sin(k * (belief.probs + t.reshape(-1, 1, 1).double())))


# Recorded values ---------------------------------------------------------------------------------------------------------


class TestRecordedContinuous:
    case = RECORDED["continuous"]
    flow = BFN(math.sqrt(case["min_variance"]))
    predict = PointPredictor(
        ReferenceNetwork(), flow, parameterisation="epsilon", clip=(-1.0, 1.0), clip_in_training=True
    )

    def test_n_step_loss(self):
        case, (t, n) = self.case, before(self.case)
        x, noise = single(case, "x"), single(case, "noise_n")
        close(self.flow.belief(x, t, Recorded(noise)).mean, case["mean_n"])
        close(self.flow.n_step_loss(self.predict, x, Recorded(noise), n, t), case["loss_n"])

    def test_reconstruction_loss(self):
        # The reference reads 16 bins with 0.7 σ₁ where σ₁² is 1e-3 exactly, and 256 with σ₁ otherwise.
        coarse = self.case["min_variance"] == 1e-3
        std = self.flow.sigma1 * (0.7 if coarse else 1.0)
        readout = Readout(16 if coarse else 256, std, density_below=1e-5)
        x, noise = single(self.case, "x"), Recorded(single(self.case, "noise_recon"))
        loss = replace(self.flow, readout=readout).reconstruction_loss(self.predict, x, noise)
        close(loss, self.case["reconstruction"], 1e-8)


class TestRecordedDiscretised:
    case = RECORDED["discretised"]
    flow = DiscretisedBFN(case["bins"], math.sqrt(case["min_variance"]))
    predict = BinnedPredictor(ReferenceBins(), flow)

    def test_prediction_and_continuous_time_loss(self):
        case, t = self.case, double(self.case["t"]).flatten()
        x, noise = single(case, "x"), single(case, "noise")
        belief = self.flow.belief(x, t, Recorded(noise))
        close(belief.mean, case["mean"])
        close(self.predict(belief, t).probs, case["probs"], 1e-10)
        close(self.flow.loss(self.predict, x, Recorded(noise), t), case["loss_continuous"])

    def test_n_step_loss(self):
        case, (t, n) = self.case, before(self.case)
        noise_mc = double(case["noise_mc"])
        noise_mc = noise_mc.reshape(-1, len(t), 1)
        noise = Recorded(single(case, "noise_n"), *noise_mc)
        loss = self.flow.n_step_loss(self.predict, single(case, "x"), noise, n, t, draws=len(noise_mc))
        close(loss.reshape(len(case["x"]), -1).mean(1), case["loss_n"])
        assert not noise.draws

    def test_reconstruction_loss(self):
        x, noise, t = single(self.case, "x"), single(self.case, "noise_recon"), double(1.0)
        expected = single(self.case, "reconstruction").flatten()
        found = self.flow.reconstruction_loss(self.predict, x, Recorded(noise))
        plain = expected < -math.log(1e-5)
        close(found[plain], expected[plain].tolist(), 1e-8)
        # Below that probability the reference takes another number, which the named option gives.
        t = t.expand(len(x))
        below = self.predict.gaussian(self.flow.belief(x, t, Recorded(noise)), t)
        found = -gaussian_bin_log_prob(x, below.mean, below.std, self.flow.bins, density_below=1e-5)
        close(found.flatten(), expected.tolist(), 1e-8)

    def test_sampler(self):
        case, flow = self.case, self.flow
        drawn = [double(a) for a in case["sample"]["recorded"]]
        outputs, senders, noise = drawn[::2], drawn[1::2], Recorded()

        def predict(belief, t):
            if outputs:  # the recorded draw from the output distribution is a normal one, put into its bin
                gaussian = self.predict.gaussian(belief, t)
                index = bin_of(gaussian.mean + gaussian.std * outputs.pop(0), flow.bins)
                noise.draws += [choosing(index, flow.bins), senders.pop(0)]
            return self.predict(belief, t)

        shape = double(case["sample"]["result"]).shape
        samples = Stochastic()(predict, flow, shape, case["sample"]["steps"] + 1, noise, dtype=torch.float64)
        close(samples.events, case["sample"]["result"])
        assert not noise.draws


def choosing(index, classes):
    """Uniform draws with which the Gumbel-max trick chooses the given classes."""
    return torch.where(torch.nn.functional.one_hot(index, classes).bool(), 1.0, 0.5).double()


class TestRecordedDiscrete:
    case = RECORDED["discrete"]
    flow = DiscreteBFN(case["classes"], case["max_sqrt_beta"])
    event = (case["classes"],)

    @pytest.mark.parametrize("mixture", ["coordinates", "joint"])
    def test_n_step_loss(self, mixture):
        case, (t, n) = self.case, before(self.case)
        x = torch.tensor(case["x"]).reshape(-1, 1)
        noise, noise_mc = single(case, "noise_n", self.event), double(case["noise_mc"])
        same_probabilities(self.flow.belief(x, t, Recorded(noise)), case["theta_n"])
        noise_mc = noise_mc.reshape(-1, len(t), 1, *self.event)
        draws = Recorded(noise, *noise_mc)
        loss = replace(self.flow, mixture=mixture).n_step_loss(reference_classes, x, draws, n, t, draws=len(noise_mc))
        loss = loss.reshape(len(case["x"]), -1).mean(1)
        if mixture == "coordinates":
            close(loss, case["loss_n"])
        else:  # against the densities of torch.distributions, mixed whole
            probs = reference_classes(self.flow.belief(x, t, Recorded(noise)), t).probs
            alpha = (self.flow.accuracies.beta(t + 1 / n) - self.flow.accuracies.beta(t)).reshape(-1, 1, 1)
            centres = alpha[..., None] * (self.flow.classes * torch.eye(self.flow.classes) - 1)
            spread = (self.flow.classes * alpha[..., None]).sqrt()
            parts = torch.distributions.Independent(torch.distributions.Normal(centres, spread), 1)
            receiver = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(probs), parts)
            mean = alpha * (self.flow.classes * torch.nn.functional.one_hot(x, self.flow.classes) - 1)
            sender = torch.distributions.Independent(torch.distributions.Normal(mean, spread[..., 0]), 1)
            y = mean + spread[..., 0] * noise_mc
            expected = n * (sender.log_prob(y) - receiver.log_prob(y)).mean(0)
            torch.testing.assert_close(loss, expected.reshape(len(case["x"]), -1).mean(1))

    def test_reconstruction_loss(self):
        # The reference's belief is that of t = 1 − 1e-6, while its network is told 1.
        case, x = self.case, torch.tensor(self.case["x"]).reshape(-1, 1)
        t = torch.full((len(x),), 1 - 1e-6, dtype=torch.float64)
        belief = self.flow.belief(x, t, Recorded(single(case, "noise_recon", self.event)))
        loss = self.flow.reconstruction_loss(lambda _, t: reference_classes(belief, t), x, seeded())
        close(loss.double(), case["reconstruction"], 1e-8)

    def test_sampler(self):
        case, noise = self.case["sample"], Recorded()
        for classes, draw in zip(case["recorded"][::2], case["recorded"][1::2], strict=True):
            noise.draws += [choosing(torch.tensor(classes), self.flow.classes), double(draw)]
        shape = torch.tensor(case["result"]).shape
        samples = Stochastic()(reference_classes, self.flow, shape, case["steps"] + 1, noise, dtype=torch.float64)
        assert samples.events.tolist() == case["result"]
        assert not noise.draws


# Losses, by their own definitions ----------------------------------------------------------------------------------------


def test_n_step_loss_of_bins_against_quadrature():
    # n KL(N(x, 1/α) ‖ Σ p_k N(c_k, 1/α)) by integration over the message.
    flow, x, t, n = DiscretisedBFN(4, 0.2), double([[0.25]]), double([0.5]), 8
    predicted = Binned(double([[[0.3, -0.2, 0.9, 0.1]]]))
    alpha = float(flow.path.accuracy(t, t + 1 / n))

    def integrand(y):
        sender = stats.norm.pdf(y, 0.25, alpha**-0.5)
        receiver = sum(
            float(p) * stats.norm.pdf(y, c, alpha**-0.5)
            for p, c in zip(predicted.probs[0, 0], (-0.75, -0.25, 0.25, 0.75), strict=True)
        )
        return sender * math.log(sender / receiver)

    expected = n * integrate.quad(integrand, 0.25 - 9 * alpha**-0.5, 0.25 + 9 * alpha**-0.5)[0]
    many = x.expand(4000, 1)
    loss = flow.n_step_loss(
        lambda belief, t: predicted.map(lambda a: a.expand(4000, 1, 4)), many, seeded(), n, t.expand(4000), draws=50
    )
    assert float(loss.mean()) == pytest.approx(expected, abs=4 * float(loss.std()) / math.sqrt(4000))
    assert float(loss.std()) / math.sqrt(4000) < 0.01 * expected


def test_joint_mixture_of_classes_against_quadrature():
    # For two classes y_k − y_x ~ N(−2α, 4α), so the cost is E −log(ê_x + ê_k e^{N(−2α, 4α)}), one integral.
    flow, t, n, p = DiscreteBFN(2, 1.5), double([0.4]), 5, 0.7
    alpha = 2 * float(flow.accuracies.accuracy(t, t + 1 / n))  # αK
    mean, spread = -alpha, math.sqrt(2 * alpha)

    def integrand(z):
        return -stats.norm.pdf(z) * math.log(p + (1 - p) * math.exp(mean + spread * z))

    expected = n * integrate.quad(integrand, -9, 9)[0]
    x, number = torch.zeros(4000, 1, dtype=torch.int64), 4000
    logits = double([p, 1 - p]).log().expand(number, 1, 2)
    loss = flow.n_step_loss(lambda belief, t: Categorical(logits), x, seeded(), n, t.expand(number), draws=50)
    assert float(loss.mean()) == pytest.approx(expected, abs=4 * float(loss.std()) / math.sqrt(number))
    assert float(loss.std()) / math.sqrt(number) < 0.02 * expected


def test_mixtures_of_classes_differ_and_agree_when_the_prediction_is_certain():
    flow, x, t = DiscreteBFN(3, 1.5), torch.tensor([[0, 2]] * 500), double([0.5] * 500)
    unsure = Categorical(double([0.2, 0.5, 0.1]).expand(500, 2, 3))

    def cost(predicted, mixture):
        loss = replace(flow, mixture=mixture).n_step_loss(lambda belief, t: predicted, x, seeded(), 3, t, draws=20)
        return float(loss.mean())

    # Mixing the coordinates each by itself forgets that they belong together, and costs more here.
    assert cost(unsure, "coordinates") > 1.1 * cost(unsure, "joint") > 0
    sure = Categorical((40 * torch.nn.functional.one_hot(x, 3)).double())
    assert cost(sure, "joint") == pytest.approx(0, abs=1e-12)
    assert cost(sure, "coordinates") == pytest.approx(0, abs=1e-12)
    with pytest.raises(ArgumentError, match="'joint' or 'coordinates'"):
        cost(sure, "both")


N_STEP = {
    "continuous": (
        BFN(0.2),
        lambda belief, t: DiagonalGaussian(0.5 * belief.mean, double(0.0)),
        double([[0.3, -0.6]]),
    ),
    "discretised": (
        DiscretisedBFN(5, 0.2),
        lambda belief, t: Binned.of_gaussian(0.5 * belief.mean, torch.full_like(belief.mean, 0.4), 5),
        double([[0.4, -0.8]]),
    ),
    "discrete": (
        DiscreteBFN(3, 1.5),
        lambda belief, t: Categorical(0.5 * belief.logits),
        torch.tensor([[0, 2]]),
    ),
}


@pytest.mark.parametrize("kind", N_STEP)
def test_many_steps_come_to_the_continuous_time_loss(kind):
    flow, predict, x = N_STEP[kind]
    number = 6000
    x, t = x.expand(number, 2), draw_evenly(number)
    limit = float(flow.loss(predict, x, seeded(), t).mean())
    few, many = (float(flow.n_step_loss(predict, x, seeded(), n, t, draws=100).mean()) for n in (2, 30))
    assert many == pytest.approx(limit, rel=0.1)
    assert abs(many - limit) < 0.5 * abs(few - limit)


def draw_evenly(number):
    return (torch.randperm(number, generator=seeded(5)).double() + 0.5) / number


@pytest.mark.parametrize("kind", N_STEP)
def test_times_of_messages_are_drawn_from_all(kind):
    flow, predict, x = N_STEP[kind]
    seen = []

    def watch(belief, t):
        seen.append(t)
        return predict(belief, t)

    flow.n_step_loss(watch, x.expand(40, 2), seeded(), 4)
    assert seen[0].tolist().count(0.25) == 10
    assert sorted(set(seen[0].tolist())) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("kind", N_STEP)
def test_settings_out_of_range(kind):
    flow, predict, x = N_STEP[kind]
    for steps, draws in ((0, 1), (1, 0)):
        with pytest.raises(ArgumentError, match="at least 1"):
            flow.n_step_loss(predict, x, seeded(), steps, draws=draws)
    wrong = x.double() if kind == "discrete" else x.long()
    for loss in (flow.loss, flow.reconstruction_loss, lambda *rest: flow.n_step_loss(*rest, 3)):
        with pytest.raises(ArgumentError, match=r"real numbers|class indices"):
            loss(predict, wrong, seeded())


ACCURACY = st.floats(1e-12, 0.99)
UNIT = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(sigma1=ACCURACY, t=UNIT, s=UNIT, seed=st.integers(0, 100), steps=st.sampled_from([1, 7, 1000]))
def test_real_data_overflow_at_no_accuracy_in_single_precision(sigma1, t, s, seed, steps):
    generator, x = seeded(seed), torch.rand(4, 3, generator=seeded(seed)) * 2 - 1
    t, s = torch.tensor(sorted([t, s]))
    times = t.expand(4)
    flow = DiscretisedBFN(7, sigma1)
    predict = BinnedPredictor(ReferenceBins(), flow)
    belief = flow.belief(x, times, generator)
    for flow_, model in (
        (flow, predict),
        (BFN(sigma1), PointPredictor(ReferenceNetwork(), BFN(sigma1), parameterisation="x")),
    ):
        for loss in (
            flow_.loss(model, x, generator, times),
            flow_.n_step_loss(model, x, generator, steps, times),
            flow_.reconstruction_loss(model, x, generator),
        ):
            assert loss.dtype == torch.float32
            assert bool(loss.isfinite().all())
        for source in (None, generator):
            if s > t:
                moved = flow_.update(belief, model(belief, times), t, s, source)
                assert all(bool(a.isfinite().all()) for a in moved.tensors().values())


@settings(max_examples=60, deadline=None)
@given(
    b=st.floats(1e-3, 1e6), t=UNIT, s=UNIT, k=st.integers(2, 9), seed=st.integers(0, 100),
    steps=st.sampled_from([1, 7, 1000]), mixture=st.sampled_from(["joint", "coordinates"]),
)  # fmt: skip
def test_classes_overflow_at_no_accuracy_in_single_precision(b, t, s, k, seed, steps, mixture):
    generator, flow = seeded(seed), DiscreteBFN(k, b)
    x = torch.randint(0, k, (4, 3), generator=generator)
    t, s = torch.tensor(sorted([t, s]))
    times = t.expand(4)

    def predict(belief, t):
        return Categorical(torch.sin(belief.probs * torch.arange(1, k + 1)))

    belief = flow.belief(x, times, generator)
    for loss in (
        flow.loss(predict, x, generator, times),
        replace(flow, mixture=mixture).n_step_loss(predict, x, generator, steps, times),
        flow.reconstruction_loss(predict, x, generator),
    ):
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite().all())
    for source in (None, generator):
        moved = flow.update(belief, predict(belief, times), t, s, source)
        assert bool(moved.probs.isfinite().all())
        assert moved.probs.sum(-1).sub(1).abs().max() < 1e-5


# Bins --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 3, 16, 256])
def test_bins_and_centres(bins):
    centres = bin_centre(torch.arange(bins), bins, torch.float64)
    assert centres.tolist() == pytest.approx([-1 + (2 * k + 1) / bins for k in range(bins)], abs=1e-15)
    assert bin_of(centres, bins).tolist() == list(range(bins))
    assert bin_of(double([-7.0, -1.0, 1.0, 7.0]), bins).tolist() == [0, 0, bins - 1, bins - 1]
    assert bin_of(centres.float(), bins).tolist() == list(range(bins))


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(-3, 3), log_std=st.floats(-4, 2), bins=st.integers(2, 40))
def test_mass_in_bins_against_scipy(mean, log_std, bins):
    std = 10.0**log_std
    edges = [-math.inf, *(-1 + 2 * k / bins for k in range(1, bins)), math.inf]
    expected = []
    for low, high in pairwise(edges):
        near, far = (stats.norm.logcdf, (high, low)) if low + high < 2 * mean else (stats.norm.logsf, (low, high))
        big, small = near(far[0], mean, std), near(far[1], mean, std)
        expected.append(big + math.log(-math.expm1(small - big)) if small < big else -math.inf)
    belief = Binned.of_gaussian(double([[mean]]), double([[std]]), bins)
    assert belief.logits[0, 0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert float(belief.logits.exp().sum()) == pytest.approx(1, abs=1e-12)
    x = belief.centres[:, None]
    one_by_one = gaussian_bin_log_prob(x, double([[mean]]), double([[std]]), bins)
    torch.testing.assert_close(one_by_one.flatten(), belief.logits[0, 0], rtol=1e-10, atol=1e-12)


def test_gradients_of_bins_are_finite_far_out():
    mean = torch.tensor([[-900.0, 0.3, 900.0]], requires_grad=True)
    std = torch.tensor([[1e-3, 1e-3, 10.0]], requires_grad=True)
    for value in (Binned.of_gaussian(mean, std, 8).logits, gaussian_bin_log_prob(mean.detach(), mean, std, 8)):
        for gradient in torch.autograd.grad(value.clamp_min(-1e30).sum(), [mean, std]):
            assert bool(gradient.isfinite().all())


def test_binned_predictor_reads_images_and_refuses_other_shapes():
    flow = DiscretisedBFN(6, 0.1)

    class Two(torch.nn.Module):
        def forward(self, mean, t):
            return torch.cat([mean, 0 * mean - 1], dim=1)

    image = flow.belief(torch.rand(2, 3, 4, 4, generator=seeded()), torch.tensor([0.0, 0.5]), seeded())
    t = torch.tensor([0.0, 0.5])
    predicted = BinnedPredictor(Two(), flow)(image, t)
    assert predicted.logits.shape == (2, 3, 4, 4, 6)
    flat = BinnedPredictor(ReferenceBins(), flow)
    torch.testing.assert_close(  # at t = 0 a belief says nothing
        flat(image.map(lambda a: a[:1].flatten(1)), t[:1]).probs[0, 0],
        torch.tensor(stats.norm.cdf([-2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 99])).diff(prepend=torch.zeros(1)).float(),
    )
    with pytest.raises(ArgumentError, match=r"two numbers for each coordinate, \(2, 48, 2\)"):
        BinnedPredictor(ReferenceNetwork(), flow)(image.map(lambda a: a.flatten(1)), t)
    with pytest.raises(ArgumentError, match="DiscretisedBFN, which has them"):
        BinnedPredictor(ReferenceBins(), DiscreteBFN(3))


def test_data_between_centres_are_moved_to_them():
    flow, x = DiscretisedBFN(4, 0.2), double([[0.1, -0.9]])
    predict = BinnedPredictor(ReferenceBins(), flow)
    centres = double([[0.25, -0.75]])
    for call in (flow.loss, flow.reconstruction_loss, lambda *rest: flow.n_step_loss(*rest, 5)):
        assert torch.equal(call(predict, x, seeded()), call(predict, centres, seeded()))
    assert torch.equal(flow.belief(x, double([1.0]), seeded()).mean, flow.belief(centres, double([1.0]), seeded()).mean)


def test_losses_of_bins_refuse_other_predictions():
    flow, x = DiscretisedBFN(4, 0.2), double([[0.1]])
    point = PointPredictor(ReferenceNetwork(), flow, parameterisation="x")
    for call in (flow.reconstruction_loss, lambda *rest: flow.n_step_loss(*rest, 5)):
        with pytest.raises(ArgumentError, match="probabilities of 4 bins"):
            call(point, x, seeded())
        with pytest.raises(ArgumentError, match="probabilities of 4 bins"):
            call(BinnedPredictor(ReferenceBins(), DiscretisedBFN(5)), x, seeded())


def test_flows_and_readouts_refuse_too_few_bins():
    for make in (lambda: DiscretisedBFN(1), lambda: Readout(1), lambda: Readout(std=0.0)):
        with pytest.raises(ArgumentError, match=r"at least 2 bins|positive"):
            make()
    assert Diffusion().latent.path == Diffusion().path
