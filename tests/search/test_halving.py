"""Cheap before dear: who survives, and what it costs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qua2sedimo.search.halving import paired_p, schedule, survivors


def test_what_is_clearly_worse_on_the_same_images_is_out_though_images_differ_more() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(30, 5, size=16)
    values = np.stack([images + offset + rng.normal(0, 0.1, 16) for offset in (0.0, -1.0, 0.5, 0.45)])
    assert set(survivors(values, 4)) == {2, 3}
    assert survivors(values, 1) == [2]


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
