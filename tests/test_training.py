"""Training: it learns, resumes bit for bit, refuses bad data, and leaves checkpoints that can be trusted."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from proxflow import GPFN, PointPredictor, TrainingConfig, fit, models, sample
from proxflow.config import from_dict, to_dict
from proxflow.errors import ArgumentError, CheckpointError, DivergedError, MemoryLimitError, OutputError
from proxflow.flows import draw_times
from proxflow.random import mix
from proxflow.training import fit as training
from proxflow.training.feed import Order
from proxflow.training.fit import learning_rate
from proxflow.training.run import Stage


class Net(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Dropout(dropout), torch.nn.Linear(64, 64),
            torch.nn.SiLU(), torch.nn.Linear(64, 2),
        )  # fmt: skip

    def forward(self, mean, t):
        return self.layers(torch.cat([mean, t[:, None].to(mean.dtype)], dim=1))


def model(dropout=0.0):
    torch.manual_seed(0)
    return PointPredictor(Net(dropout), GPFN(), clip=None, parameterisation="x")


def points(number=512):
    # Two tight clusters, at (1, 1) and (−1, −1).
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (number, 1), generator=generator) * 2 - 1
    return signs + 0.1 * torch.randn(number, 2, generator=generator)


CONFIG = TrainingConfig(steps=200, batch_size=64, checkpoint_every=50, ema=0.9)


def test_the_averaged_copy_has_the_newest_buffers():
    class Counts(Net):
        def __init__(self):
            super().__init__(0.0)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, t):
            self.calls += self.training
            return super().forward(x, t)

    result = fit(
        PointPredictor(Counts(), GPFN(), clip=None, parameterisation="x"), GPFN(), points(), replace(CONFIG, steps=7)
    )
    assert float(result.predictor.network.calls) == 7


def test_three_lines_learn_a_distribution():
    config = TrainingConfig(steps=600, batch_size=256, ema=0.99, learning_rate=3e-3)
    result = fit(model(), GPFN(), points(), config)
    assert result.losses[-1] < 0.7 * result.losses[0]
    samples = sample(result.predictor, GPFN(), (400, 2), nfe=30)
    same_side = samples[:, 0].sign() == samples[:, 1].sign()
    assert float(same_side.float().mean()) > 0.95
    assert 0.35 < float((samples[:, 0] > 0).float().mean()) < 0.65
    assert float((samples.abs() - 1).abs().mean()) < 0.2


def killed_and_resumed(folder, config, dropout=0.0, device="cpu"):
    class KilledError(Exception):
        pass

    def kill(predictor, step):
        if step == 100:
            raise KilledError

    with pytest.raises(KilledError):
        fit(model(dropout), GPFN(), points(100), config, folder=folder, on_checkpoint=kill, device=device)
    torch.manual_seed(99)  # whatever else the process drew in between
    return fit(model(dropout), GPFN(), points(100), config, folder=folder, device=device)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, dropout):
    whole = fit(model(dropout), GPFN(), points(100), CONFIG)

    resumed = killed_and_resumed(tmp_path, CONFIG, dropout)
    for name, value in whole.predictor.state_dict().items():
        assert torch.equal(value, resumed.predictor.state_dict()[name]), name
    assert resumed.losses == whole.losses


def test_resuming_a_network_in_another_memory_layout(tmp_path):
    # Image networks are channels-last in memory, files are not; a fused optimiser minds the difference.
    config = TrainingConfig(steps=100, batch_size=2, checkpoint_every=50)
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def train(**settings):
        torch.manual_seed(0)
        built = models.build((1, 8, 8), network="unet:channels=8")
        return fit(built.predictor, built.flow, images, config, **settings).predictor.state_dict()

    def stop(predictor, step):
        if step == 50:
            raise KeyboardInterrupt

    whole = train()
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, on_checkpoint=stop)
    resumed = train(folder=tmp_path)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_finished_run_is_not_trained_again(tmp_path):
    first = fit(model(), GPFN(), points(), CONFIG, folder=tmp_path)
    steps = []
    again = fit(model(), GPFN(), points(), CONFIG, folder=tmp_path, on_checkpoint=lambda _, step: steps.append(step))
    assert steps == [CONFIG.steps]  # once more, as a kill may have come before the first call was done
    assert torch.equal(first.predictor.network.layers[0].weight, again.predictor.network.layers[0].weight)


def test_seed_decides(tmp_path):
    one, two = (fit(model(), GPFN(), points(), CONFIG).losses for _ in range(2))
    assert one == two
    other = fit(model(), GPFN(), points(), from_dict(TrainingConfig, {**to_dict(CONFIG), "seed": 1}, "")).losses
    assert other != one


def test_learning_rate_warms_up_and_decays():
    config = TrainingConfig(steps=1000, warmup_steps=100, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(99, config) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.099)))
    assert learning_rate(500, config) == pytest.approx(0.5)
    assert learning_rate(999, config) < 1e-5


def test_images_in_bytes_are_scaled():
    seen = []

    class Spy(GPFN):
        def loss(self, predict, x, generator, t=None):
            seen.append(x)
            return super().loss(predict, x, generator, t)

    images = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    fit(model(), Spy(), images, TrainingConfig(steps=1, batch_size=8))
    assert sorted(set(seen[0].flatten().tolist())) == [-1.0, 1.0]


def test_every_example_is_seen_once_an_epoch():
    seen = []

    class Spy(GPFN):
        def loss(self, predict, x, generator, t=None):
            seen.append(x[:, 0])
            return super().loss(predict, x, generator, t)

    data = torch.arange(10.0)[:, None].expand(10, 2).clone()
    fit(model(), Spy(), data, TrainingConfig(steps=10, batch_size=4))
    order = torch.cat(seen)
    for epoch in order.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(order[:10], order[10:20])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((4, 2), math.nan), "4 of 4 training examples hold NaN"),
        (torch.zeros(0, 2), "non-empty"),
        (torch.zeros(4), "non-empty tensor"),
        (torch.zeros(4, 2, dtype=torch.complex64), "got torch.complex64"),
    ],
)
def test_bad_data_is_refused_before_work(tmp_path, data, message):
    with pytest.raises(ArgumentError, match=message):
        fit(model(), GPFN(), data, CONFIG, folder=tmp_path)
    assert not list(tmp_path.iterdir())


class Breaks(GPFN):
    """A flow whose loss, or only its gradient, is not finite at some calls."""

    def __init__(self, *bad, value=math.nan, gradient_only=False):
        super().__init__()
        object.__setattr__(self, "bad", set(bad))
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "gradient_only", gradient_only)

    def loss(self, predict, x, generator, t=None):
        self.calls.append(0)
        loss = super().loss(predict, x, generator, t)
        if len(self.calls) - 1 not in self.bad:
            return loss
        # √ at 0 is 0, and its derivative infinite.
        return loss + (loss - loss.detach()).sqrt() if self.gradient_only else loss * self.value


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_changes_nothing_and_is_counted(value, gradient_only):
    # A run whose steps 3 and 7 are bad ends where a run ends that never had them: all else is equal step by step.
    config = TrainingConfig(steps=10, batch_size=64, ema=0.0, warmup_steps=0, learning_rate=1e-2)
    seen = []
    result = fit(model(), Breaks(3, 7, value=value, gradient_only=gradient_only), points(), config, track=seen.append)
    assert result.skipped == 2
    assert seen[-1]["skipped"] == 2
    assert all(math.isfinite(number) for number in seen[-1].values())

    by_hand = model().train()  # the same steps with torch alone
    optimiser = torch.optim.AdamW(by_hand.parameters(), 1e-2, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    order = Order(512, config, Stage(0, 0, 10, 64, 1e-2))
    for step in set(range(10)) - {3, 7}:
        key = mix(0, step)
        t = draw_times(64, torch.Generator().manual_seed(key), torch.device("cpu"))
        optimiser.param_groups[0]["lr"] = learning_rate(step, config)
        optimiser.zero_grad()
        noise = torch.Generator().manual_seed(mix(key, training._NOISE_KEY))
        GPFN().loss(by_hand, points()[order(step)], noise, t).mean().backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), config.clip)
        optimiser.step()
    for one, other in zip(by_hand.parameters(), result.predictor.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_too_many_bad_steps_stop_with_a_diagnosis_and_keep_the_checkpoint(tmp_path):
    bad = Breaks(*range(120, 200))
    with pytest.raises(
        DivergedError,
        match=r"in 30 of the 50 steps before step 150 .*in 30.*Lower the learning rate.*step 100 in .* good",
    ):
        fit(model(), bad, points(), CONFIG, folder=tmp_path)
    resumed = fit(model(), Breaks(), points(), CONFIG, folder=tmp_path)
    whole = fit(model(), GPFN(), points(), CONFIG)
    assert resumed.losses == whole.losses
    for one, other in zip(whole.predictor.parameters(), resumed.predictor.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_after_bad_steps_is_finite(tmp_path):
    # Ten bad steps are within the limit; the checkpoint lies within their stretch.
    def stop(predictor, step):
        assert all(value.isfinite().all() for value in predictor.state_dict().values())
        if step == 30:
            raise KeyboardInterrupt

    config = replace(CONFIG, checkpoint_every=30)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), Breaks(*range(20, 30)), points(), config, folder=tmp_path, on_checkpoint=stop)
    for path in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    whole = fit(model(), Breaks(*range(20, 30)), points(), config)
    resumed = fit(model(), Breaks(), points(), config, folder=tmp_path)
    assert resumed.losses == whole.losses
    assert resumed.skipped == whole.skipped == 10


def test_buffers_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    class Poisoned(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, mean, t):
            self.seen += math.nan
            return super().forward(mean, t)

    with pytest.raises(DivergedError, match=r"network.seen is not finite after step 50"):
        fit(PointPredictor(Poisoned(), GPFN(), parameterisation="x"), GPFN(), points(), CONFIG, folder=tmp_path)
    assert not list(tmp_path.glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: no")]
)
def test_out_of_memory_names_sizes_to_try(error):
    class Large(GPFN):
        def loss(self, predict, x, generator, t=None):
            raise error

    with pytest.raises(
        MemoryLimitError, match=r"32 examples at a time: try --accumulate 4 .* 16 at a time, or --batch-size 32"
    ):
        fit(model(), Large(), points(), replace(CONFIG, accumulate=2))
    with pytest.raises(MemoryLimitError, match="smaller network"):
        fit(model(), Large(), points(), replace(CONFIG, batch_size=1))


def test_parts_of_a_batch_add_up_to_it():
    whole, parted = (fit(model(), GPFN(), points(), replace(CONFIG, accumulate=n)) for n in (1, 5))
    assert parted.losses == pytest.approx(whole.losses, rel=1e-4)
    for one, other in zip(whole.predictor.parameters(), parted.predictor.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_bfloat16_trains_and_is_not_float32():
    losses = [fit(model(), GPFN(), points(), replace(CONFIG, precision=name)).losses for name in ("bf16", "float32")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_precision_is_not_the_callers(precision):
    config = replace(CONFIG, precision=precision)
    alone = fit(model(), GPFN(), points(), config).losses
    with torch.autocast("cpu", torch.bfloat16):
        assert fit(model(), GPFN(), points(), config).losses == alone


def test_compiling_changes_nothing_of_the_result(tmp_path, monkeypatch):
    compiled, really = [], torch.nn.Module.compile

    def traced(module, mode):  # the tracing of torch.compile, without a compiler behind it
        compiled.append(module)
        really(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    config = TrainingConfig(steps=20, batch_size=64, checkpoint_every=10)
    plain = fit(model(), GPFN(), points(), config)
    traced_run = fit(model(), GPFN(), points(), replace(config, compile=True), folder=tmp_path)
    assert len(compiled) == 1
    assert traced_run.losses == plain.losses
    assert fit(model(), GPFN(), points(), config, folder=tmp_path).losses == plain.losses  # names are the same


def test_the_held_out_loss_is_measured_and_logged(tmp_path):
    seen = []
    fit(model(), GPFN(), points(), CONFIG, folder=tmp_path, held_out=points(64), track=seen.append)
    found = {entry["step"]: entry["held_out_loss"] for entry in seen if "held_out_loss" in entry}
    assert list(found) == [50, 100, 150, 200]
    assert found[200] < found[50]
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == seen
    for entry in logged:
        assert {"step", "seconds"} < set(entry)
    with pytest.raises(ArgumentError, match="held-out data must be"):
        fit(model(), GPFN(), points(), CONFIG, held_out=torch.zeros(3))


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    def stop(predictor, step):
        if step == 150:
            raise KeyboardInterrupt

    def log(name):
        entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]

    fit(model(), GPFN(), points(), CONFIG, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(model(), GPFN(), points(), CONFIG, folder=tmp_path / "cut", on_checkpoint=stop)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000150")  # the log is ahead of the checkpoints
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 151, "los')  # torn off by a kill
    fit(model(), GPFN(), points(), CONFIG, folder=tmp_path / "cut")
    assert log("cut") == log("whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, request, number):
    class Signals(GPFN):
        def loss(self, predict, x, generator, t=None):
            if len(calls) == 77:
                os.kill(os.getpid(), number)
            calls.append(0)
            return super().loss(predict, x, generator, t)

    # A shell that puts the tests into the background has them ignore SIGINT, which training respects.
    inherited = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, inherited))
    calls, before = [], signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stop:
        fit(model(), Signals(), points(), CONFIG, folder=tmp_path)
    if number == signal.SIGTERM:
        assert stop.value.code == 143
    assert len(calls) == 78
    assert signal.getsignal(number) == before
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000050", "step-00000078"]
    resumed = fit(model(), Signals(), points(), CONFIG, folder=tmp_path)
    assert resumed.losses == fit(model(), GPFN(), points(), CONFIG).losses


def test_checkpoint_of_another_run_is_refused(tmp_path):
    fit(model(), GPFN(), points(), CONFIG, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"ema = 0.9, not 0.5"):
        fit(model(), GPFN(), points(), replace(CONFIG, ema=0.5), folder=tmp_path)
    # Of one kind and number of layers, but of other sizes.
    (net := Net()).layers[0], net.layers[3] = torch.nn.Linear(3, 8), torch.nn.Linear(8, 64)
    with pytest.raises(CheckpointError, match="another architecture"):
        fit(
            PointPredictor(net, GPFN(), clip=None, parameterisation="x"),
            GPFN(),
            points(),
            CONFIG,
            folder=tmp_path,
        )


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write to the folder"):
        fit(model(), GPFN(), points(), CONFIG, folder=tmp_path / "file" / "below")


class TestModels:
    @pytest.fixture
    def folder(self, tmp_path):
        torch.manual_seed(0)
        built = models.build((1, 12, 12), network="unet:channels=8")
        for parameter in built.predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        models.save(tmp_path, built, built.predictor.state_dict(), {"data": "none"})
        return tmp_path

    def test_round_trip(self, folder):
        loaded = models.load(folder)
        torch.manual_seed(1)
        assert loaded.shape == (1, 12, 12)
        assert loaded.network == models.parse("networks", "unet:channels=8")
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in loaded.predictor.state_dict().items())
        assert not loaded.predictor.training

    @pytest.mark.parametrize("flow", ["gpfn-w2", "gpfn-kl", "gpfn-reverse-kl", "gpfn-fisher-rao", "bfn", "bfn-tuned"])
    def test_every_flow_builds_trains_and_samples(self, flow):
        torch.manual_seed(0)
        built = models.build((1, 8, 8), flow=flow, network="unet:channels=8")
        images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
        result = fit(built.predictor, built.flow, images, TrainingConfig(steps=3, batch_size=4))
        samples = sample(result.predictor, built.flow, (2, *built.shape), nfe=3, sampler="stochastic")
        assert samples.isfinite().all()
        assert samples.abs().max() <= 1

    def test_unknown_model(self):
        with pytest.raises(CheckpointError, match="no model 'nothing-here'"):
            models.load("nothing-here")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(format=99), "format"),
            (lambda c: c["data"].update(shape=[1, 12]), "image: "),
            (lambda c: c["flow"].update(kind="magic"), "no flow is called 'magic'"),
            (lambda c: c["network"].update(channels="8"), "channels must be a whole number"),
            (lambda c: c["network"].update(channels=-1), "channels ≥ 1"),
            (lambda c: c["network"].update(colour=1), "unet has no setting 'colour'"),
            (lambda c: c["network"].update(channels=16), "another architecture"),
            (lambda c: c["network"].update(blocks=2), "another architecture"),
        ],
    )
    def test_bad_configuration(self, folder, change, message):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            models.load(folder)

    def test_corrupt_files(self, folder):
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            models.load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="not readable as JSON"):
            models.load(folder)

    def test_weights_that_are_not_finite(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights[next(iter(weights))].fill_(math.nan)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="not finite"):
            models.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"ema": 1.0},
        {"clip": 0.0},
        {"warmup_steps": -1},
        {"keep": 0},
        {"accumulate": 0},
        {"accumulate": 200},
        {"skip_limit": -1},
    ],
)
def test_training_settings_refused(change):
    with pytest.raises(ArgumentError):
        TrainingConfig(**change)
