"""The choice under a budget is the best there is: checked by trying all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search import argmax_configuration, best_configurations

Scores = Mapping[str, Mapping[Option, float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[SearchSpace, Scores, int]:
    """At most four layers with two to five options each, scores in general position, a budget that something fits."""
    options = st.builds(Option, st.sampled_from(["uaq", "kmeans_c", "kmeans_a"]), st.integers(2, 8))
    shapes, choices = {}, {}
    for i in range(draw(st.integers(1, 4))):
        shapes[f"layer{i}"] = (draw(st.integers(1, 12)), draw(st.integers(1, 60)))
        choices[f"layer{i}"] = tuple(sorted(draw(st.sets(options, min_size=2, max_size=5))))
    space = SearchSpace(shapes, choices)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = {name: {o: float(rng.normal()) for o in space.options[name]} for name in space.layers}
    low, high = space.byte_range()
    return space, scores, draw(st.integers(low, high + 10))


def total(scores: Scores, configuration: Mapping[str, Option]) -> float:
    return sum(scores[name][option] for name, option in configuration.items())


def brute_force(space: SearchSpace, scores: Scores, nbytes: int) -> list[Configuration]:
    """Every configuration that fits, best first."""
    every = (
        Configuration(zip(space.layers, chosen))
        for chosen in itertools.product(*(space.options[name] for name in space.layers))
    )
    fitting = [c for c in every if space.nbytes(c) <= nbytes]
    return sorted(fitting, key=lambda c: -total(scores, c))


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 6))
def test_the_k_best_are_those_of_brute_force_in_order(problem, count: int) -> None:
    space, scores, nbytes = problem
    found = list(best_configurations(space, scores, nbytes, count))
    expected = brute_force(space, scores, nbytes)[:count]
    assert len(found) == len(expected)
    assert len({c.digest for c in found}) == len(found)
    for got, want in zip(found, expected):
        assert tuple(got) == space.layers
        assert space.nbytes(got) <= nbytes
        assert total(scores, got) == pytest.approx(total(scores, want), abs=1e-5)


def test_it_ends_when_nothing_else_fits() -> None:
    space = SearchSpace.of({"a": (4, 8), "b": (4, 8)}, "uaq-3,uaq-4")
    scores = {name: {o: float(o.bits) for o in space.options[name]} for name in space.layers}
    low, high = space.byte_range()
    assert len(list(best_configurations(space, scores, high, 10))) == 4
    assert [dict(c) for c in best_configurations(space, scores, low, 10)] == [dict(space.uniform(Option("uaq", 3)))]
    assert list(best_configurations(space, scores, low - 1, 10)) == []


def test_nothing_is_solved_before_it_is_asked_for() -> None:
    space = SearchSpace.of({"a": (4, 8)}, "uaq-3,uaq-4")
    scores = {"a": {o: float(o.bits) for o in space.options["a"]}}
    endless = best_configurations(space, scores, 10**6, 10**9)
    assert next(endless)["a"] == Option("uaq", 4)
    assert next(endless)["a"] == Option("uaq", 3)
    assert next(endless, None) is None


@pytest.mark.parametrize("columns", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("missing", [1, 10, 100])
def test_a_large_layer_is_not_a_single_byte_over_budget(columns: int, missing: int) -> None:
    space = SearchSpace.of({"a": (1024, columns), "b": (1024, columns)}, "uaq-3,uaq-4")
    scores = {name: {o: float(o.bits) for o in space.options[name]} for name in space.layers}
    budget = space.byte_range()[1] - missing
    found = list(best_configurations(space, scores, budget, 4))
    assert all(space.nbytes(c) <= budget for c in found)
    assert len(found) == 3


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_the_choice_does_not_depend_on_the_scores_unit(scale: float) -> None:
    space = SearchSpace.of({f"layer{i}": (32, 32 + 8 * i) for i in range(4)}, "paper")
    rng = np.random.default_rng(0)
    for _ in range(3):
        scores = {name: {o: float(rng.normal()) for o in space.options[name]} for name in space.layers}
        budget = int(np.mean(space.byte_range()))
        scaled = {name: {o: scale * s for o, s in of.items()} for name, of in scores.items()}
        best = brute_force(space, scores, budget)[0]
        assert dict(next(best_configurations(space, scaled, budget))) == dict(best)


def test_a_constant_added_to_all_scores_of_a_layer_changes_nothing() -> None:
    space = SearchSpace.of({f"layer{i}": (32, 40) for i in range(4)}, "paper")
    rng = np.random.default_rng(1)
    scores = {name: {o: float(rng.normal()) for o in space.options[name]} for name in space.layers}
    moved = {name: {o: s - 1000.0 * (i + 1) for o, s in of.items()} for i, (name, of) in enumerate(scores.items())}
    budget = int(np.mean(space.byte_range()))
    one, other = (list(best_configurations(space, s, budget, 3)) for s in (scores, moved))
    assert [c.digest for c in one] == [c.digest for c in other]


def test_many_choices_just_over_budget_do_not_have_to_be_tried() -> None:
    shapes = {f"layer{i}": (1152, 1152) for i in range(14)}
    space = SearchSpace.of(shapes, "uaq-3,uaq-4")
    scores = {
        name: {o: (1 + i / 100 if o.bits == 4 else 0.0) for o in space.options[name]} for i, name in enumerate(shapes)
    }
    three, four = (Option("uaq", bits).nbytes((1152, 1152)) for bits in (3, 4))
    (best,) = best_configurations(space, scores, 7 * (three + four) - 1)
    assert sum(option.bits == 4 for option in best.values()) == 6


@settings(max_examples=30, deadline=None)
@given(problems())
def test_every_layers_own_best_fits_and_is_never_better_than_the_program(problem) -> None:
    space, scores, nbytes = problem
    chosen = argmax_configuration(space, scores, nbytes)
    assert space.nbytes(chosen) <= nbytes
    (best,) = best_configurations(space, scores, nbytes)
    assert total(scores, chosen) <= total(scores, best) + 1e-6
    free = argmax_configuration(space, scores, space.byte_range()[1])
    assert all(scores[n][free[n]] == max(scores[n].values()) for n in space.layers)
