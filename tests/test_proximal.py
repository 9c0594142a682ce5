"""Composite energies: sums, mixed pairs, Bayes' rule as a proximal step, potentials that guide."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support import GaussianData
from torch import Tensor

from proxflow import (
    GPFN,
    KL,
    Categorical,
    DiagonalGaussian,
    Divergence,
    FisherRao,
    NewtonSolver,
    Potential,
    Proximal,
    QuasiNewtonSolver,
    ReverseKL,
    TargetEnergy,
    Wasserstein2,
    value,
)
from proxflow.beliefs import FullGaussian
from proxflow.divergences import AnisotropicWasserstein2, CoordinateMetric, FrequencyMetric, mixed_form
from proxflow.energies import Sum
from proxflow.errors import ArgumentError, ConvergenceError, UnsupportedPairError
from proxflow.samplers import Deterministic, Multistep
from proxflow.solvers import CoordinateSolver
from proxflow.solvers.renyi import MomentSolver
from proxflow.testing import difference, normal, uniform

SOLVERS: list[CoordinateSolver] = [NewtonSolver(), QuasiNewtonSolver()]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def gaussians(seed: int, *shape: int) -> DiagonalGaussian:
    return DiagonalGaussian(normal(seed, *shape), (0.5 * normal(seed + 50, *shape)).exp())


# Mixed pairs -------------------------------------------------------------------------------------------------------------


def test_energy_and_divergence_in_two_metrics() -> None:
    """argmin |μ' − μ̂|² + ⟨μ' − μ, M (μ' − μ)⟩/η as a linear system, and the fraction η/(η + m) of each mode."""
    metric, eta = FrequencyMetric(3, 4, 1.5), 0.7
    p, q = (DiagonalGaussian(normal(s, 2, 3, 4), 0.3 + uniform(s, 2, 1, 1)) for s in (1, 2))
    moved = Proximal(Wasserstein2(metric), energy=TargetEnergy(Wasserstein2()))(p, q, eta / (1 + eta))
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    m = metric.events(metric.weights(basis) * metric.modes(basis)).flatten(1)
    system = torch.eye(12, dtype=torch.float64) + m / eta
    expected = torch.linalg.solve(system, (q.mean.flatten(1) + p.mean.flatten(1) @ m / eta).mT).mT
    torch.testing.assert_close(moved.mean.flatten(1), expected)
    torch.testing.assert_close(moved.std, (eta * q.std + p.std) / (1 + eta))
    way = metric.modes(moved.mean - p.mean) / metric.modes(q.mean - p.mean)
    torch.testing.assert_close(way, (eta / (eta + metric.weights(way))).expand_as(way))


@every_solver
def test_mixed_closed_forms_agree_with_the_solvers(solver: CoordinateSolver) -> None:
    p, q, f = gaussians(1, 4, 3), gaussians(2, 4, 3), uniform(3, 4)
    a, b = CoordinateMetric((0.5, 1.0, 3.0)), CoordinateMetric((2.0, 0.3, 1.0))
    for divergence, energy in ((a, None), (None, b), (a, b)):
        closed = Proximal(Wasserstein2(divergence), energy=TargetEnergy(Wasserstein2(energy)))
        assert difference(closed(p, q, f), dataclasses.replace(closed, solver=solver)(p, q, f)) < 1e-7
    ends = [Proximal(Wasserstein2(a), energy=TargetEnergy(Wasserstein2(b)))(p, q, fraction) for fraction in (0.0, 1.0)]
    assert difference(ends[0], p) < 1e-14
    assert difference(ends[1], q) < 1e-14


def test_full_covariances_in_two_metrics_move_each_mode_by_its_fraction() -> None:
    metric, f = FrequencyMetric(2, 2, 2.0), 0.6
    p, q = (
        FullGaussian.from_covariance(normal(s, 2, 4), x @ x.mT + 0.2 * torch.eye(4).double())
        for s, x in ((1, normal(5, 2, 4, 4)), (2, normal(6, 2, 4, 4)))
    )
    moved = Proximal(Wasserstein2(metric), NewtonSolver(), TargetEnergy(Wasserstein2()))(p, q, f)
    way = metric.modes(moved.mean - p.mean) / metric.modes(q.mean - p.mean)
    torch.testing.assert_close(way, (f / (f + (1 - f) * metric.weights(way))).expand_as(way))


def test_the_composing_step_is_a_proximal_step_with_a_size_for_each_mode() -> None:
    weights, f = (0.4, 1.0, 2.5), 0.35
    p, q = gaussians(1, 4, 3), gaussians(2, 4, 3)
    etas = [(1 - f) ** (-1 / m) - 1 for m in weights]
    scaled = Wasserstein2(CoordinateMetric(tuple(1 / eta for eta in etas)))
    expected = Proximal(scaled, energy=TargetEnergy(Wasserstein2()))(p, q, 0.5)
    assert difference(AnisotropicWasserstein2(CoordinateMetric(weights)).interpolate(p, q, f), expected) < 1e-14


def test_an_energy_that_is_the_divergence_is_no_other_step() -> None:
    p, q, f = gaussians(1, 4, 3), gaussians(2, 4, 3), uniform(3, 4)
    for d in (KL(), Wasserstein2(), Wasserstein2(CoordinateMetric((1.0, 2.0, 3.0)))):
        assert difference(Proximal(d, energy=TargetEnergy(d))(p, q, f), d.interpolate(p, q, f)) == 0
    # But the energy W₂²_M in the metric M itself, on which both agree, is the straight line and not the composing step.
    d = AnisotropicWasserstein2(CoordinateMetric((0.5, 1.0, 3.0)))
    straight = Proximal(d, NewtonSolver(), TargetEnergy(d))(p, q, f)
    assert difference(straight, Wasserstein2().interpolate(p, q, f)) < 1e-9


def test_energies_of_one_divergence_in_the_geometry_of_another() -> None:
    """Coordinate by coordinate, and the whole event at once: the same step."""
    p, q, f = gaussians(1, 5, 2), gaussians(2, 5, 2), uniform(3, 5)
    for divergence, energy in ((Wasserstein2(), KL()), (KL(), ReverseKL()), (FisherRao(), Wasserstein2())):
        newton = Proximal(divergence, NewtonSolver(), TargetEnergy(energy))(p, q, f)
        whole = Proximal(divergence, QuasiNewtonSolver(tolerance=1e-10), TargetEnergy(energy))(p, q, f)
        assert difference(newton, whole) < 1e-7
        x = newton.coordinates().requires_grad_()
        r = newton.at(x)
        (slope,) = torch.autograd.grad(((1 - f) * divergence(r, p) + f * energy(r, q)).sum(), x)
        assert float(slope.abs().max()) < 1e-8


# Bayes' rule is a proximal step -----------------------------------------------------------------------------------------


@every_solver
def test_bayes_rule_for_gaussians(solver: CoordinateSolver) -> None:
    """KL and E(p; y) = E_{x~p}[−log N(y; x, 1/α)] = α((μ − y)² + σ²)/2 + …, at η = 1."""
    p, y, alpha = gaussians(1, 6, 3), normal(2, 6, 3), 0.1 + 3 * uniform(3, 6, 3)

    def energy(r: DiagonalGaussian) -> Tensor:
        return (alpha / 2 * ((r.mean - y).square() + r.std.square())).sum(1)

    posterior = Proximal(KL(), solver, Potential(energy, of="belief"))(p, None, 0.5)
    precision = p.std**-2 + alpha
    torch.testing.assert_close(posterior.std, precision.rsqrt(), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(posterior.mean, (p.mean * p.std**-2 + alpha * y) / precision, rtol=1e-7, atol=1e-8)


@every_solver
def test_bayes_rule_for_categories(solver: CoordinateSolver) -> None:
    """y ~ N(α(K e_x − 1), αK I): E(p; y) = −⟨y, θ⟩ + …, and the posterior is softmax(log θ + y), as in a BFN."""
    theta, alpha, k = Categorical(normal(1, 6, 2, 4)), 0.8, 4
    one_hot = torch.eye(k, dtype=torch.float64)
    y = alpha * (k * one_hot[torch.tensor([[0, 1], [2, 3], [1, 1], [0, 0], [3, 2], [2, 2]])] - 1)
    y = y + (alpha * k) ** 0.5 * normal(2, 6, 2, k)

    def energy(r: Categorical) -> Tensor:
        means = alpha * (k * one_hot - 1)  # of the message, for each class
        negative_log = (y[..., None, :] - means).square().sum(-1) / (2 * alpha * k)
        return (r.probs * negative_log).sum((1, 2))

    posterior = Proximal(KL(), solver, Potential(energy, of="belief"))(theta, None, 0.5)
    torch.testing.assert_close(posterior.probs, (theta.logits + y).softmax(-1), rtol=1e-6, atol=1e-8)


# Potentials --------------------------------------------------------------------------------------------------------------


@every_solver
def test_envelope_gradient_of_the_moreau_envelope(solver: CoordinateSolver) -> None:
    """∇ of min_r V(r) + |r − μ|²/2τ is (μ − prox)/τ, through the solver and by differences."""
    tau, p = 0.8, gaussians(1, 3, 2)
    coupling = torch.tensor([1.0, -2.0], dtype=torch.float64)
    potential = Potential(lambda mean: (mean @ coupling).cosh().log() + 0.1 * mean.pow(4).sum(1))
    step = Proximal(Wasserstein2(), solver, potential)

    def envelope(mean: Tensor) -> tuple[Tensor, Tensor]:
        moved = step(DiagonalGaussian(mean, p.std), None, 2 * tau / (1 + 2 * tau))  # W₂²/η with η = 2τ
        value = potential(moved, None) + (moved.mean - mean).square().sum(1) / (2 * tau)
        return value, moved.mean

    mean = p.mean.clone().requires_grad_()
    value, prox = envelope(mean)
    (gradient,) = torch.autograd.grad(value.sum(), mean, retain_graph=True)
    torch.testing.assert_close(gradient, ((mean - prox) / tau).detach(), rtol=1e-6, atol=1e-7)
    nudge = 1e-5 * normal(9, 3, 2)
    ahead, behind = (envelope(p.mean + s * nudge)[0].detach() for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2, (gradient * nudge).sum(1), rtol=1e-5, atol=1e-11)


@every_solver
def test_steps_are_differentiable_in_what_a_potential_holds(solver: CoordinateSolver) -> None:
    """min a μ'⁠²/2 + (μ' − μ)²/η has μ' = μ/(1 + ηa/2); a is seen by the potential alone."""
    a, p = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), gaussians(1, 3, 4)
    mixing = torch.linalg.qr(normal(7, 4, 4)).Q
    moved = Proximal(Wasserstein2(), solver, Potential(lambda x: a / 2 * (x @ mixing).square().sum(1)))(p, None, 0.5)
    torch.testing.assert_close(moved.mean, p.mean / (1 + a / 2), rtol=1e-7, atol=1e-8)
    (slope,) = torch.autograd.grad(moved.mean.sum(), a)
    expected = -(p.mean / 2 / (1 + a.detach() / 2) ** 2).sum()
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)
    still = Proximal(Wasserstein2(), solver, Potential(lambda x: x.square().sum(1)))(p, None, 0.5)
    assert not still.mean.requires_grad


def test_a_potential_may_hold_data_for_each_example() -> None:
    """Examples that need few steps and many: the function always sees the whole batch, in its order."""
    centres = torch.tensor([[0.0, 0.0], [1e3, -1e3], [0.1, 0.2], [50.0, 3.0]], dtype=torch.float64)
    p = gaussians(1, 4, 2)
    seen = set()

    def function(mean: Tensor) -> Tensor:
        seen.add(len(mean))
        return 0.5 * (mean - centres).square().sum(1) + (mean - centres).pow(4).sum(1)

    solution = NewtonSolver()(Wasserstein2(), p, None, 0.9, Potential(function))
    assert bool(solution.converged.all())
    assert len(set(solution.iterations.tolist())) > 1
    assert seen == {4}
    x = solution.belief.mean
    slope = 0.9 * ((x - centres) + 4 * (x - centres).pow(3)) + 0.1 * 2 * (x - p.mean)
    assert float(slope.abs().max()) < 1e-6


def test_an_image_under_a_smoothing_potential() -> None:
    """1,568 coordinates that depend on each other: |∇x|²/2 as potential is a linear system."""
    p = DiagonalGaussian(normal(1, 2, 28, 28), torch.tensor(0.5, dtype=torch.float64))

    def roughness(x: Tensor) -> Tensor:
        return 0.5 * (x.diff(dim=1).square().sum((1, 2)) + x.diff(dim=2).square().sum((1, 2)))

    eta = 3.0
    solution = QuasiNewtonSolver()(Wasserstein2(), p, None, eta / (1 + eta), Potential(roughness))
    assert bool(solution.converged.all())
    metric = FrequencyMetric(
        28, 28, 1.0
    )  # whose modes make the Laplacian diagonal; λ from its weights, up to their scale
    weights = metric.weights(p.mean)
    eigenvalues = weights / weights[0, 0] - 1
    expected = metric.events(metric.modes(p.mean) / (1 + eta * eigenvalues / 2))
    torch.testing.assert_close(solution.belief.mean, expected, rtol=0, atol=1e-6)


def test_a_potential_guides_samples_into_a_half_plane() -> None:
    """Sampling with an exact predictor; the step's energy is target and potential together."""
    flow = GPFN()
    wall = Potential(lambda mean: (0.5 - mean[:, 0]).clamp_min(0).square())
    guided = dataclasses.replace(flow, energy=TargetEnergy(Wasserstein2()) + 4.0 * wall, solver=NewtonSolver())
    drawn = {}
    for name, f in (("free", flow), ("guided", guided)):
        generator = torch.Generator().manual_seed(0)
        drawn[name] = Deterministic()(GaussianData(flow, 0.0, 1.0), f, (200, 2), 12, generator).events
    inside = {name: float((x[:, 0] > 0).float().mean()) for name, x in drawn.items()}
    assert inside["free"] == pytest.approx(0.5, abs=0.1)
    assert inside["guided"] > 0.95
    torch.testing.assert_close(
        drawn["guided"][:, 1], drawn["free"][:, 1], rtol=0, atol=1e-5
    )  # it pulls along its slope alone
    with pytest.raises(ArgumentError, match="Deterministic"):  # a path sampler would not see the energy
        Multistep(2)(GaussianData(flow, 0.0, 1.0), guided, (4, 2), 3, torch.Generator())


# Errors and arithmetic of energies ---------------------------------------------------------------------------------------


def test_energies_add_and_scale() -> None:
    p, q = gaussians(1, 3, 2), gaussians(2, 3, 2)
    first, second = TargetEnergy(KL()), Potential(lambda mean: mean.sum(1))
    total = 2 * (first + second * 0.25) + first
    torch.testing.assert_close(total(p, q), 3 * KL()(p, q) + 0.5 * p.mean.sum(1))
    assert [w for w, _ in total.terms] == [2.0, 0.5, 1.0]
    assert (first + first).additive
    assert not total.additive
    for make in (lambda: -1 * first, lambda: float("nan") * first, lambda: Sum(())):
        with pytest.raises(ArgumentError, match="weights"):
            make()
    with pytest.raises(ArgumentError, match="'mean'"):
        Potential(lambda mean: mean, of="std")  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [lambda mean: mean, lambda mean: mean.sum(), lambda _: 3.0])
def test_potentials_give_one_number_an_example(function: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\(3,\)"):
        Proximal(KL(), NewtonSolver(), Potential(function))(gaussians(1, 3, 2), None, 0.5)


def test_what_has_no_closed_form_says_so_and_offers_the_solvers() -> None:
    p, q = gaussians(1, 3, 2), gaussians(2, 3, 2)
    with pytest.raises(
        UnsupportedPairError, match=r"KL.*energy of ReverseKL.*DiagonalGaussian.*Wasserstein2.*NewtonSolver"
    ):
        Proximal(KL(), energy=TargetEnergy(ReverseKL()))(p, q, 0.5)
    with pytest.raises(UnsupportedPairError, match="QuasiNewtonSolver"):
        Proximal(KL(), energy=Potential(lambda mean: mean.sum(1)))(p, q, 0.5)
    with pytest.raises(UnsupportedPairError, match="MomentSolver solves steps toward a target alone"):
        Proximal(KL(), MomentSolver(), Potential(lambda mean: mean.sum(1)))(p, q, 0.5)
    metrics = Wasserstein2(CoordinateMetric((1.0, 2.0))), Wasserstein2(FrequencyMetric(1, 2))
    with pytest.raises(UnsupportedPairError, match="CoordinateMetric"):  # their modes differ
        Proximal(metrics[0], energy=TargetEnergy(metrics[1]))(p, q, 0.5)
    with pytest.raises(ArgumentError, match="registered already"):
        mixed_form(Wasserstein2, Wasserstein2, DiagonalGaussian)(lambda *_: None)


@pytest.mark.parametrize("solver", [NewtonSolver(max_iterations=2), QuasiNewtonSolver(max_iterations=2)], ids=str)
def test_examples_that_do_not_converge_are_named(solver: CoordinateSolver) -> None:
    p = DiagonalGaussian(torch.tensor([[0.0], [30.0]]), torch.ones(2, 1))
    potential = Potential(lambda mean: mean.square().sum(1).square())
    solution = solver(Wasserstein2(), p, None, 0.9, potential)
    assert solution.converged.tolist() == [True, False]
    assert bool(solution.belief.mean.isfinite().all())
    with pytest.raises(ConvergenceError, match="examples 1 "):
        Proximal(Wasserstein2(), solver, potential)(p, None, 0.9)
    assert np.isfinite(float(solution.residual.max()))


def test_settings_of_the_quasi_newton_solver() -> None:
    for arguments in ({"tolerance": 0.0}, {"max_iterations": 0}, {"memory": 0}):
        with pytest.raises(ArgumentError):
            QuasiNewtonSolver(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [1.5, -0.1, float("nan")])
def test_a_fraction_beyond_the_way_is_refused(fraction: float) -> None:
    p = DiagonalGaussian(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ArgumentError, match=r"a fraction in \[0, 1\] of the way, got"):
        Proximal(Wasserstein2())(p, DiagonalGaussian(torch.ones(1, 2), torch.full((1, 2), 0.1)), fraction)


@dataclasses.dataclass(frozen=True)
class OneForAll(Divergence):
    """A divergence of which a user forgot that examples have a value each."""


@value(OneForAll, DiagonalGaussian)
def _(divergence: OneForAll, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return (p.mean - q.mean).square().sum()


def test_a_value_that_is_not_one_an_example_is_refused() -> None:
    p = DiagonalGaussian(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(
        ArgumentError, match=r"of OneForAll on DiagonalGaussian must be one number an example, \(3,\), .*\(\)$"
    ):
        Proximal(OneForAll(), solver=NewtonSolver())(p, p, 0.5)
