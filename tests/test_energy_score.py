"""Predictors that draw, against laws whose posterior is known, and the score that trains them."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_flows import double, seeded
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    Deterministic,
    DiagonalGaussian,
    Diffusion,
    DrawPredictor,
    EnergyScore,
    ExactDraw,
    ExactMean,
    GaussianMixture,
    PointPredictor,
    Stochastic,
    TrainingConfig,
    models,
)
from proxflow.cli import main
from proxflow.couplings import Reflowed
from proxflow.data import GaussianMixtureLaw
from proxflow.errors import ArgumentError
from proxflow.paths import Linear
from proxflow.random import BatchRows, SampleStreams
from proxflow.samplers import SAMPLERS, default_sampler
from proxflow.training.fit import fit
from proxflow.training.objectives.energy_score import energy_score
from proxflow.training.recipes import recipe

LAW = GaussianMixtureLaw(
    double([0.3, 0.7]),
    double([[-0.8, 0.2], [0.6, -0.1]]),
    double([[[0.02, 0.01], [0.01, 0.03]], [[0.04, 0], [0, 0.01]]]),
)


class Perceptron(nn.Module):
    """A small network of a mean with noise beside it and a time, to as many numbers as the mean has."""

    def __init__(self, size, width=64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * size + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
        )

    def forward(self, features, t):
        return self.layers(torch.cat([features, t[:, None].to(features.dtype)], dim=1))


class Normal(nn.Module):
    """Draws from N(centre, spread²), whatever the belief."""

    reads = frozenset({"noise"})

    def __init__(self, centre, spread):
        super().__init__()
        self.centre, self.spread = (nn.Parameter(double(value)) for value in (centre, spread))

    def forward(self, belief, t, *, noise):
        return GaussianMixture(noise.new_zeros(noise.shape[:2]), self.centre + self.spread * noise, noise.new_zeros(()))


# The score ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "repulsion"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.3), (1.9, 0.0)])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 4, 3)])
def test_the_score_is_its_definition(beta, repulsion, shape):
    rng = np.random.default_rng(0)
    x, draws = rng.normal(size=(5, *shape)), rng.normal(size=(5, 4, *shape))

    def distance(a, b):
        return float(np.linalg.norm((a - b).ravel()) / math.sqrt(a.size)) ** beta

    expected = [
        np.mean([distance(one, x[k]) for one in draws[k]])
        - repulsion / 2 * np.mean([distance(a, b) for a, b in itertools.permutations(draws[k], 2)])
        for k in range(5)
    ]
    found = energy_score(torch.from_numpy(draws), torch.from_numpy(x), beta, repulsion)
    torch.testing.assert_close(found, double(expected), rtol=1e-12, atol=1e-12)
    single = energy_score(torch.from_numpy(draws).float(), torch.from_numpy(x).float(), beta, repulsion)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("centre", "spread", "x"), [(0.0, 1.0, 0.4), (1.0, 0.3, -0.2)])
def test_of_normal_draws_it_is_unbiased(centre, spread, x):
    draws = centre + spread * torch.randn(400_000, 2, 1, generator=seeded(), dtype=torch.float64)
    scores = energy_score(draws, torch.full((400_000, 1), x, dtype=torch.float64))
    # The continuous ranked probability score of a normal law (Gneiting & Raftery, 2007, eq. 21).
    z = (x - centre) / spread
    crps = spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert float(scores.mean()) == pytest.approx(crps, abs=4 * float(scores.std()) / math.sqrt(len(scores)))


def test_gradients_are_right_and_vanish_where_draws_meet():
    draws = torch.randn(2, 3, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, generator=seeded(1), dtype=torch.float64)
    for beta in (0.5, 1.0, 1.5):
        assert torch.autograd.gradcheck(lambda a, b=beta: energy_score(a, x, b, 0.7), draws)
    same = torch.zeros(1, 2, 3, requires_grad=True)
    energy_score(same, torch.zeros(1, 3), 0.5).sum().backward()
    assert same.grad.tolist() == torch.zeros(1, 2, 3).tolist()


def slopes(centre, spread, repulsion=1.0, beta=1.0, draws=2):
    """Gradient of the loss in the centre and spread of draws, for data N(1, 0.5²)."""
    x = 1 + 0.5 * torch.randn(100_000, 1, generator=seeded(), dtype=torch.float64)
    predict = Normal(centre, spread)
    objective = EnergyScore(GPFN(weight_floor=1.0), beta, repulsion, draws)
    objective.loss(predict, x, seeded(1)).mean().backward()
    return float(predict.centre.grad), float(predict.spread.grad)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("draws", [2, 3])
def test_the_true_law_is_best(beta, draws):
    assert slopes(1.0, 0.5, beta=beta, draws=draws) == pytest.approx((0, 0), abs=0.01)
    for centre, spread in [(0.7, 0.5), (1.4, 0.5), (1.0, 0.2), (1.0, 0.9)]:
        found = slopes(centre, spread, beta=beta, draws=draws)
        which, error = (0, centre - 1) if centre != 1 else (1, spread - 0.5)
        assert math.copysign(1, found[which]) == math.copysign(1, error)
        assert abs(found[which]) > 0.05


def test_less_repulsion_wants_less_spread():
    # d/ds of E|N(0, s² + ½²)| − λ s/√π is √(2/π) s/√(s² + ¼) − λ/√π; it vanishes at s = ½ for λ = 1 alone.
    for repulsion in (0.0, 0.5):
        expected = math.sqrt(2 / math.pi) / math.sqrt(2) - repulsion / math.sqrt(math.pi)
        assert slopes(1.0, 0.5, repulsion)[1] == pytest.approx(expected, abs=0.01)


def test_scores_are_weighted_as_multiples_of_errors():
    x, t = torch.randn(6, 3, generator=seeded(), dtype=torch.float64), double([0.0, 0.2, 0.5, 0.7, 0.9, 0.99])
    for flow in (GPFN(), BFN(0.1), Diffusion()):
        predict = Normal(0.0, 0.0)  # draws that are all 0 leave |x|^β
        found = EnergyScore(flow, beta=0.8).loss(predict, x, seeded(), t)
        squared = flow.loss(
            lambda belief, t: DiagonalGaussian(torch.zeros_like(belief.mean), double(0.0)), x, seeded(), t
        )
        torch.testing.assert_close(found, squared.pow(0.4), rtol=1e-9, atol=1e-12)


def test_a_step_costs_as_many_passes_as_there_are_draws():
    assert [EnergyScore(GPFN(), draws=m).passes for m in (2, 5)] == [6, 15]


# Exact draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.4, 0.6), (0.9, 0.1)])
def test_posterior_draws_follow_bayes_rule(a, b):
    law = GaussianMixtureLaw(double([0.4, 0.6]), double([[-0.5], [0.5]]), double([[[0.09]], [[0.01]]]))
    y = 0.15
    drawn = law.posterior_sample(torch.full((20_000, 1), y, dtype=torch.float64), a, b, seeded())
    grid = np.linspace(-3, 3, 20_001)
    density = np.exp(law.log_density(torch.from_numpy(grid)[:, None]).numpy()) * stats.norm.pdf(y, a * grid, b)
    cdf = np.cumsum(density) / density.sum()
    assert stats.kstest(drawn[:, 0].numpy(), lambda x: np.interp(x, grid, cdf)).pvalue > 0.01


def cdfs(law, number):
    """Distribution function of coordinate ``number`` of a mixture."""
    weights, centres, spreads = law.weights, law.means[:, number], law.covariances[:, number, number].sqrt()
    return lambda x: sum(
        float(w) * stats.norm.cdf(x, float(m), float(s)) for w, m, s in zip(weights, centres, spreads, strict=True)
    )


def energy_distance(x, y):
    return float(
        2 * torch.cdist(x, y).mean()
        - torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
        - torch.cdist(y, y).sum() / (len(y) * (len(y) - 1))
    )


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize(
    ("flow", "sampler"),
    [
        (GPFN(), "deterministic"),
        (GPFN(schedule=Linear(0.6)), "deterministic"),
        (GPFN(KL(), endpoints=proxflow.GaussianEndpoints(0.3)), "deterministic"),
        (GPFN(), "marginal"),
        (BFN(0.1), "stochastic"),
        (BFN(0.1), "marginal"),
        (Diffusion(), "deterministic"),
    ],
    ids=["w2", "w2-final", "kl", "w2-marginal", "bfn", "bfn-marginal", "diffusion"],
)
def test_exact_draws_give_the_datas_law_in_any_number_of_steps(flow, sampler, nfe):
    truth = LAW.sample(2000, seeded(7), dtype=torch.float64)

    def drawn(predict):
        return SAMPLERS[sampler](predict, flow, (2000, 2), nfe, seeded(nfe), dtype=torch.float64).events

    events = drawn(ExactDraw(flow, LAW))
    for number in (0, 1):
        assert stats.kstest(events[:, number].numpy(), cdfs(LAW, number)).pvalue > 0.01
    assert abs(energy_distance(events, truth)) < 0.003
    if nfe < 4:
        assert energy_distance(drawn(ExactMean(flow, LAW)), truth) > 0.005


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.memoryless])
def test_samplers_without_a_memory_keep_the_law_of_draws(name):
    flow = GPFN()
    events = SAMPLERS[name](ExactDraw(flow, LAW), flow, (2000, 2), 3, seeded(2), dtype=torch.float64).events
    assert abs(energy_distance(events, LAW.sample(2000, seeded(7), dtype=torch.float64))) < 0.003


def test_exact_draws_refuse_what_exact_means_do():
    with pytest.raises(ArgumentError, match="no Gaussian path"):
        ExactDraw(GPFN(proxflow.FisherRao()), LAW)
    with pytest.raises(ArgumentError, match="paired"):
        ExactDraw(GPFN(coupling=Reflowed()), LAW)


# The predictor --------------------------------------------------------------------------------------------------------


def test_a_network_learns_to_draw():
    torch.manual_seed(0)
    data = LAW.sample(4096, seeded(1))
    flow = GPFN()
    config = TrainingConfig(
        steps=300, batch_size=256, learning_rate=1e-2, warmup_steps=20, ema=0.98, clip=10.0, weight_decay=0.0
    )
    predictor = fit(DrawPredictor(Perceptron(2), flow, clip=None), EnergyScore(flow), data, config).predictor
    truth = LAW.sample(2000, seeded(7))
    for nfe in (1, 2, 4):
        drawn = proxflow.sample(predictor, flow, (2000, 2), nfe=nfe)
        assert energy_distance(drawn, truth) < 0.05  # the mean of the data is at 0.46, two steps to exact means at 0.13
        assert abs(float((drawn[:, 0] < -0.1).float().mean()) - 0.3) < 0.06


def says(output):
    class Says(nn.Module):
        def forward(self, features, t):
            return output(features, t)

    return Says()


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_the_network_reads_the_mean_and_the_noise(shape):
    mean = torch.randn(5, *shape, generator=seeded(), dtype=torch.float64)
    belief, t = DiagonalGaussian(mean, double(1.0)), torch.linspace(0, 1, 5, dtype=torch.float64)
    size = shape[0]
    sum_of_both = says(lambda features, t: features[:, :size] + 10 * features[:, size:])
    predict = DrawPredictor(sum_of_both, GPFN(endpoints=proxflow.GaussianEndpoints(0.25)), clip=None)
    one = predict(belief, t, generator=SampleStreams(3, torch.arange(5)))
    noise = SampleStreams(3, torch.arange(5)).normal(torch.Size([5, *shape]), torch.float64)
    torch.testing.assert_close(one.mean, mean + 10 * noise)
    assert float(one.std.min()) == 0.25
    noise = torch.randn(5, 4, *shape, generator=seeded(2), dtype=torch.float64)
    several = predict(belief, t, noise=noise)
    torch.testing.assert_close(several.means, mean[:, None] + 10 * noise)
    assert several.weights.tolist() == [[0.25] * 4] * 5
    times = DrawPredictor(says(lambda features, t: t[:, None].expand(-1, 3)), GPFN(), clip=None)
    belief = DiagonalGaussian(mean.flatten(1)[:, :3], double(1.0))
    assert torch.equal(
        times(belief, t, noise=torch.zeros(5, 2, 3, dtype=torch.float64)).means, t[:, None, None].expand(5, 2, 3)
    )


def test_draws_are_clipped_outside_training():
    belief, t = DiagonalGaussian(torch.zeros(1, 2), torch.ones(())), torch.zeros(1)
    predict = DrawPredictor(says(lambda features, t: torch.tensor([[3.0, -3.0]])), GPFN(), clip=(-1.0, 1.0))
    assert predict.train()(belief, t, generator=seeded()).mean.tolist() == [[3.0, -3.0]]
    assert predict.eval()(belief, t, generator=seeded()).mean.tolist() == [[1.0, -1.0]]


def test_a_sample_is_its_own_whatever_is_drawn_beside_it():
    torch.manual_seed(0)
    flow = GPFN()
    predict = DrawPredictor(Perceptron(2), flow)
    whole = proxflow.sample(predict, flow, (50, 2), nfe=3, seed=5, batch_size=64)
    torch.testing.assert_close(proxflow.sample(predict, flow, (50, 2), nfe=3, seed=5, batch_size=16), whole)
    torch.testing.assert_close(proxflow.sample(predict, flow, (10, 2), nfe=3, seed=5, first=40), whole[40:])
    assert not torch.allclose(proxflow.sample(predict, flow, (50, 2), nfe=3, seed=6), whole)
    mean = Deterministic()(predict.eval(), flow, (4, 2), 1, seeded(0)).events
    assert not torch.allclose(mean, Deterministic()(predict, flow, (4, 2), 1, seeded(1)).events)


def test_parts_of_a_batch_have_the_loss_of_the_whole():
    torch.manual_seed(0)
    flow = GPFN()
    predict, objective = DrawPredictor(Perceptron(2), flow), EnergyScore(flow, draws=3)
    x, t = LAW.sample(8, seeded()), torch.linspace(0.05, 0.95, 8)

    def part(rows):
        return objective.loss(
            predict, x[rows.start : rows.stop], BatchRows(seeded(4), 8, rows), t[rows.start : rows.stop]
        )

    torch.testing.assert_close(torch.cat([part(range(3)), part(range(3, 8))]), part(range(8)))


def test_training_compiles():
    torch.manual_seed(0)
    flow = GPFN()
    predict, objective = DrawPredictor(Perceptron(2), flow), EnergyScore(flow)
    x, t = LAW.sample(8, seeded()), torch.linspace(0.05, 0.95, 8)
    plain = objective.loss(predict, x, BatchRows(seeded(4), 16, range(4, 12)), t)
    predict.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(objective.loss(predict, x, BatchRows(seeded(4), 16, range(4, 12)), t), plain)


# What is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["multistep2", "multistep3", "unipc", "midpoint", "bfn-solver2", "sde-bfn-solver2"])
def test_samplers_with_a_memory_refuse_draws(sampler):
    assert not SAMPLERS[sampler].memoryless
    with pytest.raises(ArgumentError, match="draws anew"):
        proxflow.sample(DrawPredictor(Perceptron(2), GPFN()), GPFN(), (4, 2), nfe=3, sampler=sampler)


def test_the_sampler_of_choice_needs_no_memory():
    assert default_sampler(DrawPredictor(Perceptron(2), GPFN()), GPFN()) == "deterministic"
    assert default_sampler(DrawPredictor(Perceptron(2), BFN()), BFN()) == "stochastic"
    assert Stochastic().memoryless


def test_what_does_not_fit_is_refused():
    flow = GPFN()
    belief, t = DiagonalGaussian(torch.zeros(2, 3), torch.ones(())), torch.zeros(2)
    predict = DrawPredictor(Perceptron(3), flow)
    x = torch.zeros(2, 3)
    with pytest.raises(ArgumentError, match="EnergyScore"):
        predict(belief, t)
    with pytest.raises(ArgumentError, match="EnergyScore"):
        flow.loss(predict, x, seeded())
    for shape in [(2,), (2, 3), (2, 0, 3), (2, 4, 2), (1, 4, 3)]:
        with pytest.raises(ArgumentError, match="noise for beliefs"):
            predict(belief, t, noise=torch.zeros(shape))
    with pytest.raises(ArgumentError, match=r"events \(3,\) for features \(6,\), returned \(6,\)"):
        DrawPredictor(says(lambda features, t: features), flow)(belief, t, generator=seeded())
    with pytest.raises(ArgumentError, match="lowest < highest"):
        DrawPredictor(Perceptron(3), flow, clip=(1.0, 1.0))
    with pytest.raises(ArgumentError, match="not PointPredictor"):
        EnergyScore(flow).loss(PointPredictor(Perceptron(3), flow, parameterisation="x"), x, seeded())
    with pytest.raises(ArgumentError, match="data are real numbers"):
        EnergyScore(flow).loss(predict, x.long(), seeded())
    mixed = GPFN(endpoints=proxflow.ProductEndpoints(((proxflow.GaussianEndpoints(), 3),)))
    with pytest.raises(ArgumentError, match="Gaussian beliefs"):
        EnergyScore(mixed).loss(predict, x, seeded())
    with pytest.raises(ArgumentError, match="m, "):
        energy_score(torch.zeros(2, 4, 3), torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="at least 2"):
        energy_score(torch.zeros(2, 1, 3), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": 2.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"repulsion": 1.1}, "repulsion"),
        ({"repulsion": -0.1}, "repulsion"),
        ({"draws": 1}, "at least 2"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        EnergyScore(GPFN(), **settings)


# A model on disk --------------------------------------------------------------------------------------------------------


def test_a_saved_model_draws_what_it_drew(tmp_path):
    torch.manual_seed(0)
    words = {"network": "unet:channels=8,multipliers=1,patch=4", "predictor": "draw"}
    built = models.build((2, 8, 8), **words)
    learning = recipe("flow", built)
    assert isinstance(learning.objective, EnergyScore)
    assert learning.objective.flow is built.flow
    for parameter in built.predictor.parameters():
        nn.init.normal_(parameter, std=0.1)
    built.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded.predictor, DrawPredictor)
    one, same = (proxflow.sample(m.predictor, m.flow, (4, 2, 8, 8), nfe=2) for m in (loaded, built))
    torch.testing.assert_close(one, same)
    with pytest.raises(ArgumentError, match="'point'"):
        recipe("distribution-matching", models.build((2, 8, 8), **words), loaded)


def test_train_and_sample_on_the_command_line(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    words = "--predictor draw --network unet:channels=4,multipliers=1,patch=4 --steps 3 --batch-size 8 --grid 4 --device cpu"
    data, out = str(tmp_path / "images.npz"), str(tmp_path / "model")
    assert main(["train", "--data", data, "--out", out, *words.split()]) == 0
    draw = ["sample", out, "--n", "2", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "drawn.npz")]
    assert main(draw) == 0
    assert np.load(tmp_path / "drawn.npz")["images"].shape == (2, 8, 8, 1)
    capsys.readouterr()
    assert main([*draw, "--sampler", "midpoint"]) == 2
    assert "draws anew" in capsys.readouterr().err
