"""Reflow: pairs are what the flow makes of its prior, rounds straighten it, what is stopped ends in the same bytes."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import GaussianData

import proxflow
from proxflow import BFN, GPFN, PointPredictor, TrainingConfig, fit, models, sample
from proxflow.couplings import Reflowed
from proxflow.errors import ArgumentError, CheckpointError, OutputError
from proxflow.paths import Linear
from proxflow.random import SampleStreams
from proxflow.samplers import Deterministic
from proxflow.training import reflow as reflow_module
from proxflow.training.reflow import make_pairs, reflow, straightness


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


class Exact(torch.nn.Module):
    """The exact prediction for data N(0, std²), as a module."""

    def __init__(self, flow, std=0.25):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.predict = GaussianData(flow, 0.0, std)

    def forward(self, belief, t):
        return self.predict(belief, t)


def clusters(number=2048):
    signs = torch.randint(0, 2, (number, 2), generator=seeded()) * 2 - 1
    return signs + 0.1 * torch.randn(number, 2, generator=seeded(1))


@pytest.fixture(scope="module")
def trained():
    """A flow of the plane's four clusters and a small network trained on it."""
    torch.manual_seed(0)
    flow = GPFN()
    config = TrainingConfig(steps=600, batch_size=256, learning_rate=5e-3, ema=0.98, warmup_steps=20)
    return flow, fit(
        PointPredictor(Perceptron(), flow, clip=None, parameterisation="x"), flow, clusters(), config
    ).predictor


# pairs ----------------------------------------------------------------------------------------------------------------


def test_pairs_are_prior_draws_and_what_the_sampler_makes_of_them(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(reflow_module, "SHARD", 48)
    flow, predictor = trained
    pairs = make_pairs(predictor, flow, 100, (2,), tmp_path, nfe=5, sampler="deterministic", seed=7)
    assert pairs.x.shape == pairs.start.shape == (100, 2)
    streams = SampleStreams(7, torch.arange(100))
    assert torch.equal(pairs.start, flow.prior((100, 2), streams, torch.float32, torch.device("cpu")).mean)
    assert torch.equal(pairs.x, sample(predictor, flow, (100, 2), nfe=5, sampler=Deterministic(), seed=7))
    belief = proxflow.DiagonalGaussian(pairs.start, torch.ones(()))
    for k in range(4):  # the same by hand
        t, s = torch.tensor(k / 5), torch.tensor((k + 1) / 5)
        belief = flow.update(belief, predictor(belief, t.expand(100)), t, s, None)
    torch.testing.assert_close(pairs.x, predictor(belief, torch.full([100], 0.8)).mean)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"samples-0000{k}.safetensors" for k in range(3)
    ]


def test_pairs_cut_anywhere_are_the_same_bytes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(reflow_module, "SHARD", 32)
    flow, predictor = trained
    whole = make_pairs(predictor, flow, 100, (2,), tmp_path / "whole", nfe=3, batch_size=16)
    monkeypatch.setattr(reflow_module, "write_tensors", _stopped_at(2, reflow_module.write_tensors))
    with pytest.raises(KeyboardInterrupt):
        make_pairs(predictor, flow, 100, (2,), tmp_path / "cut", nfe=3)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.safetensors")}
    monkeypatch.undo()
    monkeypatch.setattr(reflow_module, "SHARD", 32)
    again = make_pairs(predictor, flow, 100, (2,), tmp_path / "cut", nfe=3, batch_size=64)
    assert torch.equal(whole.x, again.x)
    assert torch.equal(whole.start, again.start)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # not made again
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def _stopped_at(number, call):
    """A function that works some times and is then interrupted."""
    calls = []

    def stopped(*arguments, **settings):
        if len(calls) == number:
            raise KeyboardInterrupt
        calls.append(0)
        return call(*arguments, **settings)

    return stopped


def test_pairs_of_something_else_are_refused(trained, tmp_path):
    flow, predictor = trained
    make_pairs(predictor, flow, 20, (2,), tmp_path, nfe=2)
    for change, named in (({"nfe": 3}, "steps"), ({"seed": 1}, "seed"), ({"sampler": "midpoint"}, "sampler")):
        with pytest.raises(OutputError, match=f"{named} = "):
            make_pairs(predictor, flow, 20, (2,), tmp_path, **{"nfe": 2, **change})
    torch.manual_seed(5)
    with pytest.raises(OutputError, match="weights = sha256"):
        make_pairs(PointPredictor(Perceptron(), flow, parameterisation="x"), flow, 20, (2,), tmp_path, nfe=2)
    path = tmp_path / "samples-00000.safetensors"
    save_file({"samples": torch.zeros(3, 2)}, path)
    with pytest.raises(CheckpointError, match="does not hold 20 samples"):
        make_pairs(predictor, flow, 20, (2,), tmp_path, nfe=2)
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        make_pairs(predictor, flow, 20, (2,), tmp_path, nfe=2)


# the objective --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flow", [GPFN(), GPFN(proxflow.KL()), GPFN(schedule=Linear(0.6), coupling=Reflowed())], ids=str
)
def test_the_loss_is_the_flows_own_on_given_pairs(flow):
    start, end = torch.randn(2, 8, 3, generator=seeded(), dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    seen = []

    def predict(belief, time):
        seen.append(belief)
        return proxflow.DiagonalGaussian(belief.mean * 0.5, torch.zeros((), dtype=torch.float64))

    loss = flow.loss(predict, end, seeded(), t, start=start)
    a, b = (c[:, None] for c in flow.path.coefficients(t))
    mean = a * end + b * start
    torch.testing.assert_close(seen[0].mean, mean)
    torch.testing.assert_close(loss, flow.weight(t) * (mean * 0.5 - end).square().mean(1))
    assert torch.equal(*(flow.loss(predict, end, seeded(3), start=start) for _ in range(2)))


def test_what_reflow_cannot_train_is_refused(tmp_path):
    classes = GPFN(proxflow.ReverseKL(), endpoints=proxflow.CategoricalEndpoints(3))
    for flow in (BFN(), proxflow.Diffusion(), GPFN(proxflow.FisherRao()), classes):
        with pytest.raises(ArgumentError, match="reflow needs"):
            reflow_module.check_flow(flow)
    for start in (torch.zeros(4, 3), torch.zeros(3, 2), torch.zeros(4, 2, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match="one prior draw for each"):
            GPFN().loss(lambda belief, t: belief, torch.zeros(4, 2), seeded(), start=start)
    for flow in (BFN(), proxflow.DiscreteBFN(3), classes):
        x = torch.zeros(4, 2, dtype=torch.float32 if isinstance(flow, BFN) else torch.int64)
        with pytest.raises(ArgumentError, match="no start can be given"):
            flow.loss(lambda belief, t: belief, x, seeded(), start=torch.zeros(x.shape))
    with pytest.raises(ArgumentError, match="pairs of its own"):
        GPFN(coupling=Reflowed()).loss(lambda belief, t: belief, torch.zeros(4, 2), seeded())
    module = torch.nn.Linear(1, 1)
    with pytest.raises(ArgumentError, match="without noise"):
        make_pairs(module, GPFN(), 4, (2,), tmp_path / "x", sampler="stochastic")
    with pytest.raises(ArgumentError, match="pair_nfe"):
        make_pairs(module, GPFN(), 4, (2,), tmp_path / "x", nfe=0)
    with pytest.raises(ArgumentError, match="pairs must be at least 1"):
        make_pairs(module, GPFN(), 0, (2,), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ArgumentError, match="cannot bend"):
        straightness(module, GPFN(), (16, 2), nfe=1)


# straightness ---------------------------------------------------------------------------------------------------------


def test_straightness_is_that_of_a_gaussian_by_hand():
    # Data N(0, s²) from N(0, 1): y(τ) = y₀ √(τ² s² + (1 − τ)²), so S = ∫ (dy/dτ)² dτ − (y₁ − y₀)² over y₀² of mean 1.
    flow, spread = GPFN(), 0.25
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    speed = (tau * spread**2 - (1 - tau)) / (tau**2 * spread**2 + (1 - tau) ** 2).sqrt()
    expected = float(speed.square().mean() - speed.mean() ** 2)
    found = straightness(Exact(flow, spread), flow, (4096, 4), nfe=400)
    assert found == pytest.approx(expected, rel=0.03)
    # Where the target is a point, every path is straight.
    assert straightness(Exact(flow, 1e-9), flow, (64, 2)) == pytest.approx(0, abs=1e-12)


def test_a_round_straightens_and_keeps_the_law(trained, tmp_path):
    flow, predictor = trained
    pairs = make_pairs(predictor, flow, 4096, (2,), tmp_path, nfe=20, seed=11)
    config = TrainingConfig(steps=400, batch_size=256, learning_rate=3e-3, ema=0.98, warmup_steps=20)
    straight = fit(copy.deepcopy(predictor).requires_grad_(True), flow, pairs, config).predictor
    longer = fit(copy.deepcopy(predictor).requires_grad_(True), flow, clusters(), config).predictor  # no pairs, as long
    bends = [straightness(p, flow, (1024, 2), seed=3) for p in (predictor, longer, straight)]
    assert bends[2] < 0.3 * bends[0]
    assert bends[1] > 0.7 * bends[0]
    # One evaluation of the model before stays near the mean of the clusters; of the model after it gives all four of them.
    for model, steps, least, most in ((predictor, 1, 0.6, 1.1), (straight, 1, 0.0, 0.35), (straight, 20, 0.0, 0.25)):
        drawn = sample(model, flow, (1000, 2), nfe=steps, seed=5)
        assert least < float((drawn.abs() - 1).abs().mean()) < most
    for steps in (1, 20):
        corners = (sample(straight, flow, (1000, 2), nfe=steps, seed=5) > 0).float() @ torch.tensor([1.0, 2.0])
        assert torch.bincount(corners.long(), minlength=4).min() > 180


# the pipeline ---------------------------------------------------------------------------------------------------------

TRAINING = TrainingConfig(steps=30, batch_size=8, checkpoint_every=10, learning_rate=1e-3)
WORK = {"rounds": 2, "pairs": 40, "pair_nfe": 3}


def tiny(flow="gpfn-w2"):
    torch.manual_seed(0)
    model = models.build((1, 8, 8), flow=flow, network="mlp:width=16,depth=1")  # bytes are compared, of any network
    with torch.no_grad():
        for parameter in model.predictor.parameters():  # a new network's last layer is zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reflow")
    lines = []
    reflow(
        tiny(), TRAINING, folder, **WORK, source="tiny", provenance={"hardware": {"device": "cpu"}}, say=lines.append
    )
    assert sum("reflow: round" in line for line in lines) == 2
    return folder


def test_the_folder_is_that_of_a_model(whole):
    model = models.load(whole)
    assert model.flow.coupling == Reflowed()
    assert model.flow.coupling == Reflowed()
    assert sample(model.predictor, model.flow, (2, *model.shape), nfe=1).isfinite().all()
    known = model.provenance["reflow"]
    assert known["rounds"] == 2
    assert known["pairs"] == 40
    # Two rounds of 40 pairs of 3 evaluations, and of 30 steps of 8 examples of 3 passes.
    assert known["network_passes"] == {"pairs": 240, "training": 1440}
    assert len(known["straightness"]) == 3
    assert known["straightness"][1] < known["straightness"][0]
    assert "reflow" in models.card(model)
    first = models.load(whole / "round-1")
    assert first.provenance["reflow"]["network_passes"] == {"pairs": 120, "training": 720}
    assert not (whole / "round-1" / "pairs").exists()
    assert not (whole / "round-1" / "checkpoints").exists()
    with pytest.raises(ArgumentError, match="sampler without noise"):
        sample(model.predictor, model.flow, (2, *model.shape), sampler="marginal")


@pytest.mark.parametrize(
    ("name", "calls"), [("write_tensors", 0), ("fit", 0), ("fit", 1), ("_straightness", 1), ("remove_all", 0)]
)
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch, name, calls):
    monkeypatch.setattr(reflow_module, name, _stopped_at(calls, getattr(reflow_module, name)))
    with pytest.raises(KeyboardInterrupt):
        reflow(tiny(), TRAINING, tmp_path, **WORK)
    monkeypatch.undo()
    reflow(tiny(), TRAINING, tmp_path, **WORK)
    _same_weights(whole, tmp_path)


def test_stopped_within_the_training_of_a_round_it_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        def stop(predictor, step):
            if step == 20:
                raise KeyboardInterrupt

        return fit(*arguments, **settings, on_checkpoint=stop)

    monkeypatch.setattr(reflow_module, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        reflow(tiny(), TRAINING, tmp_path, **WORK)
    assert (tmp_path / "round-1" / "checkpoints").exists()
    monkeypatch.undo()
    reflow(tiny(), TRAINING, tmp_path, **{**WORK, "rounds": 1})
    assert models.load(tmp_path).provenance["reflow"]["rounds"] == 1
    reflow(tiny(), TRAINING, tmp_path, **WORK)  # one more
    _same_weights(whole, tmp_path)


def _same_weights(one, other):
    for name in ("model.safetensors", "round-1/model.safetensors", "round-2/model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert not (other / "round-1" / "pairs").exists()
    assert not (other / "round-2" / "checkpoints").exists()
    known = [json.loads((folder / "config.json").read_text())["provenance"]["reflow"] for folder in (one, other)]
    assert known[0]["straightness"] == known[1]["straightness"]


def test_a_finished_run_is_not_repeated_and_another_is_refused(whole, monkeypatch):
    before = load_file(whole / "model.safetensors")
    monkeypatch.setattr(reflow_module, "fit", None)
    monkeypatch.setattr(reflow_module, "sample", None)
    reflow(tiny(), TRAINING, whole, **WORK, source="tiny")
    after = load_file(whole / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for change, named in (({"pairs": 41}, "pairs = 40, not 41"), ({"sampler": "midpoint"}, "sampler = multistep2")):
        with pytest.raises(OutputError, match=named):
            reflow(tiny(), TRAINING, whole, **{**WORK, **change})
    with pytest.raises(OutputError, match=r"flow\.divergence = w2, not kl"):
        reflow(tiny("gpfn-kl"), TRAINING, whole, **WORK)


def test_wrong_arguments_are_refused_before_work(tmp_path):
    out = tmp_path / "out"
    for change, named in (
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"pair_nfe": 0}, "pair_nfe must be at least 1"),
        ({"sampler": "stochastic"}, "without noise"),
    ):
        with pytest.raises(ArgumentError, match=named):
            reflow(tiny(), TRAINING, out, **{**WORK, **change})
    with pytest.raises(ArgumentError, match="reflow needs"):
        reflow(tiny("bfn"), TRAINING, out, **WORK)
    assert not out.exists()
