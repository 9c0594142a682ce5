"""The diffusion transformer: published sizes, any aspect, every parameter in use, compiled exactly."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import proxflow
from proxflow.errors import ArgumentError
from proxflow.nn import DiT


def network(channels=1, **settings):
    torch.manual_seed(0)
    net = DiT((channels, 8, 8), **{"width": 16, "depth": 2, "heads": 2, **settings}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize(
    ("size", "parameters", "operations"),
    [("S", 33e6, 6.06e9), ("B", 130e6, 23.01e9), ("L", 458e6, 80.71e9), ("XL", 675e6, 118.64e9)],
)
def test_parameters_and_operations_are_those_published(size, parameters, operations):
    """Of patch 2 on latents of 4 × 32 × 32 with 1000 classes and variances given as well; a product with its sum is one."""
    with torch.device("meta"):
        net = DiT((4, 32, 32), size=size, outputs=8, classes=1000)
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 4, 32, 32), torch.zeros(1), condition=torch.zeros(1, dtype=torch.int64))
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(parameters, rel=0.01)
    assert counter.get_total_flops() / 2 == pytest.approx(operations, rel=0.01)


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (7, 13), (32, 20)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_any_size_and_channel_count(size, patch):
    if patch == 1 and max(size) > 13:
        size = tuple(-(-side // 4) for side in size)
    for channels, out in ((1, None), (3, 5)):
        net = network(channels, outputs=out, patch=patch)
        output = net(torch.randn(2, channels, *size, dtype=torch.float64), torch.rand(2, dtype=torch.float64))
        assert output.shape == (2, out or channels, *size)


def test_examples_do_not_mix_and_place_time_and_end_matter():
    net = network(reads_end=True)
    x, t = torch.randn(3, 1, 8, 12, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = net(x, t)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1]), together[i : i + 1])
    torch.testing.assert_close(net(x[:1], t[0]), together[:1])  # a scalar time serves the batch
    assert torch.equal(net(x, t, t), together)
    assert not torch.allclose(net(x, t, t + 0.1), together)
    assert not torch.allclose(net(x, t + 0.05), together)
    moved = x.roll(2, 3)  # by a patch: without positions the output would move along
    assert not torch.allclose(net(moved, t), together.roll(2, 3))


def test_every_parameter_has_a_gradient():
    net = network(2, reads_end=True, classes=3, tokens=2, guidance=3.0)
    x, t = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    told = {"label": torch.tensor([0, 2]), "guidance": torch.tensor([[2.0, 0.0, 1.0]] * 2, dtype=torch.float64)}
    net(x, t, t + 0.1, condition=told).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_fresh_networks_return_zero_and_weights_serve_with_more():
    torch.manual_seed(0)
    plain = DiT((1, 8, 8), width=16, depth=1, heads=2)
    torch.manual_seed(0)
    more = DiT((1, 8, 8), width=16, depth=1, heads=2, reads_end=True, classes=5, images=1, guidance=3.0)
    assert not plain(torch.randn(1, 1, 8, 8), torch.zeros(1)).any()
    assert all(torch.equal(tensor, more.state_dict()[name]) for name, tensor in plain.state_dict().items())
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    more.load_state_dict(plain.state_dict(), strict=False)
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(more(x, t), plain(x, t))


def test_compiled_it_is_exact():
    net = network(classes=3, tokens=2).float()
    x, t, labels = torch.randn(3, 1, 8, 12), torch.rand(3), torch.tensor([0, -1, 2])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, t, condition=labels), net(x, t, condition=labels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "M"}, "the sizes Ti, S, B, L, XL, got 'M'"),
        ({"patch": 0}, "patch ≥ 1"),
        ({"width": 18}, "a multiple of 4 for each of 2 heads, got 18"),
        ({"depth": 0}, "depth ≥ 1"),
        ({"tokens": 2}, "tokens of labels or vectors where it reads some, got 2"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        network(**settings)


def test_by_its_word_it_is_built_trained_saved_and_sampled(tmp_path):
    word = "dit:size=Ti,width=16,depth=1,heads=2,patch=4"
    model = proxflow.build((1, 8, 8), network=word, seed=1)
    trained = model.fit(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), steps=2, batch_size=4)
    trained.save_pretrained(tmp_path / "model")
    kept = proxflow.load(tmp_path / "model")
    assert kept.network.settings["width"] == 16
    assert torch.equal(kept.sample(2, nfe=2, seed=0), trained.sample(2, nfe=2, seed=0))


def test_it_learns_long_steps_whose_loss_differentiates_it_forward():
    model = proxflow.build((1, 8, 8), network="dit:width=16,depth=1,heads=2,patch=4", predictor="long-step")
    trained = model.fit(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), steps=2, batch_size=4)
    assert trained.sample(2, nfe=1).shape == (2, 1, 8, 8)
