"""The bound of mixed data: tables small enough to enumerate, numbers with a known density, and the commands."""

import itertools
import math

import pytest
import torch

from proxflow import (
    GPFN,
    KL,
    Categorical,
    CategoricalEndpoints,
    DiagonalGaussian,
    FisherRao,
    GaussianEndpoints,
    Nats,
    ProductEndpoints,
    Renyi,
    ReverseKL,
    Wasserstein2,
    build,
    class_bound,
    mixed_bound,
)
from proxflow.beliefs import Product
from proxflow.data.kinds.table import Table
from proxflow.divergences import PerPart
from proxflow.errors import ArgumentError
from proxflow.likelihood import has_mixed_bound
from proxflow.paths import Cosine, Linear
from proxflow.predictors.exact import ExactClasses, log_likelihoods
from proxflow.random import SampleStreams

SIZES = (2, 3, 3)
EVENTS = torch.tensor(list(itertools.product(*map(range, SIZES))))
PROBS = torch.arange(1, len(EVENTS) + 1, dtype=torch.float64) ** 2
PROBS /= PROBS.sum()
CENTRES = torch.linspace(-1.5, 1.5, len(EVENTS), dtype=torch.float64)  # of a number, given the classes
SPREAD = 0.5
CLASSES = ((CategoricalEndpoints(2), 1), (CategoricalEndpoints(3), 2))
NUMBER = (GaussianEndpoints(), 1)
FLOWS = {
    "linear": GPFN(PerPart((ReverseKL(), ReverseKL())), endpoints=ProductEndpoints(CLASSES)),
    "fisher-rao": GPFN(FisherRao(), endpoints=ProductEndpoints(CLASSES)),
    "mixed": GPFN(PerPart((Wasserstein2(), ReverseKL(), FisherRao())), endpoints=ProductEndpoints((NUMBER, *CLASSES))),
    "cosine": GPFN(
        PerPart((Wasserstein2(), ReverseKL(), ReverseKL())),
        schedule=Cosine(),
        endpoints=ProductEndpoints((NUMBER, *CLASSES)),
    ),
    "kl-of-numbers": GPFN(
        PerPart((KL(), ReverseKL(), ReverseKL())), schedule=Linear(), endpoints=ProductEndpoints((NUMBER, *CLASSES))
    ),
}
ENTROPY = float(-(PROBS * PROBS.log()).sum())
OF_NUMBER = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)


class Exact:
    """The posterior means and marginals of the law above, by enumeration of its events."""

    def __init__(self, flow, probs=PROBS):
        self.flow, self.probs = flow, probs

    def __call__(self, belief, t):
        log_weights = self.probs.log().expand(len(t), -1)
        parts = list(
            zip(
                self.flow.endpoints.parts, self.flow.divergence.over_parts(len(belief.parts)), belief.parts, strict=True
            )
        )
        column, numeric = 0, None
        for (ends, width), divergence, own in parts:
            if isinstance(ends, GaussianEndpoints):
                a, b = GPFN(divergence, schedule=self.flow.schedule).path.coefficients(t.double())
                variance = b**2 + (a * SPREAD) ** 2
                z = own.mean.double()
                log_weights = log_weights - (z - a[:, None] * CENTRES).square() / (2 * variance[:, None])
                gain = a * SPREAD**2 / variance
                numeric = CENTRES + gain[:, None] * (z - a[:, None] * CENTRES)
                continue
            flow = GPFN(divergence, schedule=self.flow.schedule, endpoints=ends)
            found = log_likelihoods(flow, own.map(torch.Tensor.double), t.double())
            for k in range(width):
                log_weights = log_weights + found[:, k][:, EVENTS[:, column + k]]
            column += width
        weights = log_weights.softmax(1)
        targets, column = [], 0
        for (ends, width), _, own in parts:
            if isinstance(ends, GaussianEndpoints):
                targets.append(DiagonalGaussian((weights * numeric).sum(1, keepdim=True).to(own.mean), 0.02))
                continue
            each = [
                torch.stack([weights[:, EVENTS[:, column + k] == c].sum(1) for c in range(ends.classes)], dim=1)
                for k in range(width)
            ]
            targets.append(Categorical(torch.stack(each, dim=1).log().to(own.logits)))
            column += width
        return Product(tuple(targets))


def rows(number, numeric, seed=0):
    generator = torch.Generator().manual_seed(seed)
    at = torch.multinomial(PROBS, number, replacement=True, generator=generator)
    x = EVENTS[at].double()
    if numeric:
        drawn = CENTRES[at] + SPREAD * torch.randn(number, generator=generator, dtype=torch.float64)
        x = torch.cat([drawn[:, None], x], dim=1)
    return x


@pytest.mark.parametrize("name", FLOWS)
def test_with_exact_predictions_it_is_the_entropy(name):
    flow = FLOWS[name]
    numeric = len(flow.endpoints.parts) == 3
    x = rows(3000, numeric)
    found = Nats(mixed_bound(Exact(flow), flow, x, torch.Generator().manual_seed(1), draws=8), x.shape[1])
    entropy = ENTROPY + (OF_NUMBER if numeric else 0.0)
    assert abs(found.mean - entropy) < 4 * found.standard_error
    assert found.standard_error < 0.12  # late wrong candidates of the linear flow are rare and dear


@pytest.mark.parametrize("name", ["linear", "fisher-rao"])
def test_of_any_predictions_it_is_the_length_of_a_code(name):
    # Of all rows exp(−bound) sums to 1 at most, also for a network that is too sure of itself and of the wrong law.
    flow = FLOWS[name]
    exact = Exact(flow, PROBS.flip(0))

    def predict(belief, t):
        sure = exact(belief, t)
        return Product(tuple(Categorical(2 * part.log_probs.clamp_min(-6)) for part in sure.parts))

    x = EVENTS.double().repeat(600, 1)
    nats = mixed_bound(predict, flow, x, torch.Generator().manual_seed(1), draws=8).reshape(600, -1)
    share = (-nats.mean(0)).exp()
    assert float(share.sum()) < 1 + 4 * float((share * nats.std(0)).norm()) / math.sqrt(600)


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_of_numbers_alone_it_is_the_entropy_read_with_the_noise_of_the_target(std):
    # x ~ N(0, s²): ½ log(1 + Λ s²) + ½ (1 + log(2π/Λ)), Λ the inverse of the noise's variance.
    s = 1.3
    flow = GPFN(Wasserstein2(), endpoints=ProductEndpoints(((GaussianEndpoints(target_std=std), 3),)))

    def predict(belief, t):
        a, b = GPFN().path.coefficients(t)
        gain = a * s**2 / (a**2 * s**2 + b**2)
        return Product((DiagonalGaussian(belief.parts[0].mean * gain[:, None], std),))

    x = s * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Nats(mixed_bound(predict, flow, x, torch.Generator().manual_seed(1), draws=8), 3)
    last = std**-2
    expected = 1.5 * (math.log1p(last * s**2) + 1 + math.log(2 * math.pi / last))
    assert abs(found.mean - expected) < 4 * found.standard_error < 0.3
    assert expected > 1.5 * math.log(2 * math.pi * math.e * s**2)


def test_a_flow_that_ends_early_is_bounded_by_what_its_last_belief_tells():
    flow = GPFN(Wasserstein2(), schedule=Linear(0.6), endpoints=ProductEndpoints((NUMBER,)))

    def predict(belief, t):
        a, b = flow.schedule.coefficients(t)
        return Product((DiagonalGaussian(belief.parts[0].mean * (a / (a**2 + b**2))[:, None], 0.02),))

    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Nats(mixed_bound(predict, flow, x, torch.Generator().manual_seed(1), draws=8), 1)
    last = (0.6 / 0.4) ** 2
    expected = 0.5 * (math.log1p(last) + 1 + math.log(2 * math.pi / last))
    assert abs(found.mean - expected) < 4 * found.standard_error < 0.1


def test_of_one_part_it_is_the_bound_of_classes():
    one = GPFN(ReverseKL(), endpoints=ProductEndpoints(((CategoricalEndpoints(3), 2),)))
    events, probs = torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    plain = GPFN(ReverseKL(), endpoints=CategoricalEndpoints(3))
    exact = ExactClasses(plain, events, probs)

    def predict(belief, t):
        return Product((exact(belief.parts[0], t),))

    x = events.repeat(50, 1)
    streams = SampleStreams(3, torch.arange(len(x)))
    mixed = mixed_bound(predict, one, x.double(), streams, draws=4)
    expected = class_bound(exact, plain, x, SampleStreams(3, torch.arange(len(x))), draws=4)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


def test_an_examples_number_does_not_depend_on_its_batch():
    flow = FLOWS["mixed"]
    x = rows(6, numeric=True)
    together = mixed_bound(Exact(flow), flow, x, SampleStreams(3, torch.arange(6)), draws=4)
    apart = mixed_bound(Exact(flow), flow, x[2:4], SampleStreams(3, torch.arange(2, 4)), draws=4)
    torch.testing.assert_close(together[2:4], apart)


def test_what_has_none_is_refused():
    x = rows(4, numeric=True)
    renyi = GPFN(PerPart((Renyi(0.5), ReverseKL(), ReverseKL())), endpoints=ProductEndpoints((NUMBER, *CLASSES)))
    drawn = ProductEndpoints(((GaussianEndpoints(source=torch.zeros(3, 1)), 1), *CLASSES))
    for flow in (
        GPFN(),
        renyi,
        GPFN(FLOWS["mixed"].divergence, endpoints=drawn),
        GPFN(KL(), endpoints=ProductEndpoints(CLASSES)),
    ):
        assert not has_mixed_bound(flow)
        with pytest.raises(ArgumentError, match="mixed_bound knows GPFN with ProductEndpoints"):
            mixed_bound(lambda b, t: b, flow, x, torch.Generator())
    with pytest.raises(ArgumentError, match="at least 1"):
        mixed_bound(lambda b, t: b, FLOWS["mixed"], x, torch.Generator(), draws=0)
    with pytest.raises(ArgumentError, match="rows"):
        mixed_bound(lambda b, t: b, FLOWS["mixed"], x[:, :2], torch.Generator())


def test_a_table_that_is_learnt_costs_less_than_independent_columns(tmp_path):
    kinds = torch.randint(3, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "t.csv").write_text(
        "\n".join(["size,kind,again", *(f"{k + 0.5},{'abc'[k]},{'xyz'[k]}" for k in kinds)])
    )
    found = Table.read(str(tmp_path / "t.csv"), held_out=0.2, ignore=["size"])
    torch.manual_seed(0)
    model = build(found.kind, network="mlp:width=32").fit(found.train, steps=150, batch_size=128, learning_rate=5e-3)
    nats = model.bound(found.held_out.x)
    assert math.log(3) - 0.1 < nats.mean < 1.5 * math.log(3)  # apart from each other they cost 2 ln 3
    assert nats.dimensions == 2
