"""Couplings: the pairs are optimal, both laws are kept, and conditions bring no bias."""

import dataclasses
import sys

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import proxflow
from proxflow import (
    GPFN,
    DistributionMatching,
    Examples,
    MinibatchOT,
    PointPredictor,
    TrainingConfig,
    fit,
    metrics,
    models,
    sample,
)
from proxflow.errors import ArgumentError, CheckpointError, MissingPackageError
from proxflow.predictors.exact import ExactMean
from proxflow.random import BatchRows, SampleStreams
from proxflow.samplers import BFNSolver, Deterministic, Marginal, Multistep
from proxflow.training.reflow import straightness


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Perceptron(torch.nn.Module):
    def __init__(self, size=2, width=64):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(size + 1, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
            torch.nn.Linear(width, size),
        )  # fmt: skip

    def forward(self, mean, t):
        return self.layers(torch.cat([mean, t[:, None].to(mean.dtype)], dim=1))


def perceptron(flow):
    torch.manual_seed(0)
    return PointPredictor(Perceptron(), flow, clip=None, parameterisation="x")


def clusters(number=1024):
    signs = torch.randint(0, 2, (number, 2), generator=seeded()) * 2 - 1
    return signs + 0.1 * torch.randn(number, 2, generator=seeded(1))


@pytest.mark.parametrize(("number", "event"), [(1, (3,)), (2, (1,)), (37, (2,)), (64, (1, 4, 4)), (300, (5,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pairs_are_those_of_an_independent_solver(number, event, dtype):
    prior = torch.randn(number, *event, generator=seeded(), dtype=dtype)
    x = 0.5 * torch.randn(number, *event, generator=seeded(1), dtype=dtype) + 1
    permutation = MinibatchOT().pair(prior, x)
    assert permutation.dtype == torch.int64
    assert sorted(permutation.tolist()) == list(range(number))
    costs = torch.cdist(x.double().flatten(1), prior.double().flatten(1)).square()
    rows, columns = linear_sum_assignment(costs.numpy())
    assert float(costs[torch.arange(number), permutation].sum()) == pytest.approx(float(costs[rows, columns].sum()))
    assert torch.equal(permutation, torch.from_numpy(columns))  # draws of a density: the optimum is unique


def test_on_a_line_the_order_is_kept():
    prior, x = torch.randn(100, 1, generator=seeded()), torch.rand(100, 1, generator=seeded(1))
    paired = prior[MinibatchOT().pair(prior, x)]
    assert torch.equal(paired[x[:, 0].argsort()], prior.sort(0).values)


def test_autocast_changes_no_pair():
    prior, x = torch.randn(64, 8, generator=seeded()), torch.randn(64, 8, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        under = MinibatchOT().pair(prior, x)
    assert torch.equal(under, MinibatchOT().pair(prior, x))


def by_class(number=2000, batch=50):
    """Prior draws paired with each of two classes, at −3 and 3, batch by batch, without and with conditions."""
    found = {False: ([], []), True: ([], [])}
    generator = seeded()
    for _ in range(number // batch):
        labels = torch.randint(2, (batch,), generator=generator)
        x = (6.0 * labels - 3)[:, None] + 0.3 * torch.randn(batch, 1, generator=generator)
        prior = torch.randn(batch, 1, generator=generator)
        for conditional, (first, second) in found.items():
            paired = prior[MinibatchOT().pair(prior, x, labels if conditional else None)]
            first.append(paired[labels == 0])
            second.append(paired[labels == 1])
    return {key: tuple(torch.cat(part) for part in parts) for key, parts in found.items()}


def test_conditions_bring_no_bias_into_the_prior():
    found = by_class()
    for sign, noise in zip((-1, 1), found[True], strict=True):
        assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5  # four standard errors
        assert float(noise.std()) == pytest.approx(1, abs=4 / (2 * len(noise)) ** 0.5)
        biased = found[False][(sign + 1) // 2]
        assert sign * float(biased.mean()) > 0.6  # E|N(0, 1)| = 0.80, less where the classes' shares are not equal


def test_within_a_condition_the_pairs_are_optimal():
    labels = torch.tensor([3, 1, 3, 3, 1, 1, 7] * 5)
    prior, x = torch.randn(35, 2, generator=seeded()), torch.randn(35, 2, generator=seeded(1))
    permutation = MinibatchOT().pair(prior, x, labels)
    assert torch.equal(labels[permutation], labels)  # a draw keeps the condition that it was given
    for label in (1, 3, 7):
        members = (labels == label).nonzero().squeeze(1)
        assert torch.equal(permutation[members], members[MinibatchOT().pair(prior[members], x[members])])
    several = torch.stack([labels, torch.zeros_like(labels)], 1)
    assert torch.equal(MinibatchOT().pair(prior, x, several), permutation)
    assert torch.equal(MinibatchOT().pair(prior, x, torch.rand(35, generator=seeded())), torch.arange(35))


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def leaning(weight, slope=2.0, spread=0.5):
    """E[n c] of noise n that optimal transport leads to x = slope c + spread e, with weighted conditions c ~ N(0, 1).

    Of ever larger batches, by the linear map between Gaussians: from (x, √w c) to (n, √w c') with n and c' independent.
    """
    cross = weight**0.5 * slope
    data = torch.tensor([[slope**2 + spread**2, cross], [cross, weight]], dtype=torch.float64)
    prior = torch.tensor([1, weight], dtype=torch.float64).diag()
    back = torch.linalg.inv(root(data))
    to_prior = back @ root(root(data) @ prior @ root(data)) @ back
    return float((to_prior @ data)[0, 1]) / weight**0.5


def test_continuous_conditions_bring_less_bias_the_larger_their_weight():
    generator, leans, costs = seeded(), {}, {}
    batches = [torch.randn(3, 128, 1, generator=generator) for _ in range(40)]
    for weight in (0, 10, 100):
        coupling = MinibatchOT(condition_weight=weight) if weight else MinibatchOT()
        c, x, paired = [], [], []
        for condition, error, prior in batches:
            data = 2 * condition + 0.5 * error
            c.append(condition)
            x.append(data)
            paired.append(prior[coupling.pair(prior, data, condition if weight else None)])
        c, x, paired = (torch.cat(parts) for parts in (c, x, paired))
        leans[weight] = float((paired * c).mean() / c.square().mean())
        costs[weight] = float((paired - x).square().mean())
        assert float(paired.std()) == pytest.approx(1, abs=0.03)  # the draws are all there
    independent = torch.stack([2 * c + 0.5 * e - n for c, e, n in batches]).square().mean()
    error = 4 / (40 * 128) ** 0.5  # four standard errors
    assert leans[0] > 0.9
    assert leans[10] == pytest.approx(leaning(10.0), abs=error)
    assert leans[100] == pytest.approx(leaning(100.0), abs=error)
    assert leaning(100.0) == pytest.approx(2 / 100, rel=0.01)  # k/w
    assert abs(leans[100]) < 0.02 + error < leans[10]
    assert costs[0] < costs[10] < costs[100] < 0.93 * independent


def test_weighed_conditions_count_in_the_cost():
    prior, x = torch.randn(40, 1, 3, generator=seeded()), torch.randn(40, 1, 3, generator=seeded(1))
    condition = torch.randn(40, 2, generator=seeded(2))
    costs = torch.cdist(x.flatten(1), prior.flatten(1)).square() + 7 * torch.cdist(condition, condition).square()
    _, columns = linear_sum_assignment(costs.numpy())
    assert torch.equal(MinibatchOT(condition_weight=7.0).pair(prior, x, condition), torch.from_numpy(columns))
    assert torch.equal(MinibatchOT(condition_weight=7.0).pair(prior, x), MinibatchOT().pair(prior, x))
    assert torch.equal(MinibatchOT(condition_weight=1e9).pair(prior, x, condition), torch.arange(40))
    with pytest.raises(ArgumentError, match="for labels leave condition_weight"):
        MinibatchOT(condition_weight=7.0).pair(prior, x, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="conditions hold NaN"):
        MinibatchOT(condition_weight=7.0).pair(prior, x, torch.full((40,), torch.inf))
    lacks = torch.arange(40) % 4 == 0  # NaN says that there is no condition
    found = MinibatchOT(condition_weight=7.0).pair(prior, x, condition.masked_fill(lacks[:, None], torch.nan))
    for rows, cost in ((lacks, torch.cdist(x.flatten(1), prior.flatten(1)).square()), (~lacks, costs)):
        index = rows.nonzero().squeeze(1)
        _, columns = linear_sum_assignment(cost[index][:, index].numpy())
        assert torch.equal(found[index], index[torch.from_numpy(columns)])
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="condition_weight must be positive"):
            MinibatchOT(condition_weight=weight)


@pytest.mark.parametrize("divergence", [proxflow.Wasserstein2(), proxflow.KL(), proxflow.FisherRao()])
def test_training_beliefs_keep_both_laws(divergence):
    x = clusters(128)
    flow, plain = GPFN(divergence, coupling=MinibatchOT()), GPFN(divergence)
    start, end = torch.zeros(128), torch.ones(128)
    paired, drawn = (f.belief(x, start, seeded()).mean for f in (flow, plain))
    assert torch.equal(paired, drawn[MinibatchOT().pair(drawn, x)])  # the same draws, each once
    assert float((paired - x).square().sum()) < 0.8 * float((drawn - x).square().sum())
    torch.testing.assert_close(flow.belief(x, end, seeded()).mean, x)
    t = torch.linspace(0.1, 0.9, 128)
    by_hand = plain.walk(flow.belief(x, start, seeded()), plain.endpoints.target(x, plain.prior(
        x.shape, seeded(), x.dtype, x.device)), t)  # fmt: skip
    torch.testing.assert_close(flow.belief(x, t, seeded()).mean, by_hand.mean)


def test_every_source_of_noise_serves():
    flow, x = GPFN(coupling=MinibatchOT()), clusters(32)
    t = torch.full((32,), 0.3)
    whole = flow.belief(x, t, SampleStreams(0, torch.arange(32))).mean
    assert torch.equal(whole, flow.belief(x, t, SampleStreams(0, torch.arange(32))).mean)
    part = flow.belief(x[8:24], t[8:24], BatchRows(seeded(), 32, range(8, 24))).mean
    mine = torch.randn(32, 2, generator=seeded())[8:24]
    torch.testing.assert_close(part, 0.7 * mine[MinibatchOT().pair(mine, x[8:24])] + 0.3 * x[8:24])


CONFIG = TrainingConfig(steps=100, batch_size=64, checkpoint_every=20, ema=0.9)


def test_training_resumes_bit_for_bit_and_the_seed_decides(tmp_path):
    flow = GPFN(coupling=MinibatchOT())
    whole = fit(perceptron(flow), flow, clusters(), CONFIG)

    def stop(predictor, step):
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(perceptron(flow), flow, clusters(), CONFIG, folder=tmp_path, held_out=clusters(50), on_checkpoint=stop)
    resumed = fit(perceptron(flow), flow, clusters(), CONFIG, folder=tmp_path, held_out=clusters(50))
    for name, value in whole.predictor.state_dict().items():
        assert torch.equal(value, resumed.predictor.state_dict()[name]), name
    other = fit(perceptron(flow), flow, clusters(), dataclasses.replace(CONFIG, seed=1))
    assert other.losses != whole.losses
    assert fit(perceptron(flow), GPFN(), clusters(), CONFIG).losses != whole.losses


def bend(predictor, flow):
    """Mean over samples of the squared distance between what one evaluation gives and what 30 give."""
    one, many = (sample(predictor, flow, (1000, 2), nfe=n, sampler="deterministic", seed=3) for n in (1, 30))
    return float((one - many).square().sum(1).mean())


def test_coupled_paths_are_straighter_and_end_in_the_data():
    config = TrainingConfig(steps=500, batch_size=256, learning_rate=5e-3, ema=0.98, warmup_steps=20)
    bends = {}
    for flow in (GPFN(), GPFN(coupling=MinibatchOT())):
        trained = fit(perceptron(flow), flow, clusters(), config).predictor
        bends[flow.coupling] = bend(trained, flow)
        drawn = sample(trained, flow, (1000, 2), nfe=20, seed=1)
        assert float((drawn.abs() - 1).abs().mean()) < 0.25
        corners = (drawn > 0).float() @ torch.tensor([1.0, 2.0])
        assert torch.bincount(corners.long(), minlength=4).min() > 180
    assert bends[MinibatchOT()] < 0.3 * bends[None]


def test_what_needs_independent_noise_is_refused():
    flow = GPFN(coupling=MinibatchOT())
    predictor = perceptron(flow)
    with pytest.raises(ArgumentError, match="sampler without noise"):
        sample(predictor, flow, (4, 2), sampler=Marginal())
    with pytest.raises(ArgumentError, match="sampler without noise"):
        sample(predictor, flow, (4, 2), sampler="sde-bfn-solver2")
    for sampler in (Marginal(0.0), Multistep(2), Deterministic(), BFNSolver(2)):
        assert sample(predictor, flow, (4, 2), nfe=3, sampler=sampler).isfinite().all()
    with pytest.raises(ArgumentError, match="without a coupling"):
        DistributionMatching(flow, predictor)
    with pytest.raises(ArgumentError, match="paired"):
        ExactMean(flow, proxflow.data.GaussianMixtureLaw(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]))


def test_arguments_that_do_not_fit_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(ArgumentError, match="one shape"):
        MinibatchOT().pair(torch.zeros(5, 2), x)
    with pytest.raises(ArgumentError, match="real numbers"):
        MinibatchOT().pair(x, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="one condition"):
        MinibatchOT().pair(x, x, torch.zeros(3))
    with pytest.raises(ArgumentError, match="not finite"):
        MinibatchOT().pair(x, torch.full((4, 2), torch.nan))
    with pytest.raises(ArgumentError, match="GaussianEndpoints"):
        GPFN(proxflow.ReverseKL(), endpoints=proxflow.CategoricalEndpoints(3), coupling=MinibatchOT())
    with pytest.raises(ArgumentError, match="bfn has no setting 'coupling'"):
        models.build((1, 8, 8), flow="bfn:coupling=ot")


def test_a_missing_solver_is_named_in_training_and_not_needed_after(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ot", None)
    model = models.build((1, 8, 8), flow="gpfn-w2:coupling=ot", network="unet:channels=8,multipliers=1")
    assert model.flow.coupling == MinibatchOT()
    models.save(tmp_path, model, model.predictor.state_dict(), {})
    again = models.load(tmp_path)
    assert again.flow == model.flow
    assert sample(again.predictor, again.flow, (2, 1, 8, 8), nfe=2).isfinite().all()
    with pytest.raises(MissingPackageError, match=r"pip install 'proxflow\[transport\]'"):
        again.flow.loss(again.predictor, torch.zeros(4, 1, 8, 8), seeded())
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"ot"', '"hungarian"'))
    with pytest.raises(CheckpointError, match="no coupling is called 'hungarian'"):
        models.load(tmp_path)


def test_transport_per_label_keeps_the_law_of_each_and_straightens_its_paths():
    """Two moons with their labels: exchanged within a label alone, prior draws stay independent of it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2048) % 2
    angle = torch.pi * torch.rand(2048, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    x = torch.where(labels[:, None] == 0, upper, -upper) + 0.05 * torch.randn(2048, 2, generator=generator)
    asked = torch.arange(2048) % 2
    errors, bends = [], []
    for coupling in (None, MinibatchOT()):
        model = proxflow.build((2,), flow=GPFN(coupling=coupling), network="mlp:width=64,depth=2,classes=2", seed=0)
        settings = {"steps": 300, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.98, "warmup_steps": 20}
        model = model.fit(Examples(x, labels), drop=0.0, **settings)
        drawn = model.sample(2048, nfe=8, seed=1, condition=asked)
        errors.append([metrics.sliced_wasserstein(x[labels == k], drawn[asked == k]) for k in (0, 1)])
        bends.append(straightness(model.predictor, model.flow, (512, 2), nfe=10, condition=asked[:512]))
    independent, transported = errors
    # Two draws of 1024 from one moon are about 0.02 apart.
    assert max(transported) <= max(independent) + 0.02
    assert bends[1] < 0.5 * bends[0]
