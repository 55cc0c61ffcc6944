"""A budget is counted in packed bytes, every overhead included."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import SearchSpace
from qua2sedimo.search import Budget, budget_bytes

SPACE = SearchSpace.of({"a": (16, 64), "b": (32, 9), "c": (8, 4, 3, 3)}, "wide")
REACHABLE = [8 * n / SPACE.weights for n in SPACE.byte_range()]


@given(st.floats(REACHABLE[0], 16))
def test_the_budget_is_the_most_whole_bytes_within_the_average_bits(bits: float) -> None:
    allowed = budget_bytes(SPACE, Budget(bits))
    assert 8 * allowed / SPACE.weights <= bits + 1e-5
    assert 8 * (allowed + 1) / SPACE.weights > bits


def test_the_average_bits_of_a_configuration_are_a_budget_that_admits_it() -> None:
    for option in SPACE.union:
        configuration = SPACE.uniform(option)
        assert budget_bytes(SPACE, Budget(SPACE.average_bits(configuration))) == SPACE.nbytes(configuration)


@pytest.mark.parametrize("bits", [-1.0, 0.0, 1.0, REACHABLE[0] - 0.01])
def test_an_impossible_budget_is_refused_with_the_reachable_range(bits: float) -> None:
    with pytest.raises(Qua2SeDiMoError) as caught:
        budget_bytes(SPACE, Budget(bits))
    assert f"{bits:g} average bits" in caught.value.message
    named = [float(n) for n in re.findall(r"(\d+\.\d+) (?:to|bits)", str(caught.value.remedy))[:2]]
    assert named == pytest.approx(REACHABLE, abs=1e-3)


def test_the_smallest_budget_that_is_named_is_one_that_works() -> None:
    """Whoever types the least figure of the refusal must not be refused again."""
    for rows in range(3, 40):
        space = SearchSpace.of({"a": (rows, 50)}, "paper")
        with pytest.raises(Qua2SeDiMoError) as caught:
            budget_bytes(space, Budget(0.5))
        least = float(re.findall(r"(\d+\.\d+) to", str(caught.value.remedy))[0])
        assert budget_bytes(space, Budget(least)) >= space.byte_range()[0]
