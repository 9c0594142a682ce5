from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import contracts
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from proxflow._math import sum_events
from proxflow.beliefs import Belief, Categorical, DiagonalGaussian, FullGaussian, GaussianMixture, Product
from proxflow.divergences import KL, Divergence, Wasserstein2
from proxflow.errors import ArgumentError
from proxflow.random import Generator, SampleStreams, rand
from proxflow.testing import BELIEFS, check_belief, difference, normal


# A member from outside the package: the class, and its place in the list, are all it takes.
@dataclass(frozen=True, eq=False)
class Laplace(Belief):
    """Independent Laplace distributions."""

    mean: Tensor
    scale: Tensor
    factorised = True

    @property
    def batch_size(self) -> int:
        return len(self.mean)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Generator) -> Tensor:
        u = 2 * rand(self.mean.shape, generator, self.mean.dtype, self.mean.device) - 1
        return self.mean - self.scale * u.sign() * torch.log1p(-u.abs())

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_event(x, self.mean.shape)
        return sum_events(-(x - self.mean).abs() / self.scale - (2 * self.scale).log())

    def coordinates(self) -> Tensor:
        return torch.cat([self.mean.flatten(1), self.scale.log().flatten(1)], dim=1)

    def at(self, coordinates: Tensor) -> Laplace:
        mean, log_scale = (a.reshape(-1, *self.mean.shape[1:]) for a in coordinates.chunk(2, dim=1))
        return Laplace(mean, log_scale.exp())

    def features(self) -> Tensor:
        return self.mean

    def sites(self) -> Laplace:
        return Laplace(self.mean.reshape(-1, 1), self.scale.reshape(-1, 1))

    def unsites(self, sites: Laplace) -> Laplace:
        return Laplace(sites.mean.reshape(self.mean.shape), sites.scale.reshape(self.mean.shape))


DRAWS = {**BELIEFS, Laplace: lambda seed, batch: Laplace(normal(seed, batch, 2), normal(seed + 1, batch, 2).exp())}
FAMILIES = {
    **contracts.FAMILIES,
    Laplace: contracts.Family(
        lambda b: torch.distributions.Independent(torch.distributions.Laplace(b.mean, b.scale), 1)
    ),
}
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def _draw(family: type[Belief], batch: int = 5) -> Any:
    return DRAWS[family](1, batch)


# Contracts of every family -------------------------------------------------------------------------------------------


@every_family
def test_contract(family: type[Belief]) -> None:
    check_belief(DRAWS[family])


@every_family
def test_log_prob_matches_torch_distributions(family: type[Belief]) -> None:
    belief, known = _draw(family), FAMILIES[family]
    x = belief.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(belief.log_prob(x), known.law(belief).log_prob(known.events(x)))


@every_family
def test_samples_have_the_moments_of_the_law(family: type[Belief]) -> None:
    """Means and covariances, those between coordinates included, of two sets of draws."""
    n, known = 40_000, FAMILIES[family]
    one = _draw(family, 1)
    many = one.map(lambda a: a.expand(n, *a.shape[1:]))
    x = many.sample(torch.Generator().manual_seed(3))
    assert x.shape[0] == n
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = known.law(many).sample().double()
    found = known.events(x).double()
    spread = expected.std(0)
    assert bool(((found.mean(0) - expected.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all())
    if one.mean.shape == x[:1].shape:  # not for categories, whose mean are probabilities
        assert bool(((x.mean(0) - one.mean[0]).abs() < 5 * x.std(0) / math.sqrt(n)).all())
    error = (found.T.cov() - expected.T.cov()).abs() / (spread[:, None] * spread)
    assert float(error.max()) < 5 * math.sqrt(6 / n)  # enough for the tails of a Laplace law


# Densities integrate to 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3.0, 0.05), (-2.0, 7.0)])
def test_diagonal_gaussian_integrates_to_one(mean: float, std: float) -> None:
    belief = DiagonalGaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std]], dtype=torch.float64))

    def density(x: float) -> float:
        return math.exp(float(belief.log_prob(torch.tensor([[x]], dtype=torch.float64))))

    total = integrate.quad(density, mean - 12 * std, mean + 12 * std, points=[mean], limit=50)[0]
    assert total == pytest.approx(1, abs=1e-8)


def test_full_gaussian_integrates_to_one() -> None:
    one = _draw(FullGaussian, 1)
    reach = 9 * one.covariance[0].diagonal().sqrt()
    axes = [torch.linspace(-1, 1, 400, dtype=torch.float64) * r + m for r, m in zip(reach, one.mean[0], strict=True)]
    grid = torch.cartesian_prod(*axes)
    density = one.map(lambda a: a.expand(len(grid), *a.shape[1:])).log_prob(grid).exp()
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    assert float(density.sum() * cell) == pytest.approx(1, abs=1e-9)  # the rectangle rule is spectrally accurate here


def test_mixture_integrates_to_one() -> None:
    one = _draw(GaussianMixture, 1)
    axis = torch.linspace(-14, 14, 700, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = one.map(lambda a: a.expand(len(grid), *a.shape[1:])).log_prob(grid).exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-9)


def test_categorical_sums_to_one() -> None:
    one = _draw(Categorical, 1)
    events = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    total = one.map(lambda a: a.expand(9, *a.shape[1:])).log_prob(events).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-12)


# Families one by one -------------------------------------------------------------------------------------------------------


def test_std_broadcasts_to_the_mean() -> None:
    mean = normal(1, 4, 3)
    for std in (torch.tensor(2.0), torch.full((1, 1), 2.0), torch.full((4, 1), 2.0), torch.full((3,), 2.0)):
        belief = DiagonalGaussian(mean, std)
        assert belief.std.shape == (4, 3)
        assert belief.map(lambda a: a[:2]).std.shape == (2, 3)
    events = DiagonalGaussian(normal(2, 2, 3, 4, 5), torch.ones(1, 1, 1, 1))
    assert events.coordinates().shape == (2, 120)
    assert events.sites().batch_size == 120


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiagonalGaussian(torch.zeros(2, 3), torch.ones(2, 4)),
        lambda: DiagonalGaussian(torch.zeros(2, 1), torch.ones(2, 3)),
        lambda: DiagonalGaussian(torch.zeros(2, 3), torch.ones(1, 2, 3)),
        lambda: DiagonalGaussian(torch.zeros(()), torch.ones(())),
        lambda: DiagonalGaussian(torch.zeros(2, dtype=torch.int64), torch.ones(2)),
        lambda: DiagonalGaussian(torch.zeros(2), torch.ones(2, dtype=torch.int64)),
        lambda: FullGaussian(torch.zeros(2, 3), torch.ones(2, 3)),
        lambda: FullGaussian(torch.zeros(2, 3), torch.ones(2, 2, 2)),
        lambda: FullGaussian(torch.zeros(3), torch.eye(3)),
        lambda: FullGaussian(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, 3)),
        lambda: GaussianMixture(torch.zeros(2, 3), torch.zeros(2, 4, 5), torch.ones(())),
        lambda: GaussianMixture(torch.zeros(2), torch.zeros(2, 5), torch.ones(())),
        lambda: GaussianMixture(torch.zeros(2, 0), torch.zeros(2, 0, 5), torch.ones(())),
        lambda: GaussianMixture(torch.zeros(2, 3), torch.zeros(2, 3, 5), torch.ones(2, 3, 4)),
        lambda: GaussianMixture(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.ones(())),
        lambda: Categorical(torch.zeros(2, 1)),
        lambda: Categorical(torch.zeros(2)),
        lambda: Categorical(torch.zeros(2, 3, dtype=torch.int64)),
    ],
)
def test_bad_shapes_and_types_are_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"got|broadcast|batch dimension"):
        make()


def test_covariances_are_checked() -> None:
    mean = torch.zeros(2, 2)
    good = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    belief = FullGaussian.from_covariance(mean, good.expand(2, 2, 2))
    torch.testing.assert_close(belief.covariance, good.expand(2, 2, 2))
    with pytest.raises(ArgumentError, match=r"positive definite; those of examples \[1\]"):
        FullGaussian.from_covariance(mean, torch.stack([good, torch.tensor([[1.0, 2.0], [2.0, 1.0]])]))
    with pytest.raises(ArgumentError, match="symmetric"):
        FullGaussian.from_covariance(mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(2, 2, 2))
    with pytest.raises(ArgumentError, match=r"\(batch, d, d\)"):
        FullGaussian.from_covariance(mean, good)


def test_categorical_probabilities() -> None:
    probs = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    belief = Categorical.from_probs(probs)
    torch.testing.assert_close(belief.probs, probs)
    assert belief.log_prob(torch.tensor([2, 0])).tolist() == [pytest.approx(math.log(0.5)), -math.inf]
    x = belief.map(lambda a: a.repeat_interleave(500, 0)).sample(torch.Generator().manual_seed(0))
    assert bool((x[500:] == 1).all())  # a class ruled out is never drawn
    with pytest.raises(ArgumentError, match="int64"):
        belief.log_prob(torch.tensor([2.0, 0.0]))


def test_draws_that_round_to_one_choose_no_ruled_out_class() -> None:
    class Ones(SampleStreams):
        def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.ones(shape, dtype=dtype)

    belief = Categorical(torch.tensor([[-math.inf, 0.0], [0.0, -math.inf]]))
    assert belief.sample(Ones(0, torch.arange(2))).tolist() == [1, 0]


def test_categorical_features() -> None:
    torch.testing.assert_close(
        Categorical.from_probs(torch.tensor([[0.2, 0.3, 0.5]])).features(), torch.tensor([[-0.6, -0.4, 0.0]])
    )
    torch.testing.assert_close(Categorical.from_probs(torch.tensor([[0.2, 0.8]])).features(), torch.tensor([-0.6]))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_large_logits_do_not_overflow(a: float, b: float) -> None:
    belief = Categorical(torch.tensor([[a, b]]))
    assert bool(belief.probs.isfinite().all())
    assert float(belief.probs.sum()) == pytest.approx(1, abs=1e-6)
    assert bool(belief.at(belief.coordinates()).log_probs.isfinite().all())


def test_a_point_mass_samples_its_mean() -> None:
    belief = DiagonalGaussian(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    assert torch.equal(belief.sample(torch.Generator().manual_seed(0)), belief.mean)


def _two_components(weights: list[float], means: list[float], std: float) -> GaussianMixture:
    logits, centres = (torch.tensor([a], dtype=torch.float64) for a in (weights, means))
    return GaussianMixture(logits.log(), centres, torch.tensor(std, dtype=torch.float64))


def test_mode_of_a_mixture_is_its_highest_centre() -> None:
    apart = _two_components([0.4, 0.6], [-5.0, 5.0], 1.0)
    assert apart.mode.tolist() == [5.0]
    assert _two_components([0.4, 0.3, 0.3], [-5.0, 4.9, 5.1], 1.0).mode.item() in (4.9, 5.1)  # neighbours add up
    assert _two_components([0.3, 0.6, 0.1], [-5.0, 5.0, 5.0], 0.0).mode.tolist() == [5.0]  # point masses
    spiky = GaussianMixture(torch.zeros(1, 2), torch.tensor([[0.0, 9.0]]), torch.tensor([[1.0, 0.1]]))
    assert spiky.mode.tolist() == [9.0]
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    highest = grid[apart.map(lambda a: a.expand(len(grid), *a.shape[1:])).log_prob(grid).argmax()]
    assert float(highest) == pytest.approx(5.0, abs=1e-3)


def test_a_mixture_has_no_order_of_components() -> None:
    belief = _draw(GaussianMixture)
    swapped = belief.map(lambda a: a.flip(1))
    x = belief.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(swapped.log_prob(x), belief.log_prob(x))
    torch.testing.assert_close(swapped.mean, belief.mean)
    torch.testing.assert_close(swapped.mode, belief.mode)
    assert difference(swapped.at(swapped.coordinates()), swapped) < 1e-14
    assert float((swapped.coordinates() - belief.coordinates()).abs().max()) > 0.1


def test_mixtures_of_events_of_any_shape() -> None:
    images = GaussianMixture(normal(1, 2, 3), normal(2, 2, 3, 1, 4, 4), torch.tensor(0.5, dtype=torch.float64))
    x = images.sample(torch.Generator().manual_seed(0))
    assert x.shape == images.mean.shape == images.mode.shape == (2, 1, 4, 4)
    flat = GaussianMixture(images.logits, images.means.flatten(2), images.stds.flatten(2))
    torch.testing.assert_close(images.log_prob(x), flat.log_prob(x.flatten(1)))
    assert images.coordinates().shape == (2, 2 + 2 * 3 * 16)
    assert images.features().shape == (2, 3 + 2 * 3 * 16)
    one = GaussianMixture(torch.zeros(4, 1), torch.arange(4.0)[:, None], torch.ones(()))
    torch.testing.assert_close(one.log_prob(one.mean), torch.full((4,), -0.5 * math.log(2 * math.pi)))
    assert difference(one.at(one.coordinates()), one) == 0


def test_log_density_of_a_mixture_far_away_does_not_underflow() -> None:
    belief = GaussianMixture(torch.zeros(1, 2), torch.tensor([[-1.0, 1.0]]), torch.ones(()))
    far = belief.log_prob(torch.tensor([200.0]))
    assert float(far) == pytest.approx(-0.5 * 199**2 - math.log(2) - 0.5 * math.log(2 * math.pi), rel=1e-6)


def test_rows_of_a_product() -> None:
    images = DiagonalGaussian(normal(1, 4, 1, 2, 2).float(), torch.tensor(0.5))
    labels = Categorical(normal(2, 4, 300).float())
    belief = Product((images, labels))
    rows = belief.sample(torch.Generator().manual_seed(0))
    assert rows.shape == (4, 5)
    assert rows.dtype == torch.float32
    pixels, classes = belief.split(rows)
    assert pixels.shape == (4, 1, 2, 2)
    assert classes.dtype == torch.int64
    assert classes.shape == (4,)
    torch.testing.assert_close(belief.log_prob(rows), images.log_prob(pixels) + labels.log_prob(classes))
    modes, likeliest = belief.split(belief.mode)
    assert torch.equal(modes, images.mean)
    assert torch.equal(likeliest, labels.mode)
    torch.testing.assert_close(belief.mean, torch.cat([images.mean.flatten(1), labels.probs], dim=1))
    assert belief.features().shape == (4, 4 + 300)
    assert set(belief.tensors()) == {"0.mean", "0.std", "1.logits"}


@pytest.mark.parametrize(
    "parts", [(), (DiagonalGaussian(torch.zeros(2, 1), torch.ones(())), Categorical(torch.zeros(3, 2)))], ids=str
)
def test_parts_of_a_product_must_fit(parts: tuple[Belief, ...]) -> None:
    with pytest.raises(ArgumentError, match="one batch size"):
        Product(parts)


@pytest.mark.parametrize(
    "std", [0.5, torch.tensor(0.5), lambda: torch.full((5, 1), 0.5)], ids=["number", "tensor", "function"]
)
def test_a_standard_deviation_is_a_number_a_tensor_or_a_function(std) -> None:
    mean = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    given_, plain = DiagonalGaussian(mean, std), DiagonalGaussian(mean, torch.full((5, 3), 0.5))
    assert torch.equal(given_.std, plain.std)
    assert torch.equal(given_.log_prob(mean + 1), plain.log_prob(mean + 1))
    assert torch.equal(*(belief.sample(torch.Generator().manual_seed(1)) for belief in (given_, plain)))
    doubled = given_.map(torch.Tensor.double)
    assert doubled.std.dtype == torch.float64
    assert torch.equal(doubled.std, plain.std.double())


def test_a_standard_deviation_given_by_a_function_is_worked_out_only_when_read() -> None:
    def std() -> Tensor:
        raise AssertionError

    belief = DiagonalGaussian(torch.zeros(2, 3), std)
    assert belief.features().shape == belief.mode.shape == (2, 3)
    with pytest.raises(AssertionError):
        _ = belief.std


@pytest.mark.parametrize("std", [-0.1, math.nan])
def test_a_number_that_is_no_standard_deviation_is_refused(std: float) -> None:
    with pytest.raises(ArgumentError, match="must not be negative"):
        DiagonalGaussian(torch.zeros(2, 3), std)


@pytest.mark.parametrize("divergence", [Wasserstein2(), KL()], ids=str)
def test_one_spread_for_all_takes_no_arithmetic_over_a_batch(divergence: Divergence) -> None:
    mean = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    one, other = (DiagonalGaussian(scale * mean, torch.tensor(std)) for scale, std in ((1.0, 0.5), (-2.0, 0.1)))
    f = torch.linspace(0.1, 0.9, 5)
    moved = divergence.interpolate(one, other, f)
    assert moved.given_std.shape == (5, 1, 1)
    spread = (DiagonalGaussian(b.mean, b.std.contiguous()) for b in (one, other))
    for found, expected in zip(
        moved.tensors().values(), divergence.interpolate(*spread, f).tensors().values(), strict=True
    ):
        assert found.shape == mean.shape
        torch.testing.assert_close(found, expected)
