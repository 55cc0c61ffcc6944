"""The multiple-choice knapsack is solved exactly, and by a better way than trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from qua2sedimo.search.knapsack import best_choices


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Up to five groups of up to five items; few distinct sizes and losses, so that ties are common."""
    groups = draw(st.integers(1, 5))
    counts = [draw(st.integers(1, 5)) for _ in range(groups)]
    sizes = [np.array(draw(st.lists(st.integers(1, 30), min_size=n, max_size=n))) for n in counts]
    losses = [np.array(draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n)), dtype=float) for n in counts]
    low, high = sum(s.min() for s in sizes), sum(s.max() for s in sizes)
    return sizes, losses, int(draw(st.integers(low - 2, high + 2)))


def fitting(sizes: list[np.ndarray], losses: list[np.ndarray], capacity: int) -> list[float]:
    """Losses of all choices that fit, ascending."""
    every = itertools.product(*(range(len(s)) for s in sizes))
    return sorted(
        sum(of[i] for of, i in zip(losses, chosen))
        for chosen in every
        if sum(s[i] for s, i in zip(sizes, chosen)) <= capacity
    )


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 30))
def test_the_best_choices_are_those_of_trying_all(problem, count: int) -> None:
    sizes, losses, capacity = problem
    found = list(best_choices(sizes, losses, capacity, count))
    expected = fitting(sizes, losses, capacity)[:count]
    assert len({tuple(c) for c in found}) == len(found) == len(expected)
    assert all(sum(s[i] for s, i in zip(sizes, c)) <= capacity for c in found)
    reached = [sum(of[i] for of, i in zip(losses, c)) for c in found]
    assert reached == pytest.approx(expected, abs=1e-4)


def test_equally_good_choices_are_given_once_each_however_many_are_asked_for() -> None:
    """More than one batch of answers, of which many cost the same."""
    sizes = [np.array([5, 1, 3]), np.array([4, 1, 1, 6]), np.array([1, 2, 2, 2]), np.array([1, 2, 2, 2, 2])]
    losses = [np.zeros(3), np.array([0.0, 1.0, 1.0, -2.0]), np.zeros(4), np.zeros(5)]
    for count in (15, 16, 17, 40, 1000):
        found = [tuple(c) for c in best_choices(sizes, losses, 9, count)]
        assert len(set(found)) == len(found) == min(count, len(fitting(sizes, losses, 9)))


def test_a_problem_with_one_answer_has_one() -> None:
    assert [list(c) for c in best_choices([np.array([3]), np.array([4])], [np.zeros(1), np.ones(1)], 7, 5)] == [[0, 0]]
    assert list(best_choices([np.array([3]), np.array([4])], [np.zeros(1), np.ones(1)], 6, 5)) == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_middling_problem_is_solved_as_well_as_by_an_integer_program(share: float) -> None:
    rng = np.random.default_rng(3)
    sizes = [rng.integers(1, 50) * np.arange(2, 9) + rng.integers(0, 5, 7) for _ in range(40)]
    losses = [rng.exponential() ** 3 * 4.0 ** -np.arange(2, 9) * rng.uniform(0.8, 1.2, 7) for _ in range(40)]
    low, high = sum(s.min() for s in sizes), sum(s.max() for s in sizes)
    capacity = int(low + share * (high - low))
    (chosen,) = best_choices(sizes, losses, capacity)
    one_each = np.kron(np.eye(40), np.ones(7))
    rows = np.vstack([one_each, np.concatenate(sizes)[None]])
    limits = LinearConstraint(rows, np.append(np.ones(40), 0), np.append(np.ones(40), capacity))
    answer = milp(np.concatenate(losses), integrality=1, bounds=Bounds(0, 1), constraints=limits)
    reached = sum(of[i] for of, i in zip(losses, chosen))
    assert sum(s[i] for s, i in zip(sizes, chosen)) <= capacity
    assert reached <= answer.fun * (1 + 1e-5)
