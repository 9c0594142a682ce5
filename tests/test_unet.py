"""The networks: any size and channel count, every parameter in use, independent examples."""

import hashlib

import pytest
import torch
from torch import nn

import proxflow
from proxflow import names
from proxflow.errors import ArgumentError
from proxflow.nn import MLP, DiT, UNet
from proxflow.nn.unet import ResidualBlock


def network(channels=1, **settings):
    torch.manual_seed(0)
    net = UNet((channels, 8, 8), **{"channels": 8, "blocks": 1, **settings}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (7, 13), (32, 20)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patch": 2},
        {"patch": 4, "multipliers": (1, 2, 2)},
        {"attention": (1,), "multipliers": (1, 4)},
        {"multipliers": (1, 2, 2), "resample": "block", "modulation": "shift"},
    ],
)
def test_any_size_and_channel_count(size, settings):
    for channels, out in ((1, None), (3, 5)):
        net = network(channels, outputs=out, **settings)
        output = net(torch.randn(2, channels, *size, dtype=torch.float64), torch.rand(2, dtype=torch.float64))
        assert output.shape == (2, out or channels, *size)


PUBLISHED = {"resample": "block", "modulation": "shift", "attention_up": "last", "head": 16}


@pytest.mark.parametrize("settings", [{}, PUBLISHED])
def test_every_parameter_has_a_gradient(settings):
    net = network(2, patch=2, attention=(0, 1), blocks=2, **settings)
    net(torch.randn(2, 2, 16, 16, dtype=torch.float64), torch.rand(2, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_examples_do_not_mix_and_time_matters():
    net = network(patch=2, attention=(1,))
    x, t = torch.randn(3, 1, 12, 12, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = net(x, t)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1]), together[i : i + 1])
    assert not torch.allclose(net(x, t + 0.05), together)
    torch.testing.assert_close(net(x[:1], t[0]), together[:1])  # a scalar time serves the batch


@pytest.mark.parametrize("settings", [{}, {**PUBLISHED, "attention": (1,)}])
def test_a_fresh_network_returns_zero(settings):
    assert not UNet((1, 8, 8), **settings)(torch.randn(1, 1, 8, 8), torch.zeros(1)).any()


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [("unet-ddpmpp", (3, 32, 32), 0, 55.7e6), ("unet-adm", (3, 64, 64), 1000, 295.9e6)],
)
def test_presets_have_the_parameters_published(name, shape, classes, parameters):
    entry = names.BUILT_IN["networks"][name]
    with torch.device("meta"):
        net = UNet(shape, classes=classes, **entry.settings)
        assert net(torch.zeros(2, *shape), torch.zeros(2)).shape == (2, *shape)
    found = sum(parameter.numel() for parameter in net.parameters())
    assert found == pytest.approx(parameters, rel=0.003)
    assert f"{found / 1e6:.3g} M" in entry.line


def test_blocks_between_levels_change_the_resolution_and_a_preset_is_a_word(tmp_path):
    net = network(multipliers=(1, 1), resample="block")
    embedding = torch.randn(1, 32, dtype=torch.float64)
    for layer, side in ((net.down[1], 2), (net.up[2], 8)):
        x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
        plain = ResidualBlock(8, 8, 32, 0.0).double()
        plain.load_state_dict(layer.state_dict())
        resize = nn.AvgPool2d(2) if side == 2 else nn.Upsample(scale_factor=2)
        norm, activation, convolution = plain.enter
        plain.skip, plain.enter = resize, nn.Sequential(norm, activation, resize, convolution)
        assert layer(x, embedding).shape[2:] == (side, side)
        torch.testing.assert_close(layer(x, embedding), plain(x, embedding))
    model = proxflow.build((3, 8, 8), network="unet-ddpmpp:channels=8", seed=0)
    model.save_pretrained(tmp_path)
    again = proxflow.load(tmp_path)
    assert again.network.settings["resample"] == "block"
    assert torch.equal(again.sample(1, nfe=1), model.sample(1, nfe=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels ≥ 1"),
        ({"multipliers": ()}, "at least one multiplier"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch": 0}, "patch ≥ 1"),
        ({"outputs": 0}, "outputs ≥ 1"),
        ({"resample": "pool"}, "resample convolution or block, got 'pool'"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        UNet((1, 8, 8), **settings)


def test_wrong_input():
    with pytest.raises(ArgumentError, match=r"reads \(batch, 1, height, width\), got \(2, 3, 8, 8\)"):
        UNet((1, 8, 8))(torch.zeros(2, 3, 8, 8), torch.zeros(2))


@pytest.mark.parametrize("shape", [1, (1, 8, 8, 8), (0, 8, 8), (1.0, 8, 8), "188"])
def test_unets_need_a_shape_of_images(shape):
    with pytest.raises(ArgumentError, match=r"UNet needs a shape \(channels, height, width\)"):
        UNet(shape)


@pytest.mark.parametrize("network", [UNet, DiT])
def test_networks_of_images_say_what_rows_take(network):
    for shape in ((8,), (1, 8)):
        with pytest.raises(ArgumentError, match=r"is for images, \(channels, height, width\), .* take mlp"):
            network(shape)


def test_initial_weights_and_outputs_at_a_seed_stay_as_they_were():
    torch.manual_seed(3)
    net = UNet((3, 8, 8), outputs=5, patch=2, attention=(1,), reads_end=True, channels=16)
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "4f2422af9a3aeb21"  # before its arguments were a shape and outputs


# MLP ------------------------------------------------------------------------------------------------------------------


def perceptron(shape, **settings):
    torch.manual_seed(0)
    net = MLP(shape, **{"width": 16, "depth": 2, **settings}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize(
    ("shape", "outputs", "returned"), [((3,), None, (3,)), ((6,), 3, (3,)), ((2, 3, 4), 5, (5, 3, 4))]
)
def test_an_mlp_reads_events_of_any_shape(shape, outputs, returned):
    net = perceptron(shape, outputs=outputs, reads_end=True)
    x, t = torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.5, 0.9], dtype=torch.float64)
    together = net(x, t)
    assert together.shape == (4, *returned)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1]), together[i : i + 1])
    torch.testing.assert_close(net(x[:1], t[0]), together[:1])  # a scalar time serves the batch
    assert torch.equal(net(x, t, t), together)
    assert not torch.allclose(net(x, t, t + 0.1), together)
    assert not torch.allclose(net(x, t + 0.05), together)
    net(x, t, t + 0.1).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_fresh_mlp_returns_zero_and_its_weights_serve_with_an_end():
    torch.manual_seed(0)
    plain = MLP((3,), width=8)
    assert not plain(torch.randn(2, 3), torch.zeros(2)).any()
    torch.manual_seed(0)
    reader = MLP((3,), width=8, reads_end=True)
    assert all(torch.equal(tensor, reader.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_an_mlp_learns_a_function_of_its_input_and_time():
    torch.manual_seed(0)
    net = MLP((2,), outputs=1, width=64, depth=2)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(400):
        x, t = torch.randn(256, 2), torch.rand(256)
        loss = (net(x, t)[:, 0] - x[:, 0] * t - x[:, 1].sin()).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.01  # the function's own variance is about 0.8


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((), {}, r"MLP needs a shape of an event"),
        ((3, 0), {}, "each number ≥ 1"),
        ((3,), {"width": 0}, "width ≥ 1"),
        ((3,), {"depth": 0}, "depth ≥ 1"),
        ((3,), {"outputs": 0}, "outputs ≥ 1"),
        ((3,), {"dropout": -0.1}, "dropout"),
    ],
)
def test_settings_an_mlp_refuses(shape, settings, message):
    with pytest.raises(ArgumentError, match=message):
        MLP(shape, **settings)


def test_wrong_input_of_an_mlp():
    with pytest.raises(ArgumentError, match=r"reads \(batch, 3\), got \(2, 4\)"):
        MLP((3,))(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ArgumentError, match="reads_end"):
        MLP((3,))(torch.zeros(2, 3), torch.zeros(2), torch.ones(2))
