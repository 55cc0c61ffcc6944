"""What a choice may not do, it does not; and what makes a size impossible is named."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search import (
    Budget,
    Constraints,
    Setting,
    allow,
    best_configurations,
    best_settings,
    budget_bytes,
    non_dominated,
)

SPACE = SearchSpace.of(
    {"block.attn.q": (12, 40), "block.attn.v": (12, 40), "block.ff": (30, 20), "out": (4, 100)},
    "uaq-2,uaq-4,uaq-6,kmeans_a-3,kmeans_a-4,row-1,lowrank-2",
)
RNG = np.random.default_rng(7)
SCORES = {n: {o: float(RNG.normal()) for o in SPACE.options[n]} for n in SPACE.layers}

constraints = st.builds(
    Constraints,
    keep=st.sampled_from([(), ("out",), ("*.attn.*",), ("block.*",)]),
    min_bits=st.sampled_from([(), (("*.ff", 4),), (("*", 3),), (("block.attn.q", 6), ("*", 3))]),
    methods=st.sampled_from([(), ("uaq",), ("kmeans_a", "uaq"), ("lowrank", "row", "uaq")]),
    methods_at_most=st.sampled_from([None, 1, 2, 3]),
)


def obeys(c: Constraints, chosen: Configuration) -> bool:
    kept = {n for n in SPACE.layers if any(_match(n, p) for p in c.keep)}
    return (
        set(chosen) == set(SPACE.layers) - kept
        and all(width(n, chosen[n]) >= b for p, b in c.min_bits for n in chosen if _match(n, p))
        and all(not c.methods or o.method in c.methods for o in chosen.values())
        and (c.methods_at_most is None or len({o.method for o in chosen.values()}) <= c.methods_at_most)
    )


def width(layer: str, option: Option) -> float:
    """Bits of a code; of low rank, whose codes are not those of single weights, all bits by the number of weights."""
    shape = SPACE.shapes[layer]
    return 8 * option.nbytes(shape) / (shape[0] * shape[1]) if option.method == "lowrank" else option.bits


def _match(name: str, pattern: str) -> bool:
    """The shell's stars, without the shell's matcher."""
    first, *rest = pattern.split("*")
    if not name.startswith(first):
        return False
    at = len(first)
    for part in rest:
        at = name.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return at == len(name) or pattern.endswith("*")


@functools.cache
def every_choice(c: Constraints) -> list[Configuration]:
    options = [[None, *SPACE.options[n]] for n in SPACE.layers]
    whole = (
        Configuration((n, o) for n, o in zip(SPACE.layers, chosen) if o is not None)
        for chosen in itertools.product(*options)
    )
    return [chosen for chosen in whole if obeys(c, chosen)]


@settings(max_examples=40, deadline=None)
@given(constraints, st.floats(2.0, 16.0))
def test_the_best_choice_is_the_best_of_all_that_obey(c: Constraints, bits: float) -> None:
    allowed = allow(SPACE, c)
    nbytes = Budget(bits).nbytes(SPACE.weights)
    fitting = [x for x in every_choice(c) if SPACE.nbytes(x) <= nbytes]
    found = list(best_configurations(SPACE, SCORES, nbytes, 3, allowed))
    values = sorted((sum(SCORES[n][o] for n, o in x.items()) for x in fitting), reverse=True)
    assert [sum(SCORES[n][o] for n, o in x.items()) for x in found] == pytest.approx(values[:3], abs=1e-5)
    assert all(obeys(c, x) and SPACE.nbytes(x) <= nbytes for x in found)


@settings(max_examples=40, deadline=None)
@given(constraints, st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_a_configuration_is_permitted_exactly_if_it_obeys(c: Constraints, drawn: list[int]) -> None:
    chosen = {n: o for n, i in zip(SPACE.layers, drawn) if (o := [None, *SPACE.options[n]][i]) is not None}
    assert allow(SPACE, c).permits(chosen) == obeys(c, Configuration(chosen))


@settings(max_examples=40, deadline=None)
@given(constraints, st.floats(0.5, 16.0))
def test_a_budget_is_refused_exactly_if_nothing_that_obeys_fits(c: Constraints, bits: float) -> None:
    possible = min(SPACE.nbytes(x) for x in every_choice(c)) <= Budget(bits).nbytes(SPACE.weights)
    if possible:
        budget_bytes(SPACE, Budget(bits), allow(SPACE, c))
    else:
        with pytest.raises(Qua2SeDiMoError, match="as small as"):
            budget_bytes(SPACE, Budget(bits), allow(SPACE, c))


def test_a_refusal_names_the_constraint_that_binds_and_no_other() -> None:
    c = Constraints(keep=("out",), min_bits=(("block.ff", 4),), methods_at_most=3)
    with pytest.raises(Qua2SeDiMoError) as caught:
        budget_bytes(SPACE, Budget(3.0), allow(SPACE, c))
    remedy = str(caught.value.remedy)
    assert "keep out (without it from" in remedy and "min-bits block.ff=4 (without it from" in remedy
    assert "methods-at-most" not in remedy


@pytest.mark.parametrize("c", [Constraints(keep=("nothing.*",)), Constraints(min_bits=(("nothing", 3),))])
def test_a_pattern_that_matches_nothing_is_refused(c: Constraints) -> None:
    with pytest.raises(Qua2SeDiMoError, match="no layer matches 'nothing"):
        allow(SPACE, c)


def test_a_layer_without_any_option_left_is_named() -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"layer 'block\.ff': min-bits block\.ff=5; methods kmeans_a"):
        allow(SPACE, Constraints(min_bits=(("block.ff", 5),), methods=("kmeans_a",)))


def test_other_names_of_a_layer_match_too() -> None:
    allowed = allow(SPACE, Constraints(keep=("copy.of.out",)), lambda n: ["copy.of.out"] if n == "out" else [])
    assert allowed.options["out"] == () and allowed.options["block.ff"] == SPACE.options["block.ff"]


@pytest.mark.parametrize("text", ["*.ff", "=4", "*.ff=1", "*.ff=9", "*.ff=four"])
def test_a_least_width_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match="PATTERN=BITS"):
        Constraints.parse_min_bits(text)


def test_the_same_size_in_bits_bytes_and_as_a_ratio() -> None:
    weights = 1_000_000
    assert Budget(3.52).nbytes(weights) == Budget(0.22, "ratio").nbytes(weights) == 440_000
    assert Budget.bytes("440kB").nbytes(weights) == Budget.bytes("0.44 MB").nbytes(weights) == 440_000
    assert Budget.bytes("1MiB").nbytes(weights) == 2**20


@pytest.mark.parametrize("text", ["", "MB", "2.4 XB", "-3MB", "2,4MB", "nanMB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match="is no size"):
        Budget.bytes(text)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_best_settings_of_blocks_are_those_of_trying_all(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    option = Option("uaq", 4)
    blocks = [
        [
            Setting({f"{b}.{i}.{k}": option for k in range(2)}, int(rng.integers(1, 40)), float(rng.normal()))
            for i in range(rng.integers(1, 6))
        ]
        for b in range(4)
    ]
    low, high = (sum(f(s.nbytes for s in block) for block in blocks) for f in (min, max))
    nbytes = int(low + share * (high - low))
    (found,) = best_settings(blocks, nbytes)
    total = {frozenset(k for s in c for k in s.options): (sum(s.nbytes for s in c), sum(s.score for s in c))
             for c in itertools.product(*blocks)}  # fmt: skip
    best = max(score for size, score in total.values() if size <= nbytes)
    assert total[frozenset(found)][0] <= nbytes and total[frozenset(found)][1] == pytest.approx(best, abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_what_is_dropped_of_a_block_is_beaten_by_something_kept(pairs: list[tuple[int, int]]) -> None:
    every = [Setting({}, size, float(score)) for size, score in pairs]
    kept = non_dominated(every)
    assert all(any(k.nbytes <= s.nbytes and k.score >= s.score for k in kept) for s in every)
    assert all(b.nbytes > a.nbytes and b.score > a.score for a, b in itertools.pairwise(kept))
