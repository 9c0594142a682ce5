"""The library's arithmetic compiles whole: one graph, no break, the same numbers."""

import pytest
import torch
from test_training import Net

from proxflow import BFN, GPFN, DiagonalGaussian, PointPredictor
from proxflow.random import SampleStreams


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("flow", [GPFN(), BFN(0.1)], ids=str)
def test_prediction_and_update_in_one_graph(flow):
    torch.manual_seed(0)
    predict = PointPredictor(Net(), flow, parameterisation="x").eval()

    def step(mean, t, s):
        belief = flow.latent.belief(mean, t)
        return flow.update(belief, predict(belief, t.expand(len(mean))), t, s, None).mean

    mean, t, s = torch.randn(8, 2), torch.tensor(0.2), torch.tensor(0.5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(step)(mean, t, s), step(mean, t, s))


def test_random_streams_in_one_graph():
    def draw(indices):
        return SampleStreams(3, indices).normal(torch.Size([4, 5]), torch.float32)

    indices = torch.arange(4)
    torch.testing.assert_close(compiled(draw)(indices), draw(indices))


def test_bfloat16_autocast_of_the_network_keeps_beliefs_in_single_precision():
    torch.manual_seed(0)
    predict = PointPredictor(Net(), GPFN(), clip=None, parameterisation="x")
    belief, t = DiagonalGaussian(torch.randn(8, 2), torch.ones(())), torch.rand(8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict(belief, t).mean
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, predict(belief, t).mean, rtol=0, atol=0.05)
    assert not torch.equal(rounded, predict(belief, t).mean)
