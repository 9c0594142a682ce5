from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from contracts import Pair
from torch import Tensor

from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, FullGaussian
from proxflow.divergences import (
    KL,
    Alpha,
    Divergence,
    FisherRao,
    HellingerSquared,
    Jeffreys,
    Renyi,
    ReverseKL,
    Wasserstein2,
    value,
)
from proxflow.errors import ArgumentError, ConvergenceError, UnsupportedPairError
from proxflow.proximal import Proximal
from proxflow.solvers import NewtonSolver
from proxflow.testing import BELIEFS, difference, normal, uniform


# Not a sum over coordinates: the solver must take the whole event as one problem.
@dataclass(frozen=True)
class JointHellinger(Divergence):
    """1 − ∫ √(pq) over whole events."""


@value(JointHellinger, DiagonalGaussian)
def _(_: JointHellinger, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    return -torch.expm1(-Renyi(0.5)(p, q) / 2)


# Beyond 100 its minimum is nowhere: the value falls forever as the mean grows.
@dataclass(frozen=True)
class Endless(Divergence):
    additive = True


@value(Endless, DiagonalGaussian)
def _(_: Endless, p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    far = torch.exp(-p.mean) + p.std.log().square()
    return torch.where(q.mean > 100, far, (p.mean - q.mean).square() + (p.std - q.std).square()).sum(1)


def _gaussian(mean: float, std: float) -> DiagonalGaussian:
    return DiagonalGaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std]], dtype=torch.float64))


@pytest.mark.parametrize("d", [KL(), ReverseKL(), Wasserstein2(), FisherRao()], ids=str)
def test_thousands_of_problems_at_once(d: Divergence) -> None:
    """The problems of benchmarks/solver.py, fewer of them."""
    n = 4000
    p, q = (DiagonalGaussian(10 * uniform(s, n) - 5, 10 ** (2 * uniform(s + 10, n) - 1)) for s in (1, 2))
    f = uniform(3, n)
    solution = NewtonSolver()(d, p, q, f)
    assert bool(solution.converged.all())
    assert float(solution.residual.max()) <= NewtonSolver().tolerance
    assert difference(solution.belief, d.interpolate(p, q, f)) < 1e-8


@pytest.mark.parametrize("d", [KL(), ReverseKL(), Wasserstein2(), FisherRao()], ids=str)
def test_extreme_scales(d: Divergence) -> None:
    """Standard deviations from 1e-4 to 1e4, means a thousand apart."""
    n = 300
    p, q = (DiagonalGaussian(1e3 * (uniform(s, n) - 0.5), 10 ** (8 * uniform(s + 10, n) - 4)) for s in (1, 2))
    f = uniform(3, n)
    moved, exact = NewtonSolver()(d, p, q, f).belief_or_raise(), d.interpolate(p, q, f)
    torch.testing.assert_close(moved.std, exact.std, rtol=1e-8, atol=0)
    assert float(((moved.mean - exact.mean).abs() / (exact.std + 1e-3)).max()) < 1e-8


@pytest.mark.parametrize("d", [KL(), ReverseKL(), FisherRao(), HellingerSquared(), Alpha(-0.5)], ids=str)
def test_many_classes(d: Divergence) -> None:
    p, q = (Categorical(2 * normal(seed, 8, 3, 10)) for seed in (1, 2))
    f = uniform(3, 8)
    assert difference(NewtonSolver()(d, p, q, f).belief_or_raise(), d.interpolate(p, q, f)) < 1e-10


@pytest.mark.parametrize("d", [KL(), ReverseKL(), Wasserstein2()], ids=str)
def test_full_covariances(d: Divergence) -> None:
    def draw(seed: int) -> FullGaussian:
        factor = normal(seed, 5, 4, 4)
        covariance = factor @ factor.mT + 0.01 * torch.eye(4, dtype=torch.float64)
        return FullGaussian.from_covariance(normal(seed + 1, 5, 4), covariance)

    p, q, f = draw(1), draw(5), uniform(9, 5)
    assert difference(NewtonSolver()(d, p, q, f).belief_or_raise(), d.interpolate(p, q, f)) < 1e-8


def test_events_keep_their_shape() -> None:
    p, q = (DiagonalGaussian(normal(s, 2, 3, 4), normal(s + 5, 2, 3, 4).exp()) for s in (1, 2))
    f = torch.tensor([0.2, 0.7])
    moved = NewtonSolver()(KL(), p, q, f).belief
    assert moved.mean.shape == moved.std.shape == (2, 3, 4)
    assert difference(moved, KL().interpolate(p, q, f)) < 1e-8


def test_the_lowest_of_several_minima() -> None:
    """Far apart, squared Hellinger has one minimum near each end; the lower one is near the heavier end."""
    p, q = _gaussian(0.0, 1.0), _gaussian(9.0, 1.0)
    for fraction, centre in ((0.4, 0.0), (0.6, 9.0)):
        assert float(NewtonSolver()(HellingerSquared(), p, q, fraction).belief_or_raise().mean) == pytest.approx(
            centre, abs=0.1
        )


def test_what_does_not_factorise_is_solved_whole() -> None:
    p, q = BELIEFS[DiagonalGaussian](1, 3), BELIEFS[DiagonalGaussian](2, 3)
    f = torch.tensor(0.4, dtype=torch.float64)
    d = JointHellinger()
    r = NewtonSolver()(d, p, q, f).belief_or_raise()
    x = r.coordinates().requires_grad_()
    (gradient,) = torch.autograd.grad(((1 - f) * d(r.at(x), p) + f * d(r.at(x), q)).sum(), x)
    assert float(gradient.abs().max()) < 1e-9
    # Summed over coordinates it is another geometry with another step.
    assert difference(r, NewtonSolver()(HellingerSquared(), p, q, f).belief_or_raise()) > 1e-3


def test_gradients_are_those_of_the_closed_form() -> None:
    p, q, f = Pair(KL(), DiagonalGaussian).beliefs(4)
    tensors = [p.mean, p.std, q.mean, q.std, f]
    results = []
    for solver in (None, NewtonSolver()):
        mean, std, to_mean, to_std, fraction = (a.clone().requires_grad_() for a in tensors)
        moved = Proximal(KL(), solver)(DiagonalGaussian(mean, std), DiagonalGaussian(to_mean, to_std), fraction)
        (moved.mean.sin().sum() + moved.std.square().sum()).backward()
        results.append([a.grad for a in (mean, std, to_mean, to_std, fraction)])
    for closed, solved in zip(*results, strict=True):
        torch.testing.assert_close(solved, closed, rtol=1e-8, atol=1e-10)


def test_a_scalar_fraction_has_a_gradient() -> None:
    p, q, _ = Pair(KL(), Categorical).beliefs(4)
    slopes = []
    for solver in (None, NewtonSolver()):
        f = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        Proximal(KL(), solver)(p, q, f).probs.square().sum().backward()
        slopes.append(float(f.grad))
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-8)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_inside_samplers_without_gradients(context: Any) -> None:
    with context():
        p, q, f = Pair(Jeffreys(), DiagonalGaussian).beliefs(3)
        p, q, f = p.map(torch.clone), q.map(torch.clone), f.clone()  # made here, so inference tensors
        moved = NewtonSolver()(Jeffreys(), p, q, f).belief_or_raise()
    assert not moved.mean.requires_grad
    outside = NewtonSolver()(Jeffreys(), *Pair(Jeffreys(), DiagonalGaussian).beliefs(3)).belief
    assert difference(moved, outside) < 1e-12


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    p, q, f = Pair(KL(), DiagonalGaussian).beliefs(3)
    p = p.map(lambda a: a.requires_grad_())
    assert NewtonSolver()(KL(), p, q, f).belief.mean.requires_grad
    with torch.no_grad():
        assert not NewtonSolver()(KL(), p, q, f).belief.mean.requires_grad


def test_single_precision_comes_back_rounded() -> None:
    p, q, f = Pair(FisherRao(), DiagonalGaussian).beliefs(50)
    p, q, f = (a.map(Tensor.float) if isinstance(a, Belief) else a.float() for a in (p, q, f))
    moved = NewtonSolver()(FisherRao(), p, q, f).belief_or_raise()
    assert moved.mean.dtype == moved.std.dtype == torch.float32
    exact = FisherRao().interpolate(p.map(Tensor.double), q.map(Tensor.double), f.double())
    torch.testing.assert_close(moved.mean.double(), exact.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moved.std.double(), exact.std, rtol=1e-6, atol=1e-7)


def test_ends_at_the_edge_of_the_family() -> None:
    """Certainty and point masses have infinite coordinates, yet f = 1 lands on them and smaller steps go toward them."""
    p = Categorical(normal(1, 3, 2, 4))
    sure = Categorical(torch.eye(4, dtype=torch.float64)[torch.tensor([[0, 1], [2, 3], [1, 1]])].log())
    f = torch.tensor([0.0, 0.5, 1.0])
    for d in (ReverseKL(), FisherRao(), HellingerSquared()):
        moved = NewtonSolver()(d, p, sure, f).belief_or_raise()
        assert difference(moved, d.interpolate(p, sure, f)) < 1e-9
    start, point = _gaussian(0.0, 1.0), _gaussian(2.0, 0.0)
    for fraction in (0.0, 0.5, 1.0):
        moved_point = NewtonSolver()(Wasserstein2(), start, point, fraction).belief_or_raise()
        assert difference(moved_point, Wasserstein2().interpolate(start, point, fraction)) < 1e-9


def test_examples_that_do_not_converge_are_named() -> None:
    far = torch.tensor([[0.0, 0.0], [0.0, 200.0], [0.0, 0.0], [200.0, 0.0]])
    p, q = DiagonalGaussian(far, torch.ones(4, 2)), DiagonalGaussian(far + 1, torch.ones(4, 2))
    solution = NewtonSolver(max_iterations=20)(Endless(), p, q, 0.5)
    assert solution.converged.tolist() == [True, False, True, False]
    assert solution.iterations.shape == solution.residual.shape == (4,)
    assert bool(solution.belief.mean.isfinite().all())
    torch.testing.assert_close(solution.belief.mean[0], torch.full((2,), 0.5))
    with pytest.raises(ConvergenceError, match=r"2 of 4 proximal steps did not converge within 20 .*examples 1, 3 "):
        solution.belief_or_raise()
    with pytest.raises(ConvergenceError):
        Proximal(Endless(), NewtonSolver(max_iterations=20))(p, q, 0.5)


def test_too_few_iterations_are_reported() -> None:
    p, q = _gaussian(0.0, 1.0), _gaussian(3.0, 0.1)
    solution = NewtonSolver(max_iterations=1)(FisherRao(), p, q, 0.5)
    assert not bool(solution.converged.any())
    assert float(solution.residual) > NewtonSolver().tolerance
    assert int(solution.iterations) == 1
    assert bool(NewtonSolver()(FisherRao(), p, q, 0.5).converged.all())


def test_converged_examples_do_not_wait_for_others() -> None:
    """An example already at its minimum takes no steps, whatever the others need."""
    p = DiagonalGaussian(torch.zeros(2, 1).double(), torch.ones(2, 1).double())
    q = DiagonalGaussian(torch.tensor([[0.0], [300.0]]).double(), torch.tensor([[1.0], [1e-3]]).double())
    iterations = NewtonSolver()(FisherRao(), p, q, 0.5).iterations.tolist()
    assert iterations[0] == 0
    assert iterations[1] > 0


def test_proximal_takes_the_closed_form_or_the_solver() -> None:
    p, q, f = Pair(Jeffreys(), DiagonalGaussian).beliefs(3)
    assert difference(Proximal(KL())(p, q, f), KL().interpolate(p, q, f)) == 0
    with pytest.raises(UnsupportedPairError, match="solver"):
        Proximal(Jeffreys())(p, q, f)
    assert Proximal(Jeffreys(), NewtonSolver())(p, q, f).mean.shape == p.mean.shape
    with pytest.raises(UnsupportedPairError, match="no value is known"):
        Proximal(Wasserstein2(), NewtonSolver())(*Pair(KL(), Categorical).beliefs(3))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("belief", "target"),
    [
        ((NAN, 1.0), (0.0, 1.0)),
        ((0.0, NAN), (0.0, 1.0)),
        ((0.0, 0.0), (0.0, 1.0)),
        ((0.0, -1.0), (0.0, 1.0)),
        ((INF, 1.0), (0.0, 1.0)),
        ((0.0, 1.0), (NAN, 1.0)),
        ((0.0, 1.0), (-INF, 1.0)),
        ((0.0, 1.0), (0.0, INF)),
    ],
)
def test_what_is_not_finite_is_refused(belief: tuple[float, float], target: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match=r"finite|infinite"):
        NewtonSolver()(KL(), _gaussian(*belief), _gaussian(*target), 0.5)


def test_wrong_arguments_are_refused() -> None:
    p, q, _ = Pair(KL(), DiagonalGaussian).beliefs(3)
    solver = NewtonSolver()
    for fraction in (-0.1, 1.1, NAN, torch.tensor([0.1, 0.2, NAN])):
        with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
            solver(KL(), p, q, fraction)
    for fraction in (torch.rand(2), torch.rand(3, 1)):
        with pytest.raises(ArgumentError, match=r"shape \(3,\)"):
            solver(KL(), p, q, fraction)
    with pytest.raises(ArgumentError, match="same shapes"):
        solver(KL(), p, q.map(lambda a: a[:1]), 0.5)
    with pytest.raises(UnsupportedPairError, match="one family"):
        solver(KL(), p, BELIEFS[Categorical](1, 3), 0.5)
    with pytest.raises(ArgumentError, match="empty"):
        solver(KL(), p.map(lambda a: a[:0]), q.map(lambda a: a[:0]), 0.5)
    ruled_out = Categorical(torch.tensor([[0.0, -INF]]))
    with pytest.raises(ArgumentError, match="ruled out"):
        solver(KL(), ruled_out, Categorical(torch.zeros(1, 2)), 0.5)
    for arguments in ({"tolerance": 0.0}, {"tolerance": 1.0}, {"tolerance": NAN}, {"max_iterations": 0}):
        with pytest.raises(ArgumentError):
            NewtonSolver(**arguments)
