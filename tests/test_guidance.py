"""Guidance: the barycentre extrapolated in the flow's divergence, exactly, and its cost."""

import math
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

import proxflow
from proxflow import (
    BFN,
    GPFN,
    KL,
    Categorical,
    ClassPredictor,
    Deterministic,
    DiagonalGaussian,
    Diffusion,
    DiscreteBFN,
    DrawPredictor,
    ExactClasses,
    ExactMean,
    FisherRao,
    FullGaussian,
    GaussianEndpoints,
    Guided,
    LinearGuidance,
    Multistep,
    PerPart,
    PointPredictor,
    Product,
    Projected,
    ReverseKL,
    Wasserstein2,
    ZeroStar,
    extrapolate,
    given,
)
from proxflow.data import GaussianMixtureLaw
from proxflow.data.kinds.image import Image
from proxflow.divergences.extrapolation import EXTRAPOLATIONS
from proxflow.errors import ArgumentError, UnsupportedPairError
from proxflow.examples import evaluations, planned
from proxflow.flows import CategoricalEndpoints
from proxflow.nn import MLP, UNet

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed))


# Extrapolation ---------------------------------------------------------------------------------------------------------


def gaussians(seed=0, spread=0.1):
    mean, log_std = normals(6, 3, seed=seed), 1 + 0.3 * normals(6, 3, seed=seed + 1)
    shift, change = normals(6, 3, seed=seed + 2), normals(6, 3, seed=seed + 3)
    away = DiagonalGaussian(mean, log_std.exp())
    return away, DiagonalGaussian(mean + spread * shift, (log_std + spread * change).exp())


def classes(seed=0, spread=0.2):
    logits = normals(6, 2, 4, seed=seed)
    return Categorical(logits), Categorical(logits + spread * normals(6, 2, 4, seed=seed + 1))


def full(seed=0, spread=0.1):
    found = []
    root = torch.eye(3, dtype=F64) + 0.3 * normals(6, 3, 3, seed=seed)
    for k in (0, 1):
        factor = root + k * spread * normals(6, 3, 3, seed=seed + 1)
        found.append(FullGaussian.from_covariance(k * spread * normals(6, 3, seed=seed + 2), factor @ factor.mT))
    return tuple(found)


PAIRS = [
    (Wasserstein2(), gaussians),
    (KL(), gaussians),
    (ReverseKL(), gaussians),
    (FisherRao(), gaussians),
    (KL(), classes),
    (ReverseKL(), classes),
    (FisherRao(), classes),
    (Wasserstein2(), full),
    (KL(), full),
    (ReverseKL(), full),
]


def objective(divergence, r, away, toward, w):
    return w * divergence(r, toward) - (w - 1) * divergence(r, away)


@pytest.mark.parametrize("w", [1.3, 2.0])
@pytest.mark.parametrize(("divergence", "pair"), PAIRS, ids=lambda v: getattr(v, "__name__", type(v).__name__))
def test_an_extrapolation_minimises_its_objective(divergence, pair, w):
    away, toward = pair(spread=0.05)
    found = extrapolate(divergence, away, toward, w)
    at = found.coordinates().detach().requires_grad_(True)
    value = objective(divergence, found.at(at), away, toward, w)
    (slope,) = torch.autograd.grad(value.sum(), at)
    # The slope vanishes there, as it does not at a point near by, and every other point near by is higher.
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-6, rtol=0)
    for seed in range(4):
        beside = found.at(found.coordinates() + 1e-2 * normals(*at.shape, seed=seed))
        assert bool((objective(divergence, beside, away, toward, w) > value).all())


@pytest.mark.parametrize(("divergence", "pair"), PAIRS, ids=lambda v: getattr(v, "__name__", type(v).__name__))
def test_a_step_back_from_an_extrapolation_leads_to_what_it_went_through(divergence, pair):
    away, toward = pair(spread=0.05)
    assert extrapolate(divergence, away, toward, 1) is toward
    found = extrapolate(divergence, away, toward, 2.5)
    back = divergence.interpolate(away, found, 1 / 2.5)
    for name, tensor in back.tensors().items():
        wanted = toward.tensors()[name]
        if name == "logits":
            tensor, wanted = tensor.softmax(-1), wanted.softmax(-1)
        torch.testing.assert_close(tensor, wanted, atol=1e-10, rtol=1e-10)
    inside, between = extrapolate(divergence, away, toward, 0.3), divergence.interpolate(away, toward, 0.3)
    assert all(torch.equal(tensor, between.tensors()[name]) for name, tensor in inside.tensors().items())


def narrow(divergence, seed=1):
    """Pairs that extrapolations soon lead out of their family."""
    if isinstance(divergence, KL):
        return DiagonalGaussian(normals(5, 2, seed=seed), 1.0), DiagonalGaussian(normals(5, 2, seed=seed + 1), 1.6)
    return DiagonalGaussian(normals(5, 2, seed=seed), 1.0), DiagonalGaussian(normals(5, 2, seed=seed + 1), 0.4)


OUTSIDE = [
    (Wasserstein2(), narrow(Wasserstein2())),
    (KL(), narrow(KL())),
    (ReverseKL(), narrow(ReverseKL())),
    (ReverseKL(), classes(spread=1.5)),
    (FisherRao(), classes(spread=2.5)),
    (Wasserstein2(), full(spread=0.6)),
    (KL(), full(spread=0.6)),
    (ReverseKL(), full(spread=0.6)),
]


@pytest.mark.parametrize(("divergence", "pair"), OUTSIDE, ids=lambda v: type(v).__name__)
def test_leaving_the_family_is_refused_with_the_largest_weight_that_does_not(divergence, pair):
    away, toward = pair
    with pytest.raises(ArgumentError, match="largest weight that does not is") as refusal:
        extrapolate(divergence, away, toward, 8.0)
    largest = float(str(refusal.value).partition("does not is ")[2].partition(";")[0])
    assert 1 < largest < 8
    extrapolate(divergence, away, toward, largest)
    with pytest.raises(ArgumentError, match="outside='clip', which"):
        extrapolate(divergence, away, toward, largest + 2e-6)
    clipped = extrapolate(divergence, away, toward, 8.0, "clip")
    tensors = clipped.tensors()
    assert all(not tensor.isnan().any() for tensor in tensors.values())
    if isinstance(clipped, Categorical):
        torch.testing.assert_close(clipped.probs.sum(-1), torch.ones(6, 2, dtype=F64))
        assert bool((clipped.probs == 0).any())
    elif isinstance(clipped, DiagonalGaussian):
        assert bool((clipped.std >= 0).all())


def test_clipped_standard_deviations_are_the_minimisers_among_those_there_are():
    away, toward = narrow(Wasserstein2())
    found = extrapolate(Wasserstein2(), away, toward, 4.0, "clip")
    assert not found.std.any()
    torch.testing.assert_close(found.mean, away.mean + 4 * (toward.mean - away.mean))
    value = objective(Wasserstein2(), found, away, toward, 4.0)
    assert bool((objective(Wasserstein2(), DiagonalGaussian(found.mean, 0.01), away, toward, 4.0) > value).all())


@pytest.mark.parametrize("divergence", [Wasserstein2(), KL(), FisherRao()], ids=str)
def test_points_are_led_as_in_classifier_free_guidance(divergence):
    away, toward = DiagonalGaussian(normals(4, 2), 0.0), DiagonalGaussian(normals(4, 2, seed=1), 0.0)
    found = extrapolate(divergence, away, toward, 3.0)
    if isinstance(divergence, FisherRao):  # no circle between points has a beyond
        assert torch.equal(found.mean, toward.mean)
    else:
        torch.testing.assert_close(found.mean, away.mean + 3 * (toward.mean - away.mean))


def test_classes_that_only_the_unconditional_prediction_rules_out():
    away = Categorical(torch.tensor([[[0.0, 1.0, -torch.inf]]]))
    toward = Categorical(torch.tensor([[[0.5, -torch.inf, 0.2]]]))
    with pytest.raises(ArgumentError, match="does not is 1;"):
        extrapolate(KL(), away, toward, 2.0)
    found = extrapolate(KL(), away, toward, 2.0, "clip").probs
    assert found[0, 0, 1] == 0
    assert bool((found.isfinite()).all())


def test_products_are_led_part_by_part():
    numbers, labels = gaussians(), classes()
    away, toward = (Product((a, b)) for a, b in zip(numbers, labels, strict=True))
    found = extrapolate(PerPart((Wasserstein2(), FisherRao())), away, toward, 1.5)
    for part, divergence, (a, b) in zip(found.parts, (Wasserstein2(), FisherRao()), (numbers, labels), strict=True):
        wanted = extrapolate(divergence, a, b, 1.5).tensors()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in part.tensors().items())


def test_a_pair_without_a_rule_and_a_second_rule_are_refused():
    with pytest.raises(UnsupportedPairError, match=r"no extrapolation is known for Jeffreys .* KL on Categorical"):
        extrapolate(proxflow.Jeffreys(), *gaussians(), 2.0)
    pair = next(iter(EXTRAPOLATIONS))
    with pytest.raises(ArgumentError, match="registered already"):
        proxflow.divergences.extrapolated(*pair)(lambda *_: None)
    with pytest.raises(ArgumentError, match="at least 0 and finite"):
        extrapolate(KL(), *gaussians(), -1.0)


# Mixtures whose components are the labels --------------------------------------------------------------------------------

MEANS = torch.tensor([[-1.0, 0.5], [0.3, -0.4], [1.2, 0.9]], dtype=F64)
STDS = torch.tensor([0.3, 0.5, 0.2], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)


class MixtureByLabel:
    """The exact predictor of a mixture given its component, or without it, for any Gaussian path."""

    reads = frozenset({"condition"})

    def __init__(self, flow):
        self.flow = flow
        whole = GaussianMixtureLaw(WEIGHTS, MEANS, STDS.square()[:, None, None] * torch.eye(2, dtype=F64))
        self.whole = ExactMean(flow, whole)

    def __call__(self, belief, t, *, condition=None):
        if condition is None:
            return self.whole(belief, t)
        a, b = (c.double()[:, None] for c in self.flow.path.coefficients(t.double()))
        m, s = MEANS[condition], STDS[condition][:, None]
        return self.flow.target(m + a * s**2 / (a**2 * s**2 + b**2) * (belief.mean - a * m))


def closed_forms(flow, y, t, label):
    """Means given the label and without it by Bayes' rule, from densities that scipy computes."""
    from scipy.stats import multivariate_normal

    a, b = (float(c) for c in flow.path.coefficients(torch.tensor(t, dtype=F64)))
    each, odds = [], []
    for k in range(3):
        gain = a * float(STDS[k]) ** 2 / ((a * float(STDS[k])) ** 2 + b**2)
        each.append(MEANS[k].numpy() + gain * (y - a * MEANS[k].numpy()))
        variance = (a * float(STDS[k])) ** 2 + b**2
        odds.append(float(WEIGHTS[k]) * multivariate_normal(a * MEANS[k].numpy(), variance).pdf(y))
    total = sum(p * x for p, x in zip(odds, each, strict=True)) / sum(odds)
    return each[label], total


FLOWS = [
    GPFN(endpoints=GaussianEndpoints(0.0)),
    GPFN(KL(), endpoints=GaussianEndpoints(0.05)),
    BFN(0.1),
    Diffusion(),
]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: type(f).__name__ + type(f.geometry).__name__)
@pytest.mark.parametrize("w", [0.0, 1.0, 1.7, 4.0])
def test_guided_targets_of_a_mixture_agree_with_closed_forms(flow, w):
    guided = Guided(MixtureByLabel(flow), w)
    labels = torch.tensor([0, 1, 2, 1])
    for t in (0.2, 0.5, 0.8):
        y = normals(4, 2, seed=int(10 * t))
        belief = DiagonalGaussian(y, 0.5)
        found = guided(belief, torch.full((4,), t, dtype=F64), condition=labels).mean
        for i in range(4):
            told, untold = closed_forms(flow, y[i].numpy(), t, int(labels[i]))
            torch.testing.assert_close(found[i], torch.tensor(untold + w * (told - untold)), atol=1e-10, rtol=0)


class Spread(MixtureByLabel):
    """The posterior as a whole Gaussian, by moments: what a predictor of means and spreads would say."""

    def __init__(self, flow, divergence):
        super().__init__(flow)
        self.geometry = divergence

    def __call__(self, belief, t, *, condition=None):
        a, b = (c.double()[:, None] for c in self.flow.path.coefficients(t.double()))
        if condition is not None:
            return DiagonalGaussian(super().__call__(belief, t, condition=condition).mean, self.std(a, b, condition))
        each = torch.stack(
            [super(Spread, self).__call__(belief, t, condition=torch.full_like(t, k).long()).mean for k in range(3)], 1
        )
        variances = torch.stack([self.std(a, b, torch.full_like(t, k).long()) for k in range(3)], 1).square()
        total = (a[..., None] * STDS[:, None]).square() + b[..., None].square()
        far = (belief.mean[:, None] - a[..., None] * MEANS).square()
        odds = (WEIGHTS.log() + (-far / (2 * total) - total.log() / 2).sum(-1)).softmax(1)[..., None]
        mean = (odds * each).sum(1)
        return DiagonalGaussian(mean, ((odds * (variances + each.square())).sum(1) - mean.square()).sqrt())

    def std(self, a, b, label):
        s = STDS[label][:, None]
        return (s * b / ((a * s).square() + b.square()).sqrt()).expand(-1, 2)


@pytest.mark.parametrize("divergence", [Wasserstein2(), KL(), FisherRao()], ids=str)
def test_guided_gaussians_of_a_mixture_agree_with_closed_forms(divergence):
    flow, w = GPFN(endpoints=GaussianEndpoints(0.0)), 1.25
    predict = Spread(flow, divergence)
    labels, t = torch.tensor([0, 1, 0, 2]), torch.full((4,), 0.85, dtype=F64)
    belief = DiagonalGaussian(0.85 * MEANS[labels] + 0.1 * normals(4, 2, seed=3), 0.15)
    c, u = predict(belief, t, condition=labels), predict(belief, t)
    found = Guided(predict, w)(belief, t, condition=labels)
    if isinstance(divergence, Wasserstein2):
        mean, std = u.mean + w * (c.mean - u.mean), u.std + w * (c.std - u.std)
    elif isinstance(divergence, KL):
        precision = w / c.std**2 - (w - 1) / u.std**2
        mean, std = (w * c.mean / c.std**2 - (w - 1) * u.mean / u.std**2) / precision, precision**-0.5
    else:  # the geodesic of the half-plane as a circle, with the arc length as its parameter
        p, q = u.mean / math.sqrt(2), c.mean / math.sqrt(2)
        centre = (q**2 - p**2 + c.std**2 - u.std**2) / (2 * (q - p))
        radius = ((p - centre) ** 2 + u.std**2).sqrt()
        start, end = (((x - centre) / radius).atanh() for x in (p, q))
        arc = start + w * (end - start)
        mean, std = math.sqrt(2) * (centre + radius * arc.tanh()), radius / arc.cosh()
    torch.testing.assert_close(found.mean, mean, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.std, std, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("divergence", [KL(), ReverseKL(), FisherRao()], ids=str)
def test_guided_classes_agree_with_closed_forms(divergence):
    # Two labels with laws of their own over four events of two sites; without a label the law is their mixture.
    events = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 1]])
    laws = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=F64)
    flow = DiscreteBFN(3) if isinstance(divergence, KL) else GPFN(divergence, endpoints=CategoricalEndpoints(3))

    class ByLabel:
        reads, geometry = frozenset({"condition"}), divergence

        def __call__(self, belief, t, *, condition=None):
            if condition is None:
                return ExactClasses(flow, events, laws.mean(0))(belief, t)
            each = [ExactClasses(flow, events, law)(belief, t).logits for law in laws]
            return Categorical(torch.stack(each)[condition, torch.arange(len(condition))])

    belief, t = Categorical(0.3 * normals(6, 2, 3)), torch.full((6,), 0.2, dtype=F64)
    labels, w, predict = torch.tensor([0, 1] * 3), 1.2, ByLabel()
    c, u = predict(belief, t, condition=labels).probs, predict(belief, t).probs
    found = Guided(predict, w)(belief, t, condition=labels).probs
    if isinstance(divergence, KL):
        wanted = c**w / u ** (w - 1)
        wanted = wanted / wanted.sum(-1, keepdim=True)
    elif isinstance(divergence, ReverseKL):
        wanted = w * c - (w - 1) * u
    else:
        angle = (c * u).sqrt().sum(-1, keepdim=True).acos()
        wanted = ((((1 - w) * angle).sin() * u.sqrt() + (w * angle).sin() * c.sqrt()) / angle.sin()) ** 2
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


# Other libraries ---------------------------------------------------------------------------------------------------------


class Told:
    """Predicts what it is told, with and without a condition."""

    reads = frozenset({"condition"})

    def __init__(self, told, untold, flow=None):
        self.told, self.untold = told, untold
        self.flow = GPFN() if flow is None else flow

    def __call__(self, belief, t, *, condition=None):
        return DiagonalGaussian(self.untold if condition is None else self.told, 0.02)


IMAGES = [torch.randn(3, 1, 6, 6, generator=seeded(seed)) for seed in range(3)]
LABELS = torch.zeros(3, dtype=torch.int64)


def led(rule, w, y=None, calls=1, told=None):
    guided = Guided(told or Told(*IMAGES[:2]), w, rule=rule)
    belief = DiagonalGaussian(IMAGES[2] if y is None else y, 0.5)
    *_, last = (
        predict(belief, torch.full((3,), 0.4)).mean for predict in planned(given(guided, LABELS), [0.4] * calls)
    )
    return last


@pytest.mark.parametrize("w", [1.5, 4.0])
def test_linear_guidance_is_that_of_diffusers_and_azula(w):
    guiders = pytest.importorskip("diffusers.guiders")
    theirs = guiders.ClassifierFreeGuidance(guidance_scale=w).forward(IMAGES[0], IMAGES[1]).pred
    torch.testing.assert_close(led("linear", w), theirs, atol=1e-6, rtol=1e-6)
    azula = pytest.importorskip("azula.guidance.cfg")

    class Denoiser(nn.Module):
        def forward(self, x, t, label=None):
            from azula.denoise import DiracPosterior

            return DiracPosterior(mean=IMAGES[1] if label is None else IMAGES[0])

    denoiser = azula.CFGDenoiser(Denoiser())
    theirs = denoiser(IMAGES[2], torch.tensor(0.4), {"label": LABELS}, {}, guidance=w - 1).mean
    torch.testing.assert_close(led("linear", w), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("w", [1.5, 4.0])
def test_zero_star_is_that_of_diffusers(w):
    guiders = pytest.importorskip("diffusers.guiders")
    y, left = IMAGES[2], 0.6  # they read velocities (x̂ − y)/(1 − τ)
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=w, zero_init_steps=1)
    for step in (0, 1):
        guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0.0))
        velocity = guider.forward((IMAGES[0] - y) / left, (IMAGES[1] - y) / left).pred
        found = led(ZeroStar(zero_steps=1), w, calls=step + 1)
        torch.testing.assert_close(found, y + left * velocity, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [Projected(), Projected(eta=0.5, cap=2.0), Projected(cap=3.0, momentum=-0.5), Projected(eta=1.0, momentum=0.3)],
)
@pytest.mark.parametrize("w", [1.5, 4.0])
def test_projected_guidance_is_that_of_diffusers(w, rule):
    guiders = pytest.importorskip("diffusers.guiders")
    guider = guiders.AdaptiveProjectedGuidance(
        guidance_scale=w - 1,  # in the paper's form, from the conditional prediction on
        use_original_formulation=True,
        eta=rule.eta,
        adaptive_projected_guidance_momentum=rule.momentum,
        adaptive_projected_guidance_rescale=rule.cap or 0.0,
    )
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

    guider.momentum_buffer = MomentumBuffer(rule.momentum)
    for _ in range(3):
        theirs = guider.forward(IMAGES[0], IMAGES[1]).pred
    torch.testing.assert_close(led(rule, w, calls=3), theirs, atol=1e-6, rtol=1e-5)


# What it costs, and when --------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A network whose calls and rows are counted."""

    conditional = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.rows = []

    def forward(self, x, t, *, condition=None):
        self.rows.append(len(x))
        label = torch.full((len(x),), -1) if condition is None else condition
        return self.scale * (0.3 * x + 0.1 * label[:, None])


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"weight": 2.0}, 10),
        ({"weight": 1.0}, 5),
        ({"weight": 3.0, "interval": (0.2, 0.6)}, 8),
        ({"weight": 3.0, "interval": (0.9, 1.0)}, 5),
        ({"weight": 3.0, "rule": ZeroStar(zero_steps=2)}, 6),
    ],
)
def test_network_evaluations_are_counted_truly(settings, count):
    flow, network = GPFN(), Counted()
    guided = Guided(PointPredictor(network, flow), **settings)
    samples = Deterministic()(given(guided, torch.arange(4) % 2), flow, (4, 2), 5, seeded())
    assert samples.nfe == count == len(network.rows)
    assert count == sum(map(evaluations, planned(guided, [0, 0.2, 0.4, 0.6, 0.8])))


@pytest.mark.parametrize("settings", [{"weight": 1.0}, {"weight": 3.0, "interval": (0.9, 1.0)}])
@pytest.mark.parametrize("sampler", [Deterministic(), Multistep(2)])
def test_without_guidance_samples_are_bit_for_bit_the_predictors(settings, sampler):
    torch.manual_seed(0)
    model = proxflow.build((1, 8, 8), network="unet:channels=8,classes=3", seed=1)
    for parameter in model.predictor.parameters():
        nn.init.normal_(parameter, std=0.2)
    labels = torch.arange(6) % 3
    plain = model.sample(6, nfe=5, sampler=sampler, condition=labels, decode=False)
    guided = Guided(model.predictor, **settings)
    found = proxflow.sample(guided, model.flow, (6, 1, 8, 8), nfe=5, sampler=sampler, condition=labels)
    assert torch.equal(found, plain)
    told = Guided(model.predictor, 3.0)
    assert not torch.equal(
        proxflow.sample(told, model.flow, (6, 1, 8, 8), nfe=5, sampler=sampler, condition=labels), plain
    )
    belief, t = model.flow.begin(torch.randn(6, 1, 8, 8)), torch.full((6,), 0.3)
    assert torch.equal(guided(belief, t, condition=labels).mean, model.predictor(belief, t, condition=labels).mean)


@pytest.mark.parametrize("conditions", ["label", "vector", "both"])
def test_one_call_on_twice_the_batch_agrees_with_two(conditions):
    torch.manual_seed(0)
    settings = {"label": {"classes": 3}, "vector": {"vectors": 2}, "both": {"classes": 3, "vectors": 2}}[conditions]
    flow, network = GPFN(), UNet((1, 8, 8), channels=8, **settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    guided = Guided(PointPredictor(network, flow, clip=None), 2.0)
    each = {"label": torch.arange(5) % 3, "vector": torch.randn(5, 2)}
    condition = each if conditions == "both" else each[conditions]
    belief, t = DiagonalGaussian(torch.randn(5, 1, 8, 8), torch.rand(5, 1, 1, 1)), torch.rand(5)
    one, two = guided._doubled(belief, t, condition, {}), guided._pair(belief, t, condition, {})
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.mean, b.mean, atol=1e-5, rtol=1e-5)
        assert a._std == b._std
    assert not torch.allclose(two[0].mean, two[1].mean)


def test_intervals_hold_for_times_in_a_tensor_too():
    guided = Guided(Told(*IMAGES[:2]), 3.0, interval=(0.3, 0.6))
    t = torch.tensor([0.2, 0.3, 0.7])
    found = guided(DiagonalGaussian(IMAGES[2], 0.5), t, condition=LABELS).mean
    assert torch.equal(found[[0, 2]], IMAGES[0][[0, 2]])
    torch.testing.assert_close(found[1], IMAGES[1][1] + 3 * (IMAGES[0][1] - IMAGES[1][1]))


def test_a_weak_model_is_led_away_from_and_told_the_condition_if_it_reads_one():
    strong, weak = Told(IMAGES[0], IMAGES[0]), Told(IMAGES[1], IMAGES[2])
    belief, t = DiagonalGaussian(IMAGES[2], 0.5), torch.full((3,), 0.4)
    found = Guided(strong, 2.0, weak=weak)(belief, t, condition=LABELS).mean
    torch.testing.assert_close(found, 2 * IMAGES[0] - IMAGES[1])
    untold = Guided(strong, 2.0, weak=weak)(belief, t).mean  # neither is told
    torch.testing.assert_close(untold, 2 * IMAGES[0] - IMAGES[2])
    flow = GPFN()
    plain = [PointPredictor(MLP((2,), width=8), flow) for _ in range(2)]
    drawn = proxflow.sample(Guided(plain[0], 2.0, weak=plain[1]), flow, (4, 2), nfe=3)
    assert drawn.shape == (4, 2)
    with pytest.raises(ArgumentError, match="reads none"):
        proxflow.sample(Guided(plain[0], 2.0, weak=plain[1]), flow, (4, 2), nfe=3, condition=torch.zeros(4).long())


def test_sampling_leaves_the_modes_of_predictors_as_they_were():
    flow = GPFN()
    strong, weak = (PointPredictor(MLP((2,), width=8), flow) for _ in range(2))
    strong.eval(), weak.eval()
    proxflow.sample(Guided(strong, 2.0, weak=weak), flow, (4, 2), nfe=2)
    assert not strong.training
    assert not weak.training


def test_guided_points_stay_within_the_range_of_the_data():
    flow = GPFN()
    predictor = PointPredictor(Counted(), flow, clip=(-0.1, 0.1)).eval()
    found = Guided(predictor, 50.0)(flow.begin(torch.randn(4, 2)), torch.zeros(4), condition=torch.arange(4))
    assert float(found.mean.detach().abs().max()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "at least 0 and finite"),
        ({"weight": math.nan}, "at least 0 and finite"),
        ({"weight": 2.0, "interval": (0.5, 0.2)}, "0 ≤ first ≤ last ≤ 1"),
        ({"weight": 2.0, "rule": "cfg"}, "known are linear, zero-star, projected"),
    ],
)
def test_what_guidance_refuses(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Guided(Told(*IMAGES[:2]), **settings)


def test_predictors_that_cannot_be_guided():
    flow = GPFN()
    with pytest.raises(ArgumentError, match="reads none"):
        Guided(PointPredictor(MLP((2,)), flow), 2.0)
    with pytest.raises(ArgumentError, match="DrawPredictor draws"):
        Guided(DrawPredictor(MLP((4,), outputs=2, classes=2), flow), 2.0)
    with pytest.raises(ArgumentError, match="divergence="):
        Guided(ClassPredictor(MLP((2, 3), classes=2)), 2.0)
    with pytest.raises(ArgumentError, match="leads toward a condition, and none is given"):
        Guided(Told(*IMAGES[:2]), 2.0)(DiagonalGaussian(IMAGES[2], 0.5), torch.zeros(3))
    told = Told(*IMAGES[:2], flow=GPFN(FisherRao()))
    with pytest.raises(ArgumentError, match="needs a flow with a Gaussian path"):
        Guided(told, 2.0, rule="zero-star")(DiagonalGaussian(IMAGES[2], 0.5), torch.zeros(3), condition=LABELS)
    for setting in ({"eta": math.inf}, {"cap": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ArgumentError, match="cap positive"):
            Projected(**setting)
    with pytest.raises(ArgumentError, match="zero_steps"):
        ZeroStar(zero_steps=-1)


# Flows, samplers, likelihoods ----------------------------------------------------------------------------------------------


def test_classes_are_guided_in_their_flows_geometry_and_sampled():
    for flow, word in (
        (DiscreteBFN(3), "bfn-discrete:classes=3"),
        (GPFN(FisherRao(), endpoints=CategoricalEndpoints(3)), None),
    ):
        torch.manual_seed(0)
        predictor = ClassPredictor(MLP((4, 3), width=16, classes=2), flow)
        for parameter in predictor.parameters():
            nn.init.normal_(parameter, std=0.3)
        assert predictor.geometry == flow.geometry
        guided = Guided(predictor, 3.0, rule=LinearGuidance(outside="clip"))
        drawn = proxflow.sample(guided, flow, (6, 4), nfe=4, condition=torch.arange(6) % 2)
        assert drawn.shape == (6, 4)
        with pytest.raises(ArgumentError, match="real data, not of Categorical"):
            proxflow.sample(
                Guided(predictor, 3.0, rule="projected"), flow, (6, 4), nfe=4, condition=torch.arange(6) % 2
            )
        assert word is None or isinstance(flow.geometry, KL)


@pytest.mark.parametrize("sampler", ["deterministic", "stochastic", "marginal", "multistep2", "unipc", "midpoint"])
def test_every_sampler_takes_a_guided_predictor(sampler):
    flow = GPFN()
    guided = Guided(PointPredictor(Counted(), flow), 2.0)
    drawn = proxflow.sample(guided, flow, (5, 2), nfe=6, sampler=sampler, condition=torch.arange(5) % 2)
    other = proxflow.sample(guided, flow, (5, 2), nfe=6, sampler=sampler, condition=torch.zeros(5).long())
    assert drawn.isfinite().all()
    assert not torch.equal(drawn[1], other[1])
    assert torch.equal(drawn[0], other[0])  # each by its own condition


def test_likelihoods_take_a_guided_predictor():
    # Of one Gaussian per label guidance moves the mean alone at the end of its interval of weight: compare with sampling.
    flow = GPFN(endpoints=GaussianEndpoints(0.0))
    guided = Guided(MixtureByLabel(flow), 1.0)
    plain = MixtureByLabel(flow)
    x, labels = MEANS + 0.1, torch.arange(3)
    told = proxflow.ode_log_likelihood(guided, flow, x, condition=labels, steps=32).log_prob
    wanted = torch.distributions.Normal(MEANS, STDS[:, None]).log_prob(x).sum(1)
    torch.testing.assert_close(told, wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(told, proxflow.ode_log_likelihood(plain, flow, x, condition=labels, steps=32).log_prob)
    sharper = proxflow.ode_log_likelihood(Guided(plain, 2.0), flow, MEANS, condition=labels, steps=32).log_prob
    assert bool(sharper.isfinite().all())
    bayesian = BFN(0.1)
    bounds = [
        proxflow.bayesian_bound(Guided(MixtureByLabel(bayesian), w), bayesian, x, seeded(), condition=labels)
        for w in (1.0, 4.0)
    ]
    assert not torch.equal(*bounds)


def test_guided_targets_teach_a_student():
    from proxflow import Autoguidance, DistributionMatching, StudentAndCritic

    flow = GPFN()
    teacher = PointPredictor(Counted(), flow).eval().requires_grad_(False)
    guided = Guided(teacher, 3.0)
    x, labels, t = torch.randn(4, 2) / 3, torch.arange(4) % 2, torch.linspace(0.1, 0.8, 4)
    belief = flow.belief(x, t, seeded())
    target = guided(belief, t, condition=labels).mean
    student = PointPredictor(Counted(), flow).eval()
    loss = Autoguidance(flow, guided, teacher, 1.0).loss(student, x, seeded(), t, condition=labels)
    wanted = flow.weight(t) * (student(belief, t, condition=labels).mean - target).square().mean(1)
    torch.testing.assert_close(loss, wanted)
    both = StudentAndCritic(teacher, discriminator=False)
    matching = DistributionMatching(flow, guided, 0.0)
    matching.loss(both, x, seeded(), t, condition=labels).sum().backward()
    assert both.student.network.scale.grad.abs() > 0


def test_rules_differ():
    found = [led(rule, 3.0) for rule in ("linear", "zero-star", "projected")]
    assert all(not torch.allclose(a, b) for a, b in pairwise([*found, found[0]]))


# Models and commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves a conditional model of random weights, whose classes have effects."""
    path = tmp_path_factory.mktemp("conditional") / "model"
    model = proxflow.build(Image((1, 8, 8), 4), network="unet:channels=8,multipliers=1,patch=2,classes=4", seed=0)
    torch.manual_seed(1)
    for parameter in model.predictor.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


@pytest.fixture
def run(capsys):
    """Runs the command: (exit status, output, errors)."""
    from proxflow.cli import main

    def call(*words):
        status = main([str(word) for word in ("sample", *words, "--device", "cpu")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_model_samples_with_guidance(folder):
    model, labels = proxflow.load(folder), torch.arange(6) % 4
    plain = model.sample(6, nfe=4, condition=labels, decode=False)
    assert torch.equal(model.sample(6, nfe=4, condition=labels, decode=False, guidance=1.0), plain)
    found = model.sample(6, nfe=4, condition=labels, decode=False, guidance=3.0)
    guided = Guided(model.predictor, 3.0)
    assert torch.equal(found, proxflow.sample(guided, model.flow, (6, 1, 8, 8), nfe=4, condition=labels))
    assert not torch.equal(found, plain)
    word = model.sample(6, nfe=4, condition=labels, decode=False, guidance=3.0, rule="projected:eta=0.5,cap=2")
    rule = model.sample(6, nfe=4, condition=labels, decode=False, guidance=3.0, rule=Projected(0.5, 2.0))
    assert torch.equal(word, rule)
    with pytest.raises(ArgumentError, match="give condition=, or weak="):
        model.sample(6, nfe=4, guidance=3.0)
    with pytest.raises(ArgumentError, match="must be of this model's flow"):
        model.sample(6, nfe=4, guidance=3.0, weak=proxflow.build((1, 8, 8), flow="gpfn-kl", network="unet:channels=8"))


def test_the_command_draws_classes_with_guidance(folder, run, tmp_path):
    out = tmp_path / "all.npz"
    words = (folder, "--class", "all", "--guidance", 2, "--n", 2, "--steps", 4, "--out", out)
    status, said, _ = run(*words)
    assert status == 0
    assert said.startswith("8 images, 8 network evaluations each")
    with np.load(out) as held:
        assert held["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        images = held["images"]
    model = proxflow.load(folder)
    wanted = model.sample(8, nfe=4, condition=torch.arange(4).repeat_interleave(2), guidance=2.0)
    assert (images[..., 0] == wanted[:, 0].numpy()).all()
    _, said, _ = run(
        *words[:-1], tmp_path / "some.npz", "--guidance-interval", 0.2, 0.6, "--guidance-rule", "zero-star"
    )
    assert "6 network evaluations each" in said
    _, said, _ = run(folder, "--class", 3, "--n", 3, "--steps", 4, "--out", tmp_path / "one.npz")
    assert said.startswith("3 images, 4 network evaluations each")
    _, said, _ = run(folder, "--n", 3, "--steps", 4, "--weak", folder, "--guidance", 2, "--out", tmp_path / "weak.npz")
    assert said.startswith("3 images, 8 network evaluations each")


def test_several_classes_make_rows_with_their_names(folder, run, tmp_path):
    assert run(folder, "--class", 2, 0, "--n", 3, "--steps", 2, "--out", tmp_path / "rows.png")[0] == 0
    picture = PIL.Image.open(tmp_path / "rows.png")
    model = proxflow.load(folder)
    images = model.sample(6, nfe=2, condition=torch.tensor([2, 2, 2, 0, 0, 0]))
    left = picture.width - 3 * 10 - 2
    for row in range(2):
        for column in range(3):
            place = (left + 2 + column * 10, row * 16 + 2)
            shown = picture.crop((*place, place[0] + 8, place[1] + 8)).convert("L")
            assert np.array_equal(shown, images[3 * row + column, 0])
    assert left > 4  # the names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class", "7"), "knows no such class; it has 0, 1, 2, 3, or all"),
        (("--class", "shoe"), "--class shoe"),
        (("--guidance", "2"), "--class or --weak"),
        (("--class", "1", "--guidance-rule", "linear"), "give --guidance"),
        (("--class", "1", "--guidance", "2", "--guidance-rule", "cfg"), "no guidance is called 'cfg'"),
        (("--class", "1", "--guidance", "2", "--guidance-interval", "0.9", "0.1"), "0 ≤ first ≤ last ≤ 1"),
        (("--class", "1", "--guidance", "-2"), "at least 0"),
    ],
)
def test_what_the_command_refuses(folder, run, tmp_path, words, message):
    status, _, err = run(folder, *words, "--out", tmp_path / "none.npz")
    assert status == 2
    assert message in err
    assert not (tmp_path / "none.npz").exists()


def test_models_without_classes_are_not_asked_for_any(run, tmp_path):
    status, _, err = run("mnist", "--class", "1", "--out", tmp_path / "none.npz")
    assert status == 2
    assert "this one has no classes" in err
