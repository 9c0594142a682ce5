"""Randomness that depends on seed and sample index alone, and the stable special functions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from proxflow._tensor import BatchRows, SampleStreams, _philox, over_events, rand, randn
from proxflow.errors import ArgumentError


def test_philox_known_answer():
    # Known-answer test of the Random123 distribution for philox4x32-10 with zero counter and key.
    zero = torch.zeros(1, dtype=torch.int64)
    words = [int(word) for word in _philox(0, zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_philox_agrees_with_numpy_for_other_counters():
    # numpy's Philox is the 64-bit variant, so compare with a plain-integer transcription of the paper's round function.
    def reference(key, counter):
        k0, k1 = key
        c = list(counter)
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        return c

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b, c, k0, k1 = (int(n) for n in rng.integers(0, 2**32, 5))
        words = _philox(k0 + (k1 << 32), *(torch.tensor([n]) for n in (a, b, c)))
        assert [int(word) for word in words] == reference((k0, k1), (a, b, c, 0))


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True), st.integers(1, 9))
def test_streams_do_not_depend_on_the_batch(seed, indices, size):
    together = SampleStreams(seed, torch.tensor(indices))
    first, second = (together.normal(torch.Size([len(indices), size]), torch.float64) for _ in range(2))
    for row, index in enumerate(indices):
        alone = SampleStreams(seed, torch.tensor([index]))
        assert torch.equal(alone.normal(torch.Size([1, size]), torch.float64)[0], first[row])
        assert torch.equal(alone.normal(torch.Size([1, size]), torch.float64)[0], second[row])


@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 1, 2, 7)])
def test_rows_of_a_batch_do_not_depend_on_how_it_is_shared_out(cuts):
    whole = torch.Generator().manual_seed(5)
    expected = [torch.randn(7, 2, 3, generator=whole), torch.rand(7, 2, generator=whole)]
    parts = []
    for start, stop in pairwise(cuts):
        rows = BatchRows(torch.Generator().manual_seed(5), 7, range(start, stop))
        shapes = [torch.Size([stop - start, 2, 3]), torch.Size([stop - start, 2])]
        parts.append([rows.normal(shapes[0], torch.float32), rows.uniform(shapes[1], torch.float32)])
    for number, tensor in enumerate(expected):
        assert torch.equal(torch.cat([part[number] for part in parts]), tensor)
    with pytest.raises(ArgumentError, match="3 rows cannot fill a batch of 2"):
        BatchRows(whole, 7, range(2, 5)).normal(torch.Size([2, 1]), torch.float32)


@given(
    st.lists(st.sampled_from("nNuU"), min_size=1, max_size=12), st.sampled_from([1, 30, 100, 2**22]), st.integers(1, 5)
)
def test_draws_made_ahead_are_those_of_each_call(kinds, numbers, draws):
    def drawn(*at_once):
        streams = SampleStreams(3, torch.arange(2, 5))
        streams.at_once = at_once
        return [
            (streams.normal if kind in "nN" else streams.uniform)(
                torch.Size([3, 5] if kind.islower() else [3, 2, 7]), torch.float32
            )
            for kind in kinds
        ]

    for ahead, alone in zip(drawn(numbers, draws), drawn(1, 1), strict=True):
        assert torch.equal(ahead, alone)


def test_streams_are_normal_and_independent():
    draws = SampleStreams(3, torch.arange(500)).normal(torch.Size([500, 201]), torch.float64)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.numpy())
    assert np.abs(correlation - np.eye(500)).max() < 0.4  # largest of 125,000 pairs at 201 draws: about 4.5/√201
    again = SampleStreams(4, torch.arange(500)).normal(torch.Size([500, 201]), torch.float64)
    assert abs(np.corrcoef(draws.flatten().numpy(), again.flatten().numpy())[0, 1]) < 0.02


def test_uniform_draws_stay_inside_the_interval():
    draws = SampleStreams(0, torch.arange(100)).uniform(torch.Size([100, 1000]), torch.float32)
    assert draws.min() > 0
    assert draws.max() <= 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3


def test_single_precision_draws_are_rounded_double_ones():
    shape = torch.Size([4, 5])
    double = SampleStreams(1, torch.arange(4)).normal(shape, torch.float64)
    single = SampleStreams(1, torch.arange(4)).normal(shape, torch.float32)
    assert torch.equal(double.float(), single)


def test_streams_refuse_a_wrong_batch():
    with pytest.raises(ArgumentError, match="cannot fill a batch of 3"):
        SampleStreams(0, torch.arange(2)).normal(torch.Size([3, 1]), torch.float32)
    with pytest.raises(ArgumentError, match="integers"):
        SampleStreams(0, torch.zeros(2))


def test_a_torch_generator_serves_as_well():
    cpu = torch.device("cpu")
    one, two = (randn(torch.Size([3, 2]), torch.Generator().manual_seed(5), torch.float64, cpu) for _ in range(2))
    assert torch.equal(one, two)
    assert rand(torch.Size([1000]), torch.Generator().manual_seed(0), torch.float32, cpu).min() > 0


def test_times_broadcast_over_events():
    like = torch.zeros(3, 2, 4)
    assert over_events(torch.tensor([1.0, 2.0, 3.0]), like).shape == (3, 1, 1)
    assert over_events(0.5, like).shape == ()
    assert math.isclose(float(over_events(0.5, like)), 0.5)
