"""Successive halving: who survives, how often by mistake, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from qua2sedimo.search.halving import paired_p, schedule, survivors


def test_what_is_clearly_worse_on_the_same_images_is_out_though_images_differ_more() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(30, 5, size=16)
    values = np.stack([images + offset + rng.normal(0, 0.1, 16) for offset in (0.0, -1.0, 0.5, 0.45)])
    assert set(survivors(values, 4)) == {2, 3}
    assert survivors(values, 1) == [2]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(2, size=shape)


def unequal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) * 3.0 ** np.arange(shape[0])[:, None] / 100


def alike(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Some candidates differ in few layers and so hardly at all."""
    base = rng.normal(size=(2, shape[1]))
    return np.repeat(base, [1, shape[0] - 1], axis=0) + 0.05 * rng.normal(size=shape)


@pytest.mark.parametrize("noise", [normal, skewed, heavy, unequal, alike])
@pytest.mark.parametrize(("candidates", "images"), [(8, 4), (8, 16), (4, 48), (2, 16)])
def test_of_equal_candidates_any_is_dropped_in_at_most_a_twentieth_of_stages(
    noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], candidates: int, images: int
) -> None:
    rng = np.random.default_rng(candidates * images)
    stages, dropped = 300, 0
    for seed in range(stages):
        values = rng.normal(30, 5, size=images) + noise(rng, (candidates, images))
        dropped += len(survivors(values, candidates, seed=seed)) < candidates
    assert dropped <= binom.ppf(0.999, stages, 0.05)  # 28 of 300


def test_two_equal_best_ones_both_stay_where_others_are_far_worse() -> None:
    rng = np.random.default_rng(7)
    stages, lost, caught = 300, 0, 0
    for seed in range(stages):
        values = rng.normal(30, 5, size=16) + rng.normal(size=(8, 16)) * 0.3 - np.array([0, 0] + [2] * 6)[:, None]
        left = survivors(values, 8, seed=seed)
        lost += not {0, 1} <= set(left)
        caught += set(left) <= {0, 1}
    assert lost <= binom.ppf(0.999, stages, 0.05)
    assert caught > 0.95 * stages  # and the test finds what there is to find


def test_one_image_and_equal_values_drop_nobody() -> None:
    assert survivors(np.array([[1.0], [5.0], [3.0]]), 3) == [1, 2, 0]
    assert survivors(np.ones((3, 8)), 2) == [0, 1]
    assert survivors(np.ones((1, 8)), 4) == [0]


def test_equal_candidates_all_survive_up_to_the_number_asked_for() -> None:
    values = np.random.default_rng(1).normal(size=(6, 12)) * 0.1
    assert len(survivors(values - values.mean(axis=1, keepdims=True), 4)) == 4


@given(st.integers(2, 16), st.integers(1, 32), st.integers(0, 5000))
def test_the_schedule_stays_within_its_images_and_uses_each_once(first: int, images: int, budget: int) -> None:
    stages = schedule(first, images, budget)
    assert sum(count * len(part) for count, part in stages) <= budget
    assert [part.start for _, part in stages] == [0, *(part.stop for _, part in stages)][: len(stages)]
    assert all(count >= 2 for count, _ in stages)
    assert bool(stages) == (budget >= 2 * images)


def test_the_paired_test_finds_a_difference_where_there_is_one() -> None:
    rng = np.random.default_rng(2)
    images = rng.normal(30, 5, size=32)
    assert paired_p(images + 0.3 + rng.normal(0, 0.2, 32), images) < 0.01
    again = [paired_p(images + rng.normal(0, 0.2, 32), images, seed) for seed in range(40)]
    assert sum(p < 0.05 for p in again) <= 7
