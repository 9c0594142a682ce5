"""Flows of classes: masked diffusion, beliefs in one array, bounds and laws with exact predictors, infilling, large K."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from proxflow import (
    GPFN,
    Categorical,
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
from proxflow.likelihood.channel import _arc_cost
from proxflow.likelihood.classes import _arc, _arc_time, _least_scale
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
    else:
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


@pytest.mark.parametrize("name", FLOWS)
def test_bounds_of_any_predictions_are_lengths_of_a_code(name):
    # Of all events exp(−bound) sums to 1 at most, also for a network that confuses the tokens and is too sure of itself.
    events = torch.tensor(list(itertools.product(range(K), repeat=2)))
    flow, probs = FLOWS[name], torch.linspace(1, 4, K * K, dtype=torch.float64)
    exact = ExactClasses(flow, events, probs / probs.sum())

    def predict(belief, t):
        return Categorical(2 * exact(belief, t).log_probs.clamp_min(-6).roll(1, dims=-2))

    with torch.no_grad():
        nats = class_bound(predict, flow, events.repeat(800, 1), torch.Generator().manual_seed(1), draws=8)
    each = nats.reshape(800, len(events))
    share = (-each.mean(0)).exp()
    assert float(share.sum()) < 1 + 4 * float((share * each.std(0)).norm()) / math.sqrt(800)


def test_other_flows_have_no_bound():
    with pytest.raises(ArgumentError, match="class_bound knows"):
        class_bound(lambda b, t: b, GPFN(), EVENTS, torch.Generator())
    with pytest.raises(ArgumentError, match="at least 1"):
        class_bound(lambda b, t: b, Masked(K), EVENTS, torch.Generator(), draws=0)


def test_the_bound_of_exact_predictions_is_the_entropy_by_quadrature():
    # One token of three classes: an angle φ₀ from √θ₀ to e_x, of density 4 cos φ₀ sin³ φ₀, the share of the others, and c.
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def middles(low, high, number):
        return low + (high - low) * (torch.arange(number, dtype=torch.float64) + 0.5) / number

    phi, share = (a.flatten() for a in torch.meshgrid(middles(0, math.pi / 2, 80), middles(0, 1, 50), indexing="ij"))
    density, far = 4 * phi.cos() * phi.sin() ** 3 * (math.pi / 2), phi.sin().square()
    total = 0.0
    for x in range(3):
        start = torch.stack([phi.cos().square(), far * share, far * (1 - share)], dim=1).roll(x, dims=1)[:, None]
        for c in middles(0.5, 1, 50):
            logits, cost = _arc(start, torch.full((len(start), 1), x), c)
            angle = torch.acos((logits / 2).exp().clamp(max=1))  # q(θ|k) ∝ the density of φ/c over that of φ
            back = (angle / c).clamp(max=math.pi / 2)
            likelihood = back.cos() * back.sin() ** 3 / (angle.cos() * angle.sin() ** 3)
            total += float(law[x] * (cost((likelihood * law).log())[:, 0] * density).mean()) / 100
    assert abs(total + float((law * law.log()).sum())) < 2e-3


def test_two_classes_cost_what_the_arc_does():
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(500, 3, 2, generator=generator, dtype=torch.float64).log().neg()
    start, x = start / start.sum(-1, keepdim=True), torch.randint(2, (500, 3), generator=generator)
    predicted = 3 * torch.randn(500, 3, 2, generator=generator, dtype=torch.float64)
    toward = 2 * x - 1
    for c in torch.tensor([0.95, 0.8, 0.6], dtype=torch.float64):
        logits, cost = _arc(start, x, c)
        own, odds = (toward * (a[..., 1] - a[..., 0]) for a in (logits, predicted))
        ratio = (1 - c) / c  # ρ, of which the other is a rate as by q: dq/(1 − q) of it is dc of this one
        by_c = math.pi * (math.pi / 2 * ratio).tan() / c.square()
        want = _arc_cost(own, odds, ratio) * by_c
        torch.testing.assert_close(cost(predicted), want, rtol=1e-7, atol=1e-9)


def test_the_scale_is_the_least_that_makes_a_proper_score():
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(50, 6, generator=generator, dtype=torch.float64)
    weight[:, 0] = torch.where(torch.arange(50) % 2 == 0, 0.0, weight[:, 0])  # a class that is ruled out
    scale = _least_scale(f, g, weight)
    for k in range(50):
        alive = weight[k] > 0
        plane = torch.linalg.svd(torch.ones(1, int(alive.sum()), dtype=torch.float64)).Vh[1:]  # sums to 0
        form = torch.outer(f[k][alive], g[k][alive])
        diagonal, form = (plane @ a @ plane.mT for a in (torch.diag(weight[k][alive]), (form + form.mT) / 2))
        root = torch.linalg.inv(torch.linalg.cholesky(diagonal))
        assert scale[k] == pytest.approx(max(1.0, float(torch.linalg.eigvalsh(root @ form @ root.mT)[-1])), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 5, 27])
def test_times_of_fisher_rao_have_the_slope_that_they_say(classes):
    share = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    c, slope = _arc_time(share, classes)
    moved, _ = _arc_time(share + 1e-7, classes)
    assert torch.allclose((moved - c) / 1e-7, slope, rtol=1e-4)


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
    with pytest.raises(ArgumentError, match=r"take (the flows )?masked"):
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
