"""Operators of inverse problems against linear algebra, SciPy and Pillow."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from proxflow.errors import ArgumentError
from proxflow.inverse import (
    Blur,
    Downsample,
    FourierMask,
    Functions,
    Gaussian,
    Mask,
    Matrix,
    Nonlinear,
    Poisson,
    dense,
    operator_of,
)

EVENT = (2, 8, 12)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frequencies(height, width):
    known = torch.rand(height, width, generator=torch.Generator().manual_seed(3)) < 0.4
    return known | known.flip((0, 1)).roll((1, 1), (0, 1))


SHIFT = Functions(lambda x: x.roll(1, -1) - 2 * x, lambda y: y.roll(-1, -1) - 2 * y)
OPERATORS = {
    "mask": Mask(drawn(*EVENT) > 0),
    "masks": Mask(drawn(3, *EVENT) > 0, each=True),
    "box": Downsample(4),
    "bicubic": Downsample(2, "bicubic"),
    "reflecting": Blur(1.3),
    "circular": Blur(1.3, "circular"),
    "fourier": FourierMask(frequencies(8, 12)),
    "matrix": Matrix(drawn(7, math.prod(EVENT)), EVENT),
    "deficient": Matrix(drawn(7, 3) @ drawn(3, math.prod(EVENT), seed=1), EVENT),
    "matrices": Matrix(drawn(3, 5, math.prod(EVENT)), EVENT),
    "functions": SHIFT,
    "composition": Downsample(2) @ Blur(0.8),
    "masked": Mask(drawn(2, 4, 6) > 0) @ Downsample(2),
}
each = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def matrices(operator):
    """The matrices of an operator for three examples, (3, observed, numbers)."""
    found = []
    for k in range(3):
        basis = torch.eye(math.prod(EVENT), dtype=torch.float64).reshape(-1, *EVENT)
        one = operator.rows(torch.full((len(basis),), k))
        found.append(one(basis).flatten(1).mT)
    return torch.stack(found)


@each
def test_adjoints_are_adjoints(operator):
    x = drawn(3, *EVENT, seed=5)
    y = drawn(*operator(x).shape, seed=6)
    one, other = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@each
@pytest.mark.parametrize(("noise", "prior"), [(0.3, 1.0), (1e-3, 0.2), (2.0, 3.0)])
def test_proximal_maps_are_those_of_dense_linear_algebra(operator, noise, prior):
    x = drawn(3, *EVENT, seed=5)
    y = operator(drawn(3, *EVENT, seed=7))  # real pictures have it
    a = matrices(operator)
    left = a.mT @ a / noise + torch.eye(a.shape[-1], dtype=torch.float64) / prior
    right = (a.mT @ y.flatten(1)[..., None]).squeeze(-1) / noise + x.flatten(1) / prior
    wanted = torch.linalg.solve(left, right).reshape(x.shape)
    found = operator.prox(x, y, noise, prior)
    tight = 1e-9 if hasattr(operator, "turn") else 2e-4
    torch.testing.assert_close(found, wanted, rtol=tight, atol=tight)


@each
def test_without_noise_the_proximal_map_projects(operator):
    x, y = drawn(3, *EVENT, seed=5), operator(drawn(3, *EVENT, seed=7))
    a = matrices(operator)
    wrong = (y - operator(x)).flatten(1)[..., None]
    wanted = x + (torch.linalg.pinv(a, rtol=1e-7) @ wrong).reshape(x.shape)
    smooth = operator in (OPERATORS["reflecting"], OPERATORS["circular"], OPERATORS["composition"])
    if not smooth:  # what a blur takes away is found again up to its smallest singular values
        torch.testing.assert_close(operator.prox(x, y, 0.0, 0.5), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(operator(operator.prox(x, y, 0.0, 0.5)), y, rtol=1e-3, atol=1e-3)


@each
def test_each_example_has_its_own_variances(operator):
    x, y = drawn(3, *EVENT, seed=5), operator(drawn(3, *EVENT, seed=7))
    noise, prior = torch.tensor([0.1, 1.0, 0.0]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    together = operator.prox(x, y, noise, prior)
    for k in range(3):
        one = operator.rows(torch.tensor([k])).prox(x[k : k + 1], y[k : k + 1], float(noise[k]), float(prior[k]))
        torch.testing.assert_close(together[k : k + 1], one)


@pytest.mark.parametrize("name", ["mask", "box", "bicubic", "reflecting", "matrix", "deficient", "matrices", "fourier"])
def test_log_densities_are_those_of_a_normal(name):
    operator = OPERATORS[name]
    a, v = matrices(operator), operator(drawn(3, *EVENT, seed=8)) + 0
    if name in ("matrix", "deficient", "matrices", "box", "bicubic", "reflecting"):
        v = v + drawn(*v.shape, seed=9)
    covariance = 0.3 * torch.eye(a.shape[1], dtype=torch.float64) + 0.7 * a @ a.mT
    flat = v.flatten(1)
    if name == "mask":
        known = operator.known.flatten()
        covariance, flat = covariance[:, known][:, :, known], flat[:, known]
    if name == "fourier":  # in an orthonormal basis of the pictures' coefficients
        u, s, _ = torch.linalg.svd(a[0], full_matrices=False)
        basis = u[:, s > 0.5]
        covariance, flat = basis.mT @ covariance @ basis, flat @ basis
    wanted = torch.distributions.MultivariateNormal(torch.zeros_like(flat), covariance).log_prob(flat)
    torch.testing.assert_close(operator.log_normal(v, 0.3, 0.7), wanted)


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "reflect"), ("circular", "wrap")])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 5.0])
def test_blurs_are_those_of_scipy(boundary, mode, sigma):
    x = drawn(1, 1, 9, 14)
    wanted = ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode=mode)
    np.testing.assert_allclose(Blur(sigma, boundary)(x)[0, 0].numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(("kernel", "filter_"), [("box", Image.Resampling.BOX), ("bicubic", Image.Resampling.BICUBIC)])
def test_reductions_are_those_of_pillow(kernel, filter_):
    x = drawn(1, 1, 12, 20).float()
    wanted = Image.fromarray(x[0, 0].numpy()).resize((5, 3), filter_)
    np.testing.assert_allclose(Downsample(4, kernel)(x)[0, 0].numpy(), np.array(wanted), atol=1e-5)


def test_nonlinear_operators_converge_to_a_minimum():
    operator = Nonlinear(lambda x: (x + 0.3 * x**3).cumsum(1), steps=25)
    x, y = drawn(4, 5), 2 * drawn(4, 5, seed=1)
    z = operator.prox(x, y, 0.5, 0.8).requires_grad_()
    energy = (operator(z) - y).square().sum() / 1.0 + (z - x).square().sum() / 1.6
    (slope,) = torch.autograd.grad(energy, z)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-5)


class Foreign:
    """An object in the form of deepinv's physics."""

    def A(self, x):  # noqa: N802 - its name there
        return x[:, :3]

    def A_adjoint(self, y):  # noqa: N802
        return torch.nn.functional.pad(y, (0, 2))


def test_objects_of_other_libraries_are_taken_as_they_are():
    operator = operator_of(Foreign())
    x, y = drawn(2, 5), drawn(2, 3)
    torch.testing.assert_close(operator.prox(x, y, 0.0, 1.0), torch.cat([y, x[:, 3:]], 1))
    torch.testing.assert_close(dense(operator, (5,)).matrix, torch.eye(5, dtype=torch.float64)[:3])


def test_a_wrong_adjoint_is_refused_once():
    wrong = Functions(lambda x: x.roll(1, -1), lambda y: y.roll(1, -1))
    with pytest.raises(ArgumentError, match="adjoint of the operator is wrong"):
        wrong.check((5,), drawn(1))
    with pytest.raises(ArgumentError, match="expected \\(5,\\)"):
        Functions(lambda x: x[:, :3], lambda y: y).check((5,), drawn(1))
    calls = []
    right = Functions(lambda x: calls.append(0) or x, lambda y: y)
    right.check((5,), drawn(1).float())
    right.check((5,), drawn(1).float())
    assert len(calls) == 1


def test_noise_is_drawn_as_it_says():
    clean = torch.full((40000, 1), 0.5)
    generator = torch.Generator().manual_seed(0)
    for noise, variance in ((Gaussian(0.3), 0.09), (Poisson(20.0), 1.5 / 20)):
        found = noise.draw(clean, generator)
        assert abs(float(found.mean()) - 0.5) < 4 * math.sqrt(variance / 40000)
        assert abs(float(found.var()) / variance - 1) < 0.04


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mask(torch.tensor([0.5, 1.0])), "other values"),
        (lambda: Mask(torch.ones(4) > 0)(drawn(1, 5)), "mask is of events"),
        (lambda: Downsample(0), "whole factor"),
        (lambda: Downsample(2.5), "whole factor"),
        (lambda: Downsample(3)(drawn(1, 8, 9)), "does not divide"),
        (lambda: Downsample(2)(drawn(1, 8)), "pictures"),
        (lambda: Blur(0.0), "sigma above 0"),
        (lambda: Blur(1.0, "zero"), "boundary"),
        (lambda: FourierMask(torch.eye(4)[[1, 0, 2, 3]]), "negative"),
        (lambda: FourierMask(torch.ones(4)), "height, width"),
        (lambda: FourierMask(torch.ones(4, 4))(drawn(1, 4, 5)), "of pictures"),
        (lambda: Matrix(drawn(3)), "real numbers"),
        (lambda: Matrix(drawn(3, 4), (5,)), "columns"),
        (lambda: Matrix(drawn(3, 4))(drawn(1, 5)), "of events"),
        (lambda: Nonlinear(torch.sin, 0), "Gauss–Newton"),
        (lambda: Nonlinear(torch.sin).adjoint(drawn(1, 1)), "no adjoint"),
        (lambda: Gaussian(-1.0), "not negative"),
        (lambda: Gaussian(float("nan")), "not negative"),
        (lambda: Gaussian(covariance=drawn(2, 2)), "symmetric"),
        (lambda: Gaussian(covariance=-torch.eye(2)), "positive definite"),
        (lambda: Poisson(0.0), "gain"),
        (lambda: operator_of(3), "A and A_adjoint"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
