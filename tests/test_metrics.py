from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import needs_fashion_mnist
from torch import Tensor

from proxflow.data import load
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.metrics import (
    CLASSIFIERS,
    GaussianStatistics,
    Reference,
    classifier_features,
    diversity,
    frechet_distance,
    load_classifier,
    mnist_features,
    precision_recall,
    principal_features,
    real_floor,
    shipped_features,
)
from proxflow.metrics import _pairs as pairs_module
from proxflow.metrics.features import SmallClassifier, accuracy, read_classifier
from proxflow.metrics.principal import Principal

MNIST_WEIGHTS = CLASSIFIERS["mnist"]

SEEDS = st.integers(0, 2**32 - 1)


def normal(count: int, dimension: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return shift + scale * torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing


# Fréchet distance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "dimension"), [(200, 150, 5), (400, 300, 64), (1000, 2, 3)])
def test_frechet_agrees_with_the_matrix_square_root(n: int, m: int, dimension: int) -> None:
    a, b = normal(n, dimension, 1), normal(m, dimension, 2, scale=0.7, shift=0.3)
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    gap = a.numpy().mean(0) - b.numpy().mean(0)
    expected = gap @ gap + np.trace(cov_a + cov_b - 2.0 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_closed_form_of_commuting_gaussians() -> None:
    deviations_a, deviations_b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([2.0, 0.5, 3.0, 5.0])
    rotation = torch.linalg.qr(normal(4, 4, 3)).Q

    def gaussian(mean: list[float], deviations: Tensor) -> GaussianStatistics:
        covariance = rotation @ torch.diag(deviations.double().square()) @ rotation.T
        return GaussianStatistics(torch.tensor(mean, dtype=torch.float64), covariance)

    a, b = gaussian([0.0, 1.0, 2.0, 0.0], deviations_a), gaussian([3.0, 1.0, 2.0, -4.0], deviations_b)
    # |(3, 0, 0, −4)|² + (1−2)² + (2−0.5)² + 0 + 5²
    assert frechet_distance(a, b) == pytest.approx(25.0 + 1.0 + 2.25 + 25.0, rel=1e-12)


def test_frechet_in_one_dimension_by_hand() -> None:
    # Means 1 and 4; variances 2 and 8.
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [6.0]])
    assert frechet_distance(a, b) == pytest.approx(9.0 + (math.sqrt(8.0) - math.sqrt(2.0)) ** 2, rel=1e-12)


def test_frechet_of_a_point_mass() -> None:
    a = normal(50, 4, 5)
    point = torch.full((10, 4), 2.0)
    expected = float((a.mean(0) - 2.0).square().sum() + torch.cov(a.T).trace())
    assert frechet_distance(a, point) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(point, point + 1.0) == pytest.approx(4.0)


@pytest.mark.parametrize(("count", "dimension"), [(500, 64), (20, 64), (2, 8)])
def test_frechet_to_itself_is_zero_even_without_full_rank(count: int, dimension: int) -> None:
    a = normal(count, dimension, 7)
    assert frechet_distance(a, a) < 1e-10 * float(torch.cov(a.T).trace())


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 40), st.integers(2, 40), st.integers(1, 8), st.floats(0.1, 10.0))
def test_frechet_invariances(seed: int, n: int, m: int, dimension: int, scale: float) -> None:
    a, b = normal(n, dimension, seed), normal(m, dimension, seed + 1, shift=1.0)
    rotation = torch.linalg.qr(normal(dimension, dimension, seed + 2)).Q
    value = frechet_distance(a, b)
    tolerance = 1e-6 * max(1.0, value, float(a.square().sum(1).mean()))
    assert value >= 0.0
    assert frechet_distance(b, a) == pytest.approx(value, abs=tolerance)
    assert frechet_distance(a @ rotation + 3.0, b @ rotation + 3.0) == pytest.approx(value, abs=tolerance)
    assert frechet_distance(scale * a, scale * b) == pytest.approx(scale**2 * value, abs=scale**2 * tolerance)
    assert frechet_distance(a.flip(0), GaussianStatistics.of(b)) == pytest.approx(value, abs=tolerance)


# Precision, recall, diversity ---------------------------------------------------------------------------------------


def brute_force(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    def radii(points: list[list[float]]) -> list[float]:
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    def share(points: list[list[float]], centres: list[list[float]]) -> float:
        reach = list(zip(centres, radii(centres), strict=True))
        return sum(any(math.dist(p, c) <= r for c, r in reach) for p in points) / len(points)

    return share(fake.tolist(), real.tolist()), share(real.tolist(), fake.tolist())


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(5, 25), st.integers(5, 25), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_precision_recall_agree_with_loops(seed: int, n: int, m: int, dimension: int, k: int, grid: bool) -> None:
    real, fake = normal(n, dimension, seed), normal(m, dimension, seed + 1, shift=0.5)
    if grid:
        # Many duplicates and ties; small integers, so that distances are exact.
        real, fake = real.round(), fake.round()
    assert precision_recall(real, fake, k) == pytest.approx(brute_force(real, fake, k), abs=1e-12)


def test_results_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(70, 4, 1), normal(50, 4, 2, scale=0.8)
    whole = Reference.of(real).score(fake)
    monkeypatch.setattr(pairs_module, "_ROWS", 7)
    monkeypatch.setattr(pairs_module, "_COLUMNS", 11)
    blockwise = Reference.of(real).score(fake)
    assert blockwise.precision == whole.precision
    assert blockwise.recall == whole.recall
    assert blockwise.diversity == pytest.approx(whole.diversity, rel=1e-12)


def test_precision_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [1.5], [20.0]])
    # k = 1: real radii 1, 1, 1, 8 reach 2 ... 18; fake radii 1, 1, 18.5 reach all of −0.5 ... 2.5 and 1.5 ... 38.5.
    assert precision_recall(real, fake, k=1) == pytest.approx((2 / 3, 1.0))
    assert precision_recall(real, real, k=1) == (1.0, 1.0)
    assert precision_recall(real, real + 100.0, k=1) == (0.0, 0.0)


def test_a_subset_of_real_samples_is_precise_but_does_not_recall() -> None:
    cluster, other = normal(60, 3, 1), normal(60, 3, 2, shift=100.0)
    precision, recall = precision_recall(torch.cat([cluster, other]), cluster)
    assert precision == 1.0
    assert recall == 0.5


def test_diversity_by_hand() -> None:
    real = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])  # distances 5, 5, 0
    fake = torch.tensor([[1.0, 1.0], [1.0, 3.0]])  # distance 2
    assert diversity(real, fake) == pytest.approx(2.0 / (10.0 / 3.0), rel=1e-12)
    assert diversity(real, real) == 1.0


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_collapsed_samples_have_no_diversity(offset: float) -> None:
    real = normal(300, 64, 3) + offset
    collapsed = real[:1].expand(300, -1)
    assert diversity(real, collapsed) == 0.0
    # The point is a real sample; exactly that one of the real ones is recalled.
    assert precision_recall(real, collapsed) == pytest.approx((1.0, 1 / 300))
    scores = Reference.of(real).score(collapsed + 1e9)
    assert (scores.precision, scores.recall, scores.diversity) == (0.0, 0.0, 0.0)
    assert math.isfinite(scores.frechet)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(4, 30), st.integers(4, 30), st.floats(0.1, 10.0))
def test_manifold_invariances(seed: int, n: int, m: int, scale: float) -> None:
    real, fake = normal(n, 3, seed), normal(m, 3, seed + 1, shift=0.5)
    rotation = torch.linalg.qr(normal(3, 3, seed + 2)).Q
    precision, recall = precision_recall(real, fake)
    assert 0.0 <= precision <= 1.0
    assert precision_recall(fake, real) == (recall, precision)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert precision_recall(real[order], fake) == (precision, recall)
    assert precision_recall(scale * real @ rotation - 1.0, scale * fake @ rotation - 1.0) == (precision, recall)
    ratio = diversity(real, fake)
    assert diversity(scale * real @ rotation, scale * fake @ rotation) == pytest.approx(ratio, rel=1e-9)
    assert diversity(fake, real) * ratio == pytest.approx(1.0, rel=1e-9)
    assert diversity(real, scale * real) == pytest.approx(scale, rel=1e-9)


# Refusals -----------------------------------------------------------------------------------------------------------

METRICS = [frechet_distance, precision_recall, diversity, lambda real, fake: Reference.of(real).score(fake)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((10, 3), float("nan")), "finite"),
        (torch.tensor([[0.0, 1.0, 2.0]] * 9 + [[0.0, float("inf"), 0.0]]), "1 of 10 samples.*first at 9"),
        (torch.full((10, 3), 1e300, dtype=torch.float64), "finite and at most"),
        (torch.zeros(1, 3), "at least 2"),
        (torch.zeros(10, 4), "same dimension"),
        (torch.zeros(10), "shape"),
        (torch.zeros(10, 0), "shape"),
        (torch.zeros(10, 3, dtype=torch.int64), "floating point"),
    ],
)
def test_degenerate_features_are_refused(metric: object, bad: Tensor, message: str) -> None:
    good = normal(10, 3, 1)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ArgumentError, match=message):
            metric(*pair)  # type: ignore[operator]


@pytest.mark.parametrize("k", [-1, 0, 5, 6])
def test_impossible_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ArgumentError, match="k must be"):
        precision_recall(normal(10, 3, 1), normal(5, 3, 2), k)


def test_diversity_needs_real_samples_that_differ() -> None:
    with pytest.raises(ArgumentError, match="no scale"):
        diversity(torch.ones(5, 2), normal(5, 2, 1))


def test_statistics_of_other_forms_are_refused() -> None:
    for mean, covariance in [
        (torch.zeros(2), torch.eye(2)),
        (torch.zeros(2).double(), torch.eye(3).double()),
        (torch.zeros(2).double() / 0.0, torch.eye(2).double()),
    ]:
        with pytest.raises(ArgumentError, match="mean and covariance"):
            GaussianStatistics(mean, covariance)


# Reference and floor ------------------------------------------------------------------------------------------------


def test_reference_gives_the_same_as_the_functions() -> None:
    real, fake = normal(80, 6, 1), normal(40, 6, 1, scale=0.9, shift=0.1)
    scores = Reference.of(real).score(fake)
    assert scores.frechet == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert (scores.precision, scores.recall) == precision_recall(real, fake)
    assert scores.diversity == pytest.approx(diversity(real, fake), rel=1e-12)
    assert scores.samples == 40


def test_floor_scores_a_seeded_choice_of_other_real_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = torch.randn(2, 400, 4, generator=generator).unbind()
    reference = Reference.of(real)
    small, large = real_floor(reference, other, 50, seed=1), real_floor(reference, other, 400, seed=1)
    assert small == real_floor(reference, other, 50, seed=1)
    assert small != real_floor(reference, other, 50, seed=2)
    assert large.frechet < small.frechet
    assert large.recall > small.recall
    assert large.frechet == pytest.approx(reference.score(other).frechet, rel=1e-9)
    for n in (0, -3, 401):
        with pytest.raises(ArgumentError, match="n must be"):
            real_floor(reference, other, n, seed=1)


# The extractor ------------------------------------------------------------------------------------------------------


LEAST = {"mnist": 0.993, "fashion-mnist": 0.93, "mnist-mixer": 0.985, "fashion-mnist-mixer": 0.88, "emoji": 0.79}
"""Least accuracy on test images."""

datasets = pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=needs_fashion_mnist if "fashion" in name else ()) for name in CLASSIFIERS]
)


@datasets
def test_shipped_classifier_reaches_its_accuracy(dataset: str) -> None:
    test = load(CLASSIFIERS[dataset].data, "test")
    assert test.labels is not None
    measured = accuracy(load_classifier(dataset), test.images, test.labels)
    assert measured >= LEAST[dataset]
    described = json.loads(CLASSIFIERS[dataset].path.with_suffix(".json").read_text(encoding="utf-8"))
    assert measured == pytest.approx(described["test_accuracy"], abs=3e-4)


@pytest.mark.parametrize("dataset", CLASSIFIERS)
def test_an_extractor_says_which_weights_it_has(dataset: str) -> None:
    path, extract = CLASSIFIERS[dataset].path, classifier_features(dataset)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert described["sha256"] == extract.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extract.name == path.stem == (dataset if "mixer" in dataset else f"{dataset}-classifier")
    assert path.stat().st_size < 800_000


def test_components_are_uncorrelated_and_known_by_their_file() -> None:
    extract, training = principal_features(), load("emoji", "train").images
    path = CLASSIFIERS["emoji"].path.with_name("emoji-principal.safetensors")
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert described["sha256"] == extract.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < 400_000
    found = extract(training)
    assert (extract.name, found.shape) == ("emoji-principal", (len(training), 64))
    covariance = torch.cov(found.T)
    variances = covariance.diagonal()
    assert float(variances.mean()) == pytest.approx(1.0, rel=1e-3)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    torch.testing.assert_close(covariance, variances.diag(), rtol=0, atol=1e-3)
    torch.testing.assert_close(shipped_features("emoji-principal")(training[:9]), found[:9], rtol=1e-5, atol=1e-5)
    with pytest.raises(ArgumentError, match=r"'mnist-principal'.*expected emoji-principal"):
        principal_features("mnist-principal")


def test_components_are_those_of_the_largest_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    levels = draw.normal(0, 30, (200, 1, 1, 1)) * np.ones((1, 1, 4, 4)) + draw.normal(128, 2, (200, 1, 4, 4))
    images = torch.from_numpy(levels.clip(0, 255).astype(np.uint8))
    found = Principal.of(images, 1)
    direction = found.directions[0] / found.directions.norm()
    torch.testing.assert_close(direction, torch.full((4,), 0.5), rtol=0, atol=0.02)  # the mean of all, of 2 x 2 squares
    assert float(found(images / 127.5 - 1.0).var()) == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(ArgumentError, match="4 components need more"):
        Principal.of(images, 4)
    (tmp_path / "emoji-principal.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr("proxflow.metrics.principal.WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="sha256"):
        principal_features()


def test_extractors_of_two_data_sets_differ() -> None:
    digits, clothes = mnist_features(), classifier_features("fashion-mnist")
    assert (digits.name, digits.sha256) == ("mnist-classifier", MNIST_WEIGHTS.sha256)
    assert digits.sha256 != clothes.sha256
    images = load("mnist", "test").images[:50]
    torch.testing.assert_close(classifier_features()(images), digits(images), rtol=0, atol=0)
    assert float((clothes(images) - digits(images)).abs().mean()) > 0.5
    for ask in (classifier_features, load_classifier):
        with pytest.raises(ArgumentError, match=r"'letters'.*mnist or fashion-mnist"):
            ask("letters")


@datasets
def test_features_are_standardised_and_of_full_rank(dataset: str) -> None:
    extract = classifier_features(dataset)
    images = load(CLASSIFIERS[dataset].data, "test").images[:256]
    features = extract(images)
    assert extract.dimension == 64 - ("mixer" in dataset)
    assert features.shape == (256, extract.dimension)
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert int(torch.linalg.matrix_rank(torch.cov(features.T))) == extract.dimension
    assert 0.5 < features.var(dim=0).mean().item() < 2.0
    torch.testing.assert_close(extract(images, batch_size=100), features, atol=1e-4, rtol=1e-4)
    # Every image counts by itself: no batch statistics.
    torch.testing.assert_close(extract(images[17:18]), features[17:18], atol=1e-4, rtol=1e-4)


def test_extractor_refuses_other_images() -> None:
    extract = mnist_features()
    bytes_ = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    for bad in (bytes_.float(), bytes_[0], bytes_[:0], bytes_.expand(-1, 3, -1, -1), bytes_[..., :20]):
        with pytest.raises(ArgumentError):
            extract(bad)
    with pytest.raises(ArgumentError, match="batch_size"):
        extract(bytes_, batch_size=0)


def test_damaged_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_classifier(path, MNIST_WEIGHTS.sha256)
    content = bytearray(MNIST_WEIGHTS.path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        read_classifier(path, MNIST_WEIGHTS.sha256)

    def unchecked() -> SmallClassifier:
        return read_classifier(path, hashlib.sha256(path.read_bytes()).hexdigest())

    path.write_bytes(b"no tensors at all")
    with pytest.raises(CheckpointError, match="does not hold"):
        unchecked()
    for tensors in ({"other": torch.zeros(3)}, {"head.1.bias": torch.zeros(3)}):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match="does not hold"):
            unchecked()


@datasets
def test_features_tell_noise_and_collapse_from_real_images(dataset: str) -> None:
    extract = classifier_features(dataset)
    images = load(CLASSIFIERS[dataset].data, "train" if dataset == "emoji" else "test").images  # few emoji are held out
    if dataset == "emoji":  # they lie in the order of their code points
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(3))]
    reference = Reference.of(extract(images[:1000]))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (300, *images.shape[1:]), dtype=torch.uint8, generator=generator)
    real, noisy = reference.score(extract(images[1000:1300])), reference.score(extract(noise))
    collapsed = reference.score(extract(images[1000:1001].expand(300, -1, -1, -1)))
    assert noisy.frechet > 10.0 * real.frechet
    assert collapsed.frechet > 10.0 * real.frechet
    # Of clothes, noise lies within balls of outlying real images, as docs/evaluation.md says; density is not fooled.
    assert noisy.precision < (0.1 if dataset == "mnist" else 0.7) < real.precision
    assert noisy.density < 0.4 < 0.8 < real.density
    assert noisy.coverage < 0.05 < 0.6 < real.coverage
    assert real.recall > 0.6
    assert collapsed.recall < 0.05
    assert collapsed.diversity < 1e-5
    assert 0.9 < real.diversity < 1.1
