from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import contracts
import numpy as np
import pytest
import torch
from contracts import Pair, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg, optimize, stats
from torch import Tensor

from proxflow import _math, divergences
from proxflow._math import sum_events
from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, FullGaussian, GaussianMixture, Product
from proxflow.divergences import (
    KL,
    MMD,
    Alpha,
    Bregman,
    ChiSquared,
    Divergence,
    EnergyDistance,
    FisherRao,
    HellingerSquared,
    Jeffreys,
    PerPart,
    Renyi,
    ReverseBregman,
    ReverseChiSquared,
    ReverseKL,
    Wasserstein2,
    closed_form,
    has_closed_form,
    steps_compose,
    table_of_closed_forms,
    value,
)
from proxflow.errors import ArgumentError, UnsupportedPairError
from proxflow.flows import CategoricalEndpoints, GaussianEndpoints
from proxflow.paths import Shifted
from proxflow.testing import BELIEFS, check_divergence, difference, normal, uniform


# A member from outside the package: the class, its rules, and its place in the list are all it takes.
@dataclass(frozen=True)
class Aitchison(Divergence):
    """Squared Aitchison distance: Euclidean between centred log-probabilities."""

    additive = True
    composes = True


def _centred(belief: Categorical) -> Tensor:
    return belief.logits - belief.logits.mean(-1, keepdim=True)


@value(Aitchison, Categorical)
def _(_: Aitchison, p: Categorical, q: Categorical) -> Tensor:
    return sum_events((_centred(p) - _centred(q)).square())


@closed_form(Aitchison, Categorical)
def _(_: Aitchison, belief: Categorical, target: Categorical, over: Any) -> Categorical:
    f = over(belief.logits)
    return Categorical((1 - f) * _centred(belief) + f * _centred(target))


PAIRS = contracts.pairs([*contracts.DIVERGENCES, Aitchison()])
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
# contracts.py says which members have no step, and which are not tensor operations all through.
stepped_pairs = pytest.mark.parametrize("pair", [p for p in PAIRS if p.has_step], ids=str)
traced_pairs = pytest.mark.parametrize("pair", [p for p in PAIRS if p.traces], ids=str)


# Contracts of every pair ---------------------------------------------------------------------------------------------


@every_pair
def test_contract(pair: Pair) -> None:
    check_divergence(
        pair.divergence, {pair.family: pair.draw}, contracts.SOLVER if pair.has_step else None, smooth=pair.smooth
    )


@every_pair
def test_value_keeps_its_accuracy_near_equality(pair: Pair) -> None:
    p, q, _ = pair.beliefs(64)
    assert bool((pair.divergence(p, q) > 1e-4).all())
    if pair.smooth:  # quadratic near equality, all the way down: no cancellation
        eps, way = pair.least_difference, normal(9, 1, p.coordinates().shape[1])
        ratio = pair.divergence(p, p.at(p.coordinates() + eps * way)) / eps**2
        wider = pair.divergence(p, p.at(p.coordinates() + 1e-2 * way)) / 1e-4
        torch.testing.assert_close(ratio, wider, rtol=0.2, atol=0)


@stepped_pairs
def test_no_claim_to_compose_is_missing(pair: Pair) -> None:
    """Flows would simulate several steps for nothing."""
    p, q, f = pair.beliefs(4)
    if not steps_compose(pair.divergence, p):
        g = 0.1 + 0.8 * uniform(5, 4)
        # Both steps from the first belief in one batch: a solver's time hardly grows with it.
        both = pair.step(*(b.map(lambda a: torch.cat([a, a])) for b in (p, q)), torch.cat([f, 1 - (1 - f) * (1 - g)]))
        first, once = both.map(lambda a: a[:4]), both.map(lambda a: a[4:])
        assert difference(pair.step(first, q, g), once) > 1e-5


@stepped_pairs
def test_envelope_gradient(pair: Pair) -> None:
    """The gradient of the least objective in the data is that of the objective with the minimiser held fixed."""
    p, q, f = pair.beliefs(3)
    x, y = (b.coordinates().requires_grad_() for b in (p, q))
    f = f.requires_grad_()
    start, end = p.at(x), q.at(y)
    r = pair.step(start, end, f)
    through = torch.autograd.grad(pair.objective(r, start, end, f).sum(), (x, y, f), retain_graph=True)
    fixed = torch.autograd.grad(pair.objective(r.map(Tensor.detach), start, end, f).sum(), (x, y, f))
    for a, b in zip(through, fixed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@traced_pairs
def test_vmap(pair: Pair) -> None:
    p, q, f = (_stack(a) for a in zip(*(pair.beliefs(3, seed) for seed in (0, 50)), strict=True))
    torch.testing.assert_close(
        torch.func.vmap(lambda a, b: pair.divergence(_belief(p, a), _belief(q, b)))(_tensors(p), _tensors(q)),
        torch.stack([pair.divergence(_at(p, i), _at(q, i)) for i in range(2)]),
    )
    if pair.closed:
        moved = torch.func.vmap(lambda a, b, f: _tensors(pair.divergence.interpolate(_belief(p, a), _belief(q, b), f)))(
            _tensors(p), _tensors(q), f
        )
        for i in range(2):
            expected = pair.divergence.interpolate(_at(p, i), _at(q, i), f[i])
            for name, tensor in expected.tensors().items():
                torch.testing.assert_close(moved[name][i], tensor)


def _stack(items: tuple[Any, ...]) -> Any:
    return torch.stack(items) if isinstance(items[0], Tensor) else items


def _tensors(belief: Any) -> dict[str, Tensor]:
    if isinstance(belief, tuple):
        return {n: torch.stack([b.tensors()[n] for b in belief]) for n in belief[0].tensors()}
    return dict(belief.tensors())


def _belief(like: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    return like[0].with_tensors(tensors)


def _at(belief: tuple[Any, ...], i: int) -> Any:
    return belief[i]


@traced_pairs
def test_compiles_into_one_graph(pair: Pair) -> None:
    """Dynamo refuses what breaks a graph, branches on data among it; the code it generates is PyTorch's own matter."""
    p, q, f = pair.beliefs(3)
    closed = pair.closed

    def both(p: Any, q: Any, f: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return pair.divergence(p, q), pair.divergence.interpolate(p, q, f).tensors() if closed else {}

    torch.compiler.reset()
    values, moved = torch.compile(both, fullgraph=True, backend="eager")(p, q, f)
    torch.testing.assert_close(values, pair.divergence(p, q))
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor, pair.divergence.interpolate(p, q, f).tensors()[name])


# Single precision ----------------------------------------------------------------------------------------------------


def _extreme_gaussians(seed: int, batch: int) -> DiagonalGaussian:
    """Standard deviations from 1e-4 to 1e4, means a thousand apart."""
    mean = 1e3 * (uniform(seed, batch, 2) - 0.5)
    return DiagonalGaussian(mean, 10 ** (8 * uniform(seed + 1, batch, 2) - 4)).map(lambda a: a.float().double())


GAUSSIAN_PAIRS = [p for p in PAIRS if p.family is DiagonalGaussian]


@pytest.mark.parametrize("pair", GAUSSIAN_PAIRS, ids=str)
def test_single_precision_at_extreme_scales(pair: Pair) -> None:
    p, q = _extreme_gaussians(1, 500), _extreme_gaussians(3, 500)
    f = (0.01 + 0.98 * uniform(5, 500)).float().double()
    exact = pair.divergence(p, q)
    single = pair.divergence(p.map(Tensor.float), q.map(Tensor.float))
    if pair.divergence in (Alpha(3.0), ChiSquared(), ReverseChiSquared()):
        # Exponentials of a squared distance: accurate in their logarithm, and infinite beyond what the precision holds.
        exact = exact.masked_fill(exact > torch.finfo(torch.float32).max, math.inf).log1p()
        single = single.log1p()
    torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=1e-30)
    if pair.closed:
        moved = pair.divergence.interpolate(p, q, f)
        rounded = pair.divergence.interpolate(p.map(Tensor.float), q.map(Tensor.float), f.float())
        torch.testing.assert_close(rounded.std.double(), moved.std, rtol=2e-5, atol=0)
        scale = torch.maximum(p.mean.abs(), q.mean.abs())
        assert float(((rounded.mean.double() - moved.mean) / scale).abs().max()) < 2e-5


@every_pair
def test_single_precision_near_equality(pair: Pair) -> None:
    """A thousandth apart: differences keep the precision that the parameters themselves allow, and stay positive."""
    p, _, _ = pair.beliefs(200)
    p = p.map(lambda a: a.float().double())
    q = p.at(p.coordinates() + 1e-3 * normal(7, *p.coordinates().shape)).map(lambda a: a.float().double())
    single = pair.divergence(p.map(Tensor.float), q.map(Tensor.float))
    assert bool((single >= 0).all())
    torch.testing.assert_close(single.double(), pair.divergence(p, q), rtol=5e-3, atol=1e-13)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p.family is not DiagonalGaussian], ids=str)
def test_single_precision_of_the_other_families(pair: Pair) -> None:
    p, q, f = (a.map(lambda x: x.float().double()) if isinstance(a, Belief) else a for a in pair.beliefs(100))
    if pair.family is Categorical:
        p, q = Categorical((10 * p.logits).float().double()), Categorical((10 * q.logits).float().double())
    single = pair.divergence(p.map(Tensor.float), q.map(Tensor.float))
    torch.testing.assert_close(single.double(), pair.divergence(p, q), rtol=1e-4, atol=1e-6)
    if pair.closed:
        rounded = pair.divergence.interpolate(p.map(Tensor.float), q.map(Tensor.float), f.float())
        assert rounded.tensors().popitem()[1].dtype == torch.float32
        assert difference(rounded.map(Tensor.double), pair.divergence.interpolate(p, q, f)) < 2e-5


# Ruled-out classes and point masses ------------------------------------------------------------------------------------

SURE = Categorical(torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64))
OTHER = Categorical(torch.tensor([[-math.inf, 0.0, 0.0]], dtype=torch.float64))
OPEN = Categorical.from_probs(torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64))


def test_values_with_ruled_out_classes() -> None:
    def number(d: Divergence, p: Categorical, q: Categorical) -> float:
        return float(d(p, q))

    assert number(KL(), SURE, OPEN) == pytest.approx(-math.log(0.2))
    assert number(KL(), OPEN, SURE) == math.inf
    assert number(ReverseKL(), OPEN, SURE) == pytest.approx(-math.log(0.2))
    assert number(HellingerSquared(), OPEN, SURE) == pytest.approx(1 - math.sqrt(0.2))
    assert number(HellingerSquared(), OTHER, SURE) == 1
    assert number(FisherRao(), OTHER, SURE) == pytest.approx(math.pi**2)
    assert number(FisherRao(), OPEN, SURE) == pytest.approx(4 * math.acos(math.sqrt(0.2)) ** 2)
    assert number(Renyi(0.5), OPEN, SURE) == pytest.approx(-math.log(0.2))
    assert number(Renyi(0.5), OTHER, SURE) == math.inf
    assert number(Renyi(2.0), SURE, OPEN) == pytest.approx(-math.log(0.2))
    assert number(Renyi(2.0), OPEN, SURE) == math.inf
    assert number(ChiSquared(), SURE, OPEN) == pytest.approx(1 / 0.2 - 1)
    assert number(ChiSquared(), OPEN, SURE) == math.inf
    assert number(ReverseChiSquared(), OPEN, SURE) == pytest.approx(1 / 0.2 - 1)
    assert number(Alpha(3.0), OPEN, SURE) == pytest.approx((1 / 0.2 - 1) / 2)
    assert number(Alpha(3.0), SURE, OPEN) == math.inf
    either = (Alpha(0.5), Alpha(3.0), Renyi(0.5), Renyi(2.0), ChiSquared(), ReverseChiSquared())
    for d in (KL(), ReverseKL(), HellingerSquared(), FisherRao(), *either):
        assert number(d, SURE, SURE) == 0, d


@pytest.mark.parametrize(
    "d",
    [KL(), ReverseKL(), FisherRao(), HellingerSquared(), Alpha(0.5), Alpha(3.0), ChiSquared(), ReverseChiSquared()],
    ids=str,
)
def test_steps_toward_certainty(d: Divergence) -> None:
    for fraction in (0.0, 0.3, 1.0):
        moved = d.interpolate(OPEN, SURE, fraction).probs
        assert bool(moved.isfinite().all())
        assert float(moved.sum()) == pytest.approx(1)
        if fraction in (0.0, 1.0):
            torch.testing.assert_close(moved, (OPEN if fraction == 0 else SURE).probs)
    logits = OPEN.logits.clone().requires_grad_()
    f = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    d.interpolate(Categorical(logits), SURE, f).probs.square().sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert bool(f.grad.isfinite().all())


def test_hand_values() -> None:
    """Reverse KL toward certainty is linear, KL lands at once, Fisher–Rao is the great circle."""
    torch.testing.assert_close(ReverseKL().interpolate(OPEN, SURE, 0.5).probs, (OPEN.probs + SURE.probs) / 2)
    torch.testing.assert_close(KL().interpolate(OPEN, SURE, 0.1).probs, SURE.probs)
    angle = math.acos(math.sqrt(0.2))
    share = (math.sin(0.5 * angle) * (math.sqrt(0.2) + 1) / math.sin(angle)) ** 2
    assert float(FisherRao().interpolate(OPEN, SURE, 0.5).probs[0, 0]) == pytest.approx(share)


def test_wasserstein_reaches_point_masses() -> None:
    p = DiagonalGaussian(torch.zeros(1, 1), torch.ones(1, 1))
    point = DiagonalGaussian(torch.full((1, 1), 2.0), torch.zeros(1, 1))
    moved = Wasserstein2().interpolate(p, point, 0.25)
    assert (float(moved.mean), float(moved.std)) == (0.5, 0.75)
    assert float(Wasserstein2().interpolate(p, point, 1.0).std) == 0
    assert float(Wasserstein2()(p, point)) == 5
    assert float(KL()(p, point)) == math.inf
    full = FullGaussian(torch.zeros(1, 2), torch.eye(2)[None])
    line = FullGaussian(torch.zeros(1, 2), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    assert float(Wasserstein2()(full, line)) == pytest.approx(4 - 2 * math.sqrt(2), rel=1e-6)
    torch.testing.assert_close(Wasserstein2().interpolate(full, line, 1.0).covariance, line.covariance)


def test_equal_spheres_have_smooth_bures_steps() -> None:
    """Singular values meet, where the derivative of a singular value decomposition is infinite."""
    spheres = FullGaussian(torch.zeros(2, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    x = spheres.coordinates().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Wasserstein2()(spheres.at(x), spheres), x, atol=1e-7)
    assert torch.autograd.gradgradcheck(lambda x: Wasserstein2()(spheres.at(x), spheres), x, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda x: Wasserstein2().interpolate(spheres, spheres.at(x), 0.3).coordinates(), x, atol=1e-7
    )


# Independent oracles -----------------------------------------------------------------------------------------------------


def _torch_distribution(belief: Any) -> torch.distributions.Distribution:
    if isinstance(belief, DiagonalGaussian):
        return torch.distributions.Independent(torch.distributions.Normal(belief.mean, belief.std), 1)
    if isinstance(belief, FullGaussian):
        return torch.distributions.MultivariateNormal(belief.mean, scale_tril=belief.scale_tril)
    return torch.distributions.Independent(torch.distributions.Categorical(logits=belief.logits), 1)


@pytest.mark.parametrize("family", [DiagonalGaussian, FullGaussian, Categorical])
def test_kl_matches_torch_distributions(family: type[Belief]) -> None:
    p, q, _ = Pair(KL(), family).beliefs(20)
    forward = torch.distributions.kl_divergence(_torch_distribution(p), _torch_distribution(q))
    backward = torch.distributions.kl_divergence(_torch_distribution(q), _torch_distribution(p))
    torch.testing.assert_close(KL()(p, q), forward, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ReverseKL()(p, q), backward, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(Jeffreys()(p, q), forward + backward, rtol=1e-11, atol=1e-12)


def _gaussian_integral(p: DiagonalGaussian, q: DiagonalGaussian, s: float) -> float:
    """∫ p^{1−s} q^s by quadrature."""
    (m, n), (a, b) = (float(p.mean), float(q.mean)), (float(p.std), float(q.std))

    def density(x: float) -> float:
        log_p = -0.5 * ((x - m) / a) ** 2 - math.log(a) - 0.5 * math.log(2 * math.pi)
        log_q = -0.5 * ((x - n) / b) ** 2 - math.log(b) - 0.5 * math.log(2 * math.pi)
        return math.exp((1 - s) * log_p + s * log_q)

    return float(integrate.quad(density, -80, 80, points=[m, n], limit=400, epsabs=1e-12)[0])


@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.8), (-3.0, 1.2), (0.01, 1.01), (0.0, 2.5)])
def test_affinities_of_gaussians_match_quadrature(mean: float, std: float) -> None:
    def gaussian(m: float, s: float) -> DiagonalGaussian:
        return DiagonalGaussian(torch.tensor([[m]], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64))

    p, q = gaussian(mean, std), gaussian(0.2, 1.0)
    for order in (0.3, 0.5, 1.1):
        expected = math.log(_gaussian_integral(p, q, 1 - order)) / (order - 1)
        assert float(Renyi(order)(p, q)) == pytest.approx(expected, rel=1e-7)
    assert float(HellingerSquared()(p, q)) == pytest.approx(1 - _gaussian_integral(p, q, 0.5), rel=1e-7)
    assert float(ChiSquared()(p, q)) == pytest.approx(
        _gaussian_integral(p, q, -1) - 1 if std < 1.4 else math.inf, rel=1e-7
    )
    assert float(ReverseChiSquared()(p, q)) == pytest.approx(_gaussian_integral(p, q, 2) - 1, rel=1e-7)
    for a in (-0.5, 0.0, 0.8):
        expected = 4 / (1 - a**2) * (1 - _gaussian_integral(p, q, (1 + a) / 2))
        assert float(Alpha(a)(p, q)) == pytest.approx(expected, rel=1e-7)


def test_affinities_of_categories_match_their_definition() -> None:
    p, q = (Categorical(normal(seed, 30, 5)) for seed in (1, 2))
    a, b = p.probs.numpy(), q.probs.numpy()
    for order in (0.5, 2.0, 7.0):
        expected = np.log((a**order * b ** (1 - order)).sum(1)) / (order - 1)
        np.testing.assert_allclose(Renyi(order)(p, q).numpy(), expected, rtol=1e-11)
    np.testing.assert_allclose(HellingerSquared()(p, q).numpy(), 1 - np.sqrt(a * b).sum(1), rtol=1e-11)
    np.testing.assert_allclose(ChiSquared()(p, q).numpy(), ((a - b) ** 2 / b).sum(1), rtol=1e-11)
    np.testing.assert_allclose(ReverseChiSquared()(p, q).numpy(), ((a - b) ** 2 / a).sum(1), rtol=1e-11)
    for s in (-0.3, 0.8, 2.0):
        expected = (1 - (a ** (1 - s) * b**s).sum(1)) / (s * (1 - s))
        np.testing.assert_allclose(Alpha(2 * s - 1)(p, q).numpy(), expected, rtol=1e-10)


def test_orders_approach_kl() -> None:
    for family in (DiagonalGaussian, Categorical):
        p, q, _ = Pair(KL(), family).beliefs(10)
        for d, limit in ((Renyi(1 - 1e-7), KL()), (Alpha(-1 + 1e-7), KL()), (Alpha(1 - 1e-7), ReverseKL())):
            torch.testing.assert_close(d(p, q), limit(p, q), rtol=1e-5, atol=1e-7)


def test_bures_matches_matrix_square_roots() -> None:
    p, q, f = Pair(Wasserstein2(), FullGaussian).beliefs(10)
    moved, values = Wasserstein2().interpolate(p, q, f), Wasserstein2()(p, q)
    for i in range(10):
        a, b = p.covariance[i].numpy(), q.covariance[i].numpy()
        root = linalg.sqrtm(a)
        middle = linalg.sqrtm(root @ b @ root)
        shift = float((p.mean[i] - q.mean[i]).square().sum())
        assert float(values[i]) == pytest.approx(shift + np.trace(a + b - 2 * middle), rel=1e-9)
        transport = np.linalg.inv(root) @ middle @ np.linalg.inv(root)
        mixed = (1 - float(f[i])) * np.eye(2) + float(f[i]) * transport
        np.testing.assert_allclose(moved.covariance[i].numpy(), mixed @ a @ mixed, rtol=1e-8, atol=1e-10)


def test_full_and_diagonal_gaussians_agree() -> None:
    p, q, f = Pair(KL(), DiagonalGaussian).beliefs(6)
    full_p, full_q = (FullGaussian(b.mean, torch.diag_embed(b.std)) for b in (p, q))
    for d in (KL(), ReverseKL(), Wasserstein2(), Jeffreys()):
        torch.testing.assert_close(d(full_p, full_q), d(p, q))
    for d in (KL(), Wasserstein2()):
        moved, expected = d.interpolate(full_p, full_q, f), d.interpolate(p, q, f)
        torch.testing.assert_close(moved.mean, expected.mean)
        torch.testing.assert_close(moved.scale_tril, torch.diag_embed(expected.std))


def test_fisher_rao_matches_the_integrated_metric() -> None:
    """The length of the step's path in the metric (dμ² + 2 dσ²)/σ², and no shorter path through a detour."""
    p = DiagonalGaussian(torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    q = DiagonalGaussian(torch.tensor([2.0], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64))
    n = 20_001
    f = torch.linspace(0, 1, n, dtype=torch.float64)
    path = FisherRao().interpolate(p.map(lambda a: a.expand(n)), q.map(lambda a: a.expand(n)), f)
    middle = (path.std[1:] + path.std[:-1]) / 2
    steps = ((path.mean.diff().square() + 2 * path.std.diff().square()) / middle.square()).sqrt()
    assert float(steps.sum() ** 2) == pytest.approx(float(FisherRao()(p, q)), rel=1e-7)
    assert float(steps.max() / steps.min()) == pytest.approx(1, rel=1e-5)  # at constant speed
    straight = Wasserstein2().interpolate(p.map(lambda a: a.expand(n)), q.map(lambda a: a.expand(n)), f)
    middle = (straight.std[1:] + straight.std[:-1]) / 2
    detour = ((straight.mean.diff().square() + 2 * straight.std.diff().square()) / middle.square()).sqrt().sum()
    assert float(detour) > float(steps.sum())


def _expected(function: Any, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    """E f(X, Y) for each coordinate by the rectangle rule, which is spectrally accurate for smooth f."""
    nodes = torch.linspace(-9, 9, 401, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
    x, y = (b.mean[..., None] + b.std[..., None] * nodes for b in (p, q))
    return (function(x[..., :, None], y[..., None, :]) * weights[:, None] * weights).sum((-2, -1))


@pytest.mark.parametrize("bandwidth", [0.8, 3.0])
def test_mmd_matches_quadrature(bandwidth: float) -> None:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(x - y).square() / (2 * bandwidth**2))

    p, q = BELIEFS[DiagonalGaussian](1, 6), BELIEFS[DiagonalGaussian](2, 6)
    same, other, cross = (_expected(kernel, a, b) for a, b in ((p, p), (q, q), (p, q)))
    torch.testing.assert_close(MMD(bandwidth)(p, q), (same + other - 2 * cross).sum(1), rtol=1e-7, atol=1e-9)
    # Between whole events the kernel is a product over coordinates.
    full_p, full_q = (FullGaussian(b.mean, torch.diag_embed(b.std)) for b in (p, q))
    whole = same.prod(1) + other.prod(1) - 2 * cross.prod(1)
    torch.testing.assert_close(MMD(bandwidth)(full_p, full_q), whole, rtol=1e-7, atol=1e-9)
    one_p, one_q = (GaussianMixture(torch.zeros(6, 1).double(), b.mean[:, None], b.std[:, None]) for b in (p, q))
    torch.testing.assert_close(MMD(bandwidth)(one_p, one_q), whole, rtol=1e-7, atol=1e-9)


def test_mmd_of_full_covariances_and_mixtures_does_not_depend_on_the_axes() -> None:
    p, q = BELIEFS[FullGaussian](1, 5), BELIEFS[FullGaussian](2, 5)
    turn = torch.linalg.qr(normal(3, 2, 2)).Q
    turned = (FullGaussian.from_covariance(b.mean @ turn.T, turn @ b.covariance @ turn.T) for b in (p, q))
    torch.testing.assert_close(MMD(0.7)(*turned), MMD(0.7)(p, q))
    # Two halves of one component are that component.
    one = BELIEFS[GaussianMixture](1, 5)
    halves = one.map(lambda a: a.repeat_interleave(2, 1))
    other = BELIEFS[GaussianMixture](2, 5).map(lambda a: a.repeat_interleave(2, 1))
    assert float(MMD()(halves, halves.map(lambda a: a.flip(1))).abs().max()) < 1e-15
    torch.testing.assert_close(MMD()(halves, other), MMD()(one, BELIEFS[GaussianMixture](2, 5)))


@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.8), (-3.0, 1.2), (0.01, 1.01), (0.0, 2.5), (20.0, 0.1)])
def test_energy_distance_matches_quadrature_and_samples(mean: float, std: float) -> None:
    """Twice the squared distance of the distribution functions, and the empirical distance of equally likely points."""
    p = DiagonalGaussian(torch.tensor([[mean]]).double(), torch.tensor([[std]]).double())
    q = DiagonalGaussian(torch.tensor([[0.2]]).double(), torch.tensor([[1.0]]).double())
    found = float(EnergyDistance()(p, q))

    def gap(x: float) -> float:
        return float((stats.norm.cdf(x, mean, std) - stats.norm.cdf(x, 0.2, 1.0)) ** 2)

    assert found == pytest.approx(2 * integrate.quad(gap, -40, 40, points=[mean, 0.2], limit=400)[0], rel=1e-6)
    levels = (np.arange(20_000) + 0.5) / 20_000
    points = (stats.norm.ppf(levels, mean, std), stats.norm.ppf(levels, 0.2, 1.0))
    assert found == pytest.approx(stats.energy_distance(*points) ** 2, rel=2e-3, abs=1e-6)


def test_energy_and_mmd_of_categories_match_their_definition() -> None:
    p, q = (Categorical(normal(seed, 20, 2, 4)) for seed in (1, 2))
    gap = p.probs - q.probs
    places = normal(3, 4, 2)
    cost = torch.linalg.vector_norm(places - places[:, None], dim=2)
    cross, same, other = (torch.einsum("bsi,ij,bsj->bs", a.probs, cost, b.probs) for a, b in ((p, q), (p, p), (q, q)))
    torch.testing.assert_close(EnergyDistance(cost)(p, q), (2 * cross - same - other).sum(1))
    kernel = torch.exp(-cost)
    torch.testing.assert_close(MMD(1.0, kernel)(p, q), torch.einsum("bsi,ij,bsj->b", gap, kernel, gap))
    for d in (MMD(), EnergyDistance(), EnergyDistance(1 - torch.eye(4)), MMD(1.0, torch.eye(4))):
        torch.testing.assert_close(d(p, q), gap.square().sum((1, 2)))
    levels = (torch.arange(4.0) - torch.arange(4.0)[:, None]).abs()  # on a line: scipy's distance of weighted points
    expected = stats.energy_distance(range(4), range(4), p.probs[0, 0].numpy(), q.probs[0, 0].numpy()) ** 2
    assert float(EnergyDistance(levels)(p.sites(), q.sites())[0]) == pytest.approx(expected, rel=1e-9)


def test_bregman_divergences_of_well_known_functions() -> None:
    c, d, f = Pair(KL(), Categorical).beliefs(10)
    entropy = Bregman(contracts.negative_entropy, contracts.softmax)
    torch.testing.assert_close(entropy(c, d), KL()(c, d))
    torch.testing.assert_close(ReverseBregman(contracts.negative_entropy)(c, d), KL()(d, c))
    assert difference(entropy.interpolate(c, d, f), KL().interpolate(c, d, f)) < 1e-12
    p, q, f = Pair(KL(), DiagonalGaussian).beliefs(10)
    norm = Bregman(contracts.squared_norm, contracts.half)
    torch.testing.assert_close(norm(p, q), Wasserstein2()(p, q))
    assert difference(norm.interpolate(p, q, f), Wasserstein2().interpolate(p, q, f)) < 1e-12
    # −ln σ gives the Itakura–Saito distance of the standard deviations.
    ratio = p.std / q.std
    means = contracts.barrier(torch.stack([p.mean, torch.ones_like(p.mean)], -1))
    means = means - contracts.barrier(torch.stack([q.mean, torch.ones_like(q.mean)], -1))
    expected = means - q.mean.tanh() * (p.mean - q.mean) + ratio - ratio.log() - 1
    torch.testing.assert_close(Bregman(contracts.barrier)(p, q), expected.sum(1))
    # With the second argument free the step is the plain mean, whatever the function.
    for potential in (contracts.barrier, contracts.squared_norm):
        moved = ReverseBregman(potential).interpolate(p, q, 0.25)
        torch.testing.assert_close(moved.mean, 0.75 * p.mean + 0.25 * q.mean)
        torch.testing.assert_close(moved.std, 0.75 * p.std + 0.25 * q.std)


def test_bregman_divergences_at_the_edge_of_the_family() -> None:
    entropy = Bregman(contracts.negative_entropy, contracts.softmax)
    assert float(entropy(SURE, SURE)) == 0
    assert float(entropy(SURE, OPEN)) == pytest.approx(-math.log(0.2))
    assert float(entropy(OPEN, SURE)) == math.inf
    for fraction, expected in ((0.0, OPEN), (0.5, SURE), (1.0, SURE)):
        assert difference(entropy.interpolate(OPEN, SURE, fraction), expected) < 1e-12
    torch.testing.assert_close(
        ReverseBregman(contracts.negative_entropy).interpolate(OPEN, SURE, 0.5).probs, (OPEN.probs + SURE.probs) / 2
    )


def test_a_potential_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"numbers \(…\): from \(1, 3\) it made \(1, 3\)"):
        Bregman(torch.square)(OPEN, OPEN)
    with pytest.raises(UnsupportedPairError, match=r"Its value is known: use Proximal\(Bregman"):
        Bregman(contracts.negative_entropy).interpolate(OPEN, OPEN, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMD(0.0), "bandwidth"),
        (lambda: MMD(math.nan), "bandwidth"),
        (lambda: MMD(1.0, torch.tensor([[1.0, 0.5], [0.4, 1.0]])), "symmetric"),
        (lambda: MMD(1.0, torch.ones(2, 3)), "symmetric"),
        (lambda: MMD(1.0, torch.full((2, 2), math.nan)), "symmetric"),
        (lambda: MMD(1.0, torch.ones(3, 3)), "positive definite"),
        (lambda: MMD(1.0, -torch.eye(3)), "positive definite"),
        (lambda: EnergyDistance(torch.eye(3)), "zero between a class and itself"),
        (lambda: EnergyDistance(torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 1.0], [9.0, 1.0, 0.0]])), "negative type"),
        (lambda: MMD(1.0, torch.eye(3))(Categorical(torch.zeros(1, 2)), Categorical(torch.ones(1, 2))), "3 classes"),
    ],
)
def test_kernels_and_costs_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_steps_without_closed_form_match_scipy() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    definitions = {
        Renyi(2.0): lambda r, m: np.log((r**2 / m).sum()),
        Renyi(0.5): lambda r, m: -2 * np.log(np.sqrt(r * m).sum()),
        Jeffreys(): lambda r, m: ((r - m) * np.log(r / m)).sum(),
    }
    beliefs = [Categorical.from_probs(torch.tensor(a)[None]) for a in (p, q)]
    for d, formula in definitions.items():

        def objective(x: Any, formula: Any = formula) -> float:
            r = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
            return float(0.6 * formula(r, p) + 0.4 * formula(r, q))

        found = optimize.minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
        expected = np.exp(found) / np.exp(found).sum()
        np.testing.assert_allclose(solve(d, *beliefs, 0.4).probs[0].numpy(), expected, atol=1e-6)


CASES = contracts.recorded()
KEYS = sorted({(family, key) for family, cases in CASES.items() for case in cases for key in case["divergence"]})


@pytest.mark.parametrize(("family", "key"), KEYS)
def test_recorded_values(family: str, key: str) -> None:
    for case in CASES[family]:
        if key in case["divergence"]:
            p, q = (contracts.belief_from(family, case[name]) for name in ("belief", "target"))
            recorded = case["divergence"][key]
            assert float(contracts.divergence_named(key)(p, q)) == pytest.approx(recorded, rel=1e-9, abs=1e-9)


# Properties --------------------------------------------------------------------------------------------------------------

scales = st.floats(-2, 2).map(lambda x: 10.0**x)
gaussians = st.tuples(st.floats(-50, 50), scales).map(
    lambda c: DiagonalGaussian(torch.tensor([c[0]], dtype=torch.float64), torch.tensor([c[1]], dtype=torch.float64))
)
categories = st.lists(st.floats(-8, 8), min_size=3, max_size=3).map(
    lambda c: Categorical(torch.tensor([c], dtype=torch.float64))
)
METRICS: list[tuple[Divergence, Any]] = [
    (Wasserstein2(), gaussians),
    (FisherRao(), gaussians),
    (FisherRao(), categories),
    (HellingerSquared(), gaussians),
    (HellingerSquared(), categories),
    (MMD(), gaussians),
    (MMD(1.0, torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.5], [0.1, 0.5, 1.0]])), categories),
    (EnergyDistance(), gaussians),
    (EnergyDistance(), categories),
]


@pytest.mark.parametrize(("d", "beliefs"), METRICS, ids=lambda a: str(a) if isinstance(a, Divergence) else "")
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_squared_distances_have_symmetric_roots_with_the_triangle_inequality(
    d: Divergence, beliefs: Any, data: st.DataObject
) -> None:
    p, q, r = (data.draw(beliefs) for _ in range(3))
    pq, qr, pr = (math.sqrt(float(d(a, b))) for a, b in ((p, q), (q, r), (p, r)))
    assert math.sqrt(float(d(q, p))) == pytest.approx(pq, rel=1e-9, abs=1e-12)
    assert pr <= pq + qr + 1e-9


@pytest.mark.parametrize(("d", "beliefs"), METRICS[:3], ids=lambda a: str(a) if isinstance(a, Divergence) else "")
@settings(max_examples=40, deadline=None)
@given(data=st.data(), fraction=st.floats(0, 1))
def test_geodesic_steps_move_at_constant_speed(
    d: Divergence, beliefs: Any, data: st.DataObject, fraction: float
) -> None:
    p, q = data.draw(beliefs), data.draw(beliefs)
    r = d.interpolate(p, q, fraction)
    whole = math.sqrt(float(d(p, q)))
    assert math.sqrt(float(d(p, r))) == pytest.approx(fraction * whole, rel=1e-6, abs=1e-7)
    assert math.sqrt(float(d(r, q))) == pytest.approx((1 - fraction) * whole, rel=1e-6, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(p=gaussians, q=gaussians, fraction=st.floats(0, 1))
def test_gaussian_values_and_steps_are_equivariant(p: DiagonalGaussian, q: DiagonalGaussian, fraction: float) -> None:
    """Moving and scaling the data moves and scales the steps; information does not see it, W₂² sees the scale squared."""

    def moved(b: DiagonalGaussian) -> DiagonalGaussian:
        return DiagonalGaussian(4 * b.mean + 8, 4 * b.std)

    for d in (KL(), ReverseKL(), FisherRao(), Jeffreys(), Renyi(0.5), HellingerSquared(), Wasserstein2()):
        factor = 16 if isinstance(d, Wasserstein2) else 1
        torch.testing.assert_close(d(moved(p), moved(q)), factor * d(p, q), rtol=1e-8, atol=1e-11)
        if has_closed_form(d, p):
            assert difference(d.interpolate(moved(p), moved(q), fraction), moved(d.interpolate(p, q, fraction))) < 1e-9


@settings(max_examples=60, deadline=None)
@given(p=categories, q=categories, fraction=st.floats(0, 1), shift=st.floats(-100, 100))
def test_categorical_values_and_steps_ignore_the_scale_of_logits(
    p: Categorical, q: Categorical, fraction: float, shift: float
) -> None:
    for d in (KL(), ReverseKL(), FisherRao(), Jeffreys(), Renyi(0.5), HellingerSquared(), Alpha(0.5)):
        other = Categorical(p.logits + shift)
        torch.testing.assert_close(d(other, q), d(p, q), rtol=1e-8, atol=1e-11)
        if has_closed_form(d, p):
            torch.testing.assert_close(d.interpolate(other, q, fraction).probs, d.interpolate(p, q, fraction).probs)


def test_infinite_renyi_divergences() -> None:
    narrow = DiagonalGaussian(torch.zeros(1), torch.ones(1))
    wide = DiagonalGaussian(torch.zeros(1), torch.full((1,), 2.0))
    assert float(Renyi(2.0)(wide, narrow)) == math.inf
    assert math.isfinite(float(Renyi(2.0)(narrow, wide)))
    assert float(Alpha(-3.0)(wide, narrow)) == math.inf


# Gaussian paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "d", [Wasserstein2(), Wasserstein2(contracts.CoordinateMetric((0.5, 2.0))), KL()], ids=lambda d: str(d)[:20]
)
def test_a_path_is_that_of_the_steps(d: Divergence) -> None:
    ends, schedule, t = GaussianEndpoints(0.3), Shifted((0.4,)), torch.linspace(0, 1, 6, dtype=torch.float64)
    path = d.path(schedule, ends)
    assert path is not None
    noise, x = normal(1, 6, 2), normal(2, 6, 2)
    moved = d.interpolate(DiagonalGaussian(noise, 1.0), DiagonalGaussian(x, 0.3), schedule.fraction(t))
    a, b = path.coefficients(t)
    torch.testing.assert_close(a[:, None] * x + b[:, None] * noise, moved.mean, rtol=1e-12, atol=1e-12)
    assert d.path(schedule, CategoricalEndpoints(3)) is None


def test_other_divergences_have_no_path() -> None:
    for d in (ReverseKL(), FisherRao(), Jeffreys(), PerPart((Wasserstein2(), KL())), Aitchison()):
        assert d.path(Shifted((0.4,)), GaussianEndpoints()) is None


# Errors and the table ----------------------------------------------------------------------------------------------------


def test_unsupported_pairs_name_what_exists() -> None:
    p, q, _ = Pair(KL(), DiagonalGaussian).beliefs(2)
    with pytest.raises(
        UnsupportedPairError, match=r"no closed-form step.*Jeffreys.*DiagonalGaussian has one for: .*KL"
    ):
        Jeffreys().interpolate(p, q, 0.5)
    with pytest.raises(UnsupportedPairError, match=r"solver=NewtonSolver\(\)"):
        Jeffreys().interpolate(p, q, 0.5)
    c, d, _ = Pair(KL(), Categorical).beliefs(2)
    with pytest.raises(UnsupportedPairError, match="no value is known for Wasserstein2 on Categorical") as raised:
        Wasserstein2()(c, d)
    assert "DiagonalGaussian, FullGaussian" in str(raised.value)
    assert "solver" not in str(raised.value)  # without a value a solver is of no use
    with pytest.raises(UnsupportedPairError, match="one family"):
        KL()(p, d)


def test_products_add_up_what_adds_up() -> None:
    p, q, f = Pair(KL(), Product).beliefs(3)
    (a, b), (c, d) = p.parts, q.parts
    for divergence in (KL(), FisherRao(), Renyi(0.5)):
        torch.testing.assert_close(divergence(p, q), divergence(a, c) + divergence(b, d))
    numbers, classes = KL().interpolate(p, q, f).parts
    assert difference(numbers, KL().interpolate(a, c, f)) == difference(classes, KL().interpolate(b, d, f)) == 0
    separate = PerPart((Wasserstein2(), FisherRao()))
    torch.testing.assert_close(separate(p, q), Wasserstein2()(a, c) + FisherRao()(b, d))
    assert difference(separate.interpolate(p, q, f).parts[0], Wasserstein2().interpolate(a, c, f)) == 0
    with pytest.raises(ArgumentError, match="each of 3 parts, the product has 2"):
        PerPart((KL(), KL(), KL()))(p, q)
    with pytest.raises(UnsupportedPairError, match="no value is known for PerPart"):
        separate(a, c)
    with pytest.raises(UnsupportedPairError, match="Wasserstein2 on Categorical"):
        Wasserstein2()(p, q)
    with pytest.raises(UnsupportedPairError, match="add up over independent parts, which Whole does not"):
        Whole()(p, q)
    with pytest.raises(UnsupportedPairError, match="one family"):
        KL()(p, Product((b, a)))
    with pytest.raises(ArgumentError, match="same shapes"):
        KL()(p, Product((c,)))


@dataclass(frozen=True)
class Whole(Divergence):
    """One that sees whole events only."""


@value(Whole, Categorical)
def _(_: Whole, p: Categorical, q: Categorical) -> Tensor:
    return (p.probs - q.probs).square().sum((1, 2))


def test_a_closed_form_may_depend_on_the_member() -> None:
    p, q, f = Pair(KL(), DiagonalGaussian).beliefs(3)
    assert has_closed_form(Scaled(1.0), p)
    assert not has_closed_form(Scaled(2.0), p)
    assert difference(Scaled(1.0).interpolate(p, q, f), KL().interpolate(p, q, f)) == 0
    with pytest.raises(UnsupportedPairError, match=r"Scaled\(scale=2.0\) on DiagonalGaussian.*solver"):
        Scaled(2.0).interpolate(p, q, f)


@dataclass(frozen=True)
class Scaled(Divergence):
    """KL to a scale, with a step at scale 1 alone."""

    scale: float


@value(Scaled, DiagonalGaussian)
def _(divergence: Scaled, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return divergence.scale * KL()(p, q)


@closed_form(Scaled, DiagonalGaussian, when=lambda divergence: divergence.scale == 1)
def _(_: Scaled, belief: DiagonalGaussian, target: DiagonalGaussian, over: Any) -> DiagonalGaussian:
    f = over(belief.mean)
    return KL().interpolate(belief, target, f.flatten())


def test_a_rule_is_registered_once() -> None:
    for table in (value, closed_form):
        with pytest.raises(ArgumentError, match=r"\(KL, Categorical\) is registered already"):
            table(KL, Categorical)(lambda *_: None)


def test_beliefs_and_fractions_must_fit() -> None:
    p, q, _ = Pair(KL(), DiagonalGaussian).beliefs(4)
    with pytest.raises(ArgumentError, match="same shapes"):
        KL()(p, q.map(lambda a: a[:2]))
    for fraction in (torch.rand(3), torch.rand(4, 1), torch.rand(1)):
        with pytest.raises(ArgumentError, match=r"scalar or a tensor of shape \(4,\)"):
            KL().interpolate(p, q, fraction)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Renyi(1.0),
        lambda: Renyi(-0.5),
        lambda: Renyi(math.inf),
        lambda: Alpha(1.0),
        lambda: Alpha(-1.0),
        lambda: Alpha(math.nan),
    ],
)
def test_orders_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match="KL"):
        make()


def test_table_of_closed_forms() -> None:
    table = table_of_closed_forms()
    assert table == sorted(table)
    assert ("Wasserstein2", "FullGaussian", "closed form") in table
    assert ("Renyi", "Categorical", "solver") in table
    assert ("Bregman", "Categorical", "closed form or solver") in table
    contracted: dict[tuple[str, str], set[str]] = {}
    for pair in PAIRS:
        if pair.family is not Product:  # which takes the rules of its parts
            names = type(pair.divergence).__name__, pair.family.__name__
            contracted.setdefault(names, set()).add("closed form" if pair.closed else "solver")
    rows = {(divergence, family): how for divergence, family, how in table}
    for names, found in contracted.items():
        assert " or ".join(sorted(found)) == rows[names], names
    own = {names for names in rows if hasattr(divergences, names[0])}
    assert own <= contracted.keys()  # no pair of the package escapes the contracts


# Numerical helpers -------------------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 30) | st.floats(-30, -1e-9))
def test_exp_excess_is_accurate_everywhere(x: float) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = float(Decimal(x).exp() - 1 - Decimal(x))
    assert float(_math.exp_excess(torch.tensor(x, dtype=torch.float64))) == pytest.approx(exact, rel=1e-14, abs=1e-300)


def test_helpers_are_smooth_across_their_branches() -> None:
    """Value and slope from both sides of each threshold, against double-double differences of the plain formula."""
    f = torch.tensor(0.3, dtype=torch.float64)
    cases: list[tuple[Any, Any, float]] = [
        (_math.exp_excess, lambda x: math.expm1(x) - x, 0.1),
        (_math.squared_arcsinh_sqrt, lambda s: math.asinh(math.sqrt(s)) ** 2, 1e-3),
        (_math.squared_arcsin_sqrt, lambda s: math.asin(math.sqrt(s)) ** 2, 1e-3),
        (lambda s: _math.sinh_ratio(f, s), lambda s: math.sinh(0.3 * math.sqrt(s)) / math.sinh(math.sqrt(s)), 1e-3),
        (lambda s: _math.sin_ratio(f, s), lambda s: math.sin(0.3 * math.sqrt(s)) / math.sin(math.sqrt(s)), 1e-3),
    ]
    for function, plain, threshold in cases:
        for x in (0.5 * threshold, 0.999 * threshold, 1.001 * threshold, 2 * threshold):
            u = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            y = function(u)
            (slope,) = torch.autograd.grad(y, u)
            assert float(y.detach()) == pytest.approx(plain(x), rel=1e-11)
            h = 1e-3 * x
            assert float(slope) == pytest.approx((plain(x + h) - plain(x - h)) / (2 * h), rel=1e-5)
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        assert bool(torch.autograd.grad(function(zero), zero)[0].isfinite())


def test_large_arguments_leave_no_nan_in_gradients() -> None:
    """In single precision the series of the branch not taken overflows."""
    for function in (_math.squared_arcsinh_sqrt, lambda s: _math.sinh_ratio(torch.tensor(0.5), s)):
        s = torch.tensor([0.0, 1e-9, 1.0, 1e14], requires_grad=True)
        (slope,) = torch.autograd.grad(function(s).sum(), s)
        assert bool(slope.isfinite().all())


def test_log_weighted_sum() -> None:
    a, b = (
        torch.tensor(x, dtype=torch.float64)
        for x in ([-1.0, -math.inf, -900.0, 0.0, 3.0], [-2.0, -0.5, 0.0, -900.0, -math.inf])
    )
    for fraction in (0.0, 0.25, 1.0):
        f = torch.tensor(fraction, dtype=torch.float64, requires_grad=True)
        mixed = _math.log_mix(a, b, f)
        expected = torch.logaddexp(
            a + math.log(1 - fraction) if fraction < 1 else a - math.inf,
            b + (math.log(fraction) if fraction else -math.inf),
        )
        torch.testing.assert_close(mixed.detach(), expected)
        (slope,) = torch.autograd.grad(mixed[0], f)
        inside = (math.exp(-2) - math.exp(-1)) / float(mixed[0].detach().exp())
        assert float(slope) == pytest.approx(inside)
