"""The frontier is that of trying all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qua2sedimo.search import pareto_front


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_frontier_is_that_of_brute_force(pairs: list[tuple[int, int]]) -> None:
    sizes, values = [s for s, _ in pairs], [v for _, v in pairs]
    found = pareto_front(sizes, values)
    beaten = {(s, v) for s, v in pairs if any(c <= s and w >= v and (c, w) != (s, v) for c, w in pairs)}
    expected = sorted(set(pairs) - beaten)
    assert [pairs[i] for i in found] == expected
    assert found == [pairs.index(pair) for pair in expected]  # the first of equal points
    assert found == pareto_front(np.array(sizes, dtype=float), np.array(values, dtype=float))
