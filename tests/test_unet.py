"""The U-Net: any size and channel count, every parameter in use, independent examples."""

import pytest
import torch

from proxflow.errors import ArgumentError
from proxflow.nn import UNet


def network(channels=1, **settings):
    torch.manual_seed(0)
    net = UNet(channels, **{"channels": 8, "blocks": 1, **settings}).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (7, 13), (32, 20)])
@pytest.mark.parametrize(
    "settings", [{}, {"patch": 2}, {"patch": 4, "multipliers": (1, 2, 2)}, {"attention": (1,), "multipliers": (1, 4)}]
)
def test_any_size_and_channel_count(size, settings):
    for channels, out in ((1, None), (3, 5)):
        net = network(channels, out_channels=out, **settings)
        output = net(torch.randn(2, channels, *size, dtype=torch.float64), torch.rand(2, dtype=torch.float64))
        assert output.shape == (2, out or channels, *size)


def test_every_parameter_has_a_gradient():
    net = network(2, patch=2, attention=(0, 1), blocks=2)
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


def test_a_fresh_network_returns_zero():
    assert not UNet(1)(torch.randn(1, 1, 8, 8), torch.zeros(1)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels ≥ 1"),
        ({"multipliers": ()}, "at least one multiplier"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch": 0}, "patch ≥ 1"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        UNet(1, **settings)


def test_wrong_input():
    with pytest.raises(ArgumentError, match=r"reads \(batch, 1, height, width\), got \(2, 3, 8, 8\)"):
        UNet(1)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
