"""Randomness that depends on seed and sample index alone, and the stable special functions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from proxflow._math import over_events
from proxflow.errors import ArgumentError
from proxflow.random import BatchRows, SampleStreams, _mixed, rand, randn, randn_like

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mixed(word: int) -> int:
    """SplitMix64's output function as the paper has it, in plain integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def test_splitmix_known_answer():
    # First numbers of the public reference implementation for the seed 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = torch.tensor([signed((1234567 + k * GOLDEN) % WORD) for k in range(1, 6)])
    assert [int(word) % WORD for word in _mixed(states)] == expected


@given(st.integers(0, 2**70), st.integers(0, 2**62), st.integers(0, 5), st.integers(1, 7))
def test_streams_are_the_documented_function_of_seed_and_index(seed, index, draw, size):
    start, step = (mixed((seed + (2 * index + k) * GOLDEN) % WORD) for k in (1, 2))
    words = [mixed((start + j * (step | 1) + draw * GOLDEN) % WORD) for j in range(4)]
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    uniform = [((half + 2**31) % 2**32 + 0.5) / 2**32 for half in halves[:size]]

    streams = SampleStreams(seed, torch.tensor([index]))
    for _ in range(draw + 1):
        found = streams.uniform(torch.Size([1, size]), torch.float64)
    assert found[0].tolist() == uniform


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True), st.integers(1, 9))
def test_streams_do_not_depend_on_the_batch(seed, indices, size):
    together = SampleStreams(seed, torch.tensor(indices))
    first, second = (together.normal(torch.Size([len(indices), size]), torch.float64) for _ in range(2))
    for row, index in enumerate(indices):
        alone = SampleStreams(seed, torch.tensor([index]))
        assert torch.equal(alone.normal(torch.Size([1, size]), torch.float64)[0], first[row])
        assert torch.equal(alone.normal(torch.Size([1, size]), torch.float64)[0], second[row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_like_a_tensor_do_not_depend_on_its_layout(dtype):
    plain = torch.zeros(2, 3, 4, 5, dtype=dtype)
    for x in (plain, plain.to(memory_format=torch.channels_last), plain.transpose(0, 3).contiguous().transpose(0, 3)):
        found = randn_like(x, torch.Generator().manual_seed(5))
        assert torch.equal(found, torch.randn(2, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(5)))
        streams = (SampleStreams(5, torch.arange(2)) for _ in range(2))
        assert torch.equal(randn_like(x, next(streams)), randn(x.shape, next(streams), dtype, x.device))


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
    st.lists(st.sampled_from("nNuU"), min_size=1, max_size=12), st.sampled_from([1, 30, 100, 2**22]), st.integers(0, 14)
)
def test_draws_made_ahead_are_those_of_each_call(kinds, at_once, expected):
    def drawn(at_once, expected):
        streams = SampleStreams(3, torch.arange(2, 5), expected)
        streams.at_once = at_once
        return [
            (streams.normal if kind in "nN" else streams.uniform)(
                torch.Size([3, 5] if kind.islower() else [3, 2, 7]), torch.float32
            )
            for kind in kinds
        ]

    for ahead, alone in zip(drawn(at_once, expected), drawn(1, 0), strict=True):
        assert torch.equal(ahead, alone)


@pytest.mark.parametrize(("expected", "asked", "made"), [(20, 20, 20), (0, 16, 16), (0, 9, 16), (5, 6, 10), (3, 1, 1)])
def test_few_draws_are_made_in_vain(expected, asked, made, monkeypatch):
    counted = []
    really = SampleStreams._words
    monkeypatch.setattr(
        SampleStreams, "_words", lambda self, draws, n: counted.append(len(draws)) or really(self, draws, n)
    )
    streams = SampleStreams(0, torch.arange(3), expected)
    for _ in range(asked):
        streams.normal(torch.Size([3, 2]), torch.float32)
    assert sum(counted) == made


def test_streams_are_normal_and_independent():
    streams = SampleStreams(3, torch.arange(500))
    draws = streams.normal(torch.Size([500, 201]), torch.float64)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.numpy())
    assert np.abs(correlation - np.eye(500)).max() < 0.4  # largest of 125,000 pairs at 201 draws: about 4.5/√201
    later = streams.normal(torch.Size([500, 201]), torch.float64)
    assert abs(np.corrcoef(draws.flatten().numpy(), later.flatten().numpy())[0, 1]) < 0.02
    again = SampleStreams(4, torch.arange(500)).normal(torch.Size([500, 201]), torch.float64)
    assert abs(np.corrcoef(draws.flatten().numpy(), again.flatten().numpy())[0, 1]) < 0.02


def test_uniform_draws_stay_inside_the_interval():
    draws = SampleStreams(0, torch.arange(100)).uniform(torch.Size([100, 1000]), torch.float32)
    assert draws.min() > 0
    assert draws.max() <= 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3


def test_a_draw_is_the_same_in_every_precision_but_for_rounding():
    shape = torch.Size([40, 1001])
    double, single, half = (
        SampleStreams(1, torch.arange(40)).normal(shape, dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)
    # Rounding shows most where a uniform draw is near 0 or 1.
    assert (single.double() - double).square().mean().sqrt() < 1e-5
    assert torch.equal(half, single.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_word_gives_an_infinite_draw(dtype):
    extremes = torch.tensor([-(2**31), 1 - 2**31, -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    words = torch.cartesian_prod(extremes, extremes).T.reshape(
        1, 1, -1
    )  # the first half gives radii, the second angles
    normal = SampleStreams._normal(words, dtype)
    assert normal.isfinite().all()
    assert 5.5 < normal.abs().max() < 7
    uniform = SampleStreams._uniform(words, dtype)
    assert uniform.min() > 0
    assert uniform.max() <= 1


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
