"""Kernel distance, Vendi score, sliced Wasserstein, memorisation; standard errors and intervals; degenerate input."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from proxflow.errors import ArgumentError
from proxflow.metrics import (
    Estimate,
    FeatureStatistics,
    GaussianStatistics,
    Reference,
    _input,
    _pairs,
    bootstrap,
    bootstrap_seeds,
    density_coverage,
    diversity,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
    vendi_score,
)
from proxflow.metrics.frechet import frechet_estimate
from proxflow.metrics.kernel import KernelSums, kernel_estimate
from proxflow.metrics.manifolds import Manifold, overlap, spread
from proxflow.metrics.sliced import sliced_estimate
from proxflow.metrics.vendi import vendi_estimate

SEEDS = st.integers(0, 2**32 - 1)


def normal(count, dimension, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes every blockwise computation take many blocks, none of which divides the counts."""

    def shrink():
        monkeypatch.setattr(_pairs, "_ROWS", 7)
        monkeypatch.setattr(_pairs, "_COLUMNS", 11)
        monkeypatch.setattr(_input, "_BLOCK_ELEMENTS", 50)
        monkeypatch.setattr("proxflow.metrics.sliced._DIRECTIONS_AT_A_TIME", 5)
        monkeypatch.setattr("proxflow.metrics.uncertainty._BLOCK_ELEMENTS", 300)

    return shrink


# Values ---------------------------------------------------------------------------------------------------------------


def test_kernel_distance_by_loops():
    real, fake = normal(7, 3, 1), normal(5, 3, 2, shift=0.4)

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 3 + 1) ** 3

    def across(a, b):
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    def within(a):
        return sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (len(a) * (len(a) - 1))

    def value(a, b):
        return within(a) + within(b) - 2 * across(a, b)

    a, b = real.tolist(), fake.tolist()
    found = kernel_distance(real, fake)
    assert found.value == pytest.approx(value(a, b), rel=1e-12)
    # The jackknife as it is defined: every sample left out in turn.
    variance = 0.0
    for left_out in (
        [value(a[:i] + a[i + 1 :], b) for i in range(len(a))],
        [value(a, b[:i] + b[i + 1 :]) for i in range(len(b))],
    ):
        mean = sum(left_out) / len(left_out)
        variance += (len(left_out) - 1) / len(left_out) * sum((v - mean) ** 2 for v in left_out)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(normal(20, 4, 2 * s), normal(20, 4, 2 * s + 1)).value for s in range(400)]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    assert abs(mean) < 3 * deviation / math.sqrt(len(values))


def test_vendi_score_of_known_sets():
    axes = torch.eye(5, dtype=torch.float64)
    assert vendi_score(axes) == pytest.approx(5.0)
    assert vendi_score(3.0 * axes[[0, 0, 1, 1]]) == pytest.approx(2.0)
    assert vendi_score(axes[:1].expand(9, -1)) == pytest.approx(1.0)
    # Samples of length zero are one more kind: shares 1/2, 1/4, 1/4.
    mixed = torch.cat([torch.zeros(2, 5, dtype=torch.float64), axes[:2]])
    assert vendi_score(mixed) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert vendi_score(torch.zeros(4, 3)) == 1.0
    assert vendi_score(1e-300 * axes) == pytest.approx(5.0)


@pytest.mark.parametrize(("count", "dimension"), [(30, 4), (6, 20)])
def test_vendi_score_agrees_with_the_matrix_of_similarities(count, dimension):
    features = normal(count, dimension, 3, shift=0.5)
    unit = features / features.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit @ unit.T / count).clamp_min(0)
    entropy = -sum(float(v) * math.log(float(v)) for v in values if v > 1e-14)
    assert vendi_score(features) == pytest.approx(math.exp(entropy), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 8), (5, 9)])
def test_sliced_distance_in_one_dimension_by_repeating(n, m):
    # Equal counts after repetition, where the optimal plan is the order.
    real, fake = normal(n, 1, 1), normal(m, 1, 2, scale=2.0)
    times = math.lcm(n, m)
    a, b = (x[:, 0].repeat_interleave(times // len(x)).sort().values for x in (real, fake))
    assert sliced_wasserstein(real, fake, projections=3) == pytest.approx(
        float((a - b).square().mean().sqrt()), rel=1e-12
    )


def test_sliced_distance_of_a_shift_and_bounds():
    real, shift = normal(300, 6, 1), torch.tensor([3.0, 0, 0, 0, 0, 4.0], dtype=torch.float64)
    # Each direction sees (θ·δ)², whose mean is |δ|²/D.
    assert sliced_wasserstein(real, real + shift, projections=4000) == pytest.approx(5.0 / math.sqrt(6), rel=0.03)
    assert sliced_wasserstein(real, real.flip(0)) == 0.0
    fake = normal(200, 1, 2, scale=1.3)
    first_order = wasserstein_distance(real[:, 0].numpy(), fake[:, 0].numpy())
    assert sliced_wasserstein(real[:, :1], fake, projections=1) >= first_order  # W2 ≥ W1
    assert sliced_wasserstein(real, fake.expand(-1, 6), seed=1) != sliced_wasserstein(real, fake.expand(-1, 6), seed=2)


def test_nearest_distances_find_copies():
    training = normal(500, 16, 1) + 100.0
    samples = torch.cat([training[40:43], training[7:8] + 3e-9, normal(20, 16, 2) + 100.0])
    found = nearest_distances(training, samples)
    assert found[:3].tolist() == [0.0] * 3
    assert float(found[3]) == pytest.approx(3e-9 * 4, rel=1e-3)
    expected = (samples[:, None] - training[None]).square().sum(-1).sqrt().amin(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_model_that_memorises_is_nearer_to_its_training_set_than_held_out_samples():
    training, held_out, fresh = normal(400, 5, 1), normal(300, 5, 2), normal(300, 5, 3)
    reference = Reference.of(held_out, training=training)
    memorised = reference.score(training[:300] + 0.01 * normal(300, 5, 4))
    honest = reference.score(fresh)
    assert memorised.nearest < 0.1 * memorised.nearest_real
    assert honest.nearest == pytest.approx(honest.nearest_real, rel=0.1)
    assert Reference.of(held_out).score(fresh).nearest is None


def test_accuracy_is_the_share_of_hits():
    hits = torch.arange(40) % 4 != 0
    scores = Reference.of(normal(50, 3, 1)).score(normal(40, 3, 2), hits)
    assert scores.accuracy == 0.75
    low, high = scores.intervals["accuracy"]
    # The binomial's standard deviation is 0.068.
    assert low == pytest.approx(0.75 - 1.96 * 0.068, abs=0.03)
    assert high == pytest.approx(0.75 + 1.96 * 0.068, abs=0.03)
    for bad in (hits[:39], hits.float()):
        with pytest.raises(ArgumentError, match="hits must be bool"):
            Reference.of(normal(50, 3, 1)).score(normal(40, 3, 2), bad)


def test_density_and_coverage_of_equal_and_of_far_sets():
    real = normal(1000, 4, 1)
    density, coverage = density_coverage(real, normal(1000, 4, 2))
    assert density == pytest.approx(1.0, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)  # equal counts: Naeem et al., section 3.2
    assert density_coverage(real, real + 100.0) == (0.0, 0.0)
    # Samples in one place crowd: dense, covering little.
    density, coverage = density_coverage(real, 0.05 * normal(1000, 4, 3))
    assert density > 1.1
    assert coverage < 0.2


# Blocks and processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_change_nothing(small_blocks, dtype):
    real, fake, training = (normal(count, 5, seed).to(dtype) for seed, count in enumerate((70, 50, 90)))
    fake[3], fake[4] = real[5], fake[7]  # duplicates across and within
    hits = torch.arange(50) % 3 == 0
    whole = dataclasses.asdict(Reference.of(real, training=training).score(fake, hits))
    small_blocks()
    blockwise = dataclasses.asdict(Reference.of(real, training=training).score(fake, hits))
    for name, value in whole.items():
        if name == "intervals":
            for key, ends in value.items():
                assert blockwise[name][key] == pytest.approx(ends, rel=1e-6)
        else:
            assert blockwise[name] == pytest.approx(value, rel=1e-9)


def test_statistics_in_batches_are_those_of_all():
    features = normal(60, 4, 1) + 1e6
    parts = FeatureStatistics(4), FeatureStatistics(4)
    for start, end in ((0, 1), (1, 20), (20, 33)):
        parts[0].update(features[start:end].to(torch.float64))
    parts[1].update(features[33:])
    empty = FeatureStatistics(4)
    empty.merge(parts[0])
    empty.merge(FeatureStatistics(4))
    empty.merge(parts[1])
    assert empty.count == 60
    expected = torch.cov(features.T)
    for found in (empty.gaussian(), GaussianStatistics.of(features)):
        torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-14, atol=0.0)
        torch.testing.assert_close(found.covariance, expected, rtol=1e-9, atol=1e-9)


def test_statistics_refuse_what_is_not_features():
    with pytest.raises(ArgumentError, match="dimension"):
        FeatureStatistics(0)
    statistics = FeatureStatistics(3)
    for bad in (torch.zeros(2, 4), torch.full((1, 3), math.nan), torch.zeros(3), torch.zeros(0, 3)):
        with pytest.raises(ArgumentError):
            statistics.update(bad)
    statistics.update(torch.ones(1, 3))
    with pytest.raises(ArgumentError, match="at least 2 samples; got 1"):
        statistics.gaussian()
    with pytest.raises(ArgumentError, match="same dimension"):
        statistics.merge(FeatureStatistics(4))


def work(rank, folder):
    """One of two processes: its share of the features is uneven, and far from the origin."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=__import__("datetime").timedelta(60),
    )
    from proxflow.metrics import gather_features

    features = normal(50, 3, 1) + 1e5
    own = features[:17] if rank == 0 else features[17:]
    statistics = FeatureStatistics(3)
    statistics.update(own)
    statistics.reduce()
    found = statistics.gaussian()
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(found.covariance, torch.cov(features.T), rtol=1e-9, atol=1e-9)
    assert statistics.count == 50
    assert torch.equal(gather_features(own), features)
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_statistics_and_features_of_all(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)


def test_one_process_needs_no_group():
    statistics = FeatureStatistics(3)
    statistics.update(normal(5, 3, 1))
    before = statistics.gaussian()
    statistics.reduce()
    assert torch.equal(before.covariance, statistics.gaussian().covariance)


# Uncertainty ----------------------------------------------------------------------------------------------------------

REAL = normal(300, 3, 100)


def estimates(fake):
    manifold, real = Manifold.of(fake), Manifold.of(REAL, 5)
    overlaps = overlap(real, manifold, 3, 5)
    return {
        "frechet": frechet_estimate(fake, GaussianStatistics.of(REAL)),
        "kid": kernel_estimate(KernelSums.of(REAL), KernelSums.of(fake))[1],
        "diversity": spread(real, manifold),
        "vendi": vendi_estimate(fake),
        "sliced_wasserstein": sliced_estimate(REAL, fake, 64),
        "precision": overlaps.precision,
        "density": overlaps.density,
        "recall": overlaps.recall,
        "coverage": overlaps.coverage,
    }


def test_standard_errors_are_the_spread_over_sample_sets():
    drawn = [estimates(normal(150, 3, seed, scale=1.3, shift=0.4)) for seed in range(150)]
    for name in drawn[0]:
        values = torch.tensor([found[name].value for found in drawn])
        errors = torch.tensor([found[name].standard_error for found in drawn])
        ratio = float(errors.square().mean().sqrt() / values.std())
        # The jackknife is too large for shares of covered samples (Efron and Stein 1981), never much too small.
        upper = 2.0 if name in ("recall", "coverage") else 1.25
        assert 0.8 < ratio < upper, (name, ratio)


@pytest.mark.parametrize("name", ["frechet", "vendi", "sliced_wasserstein"])
def test_influences_are_derivatives_by_the_weight_of_a_sample(name):
    # 299 and 30 have no common factor: otherwise the optimal prices are not unique, and there is no one derivative.
    fake, real = normal(30, 3, 7, scale=1.3, shift=0.4), REAL[:299]
    value = {
        "frechet": lambda x: frechet_distance(x, real),
        "vendi": vendi_score,
        "sliced_wasserstein": lambda x: sliced_wasserstein(real, x, 8),
    }[name]
    many = fake.repeat(2000, 1)  # so that one sample more is little weight
    influences = {
        "frechet": lambda: frechet_estimate(many, GaussianStatistics.of(real)),
        "vendi": lambda: vendi_estimate(fake),
        "sliced_wasserstein": lambda: sliced_estimate(real, fake, 8),
    }[name]().influences
    for j in (0, 11, 29):
        more = torch.cat([many, fake[j : j + 1]])
        change = (value(more) - value(many)) * len(more)
        assert change == pytest.approx(float(influences[j]), rel=1e-3, abs=1e-3 * float(influences.std()))


def test_samples_of_length_zero_have_their_influence_on_the_vendi_score():
    fake = normal(10, 3, 7)
    fake[:2] = 0.0
    many = fake.repeat(3000, 1)
    influences = vendi_estimate(fake).influences
    for j in (0, 5):
        change = (vendi_score(torch.cat([many, fake[j : j + 1]])) - vendi_score(many)) * (len(many) + 1)
        assert change == pytest.approx(float(influences[j]), rel=1e-2)


def test_bootstrap_of_a_mean_is_normal():
    values = normal(400, 1, 1)[:, 0].exp()
    estimate = Estimate(float(values.mean()), values - values.mean())
    found = bootstrap({"mean": estimate}, seed=1, replicates=4000)["mean"]
    error = float(values.std()) / 20.0
    assert estimate.standard_error == pytest.approx(error)
    assert found == pytest.approx((estimate.value - 1.96 * error, estimate.value + 1.96 * error), abs=0.15 * error)
    assert bootstrap({"mean": estimate}, seed=1) == bootstrap({"mean": estimate}, seed=1)
    assert bootstrap({"mean": estimate}, seed=1) != bootstrap({"mean": estimate}, seed=2)
    narrow = bootstrap({"mean": estimate}, seed=1, level=0.5)["mean"]
    assert found[0] < narrow[0] < estimate.value < narrow[1] < found[1]


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = 0
    for seed in range(300):
        values = normal(60, 1, seed)[:, 0]
        low, high = bootstrap({"mean": Estimate(float(values.mean()), values - values.mean())}, seed, 300)["mean"]
        inside += low <= 0.0 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_interval_over_seeds():
    low, high = bootstrap_seeds([1.0, 2.0, 3.0, 4.0, 5.0], seed=0, replicates=2000)
    # The mean's standard deviation over resampled runs is √2/√5 = 0.63.
    assert low == pytest.approx(3.0 - 1.96 * 0.63, abs=0.2)
    assert high == pytest.approx(3.0 + 1.96 * 0.63, abs=0.2)
    assert bootstrap_seeds([2.0, 2.0], seed=0) == (2.0, 2.0)
    assert bootstrap_seeds([1.0, 3.0], seed=0) == (1.0, 3.0)
    for bad in ([1.0], [], [1.0, math.nan]):
        with pytest.raises(ArgumentError, match="at least two finite"):
            bootstrap_seeds(bad, seed=0)


def test_bootstrap_refuses_impossible_requests():
    estimate = Estimate(0.0, torch.zeros(4, dtype=torch.float64))
    other = Estimate(0.0, torch.zeros(5, dtype=torch.float64))
    for arguments in (
        ({"a": estimate, "b": other}, 0),
        ({}, 0),
        ({"a": estimate}, 0, 0),
        ({"a": estimate}, 0, 10, 1.0),
        ({"a": estimate}, 0, 10, math.nan),
    ):
        with pytest.raises(ArgumentError):
            bootstrap(*arguments)


# Degenerate input -----------------------------------------------------------------------------------------------------

METRICS = {
    "frechet": frechet_distance,
    "kernel": lambda a, b: [kernel_distance(a, b).value, kernel_distance(a, b).standard_error],
    "precision": precision_recall,
    "density": density_coverage,
    "diversity": diversity,
    "vendi": lambda a, b: [vendi_score(a), vendi_score(b)],
    "sliced": lambda a, b: sliced_wasserstein(a, b, 8),
    "nearest": lambda a, b: nearest_distances(a, b).tolist(),
    "statistics": lambda a, b: GaussianStatistics.of(a).covariance.flatten().tolist(),
    "scores": lambda a, b: list(numbers(Reference.of(a, training=b).score(b))),
}


def numbers(scores):
    for value in dataclasses.asdict(scores).values():
        if isinstance(value, dict):
            for entry in value.values():
                yield from entry if isinstance(entry, tuple) else (entry,)
        elif value is not None:
            yield value


@st.composite
def odd_features(draw, dimension):
    count = draw(st.integers(0, 14))
    kind = draw(st.sampled_from(("normal", "constant", "zero", "two values", "tiny", "large", "mixed", "broken")))
    features = normal(count, dimension, draw(SEEDS))
    if kind == "constant":
        features = torch.full_like(features, draw(st.floats(-1e6, 1e6)))
    elif kind == "zero":
        features = torch.zeros_like(features)
    elif kind == "two values":
        features = features.sign()
    elif kind == "tiny":
        features *= 1e-200
    elif kind == "large":
        features *= 1e19
    elif kind == "mixed":
        features *= 10.0 ** draw(st.integers(-20, 18))
        features[: count // 2] = 0.0
    elif kind == "broken" and count:
        features[draw(st.integers(0, count - 1)), 0] = draw(st.sampled_from((math.nan, math.inf, -math.inf, 1e21)))
    return features.to(draw(st.sampled_from((torch.float64, torch.float32, torch.bfloat16))))


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=100)
@given(st.data())
def test_degenerate_input_is_refused_or_has_a_finite_value(name, data):
    dimension = data.draw(st.sampled_from((1, 2, 30)))
    real, fake = data.draw(odd_features(dimension)), data.draw(odd_features(dimension))
    try:
        found = METRICS[name](real, fake)
    except ArgumentError:
        return
    assert real.isfinite().all()
    assert len(real) >= 2
    for value in found if isinstance(found, (list, tuple)) else [found]:
        assert math.isfinite(value)


def test_documented_values_of_degenerate_sets():
    real, point = normal(40, 6, 1), torch.full((20, 6), 0.5)
    scores = Reference.of(real).score(point)
    assert (scores.diversity, scores.errors["diversity"], scores.vendi) == (0.0, 0.0, pytest.approx(1.0))
    assert scores.intervals["diversity"] == (0.0, 0.0)
    # Fewer samples than dimensions: a value, and no interval for the Fréchet distance, which has no derivative there.
    few = Reference.of(real).score(normal(5, 6, 2))
    assert math.isfinite(few.frechet)
    assert "frechet" not in few.intervals
    assert "frechet" in scores.intervals
    for metric in METRICS.values():
        with pytest.raises(ArgumentError, match="at least 2"):
            metric(real[:1], real[:1])
