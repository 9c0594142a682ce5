"""Our metrics against independent public implementations, on the same features: torchmetrics and prdc."""

import warnings

import numpy as np
import prdc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from proxflow.data import load
from proxflow.metrics import (
    Reference,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mnist_features,
    precision_recall,
)
from proxflow.metrics.vendi import vendi_estimate


class Identity(torch.nn.Module):
    """Takes features for images."""

    def __init__(self, dimension):
        super().__init__()
        self.num_features = dimension

    def forward(self, features):
        return features


def normal(count, dimension, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return shift + scale * torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing


def digits():
    extract, images = mnist_features(), load("mnist", "test").images
    blurred = torch.nn.functional.avg_pool2d(images[600:1200].float(), 3, 1, 1).to(torch.uint8)
    return extract(images[:600]), extract(blurred)


SETS = {
    "normal": lambda: (normal(400, 16, 1), normal(400, 16, 2, scale=0.8, shift=0.3)),
    "far from the origin": lambda: (normal(300, 8, 3) + 1e3, normal(300, 8, 4) + 1e3),
    "close": lambda: (normal(500, 6, 5), normal(500, 6, 5, scale=1.01)),
    "wide": lambda: (normal(600, 300, 7), normal(600, 300, 8, scale=0.9)),
    "digits": digits,
}


@pytest.fixture(params=SETS, scope="module")
def sets(request):
    return SETS[request.param]()


def oracle_frechet(real, fake):
    oracle = FrechetInceptionDistance(feature=Identity(real.shape[1]), input_img_size=(1, 1, 1)).set_dtype(
        torch.float64
    )
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    return float(oracle.compute())


def oracle_kernel(real, fake):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = KernelInceptionDistance(feature=Identity(real.shape[1]), subsets=1, subset_size=len(real))
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    return float(oracle.compute()[0])


def test_frechet_distance(sets):
    assert frechet_distance(*sets) == pytest.approx(oracle_frechet(*sets), rel=1e-4)


def test_kernel_distance(sets):
    # Kernel values cancel in the difference, so rounding counts relative to them.
    real, _ = sets
    size = float((real @ real.T / real.shape[1] + 1.0).pow(3).abs().mean())
    assert kernel_distance(*sets).value == pytest.approx(oracle_kernel(*sets), rel=1e-4, abs=1e-12 * size)


def test_precision_recall_density_coverage(sets, capsys):
    real, fake = (features.numpy() for features in sets)
    for k in (3, 5):
        expected = prdc.compute_prdc(real, fake, nearest_k=k)
        ours = dict(zip(("precision", "recall"), precision_recall(*sets, k), strict=True))
        ours |= zip(("density", "coverage"), density_coverage(*sets, k), strict=True)
        assert ours == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


def test_scores_hold_the_same_numbers_at_their_neighbours(sets):
    real, fake = sets
    scores = Reference.of(real).score(fake)
    narrow = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=3)
    wide = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert (scores.precision, scores.recall) == pytest.approx((narrow["precision"], narrow["recall"]), rel=1e-4)
    assert (scores.density, scores.coverage) == pytest.approx((wide["density"], wide["coverage"]), rel=1e-4)
    assert scores.frechet == pytest.approx(oracle_frechet(real, fake), rel=1e-4)
    size = float((real @ real.T / real.shape[1] + 1.0).pow(3).abs().mean())
    assert scores.kid == pytest.approx(oracle_kernel(real, fake), rel=1e-4, abs=1e-12 * size)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(7, 40), st.integers(7, 40), st.integers(1, 6), st.integers(1, 5))
def test_neighbour_metrics_at_any_counts(seed, n, m, dimension, k):
    generator = np.random.default_rng(seed)
    real, fake = generator.normal(size=(n, dimension)), generator.normal(0.3, 0.8, size=(m, dimension))
    expected = prdc.compute_prdc(real, fake, nearest_k=k)
    a, b = torch.from_numpy(real), torch.from_numpy(fake)
    assert precision_recall(a, b, k) == pytest.approx((expected["precision"], expected["recall"]))
    assert density_coverage(a, b, k) == pytest.approx((expected["density"], expected["coverage"]))


def test_fewer_samples_than_dimensions_have_the_distance_of_their_covariances():
    generator = torch.Generator().manual_seed(0)
    few, more, many = (torch.randn(n, 40, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.linspace(0.2, 2, 40, dtype=torch.float64)
    ) for n in (7, 25, 300))  # fmt: skip
    for a, b in ((few, more), (few, many), (many, more)):
        roots = []
        for x in (a, b):
            values, vectors = np.linalg.eigh(np.cov(x.numpy(), rowvar=False))
            roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
        overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
        traces = sum(np.trace(np.cov(x.numpy(), rowvar=False)) for x in (a, b))
        expected = float((a.mean(0) - b.mean(0)).square().sum()) + traces - 2 * overlap
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_dimensions_have_the_vendi_score_of_the_definition():
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[4] = 0.0
    x[5] = x[6]
    unit = torch.nn.functional.normalize(x, dim=1).numpy()
    kernel = unit @ unit.T
    kernel[4, 4] = 1.0  # without a direction, like itself alone
    values = np.linalg.eigvalsh(kernel / 9)
    values = values[values > 1e-12]
    found = vendi_estimate(x)
    assert found.value == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)
    # The influence of a sample is the derivative of the score by its weight.
    assert float(found.influences.mean()) == pytest.approx(0.0, abs=1e-9)
    moved = vendi_estimate(torch.cat([x.repeat(2000, 1), x[:1], x[:1]])).value - found.value
    assert moved == pytest.approx(float(found.influences[0]) * 2 / 18_002, rel=0.02)
