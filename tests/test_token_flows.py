"""Flows of classes: masked diffusion, beliefs in one array, bounds and laws with exact predictors, infilling, large K."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from proxflow import (
    GPFN,
    CategoricalEndpoints,
    DiscreteBFN,
    FisherRao,
    Masked,
    Nats,
    Posterior,
    Revealed,
    ReverseKL,
    build,
    class_bound,
    inverse,
    sample,
)
from proxflow._math import class_cross_entropy, squared_gap
from proxflow.data.kinds.text import Text
from proxflow.divergences import Divergence
from proxflow.errors import ArgumentError
from proxflow.likelihood.classes import _fisher_level, _fisher_time, _survival
from proxflow.paths import Linear, QuarterCosine
from proxflow.predictors.exact import ExactClasses
from proxflow.random import gumbel_max
from proxflow.samplers import Stochastic

K = 4
EVENTS = torch.tensor([[0, 0, 1], [1, 2, 0], [1, 2, 3], [3, 3, 3], [2, 1, 0]])
PROBS = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05], dtype=torch.float64)
ONE = (torch.arange(K)[:, None], torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64))
ENDS = CategoricalEndpoints(K)
FLOWS = {
    "bfn": DiscreteBFN(K),
    "masked": Masked(K),
    "masked-cosine": Masked(K, QuarterCosine()),
    "masked-early": Masked(K, Linear(0.7)),
    "linear": GPFN(ReverseKL(), endpoints=ENDS),
    "fisher-rao": GPFN(FisherRao(), endpoints=ENDS),
}


def bound(flow, events, probs, number=3000, draws=8):
    predict = ExactClasses(flow, events, probs)
    generator = torch.Generator().manual_seed(1)
    x = predict.sample(number, generator)
    with torch.no_grad():
        return Nats(class_bound(predict, flow, x, generator, draws=draws), events.shape[1]), predict.entropy


@pytest.mark.parametrize("name", FLOWS)
def test_bounds_of_one_token_are_its_entropy(name):
    found, entropy = bound(FLOWS[name], *ONE)
    assert abs(found.mean - entropy) < 4 * found.standard_error
    assert found.standard_error < 0.06


@pytest.mark.parametrize("name", FLOWS)
def test_bounds_of_several_tokens_are_the_entropy_or_above_it(name):
    found, entropy = bound(FLOWS[name], EVENTS, PROBS)
    assert found.mean > entropy - 4 * found.standard_error
    assert found.standard_error < 0.06
    if name == "masked-early":  # the last tokens are drawn independently of each other
        assert found.mean > entropy + 0.05
    elif name != "fisher-rao":  # whose bound is larger by what the others' candidates would tell
        assert found.mean < entropy + 4 * found.standard_error


@pytest.mark.parametrize("name", FLOWS)
def test_bounds_hold_for_wrong_predictions(name):
    flow = FLOWS[name]
    predict = ExactClasses(flow, EVENTS, torch.tensor([0.05, 0.15, 0.2, 0.25, 0.35], dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    x = EVENTS[torch.multinomial(PROBS, 3000, replacement=True, generator=generator)]
    with torch.no_grad():
        found = Nats(class_bound(predict, flow, x, generator, draws=8), 3)
    truth = float(-(PROBS * predict.probs.log()).sum())  # of a model with these predictions, where the bound is tight
    assert found.mean > truth - 4 * found.standard_error


def test_other_flows_have_no_bound():
    with pytest.raises(ArgumentError, match="class_bound knows"):
        class_bound(lambda b, t: b, GPFN(), EVENTS, torch.Generator())
    with pytest.raises(ArgumentError, match="at least 1"):
        class_bound(lambda b, t: b, Masked(K), EVENTS, torch.Generator(), draws=0)


@pytest.mark.parametrize("n", [1, 3, 26])
def test_levels_of_fisher_rao_beliefs_have_the_law_of_the_flow(n):
    # Drawn by hidden level, θ_x has the flow's own distribution function, and levels rise with time.
    c, generator = torch.tensor(0.8, dtype=torch.float64), torch.Generator().manual_seed(0)
    quantile = torch.rand(20_000, generator=generator, dtype=torch.float64)
    level, rise = _fisher_level(c.expand(20_000), quantile, n)
    share = torch.distributions.Beta(1.0, float(n)).sample((20_000,)).double()
    theta = level + (1 - level) * share
    angle = torch.acos(theta.sqrt()).sort().values
    exact = torch.sin((angle / c).clamp(max=math.pi / 2)) ** (2 * n)  # P(θ_x ≥ cos² angle)
    assert (exact - torch.linspace(0, 1, 20_000)).abs().max() < 0.02
    assert bool((rise >= 0).all())
    later, _ = _fisher_level((c - 1e-4).expand(20_000), quantile, n)
    assert torch.allclose((later - level) / 1e-4, rise, rtol=5e-3, atol=5e-3)
    phi = torch.linspace(0.01, 1.56, 50, dtype=torch.float64)
    assert bool((_survival(phi, c, n).diff() > 0).all())


def test_times_of_fisher_rao_have_the_slope_that_they_say():
    share = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    fraction, slope = _fisher_time(share, 26)
    moved, _ = _fisher_time(share - 1e-7, 26)
    assert torch.allclose((moved - fraction) / 1e-7, slope, rtol=1e-4)
    assert bool((fraction.diff() < 0).all())


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "masked-early"])
def test_samplers_reach_the_law_as_steps_grow(name):
    flow, number = FLOWS[name], 4000
    predict = ExactClasses(flow, EVENTS, PROBS)
    drawn = Stochastic()(predict, flow, (number, 3), 150, torch.Generator().manual_seed(2)).events
    share = (drawn[:, None] == EVENTS).all(-1).double().mean(0)
    assert float((share - PROBS).abs().max()) < 0.03
    assert float(share.sum()) > 0.97


def test_masked_diffusion_of_independent_tokens_is_exact_in_one_evaluation():
    events = torch.tensor(list(itertools.product(range(K), repeat=2)))
    probs = (ONE[1][:, None] * ONE[1]).flatten()
    drawn = Stochastic()(
        ExactClasses(Masked(K), events, probs), Masked(K), (8000, 2), 1, torch.Generator().manual_seed(2)
    ).events
    share = (drawn[:, None] == events).all(-1).double().mean(0)
    assert float((share - probs).abs().max()) < 0.02


def test_masked_diffusion_keeps_what_is_known():
    flow, generator = Masked(K), torch.Generator().manual_seed(0)
    belief = flow.prior((500, 3), generator, torch.float32, torch.device("cpu"))
    assert bool(belief.hidden.all())
    assert flow.begins_fixed
    predict = ExactClasses(flow, EVENTS, PROBS)
    t = torch.tensor(0.0)
    for s in (0.3, 0.6, 0.9):
        after = flow.update(belief, predict(belief, t.expand(500)), t, torch.tensor(s), generator)
        known = ~belief.hidden
        assert torch.equal(after.tokens[known], belief.tokens[known])
        belief, t = after, torch.tensor(s)
        assert abs(float(belief.hidden.double().mean()) - (1 - s)) < 0.04
    with pytest.raises(ArgumentError, match="stochastic"):
        flow.update(belief, belief, t, torch.tensor(1.0), None)


def test_masked_training_beliefs_and_loss():
    flow, x = Masked(K, QuarterCosine()), EVENTS.repeat(2000, 1)
    t = torch.full((len(x),), 0.4)
    belief = flow.belief(x, t, torch.Generator().manual_seed(0))
    share = 1 - math.cos(math.pi / 2 * 0.4)
    assert abs(float((~belief.hidden).double().mean()) - share) < 0.01
    assert torch.equal(belief.tokens[~belief.hidden], x[~belief.hidden])
    logits = torch.randn(*x.shape, K, dtype=torch.float64)
    loss = flow.loss(lambda b, t: type("P", (), {"logits": logits}), x, torch.Generator().manual_seed(0), t)
    cost = functional.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").reshape(x.shape)
    rate = math.pi / 2 * math.sin(math.pi / 2 * 0.4) / (1 - share)
    assert torch.allclose(loss, rate * (cost * belief.hidden).mean(1), rtol=1e-6)


def test_revealed_beliefs():
    belief = Revealed(torch.tensor([[0, -1], [2, 1]]), 3)
    assert belief.hidden.tolist() == [[False, True], [False, False]]
    assert torch.equal(belief.features()[0], torch.tensor([[1.0, -1, -1], [0, 0, 0]]))
    assert belief.log_prob(torch.tensor([[0, 2], [2, 1]])).exp().tolist() == pytest.approx([1 / 3, 1])
    moved = belief.map(lambda a: a[:1])
    assert (moved.batch_size, moved.classes) == (1, 3)
    assert set(Revealed(torch.full((200, 1), -1), 3).sample(torch.Generator().manual_seed(0)).flatten().tolist()) == {
        0,
        1,
        2,
    }


@pytest.mark.parametrize("name", ["bfn", "masked", "linear", "fisher-rao"])
def test_infilling_agrees_with_enumeration(name):
    flow = FLOWS[name]
    known = torch.tensor([True, False, False])
    wanted = PROBS[1:3] / PROBS[1:3].sum()  # the events that begin with 1

    class Network(torch.nn.Module):
        def forward(self, belief, t):
            return exact(belief, t)

    exact = ExactClasses(flow, EVENTS, PROBS)
    posterior = Posterior(Network(), inverse.Mask(known), torch.tensor([[1, 0, 0]]), flow=flow)
    drawn = sample(posterior, flow, (2000, 3), nfe=100, sampler="stochastic", batch_size=2000)
    assert bool((drawn[:, 0] == 1).all())
    share = (drawn[:, None] == EVENTS[1:3]).all(-1).double().mean(0)
    assert float(share.sum()) > 0.97
    assert float((share - wanted).abs().max()) < 0.04


def test_categories_are_drawn_with_the_tail_of_float64():
    # One class of 0.02 among 2^20: single precision's uniform numbers would favour it.
    classes = 2**20
    log_probs = torch.full((classes,), math.log(0.98 / (classes - 1)))
    log_probs[7] = math.log(0.02)
    drawn = torch.stack([gumbel_max(log_probs[None], torch.Generator().manual_seed(k))[0] for k in range(150)])
    assert abs(float((drawn == 7).double().mean()) - 0.02) < 0.04
    assert drawn.unique().numel() > 130


# Beliefs and losses in one array --------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [ReverseKL(), FisherRao()], ids=["linear", "fisher-rao"])
def test_beliefs_toward_a_corner_are_those_of_the_general_step(divergence):
    flow = GPFN(divergence, endpoints=CategoricalEndpoints(5))
    x = torch.randint(5, (200, 3), generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    quick = flow.belief(x, t, torch.Generator().manual_seed(1))
    prior = flow.prior(x.shape, torch.Generator().manual_seed(1), torch.float64, x.device)
    slow = flow.reached(prior, x, t)
    assert torch.allclose(quick.probs, slow.probs, atol=1e-10)
    assert isinstance(divergence, Divergence)


def test_discrete_bfn_beliefs_are_normalised_messages():
    flow = DiscreteBFN(5)
    x = torch.randint(5, (200, 3), generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    belief = flow.belief(x, t, torch.Generator().manual_seed(1))
    noise = torch.randn(200, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beta = flow.accuracies.beta(t)[:, None, None]
    message = beta * (5 * functional.one_hot(x, 5) - 1) + (5 * beta).sqrt() * noise
    assert torch.allclose(belief.logits, message.log_softmax(-1), atol=1e-10)


def test_losses_of_one_array_have_the_values_and_gradients_of_many():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randint(7, (6, 3), generator=generator)
    weight = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    plain = functional.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").reshape(6, 3)
    assert torch.allclose(class_cross_entropy(logits, x), plain)
    gap = (functional.one_hot(x, 7) - logits.softmax(-1)).square().sum(-1)
    assert torch.allclose(squared_gap(logits, x), gap)
    for ours, theirs in ((class_cross_entropy, plain), (squared_gap, gap)):
        (found,), (wanted,) = (torch.autograd.grad((cost * weight).sum(), logits) for cost in (ours(logits, x), theirs))
        assert torch.allclose(found, wanted, atol=1e-12)
    unknown = torch.where(torch.rand(6, 3, generator=generator) < 0.5, -1, x)
    assert torch.equal(class_cross_entropy(logits, unknown) == 0, unknown < 0)
    assert class_cross_entropy(logits.bfloat16(), x).dtype == torch.float32


# The network and models -----------------------------------------------------------------------------------------------


def letters(context=6):
    return Text((context,), "letters", tuple(" abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize("word", ["bfn-discrete", "masked", "gpfn-linear", "gpfn-fisher-rao"])
def test_flows_of_classes_go_by_name_and_the_data_decide_their_endpoints(word):
    model = build(letters(), flow=word, network="transformer:width=8,depth=1,heads=1", seed=0)
    ends = getattr(model.flow, "endpoints", model.flow)
    assert ends.classes == 27
    drawn = model.sample(3, nfe=2)
    assert (tuple(drawn.shape), drawn.dtype) == ((3, 6), torch.uint8)
    x = drawn.long()
    assert model.flow.loss(model.predictor, x, torch.Generator().manual_seed(0)).shape == (3,)


@pytest.mark.parametrize("word", ["gpfn-w2", "bfn", "diffusion"])
def test_flows_of_real_numbers_are_refused_for_text(word):
    with pytest.raises(ArgumentError, match=r"take (another|masked)"):
        build(letters(), flow=word)


def test_networks_of_tokens_read_probabilities_as_they_read_indices():
    torch.manual_seed(0)
    for symbols in (2, 5):
        kind = Text((4,), "characters", tuple("abcde"[:symbols]))
        model = build(kind, flow="masked", network="transformer:width=16,depth=2,heads=2")
        network = model.predictor.network.double()
        torch.nn.init.normal_(network.leave.weight)
        x = torch.randint(symbols, (3, 4))
        certain = 2 * functional.one_hot(x, symbols).double() - 1
        certain = certain[..., 0] if symbols == 2 else certain
        t = torch.rand(3, dtype=torch.float64)
        assert torch.allclose(network(x, t), network(certain, t), atol=1e-10)
        with pytest.raises(ArgumentError, match="TokenTransformer reads"):
            network(x[:, :3], t)


def test_causal_networks_do_not_look_ahead():
    torch.manual_seed(0)
    model = build(letters(), flow="masked", network="transformer:width=16,depth=2,heads=2,causal=true")
    network = model.predictor.network
    torch.nn.init.normal_(network.leave.weight)
    for block in network.blocks.blocks:
        for norm in (block.norm_attention, block.norm_layer):
            torch.nn.init.normal_(norm.modulation[-1].weight)
    x = torch.randint(27, (2, 6))
    other = x.clone()
    other[:, 4:] = (x[:, 4:] + 1) % 27
    one, two = (network(a, torch.zeros(2)) for a in (x, other))
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


def test_a_text_model_is_saved_with_its_vocabulary(tmp_path):
    from proxflow import load
    from proxflow.models import save

    model = build(letters(), flow="masked", network="transformer:width=8,depth=1,heads=1", seed=0)
    save(tmp_path, model)
    back = load(tmp_path)
    assert back.data == model.data
    assert back.flow == model.flow
    assert torch.equal(back.sample(2, nfe=3), model.sample(2, nfe=3))
