"""Memorisation: copies of training samples all count, held-out ones as often as they do among themselves."""

import numpy as np
import pytest
import torch

from proxflow.errors import ArgumentError
from proxflow.metrics import Memorisation


def draws(count, seed, dimension=6):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dimension)))


def test_copies_all_count_and_held_out_samples_as_the_floor():
    training, held_out = draws(400, 0), draws(101, 1)
    found = Memorisation.of(training, held_out)
    assert found.score(training[::3]).value == 1.0
    assert found.score(held_out).value == found.floor.value == 6 / 101  # the nearest ⌈0.05 · 101⌉
    assert found.score(held_out + 40.0).value == 0.0
    half = torch.cat([training[:50], held_out[:50] + 40.0])
    assert found.score(half).value == 0.5


def test_the_reach_is_the_distance_of_a_held_out_sample():
    training, held_out = draws(60, 2), draws(41, 3)
    by_hand = sorted(min(float((x - y).norm()) for y in training) for x in held_out)
    found = Memorisation.of(training, held_out, share=0.25)
    assert found.reach == pytest.approx(by_hand[10], rel=1e-9)  # the 11th, of ⌈0.25 · 41⌉
    assert found.floor.value == 11 / 41
    towards = torch.zeros(6, dtype=torch.float64)
    towards[0] = 1.0
    alone = torch.zeros(2, 6, dtype=torch.float64)
    alone[1] = 1e3
    apart = Memorisation(alone, torch.ones(2, dtype=torch.float64), 1.0)
    assert apart.score(torch.stack([0.999 * towards, 1.001 * towards])).value == 0.5


def test_samples_of_the_same_law_score_about_the_floor():
    found = Memorisation.of(draws(2000, 4), draws(2000, 5))
    score = found.score(draws(2000, 6))
    assert score.value == pytest.approx(found.floor.value, abs=4 * (score.standard_error + found.floor.standard_error))
    assert found.floor.standard_error == pytest.approx((0.05 * 0.95 / 2000) ** 0.5, rel=0.01)


def test_held_out_copies_count_as_copies():
    training = draws(50, 7)
    found = Memorisation.of(training, torch.cat([training[:30], draws(20, 8)]))
    assert found.reach == 0.0
    assert found.floor.value == 0.6
    assert found.score(training[30:]).value == 1.0


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ArgumentError, match="share must lie between 0 and 1, got 1"):
        Memorisation.of(draws(9, 0), draws(9, 1), share=1)
    with pytest.raises(ArgumentError, match="same dimension"):
        Memorisation.of(draws(9, 0), draws(9, 1, 5))
    with pytest.raises(ArgumentError, match="same dimension"):
        Memorisation.of(draws(9, 0), draws(9, 1)).score(draws(9, 1, 5))
