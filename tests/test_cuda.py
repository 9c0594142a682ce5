"""On a GPU: the numbers of the processor, and a host that does not wait inside a loop. Skipped where there is none."""

import math
from dataclasses import replace

import pytest
import torch
from test_divergences import PAIRS as DIVERGENCES
from test_likelihood_ode import FLOWS, Network
from test_sampler_contracts import EVENT, run
from test_sampler_contracts import PAIRS as SAMPLER_PAIRS
from test_training import CONFIG, killed_and_resumed, model, points

from proxflow import (
    GPFN,
    DiagonalGaussian,
    PointPredictor,
    TrainingConfig,
    data,
    fit,
    given,
    metrics,
    models,
    sample,
)
from proxflow.cli import main
from proxflow.errors import ArgumentError
from proxflow.likelihood import ode_log_likelihood
from proxflow.random import SampleStreams
from proxflow.samplers import SAMPLERS
from proxflow.samplers.registry import Replayed
from proxflow.training import recipes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


def on_cuda(belief):
    return belief.map(lambda tensor: tensor.to(CUDA))


def assert_same(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pair", DIVERGENCES, ids=str)
def test_divergences_and_their_steps(pair):
    p, q, fraction = pair.beliefs(8)
    assert_same(pair.divergence(on_cuda(p), on_cuda(q)), pair.divergence(p, q))
    if pair.has_step:
        found, expected = pair.step(on_cuda(p), on_cuda(q), fraction.to(CUDA)), pair.step(p, q, fraction)
        for name, tensor in expected.tensors().items():
            assert_same(found.tensors()[name], tensor, 1e-7)


@pytest.mark.parametrize(("name", "setting"), SAMPLER_PAIRS)
def test_samples_are_those_of_the_processor(name, setting):
    found, expected = (run(name, setting, 6, device=device).events for device in (CUDA, "cpu"))
    assert found.device.type == "cuda"
    assert_same(found, expected)


@pytest.mark.parametrize(("name", "setting"), SAMPLER_PAIRS)
def test_the_host_does_not_wait_inside_the_loop(name, setting):
    exact, targets = setting.predict(CUDA), []

    def predict(belief, t):
        targets.append(exact(belief, t))
        return targets[-1]

    expected = run(name, setting, 6, predict=predict, device=CUDA).events
    given = iter(targets)

    def known(belief, t):
        torch.cuda.set_sync_debug_mode("error")
        return next(given)

    try:
        found = run(name, setting, 6, predict=known, device=CUDA).events
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "setting"), SAMPLER_PAIRS)
def test_a_run_is_recorded_whole_as_a_graph(name, setting):
    exact, targets = setting.predict(CUDA), []
    run(name, setting, 6, predict=lambda belief, t: targets.append(exact(belief, t)) or targets[-1], device=CUDA)

    def drawn(indices):  # with known targets: the exact predictors compute on the host
        given = iter(targets)
        streams, shape = SampleStreams(0, indices), (8, *EVENT)
        return SAMPLERS[name](
            lambda belief, t: next(given), setting.flow, shape, 6, streams, dtype=torch.float64, device=CUDA
        ).events

    replayed = Replayed(drawn, 8, CUDA)
    for indices in (torch.arange(8, device=CUDA), torch.arange(3, 11, device=CUDA)):
        torch.testing.assert_close(replayed(indices), drawn(indices), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", ["multistep2", "stochastic"])
def test_samples_from_a_graph_are_the_same(sampler):
    unet = models.build((1, 28, 28), network="unet:channels=8,multipliers=1,patch=4")
    predictor, shape = unet.predictor.to(CUDA), (70, 1, 28, 28)  # two batches as recorded, and a smaller one
    settings = {"steps": 4, "sampler": sampler, "batch_size": 32, "first": 5}
    found = sample(predictor, unet.flow, shape, graph=True, **settings)
    torch.testing.assert_close(found, sample(predictor, unet.flow, shape, **settings), rtol=0, atol=5e-3)


def test_work_that_waits_for_the_device_is_not_recorded():
    class Waits(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x) * float(x.abs().max())

    flow, network = GPFN(), Waits(2, 2).to(CUDA)
    with pytest.raises(ArgumentError, match="cannot be recorded"):
        sample(PointPredictor(network, flow, parameterisation="x"), flow, (64, 2), nfe=3, batch_size=32, graph=True)
    assert (
        sample(PointPredictor(network, flow, parameterisation="x"), flow, (64, 2), nfe=3, batch_size=32)
        .isfinite()
        .all()
    )


def test_streams_are_those_of_the_processor():
    def drawn(device):
        streams = SampleStreams(5, torch.arange(3, device=device))
        shapes = [(3, 5), (3, 5), (3, 5), (3, 2, 2), (3, 5)]  # the third is made ahead, with the second
        return [streams.normal(torch.Size(shape), torch.float64) for shape in shapes]

    for found, expected in zip(drawn(CUDA), drawn("cpu"), strict=True):
        assert_same(found, expected)


def test_a_sample_depends_on_its_seed_and_index_alone():
    unet = models.build((1, 28, 28), network="unet:channels=8,multipliers=1,patch=4")
    predictor = unet.predictor.to(CUDA)
    together, apart = (
        sample(predictor, unet.flow, (40, 1, 28, 28), nfe=4, sampler="stochastic", batch_size=size) for size in (48, 16)
    )
    # Kernels differ with the batch, and convolutions round to TensorFloat-32.
    torch.testing.assert_close(apart, together, rtol=0, atol=5e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_learns_and_resumes_bit_for_bit(tmp_path, precision):
    config = replace(CONFIG, precision=precision)
    whole = fit(model(), GPFN(), points(100), config, device=CUDA)
    assert whole.losses[-1] < whole.losses[0]
    resumed = killed_and_resumed(tmp_path, config, device=CUDA)
    for name, value in whole.predictor.state_dict().items():
        assert value.device.type == "cuda"
        assert torch.equal(value, resumed.predictor.state_dict()[name]), name
    assert resumed.losses == whole.losses


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision_is_not_the_callers(precision):
    config = replace(CONFIG, precision=precision)
    alone = fit(model(), GPFN(), points(100), config, device=CUDA).losses
    with torch.autocast("cuda", torch.bfloat16):
        assert fit(model(), GPFN(), points(100), config, device=CUDA).losses == alone


@pytest.mark.parametrize("method", ["distribution-matching", "autoguidance"])
def test_students_learn(method):
    def unet():
        return models.build(
            (1, 28, 28), flow="gpfn-w2:schedule=linear:final=0.8", network="unet:channels=8,multipliers=1,patch=4"
        )

    torch.manual_seed(0)
    student, teacher, worse = unet(), unet(), unet()
    for known in (teacher, worse):
        known.predictor.to(CUDA).eval()
    learning = recipes.recipe(method, student, teacher, worse if method == "autoguidance" else None)
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    result = fit(learning.module, learning.objective, images, TrainingConfig(steps=4, batch_size=16), device=CUDA)
    assert all(map(math.isfinite, result.losses))
    kept = learning.kept(result.predictor)
    assert bool(sample(kept, student.flow, (16, 1, 28, 28), nfe=1).isfinite().all())


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_likelihood(flow):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    network = Network()
    expected = ode_log_likelihood(PointPredictor(network, flow, clip=None, parameterisation="x"), flow, x, steps=8)
    found = ode_log_likelihood(
        PointPredictor(network, flow, clip=None, parameterisation="x").to(CUDA), flow, x.to(CUDA), steps=8
    )
    assert_same(found.log_prob, expected.log_prob)


def test_scores_are_those_of_the_processor():
    images = data.load("mnist", "test").images[:3000]
    extract, extract_here = (metrics.classifier_features("mnist", device) for device in (CUDA, "cpu"))
    features = extract(images)
    assert_same(features, extract_here(images), 1e-4)
    found, expected = (metrics.Reference.of(f[:1500]).score(f[1500:]) for f in (features, extract_here(images)))
    for name in ("frechet", "kid", "precision", "recall"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-6)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_a_compiled_predictor_samples_alike():
    unet = models.build((1, 28, 28), network="unet:channels=8,multipliers=1,patch=4")
    predictor = unet.predictor.to(CUDA).eval()
    shape = (32, 1, 28, 28)
    expected = sample(predictor, unet.flow, shape, nfe=3, sampler="marginal")
    predictor.compile(mode="reduce-overhead")
    found = sample(predictor, unet.flow, shape, nfe=3, sampler="marginal")
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_autocast_keeps_beliefs_in_single_precision():
    predictor = model().to(CUDA)
    belief, t = (
        DiagonalGaussian(torch.randn(8, 2, device=CUDA), torch.ones((), device=CUDA)),
        torch.rand(8, device=CUDA),
    )
    with torch.autocast("cuda", torch.bfloat16):
        rounded = predictor(belief, t).mean
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, predictor(belief, t).mean, rtol=0, atol=0.05)


def test_the_command_line(tmp_path):
    words = "--network unet:channels=8,multipliers=1,patch=4 --steps 3 --batch-size 8 --grid 4 --device cuda --out"
    assert main(["train", *words.split(), str(tmp_path / "m")]) == 0
    settings = "--n 40 --steps 2 --batch-size 16 --device cuda --out"
    for words in (settings, f"--graph {settings}"):
        assert main(["sample", str(tmp_path / "m"), *words.split(), str(tmp_path / "x.npz")]) == 0
        assert (tmp_path / "x.npz").exists()


def conditional_unet():
    unet = models.build((1, 28, 28), network="unet:channels=8,multipliers=1,patch=4,classes=3", seed=0)
    torch.manual_seed(0)
    for parameter in unet.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return unet


@pytest.mark.parametrize("rule", ["linear", "zero-star", "projected:cap=2,momentum=-0.5"])
def test_guided_samples_are_those_of_the_processor_and_the_host_does_not_wait(rule):
    unet, labels = conditional_unet(), torch.arange(70) % 3
    settings = {"nfe": 4, "guidance": 2.0, "interval": (0.2, 1.0), "rule": rule, "batch_size": 32, "decode": False}
    expected = unet.sample(70, condition=labels, **settings)
    unet.predictor.to(CUDA)
    assert_same(unet.sample(70, condition=labels, **settings), expected, 5e-3)
    assert_same(unet.sample(70, condition=labels, graph=True, **settings), expected, 5e-3)

    guided, calls = unet.guided(2.0, (0.2, 1.0), rule), []

    def forbid(module, inputs):
        calls.append(len(inputs[0]))
        torch.cuda.set_sync_debug_mode("error")

    handle = guided.network.register_forward_pre_hook(forbid)
    guided.eval()
    try:
        streams = SampleStreams(0, torch.arange(32, device=CUDA))
        told = given(guided, (torch.arange(32) % 3).to(CUDA))
        found = SAMPLERS["multistep2"](told, unet.flow, (32, 1, 28, 28), 4, streams, device=CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        handle.remove()
    assert calls == [32, 64, 64, 64]  # both evaluations of a guided prediction are one call
    assert found.nfe == 7
    assert found.events.isfinite().all()
