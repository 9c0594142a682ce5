"""Wasserstein distances beyond the plain one, against scipy and direct formulas."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft, linalg, optimize
from torch import Tensor

from proxflow import GPFN, DiagonalGaussian, PointPredictor, sample
from proxflow.beliefs import Categorical, FullGaussian, GaussianMixture
from proxflow.divergences import (
    AnisotropicWasserstein2,
    CoordinateMetric,
    DiscreteWasserstein2,
    FrequencyMetric,
    GroundMetric,
    MixtureWasserstein2,
    SinkhornDivergence,
    Wasserstein2,
)
from proxflow.errors import ArgumentError, MissingPackageError
from proxflow.testing import difference, normal, uniform

HEIGHT, WIDTH = 3, 4
METRICS = [FrequencyMetric(HEIGHT, WIDTH, 1.5), FrequencyMetric(HEIGHT, WIDTH, -0.7)]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


def dense(metric: FrequencyMetric) -> np.ndarray:
    """(I − Δ)^s as a matrix, from the graph Laplacian of the grid of pixels, scaled to the trace of the identity."""

    def path(n: int) -> np.ndarray:
        edges = np.eye(n, k=1) + np.eye(n, k=-1)
        return np.diag(edges.sum(1)) - edges

    rows, columns = (
        np.kron(path(metric.height), np.eye(metric.width)),
        np.kron(np.eye(metric.height), path(metric.width)),
    )
    values, vectors = np.linalg.eigh(np.eye(len(rows)) + rows + columns)
    power = vectors @ np.diag(values**metric.strength) @ vectors.T
    return power * len(power) / np.trace(power)


def isotropic(seed: int, batch: int, *event: int) -> DiagonalGaussian:
    std = 0.2 + uniform(seed + 100, batch).reshape(batch, *[1] * len(event))
    return DiagonalGaussian(normal(seed, batch, *event), std)


def full(belief: DiagonalGaussian) -> FullGaussian:
    return FullGaussian(belief.mean.flatten(1), torch.diag_embed(belief.std.flatten(1)))


# Ground metrics --------------------------------------------------------------------------------------------------------


def test_modes_are_the_cosine_transform_of_scipy() -> None:
    x = normal(1, 2, 5, HEIGHT, WIDTH)
    metric = METRICS[0]
    np.testing.assert_allclose(metric.modes(x), fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"), atol=1e-14)
    torch.testing.assert_close(metric.events(metric.modes(x)), x, rtol=0, atol=1e-14)
    flat = x[:, 0].flatten(1)
    torch.testing.assert_close(metric.modes(flat), metric.modes(x)[:, 0].flatten(1))
    with torch.autocast("cpu", torch.bfloat16):  # a network's half precision does not reach beliefs
        assert metric.modes(x.float()).dtype == torch.float32
        torch.testing.assert_close(metric.events(metric.modes(x.float())), x.float(), rtol=0, atol=1e-6)


@every_metric
def test_frequency_metric_is_a_power_of_the_laplacian(metric: FrequencyMetric) -> None:
    x = normal(1, 6, HEIGHT, WIDTH)
    applied = metric.events(metric.weights(x) * metric.modes(x)).flatten(1)
    np.testing.assert_allclose(applied, x.flatten(1).numpy() @ dense(metric), atol=1e-12)
    assert float(metric.mean_weight(x)) == pytest.approx(1)
    weights = metric.weights(x)
    assert (weights[0, 0] == (weights.min() if metric.strength > 0 else weights.max())).item()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrequencyMetric(0, 3),
        lambda: FrequencyMetric(3, 3, float("nan")),
        lambda: FrequencyMetric(3, 3, 51.0),
        lambda: CoordinateMetric(()),
        lambda: CoordinateMetric((1.0, 0.0)),
        lambda: CoordinateMetric((1.0, float("inf"))),
    ],
)
def test_metrics_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"at least 1|positive|strength"):
        make()


@pytest.mark.parametrize("metric", [METRICS[0], CoordinateMetric((1.0,) * 12)], ids=str)
def test_events_of_another_shape_are_refused(metric: GroundMetric) -> None:
    p, q = isotropic(1, 2, 5, 2), isotropic(2, 2, 5, 2)
    for d in (Wasserstein2(metric), AnisotropicWasserstein2(metric)):
        for use in (lambda d=d: d(p, q), lambda d=d: d.interpolate(p, q, 0.5)):
            with pytest.raises(ArgumentError, match="this metric is for"):
                use()


# Wasserstein-2 under a metric --------------------------------------------------------------------------------------------


@every_metric
def test_distance_and_geodesic_of_full_covariances_match_matrix_formulas(metric: FrequencyMetric) -> None:
    """W₂² of the beliefs seen through M^½, and the way there and back."""
    n, m = HEIGHT * WIDTH, dense(metric)
    root = linalg.sqrtm(m)
    p, q = (
        FullGaussian.from_covariance(normal(s, 2, n), a @ a.mT + 0.1 * torch.eye(n).double())
        for s, a in ((1, normal(11, 2, n, n)), (2, normal(12, 2, n, n)))
    )
    moved, values = Wasserstein2(metric).interpolate(p, q, 0.3), Wasserstein2(metric)(p, q)
    for i in range(2):
        a, b = (root @ x.covariance[i].numpy() @ root for x in (p, q))
        half = linalg.sqrtm(a)
        middle = linalg.sqrtm(half @ b @ half)
        shift = (p.mean[i] - q.mean[i]).numpy()
        assert float(values[i]) == pytest.approx(shift @ m @ shift + np.trace(a + b - 2 * middle), rel=1e-9)
        mixed = 0.7 * np.eye(n) + 0.3 * np.linalg.inv(half) @ middle @ np.linalg.inv(half)
        back = np.linalg.inv(root)
        np.testing.assert_allclose(moved.covariance[i].numpy(), back @ mixed @ a @ mixed @ back, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(moved.mean, 0.7 * p.mean + 0.3 * q.mean)  # straight, whatever the metric


@every_metric
def test_one_standard_deviation_agrees_with_full_covariances(metric: FrequencyMetric) -> None:
    p, q = isotropic(1, 3, HEIGHT, WIDTH), isotropic(2, 3, HEIGHT, WIDTH)
    d, f = Wasserstein2(metric), uniform(3, 3)
    torch.testing.assert_close(d(p, q), d(full(p), full(q)))
    torch.testing.assert_close(AnisotropicWasserstein2(metric)(p, q), d(p, q))
    moved = full(d.interpolate(p, q, f))
    assert difference(moved, d.interpolate(full(p), full(q), f)) < 1e-12


def test_several_standard_deviations_are_refused_where_the_metric_mixes_them() -> None:
    p = DiagonalGaussian(normal(1, 2, HEIGHT, WIDTH), uniform(2, 2, HEIGHT, WIDTH))
    q = isotropic(2, 2, HEIGHT, WIDTH)
    for d in (Wasserstein2(METRICS[0]), AnisotropicWasserstein2(METRICS[0])):
        for use in (lambda d=d: d(p, q), lambda d=d: d(q, p), lambda d=d: d.interpolate(p, q, 0.5)):
            with pytest.raises(ArgumentError, match="FullGaussian"):
                use()
        spelt_out = DiagonalGaussian(q.mean, q.std.clone())  # equal numbers, though not held as one
        torch.testing.assert_close(d(spelt_out, p.map(torch.ones_like)), d(q, p.map(torch.ones_like)))


# Steps in another metric than the energy's -------------------------------------------------------------------------------


@every_metric
def test_anisotropic_step_is_the_gradient_flow_in_the_metric(metric: FrequencyMetric) -> None:
    """dμ/ds = −M⁻¹ (μ − μ̂) for the time −ln(1 − f), by the matrix exponential."""
    p, q = isotropic(1, 2, HEIGHT, WIDTH), isotropic(2, 2, HEIGHT, WIDTH)
    moved = AnisotropicWasserstein2(metric).interpolate(p, q, 0.6)
    kept = linalg.expm(np.log(0.4) * np.linalg.inv(dense(metric)))
    expected = q.mean.flatten(1).numpy() + (p.mean - q.mean).flatten(1).numpy() @ kept
    np.testing.assert_allclose(moved.mean.flatten(1), expected, atol=1e-12)
    torch.testing.assert_close(moved.std, 0.4 * p.std + 0.6 * q.std)  # white noise has the mean weight, which is 1
    whole = AnisotropicWasserstein2(metric).interpolate(p, q, 1.0)
    assert difference(whole, q) < 1e-14


def test_low_frequencies_move_first() -> None:
    metric = FrequencyMetric(8, 8, 2.0)
    p, q = (DiagonalGaussian(x, torch.ones((), dtype=torch.float64)) for x in (normal(1, 1, 8, 8), normal(2, 1, 8, 8)))
    moved = AnisotropicWasserstein2(metric).interpolate(p, q, 0.3)
    way = (metric.modes(moved.mean - p.mean) / metric.modes(q.mean - p.mean))[0]
    assert float(way[0, 0]) > 0.9
    assert float(way[-1, -1]) < 0.2
    assert bool((way.diagonal().diff() < 0).all())
    plain = AnisotropicWasserstein2(FrequencyMetric(8, 8, 0.0)).interpolate(p, q, 0.3)
    assert difference(plain, Wasserstein2().interpolate(p, q, 0.3)) < 1e-14


class Exact:
    """E[x | μ] for white data x ~ N(0, 1) with a belief's mean μ = (1 − k) x + k ε in each mode, ε ~ N(0, 1)."""

    def __init__(self, metric: FrequencyMetric) -> None:
        self.metric = metric

    def __call__(self, belief: DiagonalGaussian, t: Tensor) -> DiagonalGaussian:
        modes = self.metric.modes(belief.mean)
        k = (1 - t.reshape(-1, 1, 1).double()).pow(1 / self.metric.weights(modes))
        x = self.metric.events((1 - k) / ((1 - k) ** 2 + k**2) * modes)
        return DiagonalGaussian(x, x.new_full((), 0.02))


def test_it_is_a_flow() -> None:
    metric = FrequencyMetric(HEIGHT, WIDTH, 1.0)
    flow = GPFN(AnisotropicWasserstein2(metric))
    x, t = normal(1, 4, HEIGHT, WIDTH), uniform(2, 4)
    direct = flow.belief(x, t, torch.Generator().manual_seed(0))
    noise = flow.prior(x.shape, torch.Generator().manual_seed(0), torch.float64, x.device)
    target = flow.endpoints.target(x, noise)
    half = flow.update(noise, target, 0 * t, t / 2, None)
    assert difference(flow.update(half, target, t / 2, t, None), direct) < 1e-13

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 1)

        def forward(self, mean: Tensor, t: Tensor) -> Tensor:
            return self.layer(mean)

    predictor = PointPredictor(Network(), flow, parameterisation="x")
    images = torch.randn(4, 1, HEIGHT, WIDTH)
    assert flow.loss(predictor, images, torch.Generator().manual_seed(0)).shape == (4,)
    assert sample(predictor, flow, (3, 1, HEIGHT, WIDTH), nfe=4, sampler="deterministic").shape == (
        3,
        1,
        HEIGHT,
        WIDTH,
    )
    # With the exact predictor, samples have the spread of the data: here 1 in every direction.
    drawn = _drawn(flow, Exact(metric))
    assert float(drawn.square().mean()) == pytest.approx(1, abs=0.05)


def _drawn(flow: GPFN, predict: Any) -> Tensor:
    from proxflow.samplers import Deterministic

    generator = torch.Generator().manual_seed(0)
    return Deterministic()(predict, flow, (400, HEIGHT, WIDTH), 100, generator, dtype=torch.float64).events


def test_image_steps_compile_and_map() -> None:
    d = AnisotropicWasserstein2(METRICS[0])
    p, q = isotropic(1, 3, HEIGHT, WIDTH), isotropic(2, 3, HEIGHT, WIDTH)
    f = uniform(3, 3)

    def step(mean: Tensor, std: Tensor, to: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = DiagonalGaussian(mean, std), DiagonalGaussian(to, std)
        moved = d.interpolate(a, b, f)
        return moved.mean, moved.std, d(a, b)

    arguments = (p.mean, p.std[:, :1, :1], q.mean, f)
    expected = step(*arguments)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments), expected)
    stacked = [torch.stack([a, a + 0.1]) for a in arguments]
    torch.testing.assert_close(tuple(a[0] for a in torch.func.vmap(step)(*stacked)), expected)


# Mixtures ----------------------------------------------------------------------------------------------------------------


def mixture(seed: int, batch: int, components: int, *event: int) -> GaussianMixture:
    means, stds = normal(seed, batch, components, *event), 0.2 + uniform(seed + 1, batch, components, *event)
    return GaussianMixture(normal(seed + 2, batch, components), 2 * means, stds)


def _linear_programme(costs: np.ndarray, start: np.ndarray, end: np.ndarray) -> optimize.OptimizeResult:
    """Transport as a linear programme in all entries of the plan."""
    n, m = costs.shape
    equal = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return optimize.linprog(costs.ravel(), A_eq=equal, b_eq=np.concatenate([start, end]), method="highs")


def test_mixture_distance_is_the_linear_programme_over_pairs_of_components() -> None:
    p, q = mixture(1, 5, 3, 2), mixture(7, 5, 4, 2)
    values = MixtureWasserstein2()(p, q)
    for i in range(5):
        costs = np.array(
            [[float(Wasserstein2()(_component(p, i, j), _component(q, i, k))) for k in range(4)] for j in range(3)]
        )
        best = _linear_programme(costs, p.weights[i].numpy(), q.weights[i].numpy())
        assert float(values[i]) == pytest.approx(best.fun, rel=1e-9)


def _component(belief: GaussianMixture, i: int, k: int) -> DiagonalGaussian:
    return DiagonalGaussian(belief.means[i, k][None], belief.stds[i, k][None])


def test_mixture_steps_are_geodesics_with_few_components() -> None:
    d, p, q = MixtureWasserstein2(), mixture(1, 6, 3, 2), mixture(7, 6, 4, 2)
    f = uniform(3, 6)
    r = d.interpolate(p, q, f)
    assert r.components == 3 + 4 - 1
    whole = d(p, q).sqrt()
    torch.testing.assert_close(d(p, r).sqrt(), f * whole)
    torch.testing.assert_close(d(r, q).sqrt(), (1 - f) * whole)
    torch.testing.assert_close(r.mean, (1 - f[:, None]) * p.mean + f[:, None] * q.mean)
    single = [mixture(s, 6, 1, 2) for s in (1, 7)]
    a, b = (DiagonalGaussian(m.means[:, 0], m.stds[:, 0]) for m in single)
    torch.testing.assert_close(d(*single), Wasserstein2()(a, b))
    torch.testing.assert_close(d.interpolate(*single, f).means[:, 0], Wasserstein2().interpolate(a, b, f).mean)


def test_mixture_distance_has_exact_gradients() -> None:
    """In weights too, by the potentials of the plan; a component may have no weight."""
    p, q = mixture(1, 2, 3, 2), mixture(7, 2, 2, 2)
    inputs = [a.requires_grad_() for b in (p, q) for a in (b.logits, b.means, b.stds.clone())]

    def value(*tensors: Tensor) -> Tensor:
        return MixtureWasserstein2()(GaussianMixture(*tensors[:3]), GaussianMixture(*tensors[3:]))

    assert torch.autograd.gradcheck(value, inputs, atol=1e-7)
    means = p.means.detach().clone().requires_grad_()
    moved = MixtureWasserstein2().interpolate(GaussianMixture(p.logits, means, p.stds), q, 0.25)
    (slope,) = torch.autograd.grad((moved.weights.detach()[..., None] * moved.means).sum(), means)
    torch.testing.assert_close(slope, 0.75 * p.weights.detach()[..., None].expand_as(slope))
    without = GaussianMixture(torch.tensor([[0.0, -torch.inf, 1.0]] * 2).double(), p.means.detach(), p.stds.detach())
    rest = GaussianMixture(without.logits[:, ::2], without.means[:, ::2], without.stds[:, ::2])
    torch.testing.assert_close(MixtureWasserstein2()(without, q), MixtureWasserstein2()(rest, q))
    assert bool(MixtureWasserstein2().interpolate(without, q, 0.5).sample(torch.Generator()).isfinite().all())


def test_transport_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    p = mixture(1, 2, 3, 2)
    with pytest.raises(ArgumentError, match="batch size"):
        MixtureWasserstein2()(p, mixture(1, 3, 3, 2))
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'proxflow\[transport\]'"):
        MixtureWasserstein2()(p, p)


# Entropic transport --------------------------------------------------------------------------------------------------------


def _regularised(costs: np.ndarray, start: np.ndarray, end: np.ndarray, epsilon: float) -> float:
    """⟨π, c⟩ + ε KL(π ‖ p ⊗ q) of POT's plan."""
    import ot

    plan = ot.sinkhorn(start, end, costs, epsilon, method="sinkhorn_log", stopThr=1e-14, numItermax=20_000)
    used = plan > 0
    return float((plan * costs).sum() + epsilon * (plan[used] * np.log(plan[used] / np.outer(start, end)[used])).sum())


def _sinkhorn_divergence(costs: np.ndarray, start: np.ndarray, end: np.ndarray, epsilon: float) -> float:
    across, near, far = (_regularised(costs, *ab, epsilon) for ab in ((start, end), (start, start), (end, end)))
    return across - (near + far) / 2


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_sinkhorn_divergence_of_categories_matches_pot(epsilon: float) -> None:
    locations = normal(5, 4, 2)
    cost = torch.cdist(locations, locations)
    p, q = (Categorical(normal(s, 3, 1, 4)) for s in (1, 2))
    values = SinkhornDivergence(epsilon, cost)(p, q)
    levels = SinkhornDivergence(4 * epsilon)(p, q)
    steps = np.subtract.outer(np.arange(4), np.arange(4)).astype(float) ** 2
    for i in range(3):
        a, b = p.probs[i, 0].numpy(), q.probs[i, 0].numpy()
        assert float(values[i]) == pytest.approx(_sinkhorn_divergence(cost.numpy(), a, b, epsilon), abs=1e-9)
        assert float(levels[i]) == pytest.approx(_sinkhorn_divergence(steps, a, b, 4 * epsilon), abs=1e-9)


def test_sinkhorn_divergence_of_gaussians_matches_transport_on_a_grid() -> None:
    grid = np.linspace(-10, 10, 161)
    costs = np.subtract.outer(grid, grid) ** 2
    for mean, std, epsilon in ((0.5, 1.3, 2.0), (-1.0, 0.6, 5.0)):
        p, q = (
            DiagonalGaussian(torch.tensor([[m]], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64))
            for m, s in ((0.0, 1.0), (mean, std))
        )
        weights = [np.exp(-0.5 * ((grid - float(b.mean)) / float(b.std)) ** 2) for b in (p, q)]
        expected = _sinkhorn_divergence(costs, *(w / w.sum() for w in weights), epsilon)
        assert float(SinkhornDivergence(epsilon)(p, q)) == pytest.approx(expected, rel=1e-5)


def test_sinkhorn_divergence_between_its_limits() -> None:
    p = DiagonalGaussian(normal(1, 6, 2), 0.2 + uniform(2, 6, 2))
    q = DiagonalGaussian(normal(3, 6, 2), 0.2 + uniform(4, 6, 2))
    torch.testing.assert_close(SinkhornDivergence(1e-9)(p, q), Wasserstein2()(p, q), rtol=1e-7, atol=0)
    torch.testing.assert_close(SinkhornDivergence(1e9)(p, q), (p.mean - q.mean).square().sum(1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SinkhornDivergence(0.0),
        lambda: SinkhornDivergence(float("nan")),
        lambda: SinkhornDivergence(1.0, torch.eye(3)[:2]),
        lambda: SinkhornDivergence(1.0, torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
        lambda: SinkhornDivergence(1.0, None, 0),
        lambda: SinkhornDivergence(1.0, torch.eye(3))(Categorical(torch.zeros(1, 2)), Categorical(torch.zeros(1, 2))),
    ],
)
def test_sinkhorn_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"epsilon|symmetric|iterations|classes"):
        make()


# Categories at points ------------------------------------------------------------------------------------------------------


def test_categories_at_points_match_the_linear_programme() -> None:
    line, plane = normal(1, 5), normal(2, 5, 2)
    p, q = (Categorical(normal(s, 3, 1, 5)) for s in (3, 4))
    for points in (line, plane, line[:, None]):
        values = DiscreteWasserstein2(points)(p, q)
        at = points.reshape(5, -1).numpy()
        costs = ((at[:, None] - at) ** 2).sum(2)
        for i in range(3):
            best = _linear_programme(costs, p.probs[i, 0].numpy(), q.probs[i, 0].numpy())
            assert float(values[i]) == pytest.approx(best.fun, rel=1e-8)
    sure = (
        Categorical(torch.tensor([[[0.0, -torch.inf, -torch.inf]]])),
        Categorical(torch.tensor([[[-torch.inf, 0, 0]]])),
    )
    assert float(DiscreteWasserstein2(torch.tensor([0.0, 3.0, 1.0]))(*sure)) == pytest.approx(5)
    gap = SinkhornDivergence(0.02, (line[:, None] - line).square(), 2000)(p, q) - DiscreteWasserstein2(line)(p, q)
    assert float(gap.abs().max()) < 0.03


@pytest.mark.parametrize("points", [normal(1, 4), normal(1, 4, 2)], ids=["line", "plane"])
def test_categories_at_points_have_exact_gradients(points: Tensor) -> None:
    x, y = (normal(s, 2, 2, 4).requires_grad_() for s in (2, 3))
    d = DiscreteWasserstein2(points)
    assert torch.autograd.gradcheck(lambda x, y: d(Categorical(x), Categorical(y)), (x, y), atol=1e-7)


def test_points_out_of_range_are_refused() -> None:
    bad = [torch.zeros(3), torch.arange(3), torch.tensor([0.0, torch.nan]), torch.zeros(2, 2, 2), torch.zeros(1)]
    for points in bad:
        with pytest.raises(ArgumentError, match="point"):
            DiscreteWasserstein2(points)
    p = Categorical(torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="3 classes, the beliefs have 2"):
        DiscreteWasserstein2(torch.arange(3.0))(p, p)
