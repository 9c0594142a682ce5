"""Predictors: parameterisations undo each other, ranges are kept, wrong settings are refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_flows import double, seeded

from proxflow import (
    BFN,
    GPFN,
    KL,
    Categorical,
    ClassPredictor,
    DiagonalGaussian,
    Diffusion,
    FisherRao,
    GaussianEndpoints,
    PointPredictor,
    TrainingConfig,
    fit,
)
from proxflow.errors import ArgumentError


class Says(torch.nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, mean, t):
        return self.output


X = torch.rand(4, 3, generator=seeded(), dtype=torch.float64) * 2 - 1
NOISE = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
TIMES = double([0.05, 0.3, 0.6, 0.95])


@pytest.mark.parametrize("flow", [GPFN(), GPFN(KL(), endpoints=GaussianEndpoints(0.3)), BFN(0.05), BFN(1e-3)], ids=str)
@pytest.mark.parametrize(("name", "output"), [("x", X), ("epsilon", NOISE), ("v", X - NOISE)])
def test_a_perfect_output_gives_the_data(flow, name, output):
    if name == "epsilon" and isinstance(flow, GPFN):
        flow = Diffusion(flow.path)  # the same beliefs, with weights of times that ε can be trained by
        predict = PointPredictor(Says(output), flow, parameterisation=name, clip=(-1.0, 1.0))
    else:
        predict = PointPredictor(Says(output), flow, parameterisation=name)
    a, b = (c[:, None] for c in flow.path.coefficients(TIMES))
    belief = DiagonalGaussian(a * X + b * NOISE, double(1.0))
    predicted = predict(belief, TIMES)
    torch.testing.assert_close(predicted.mean, X, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("flow", "name"),
    [(flow, name) for flow in (GPFN(), BFN(1e-3)) for name in ("x", "v", "edm")] + [(BFN(), "epsilon")],
)
def test_finite_at_the_first_time_in_single_precision(flow, name):
    mean = torch.zeros(2, 3) if isinstance(flow, BFN) else torch.randn(2, 3, generator=seeded())
    predict = PointPredictor(Says(torch.ones(2, 3)), flow, parameterisation=name).eval()
    predicted = predict(DiagonalGaussian(mean, torch.ones(())), torch.zeros(2))
    assert predicted.mean.isfinite().all()
    assert predicted.mean.dtype == torch.float32


def test_clipping_in_evaluation_and_only_when_asked_in_training():
    belief = DiagonalGaussian(torch.zeros(1, 2), torch.ones(()))
    t = torch.full((1,), 0.5)
    says = {"parameterisation": "x", "clip": (-1.0, 1.0)}
    predict = PointPredictor(Says(torch.tensor([[3.0, -3.0]])), GPFN(), **says)
    assert predict.eval()(belief, t).mean.tolist() == [[1.0, -1.0]]
    assert predict.train()(belief, t).mean.tolist() == [[3.0, -3.0]]
    always = PointPredictor(Says(torch.tensor([[3.0, -3.0]])), GPFN(), **says, clip_in_training=True)
    assert always.train()(belief, t).mean.tolist() == [[1.0, -1.0]]


def test_target_carries_the_flows_spread():
    flow = GPFN(endpoints=GaussianEndpoints(0.25))
    predicted = PointPredictor(Says(torch.zeros(1, 2)), flow)(
        DiagonalGaussian(torch.zeros(1, 2), torch.ones(())), torch.zeros(1)
    )
    assert float(predicted.std.max()) == 0.25


@pytest.mark.parametrize("event", [(5,), (2, 4, 3)])
@pytest.mark.parametrize("classes", [2, 4])
def test_class_predictor_keeps_classes_and_places_apart(event, classes):
    # A network that adds each entry's own number shows where every logit comes from.
    seen = {}

    class Network(torch.nn.Module):
        def forward(self, features, t):
            seen["shape"] = features.shape
            return features

    belief = Categorical(torch.randn(3, *event, classes, generator=seeded()))
    predicted = ClassPredictor(Network())(belief, torch.zeros(3))
    if classes == 2:
        assert seen["shape"] == (3, *event)
        torch.testing.assert_close(predicted.logits[..., 0], belief.features())
    else:
        assert seen["shape"] == ((3, *event, classes) if len(event) == 1 else (3, event[0] * classes, *event[1:]))
        torch.testing.assert_close(predicted.logits, belief.features())


@pytest.mark.parametrize(
    ("settings", "flow", "message"),
    [
        ({"parameterisation": "score"}, GPFN(), "one of .*'v'.*got 'score'"),
        ({"clip": (1.0, -1.0)}, GPFN(), "lowest < highest"),
        ({"parameterisation": "v"}, GPFN(FisherRao()), "use 'x'"),
        ({"parameterisation": "x", "std": (2.0,)}, GPFN(), "for parameterisation 'edm'"),
        ({"mean": (math.nan,)}, GPFN(), "finite"),
        ({"std": (0.0,)}, GPFN(), "std positive"),
        ({"parameterisation": "epsilon"}, Diffusion(), "divide by a = 0 at t = 0.*or give the range"),
        ({"parameterisation": "epsilon", "clip": (-1.0, 1.0)}, GPFN(), "take parameterisation 'edm' or 'v'$"),
    ],
)
def test_settings_refused(settings, flow, message):
    with pytest.raises(ArgumentError, match=message):
        PointPredictor(Says(X), flow, **settings)


def test_network_that_changes_the_shape():
    with pytest.raises(ArgumentError, match="must keep the shape"):
        PointPredictor(Says(torch.zeros(2, 1)), GPFN())(
            DiagonalGaussian(torch.zeros(2, 3), torch.ones(())), torch.zeros(2)
        )


class Record(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = torch.nn.Linear(2, 2), kind

    def forward(self, x, t):
        return self.kind(self.inner(x))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (lambda x: SimpleNamespace(sample=x), "got SimpleNamespace: return its .sample, by a module around it"),
        (lambda x: (x,), "must return a tensor, got tuple$"),
    ],
)
def test_a_network_that_returns_no_tensor_is_refused(kind, said):
    predictor = PointPredictor(Record(kind), GPFN())
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    with pytest.raises(ArgumentError, match=said):
        fit(predictor, GPFN(), torch.randn(20, 2), TrainingConfig(steps=2, batch_size=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.state_dict().items() if name in before)


def test_a_network_that_takes_no_times_is_refused():
    with pytest.raises(
        ArgumentError, match=r"must take features and times, \(x, t\), and that of Linear takes \(input\)"
    ):
        PointPredictor(torch.nn.Linear(2, 2), GPFN())


class Named(Says):
    def forward(self, *, x, t):
        return self.output


def test_a_network_that_takes_features_by_name_alone_is_refused():
    with pytest.raises(ArgumentError, match=r"called as forward\(x, t\), and that of Named takes \(x, t\)"):
        PointPredictor(Named(torch.zeros(2, 2)), GPFN())


class Needs(Record):
    def forward(self, x, t, condition):
        return self.inner(x)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            Needs(None),
            "forward of Needs needs condition beside x and t, and none is given: give it in the condition, or",
        ),
        (Record(lambda x: x + 0j), "must return real numbers, got torch.complex64"),
        (Record(lambda x: x.detach()), "the loss does not depend on any weight that is trained.*neither detach"),
        (Says(torch.zeros(4, 2)), "PointPredictor has no weights to train"),
        (Record(lambda x: x).requires_grad_(False), "PointPredictor has no weights to train.*some that are not frozen"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(network, said):
    with pytest.raises(ArgumentError, match=said):
        fit(PointPredictor(network, GPFN()), GPFN(), torch.randn(20, 2), TrainingConfig(steps=2, batch_size=4))


def test_weights_of_half_precision_are_refused_outside_autocast():
    predictor = PointPredictor(Record(lambda x: x), GPFN()).bfloat16()
    belief = DiagonalGaussian(torch.zeros(1, 2), torch.ones(()))
    with pytest.raises(ArgumentError, match=r"leave weights in float32 and sample under torch\.autocast"):
        predictor(belief, torch.zeros(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert predictor(belief, torch.zeros(1)).mean.isfinite().all()
