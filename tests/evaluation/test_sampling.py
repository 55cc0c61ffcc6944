"""Random configurations are functions of seed and number, and go where they are asked to go."""

from __future__ import annotations

import numpy as np
import pytest

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation.sampling import SAMPLERS, sample
from qua2sedimo.options import Option, SearchSpace

SHAPES = {f"layer{i}": (64, 64 * (1 + i % 3)) for i in range(40)}
WIDE = SearchSpace.of(SHAPES, "wide")


def averages(space: SearchSpace, sampler: str, bits: tuple[float, float], count: int) -> np.ndarray:
    return np.array([space.average_bits(sample(space, sampler, 0, i, bits)) for i in range(count)])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_configuration_is_a_function_of_seed_and_number_only(sampler: str) -> None:
    forward = [sample(WIDE, sampler, 5, i, (2.5, 6.0)) for i in range(6)]
    np.random.seed(1)
    backward = [sample(SearchSpace.of(SHAPES, "wide"), sampler, 5, i, (2.5, 6.0)) for i in reversed(range(6))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_seeds_and_numbers_give_other_configurations(sampler: str) -> None:
    found = {sample(WIDE, sampler, seed, i, (2.5, 6.0)).digest for seed in range(4) for i in range(5)}
    assert len(found) == 20


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_layer_gets_one_of_its_own_options(sampler: str) -> None:
    space = SearchSpace.of({"tiny": (2, 2), "large": (64, 640), "conv": (8, 4, 3, 3)}, "wide")
    for i in range(30):
        chosen = sample(space, sampler, 0, i, (2.0, 6.0))
        assert tuple(chosen) == space.layers
        assert all(chosen[layer] in space.options[layer] for layer in space.layers)


def test_spread_covers_the_range_evenly() -> None:
    found = averages(WIDE, "spread", (2.8, 6.0), 250)
    quantiles = np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, [2.96, 3.6, 4.4, 5.2, 5.84], atol=0.4)
    assert found.min() > 1.8
    assert found.max() < 7.2


def test_spread_cuts_the_range_to_what_can_be_reached() -> None:
    space = SearchSpace.of(SHAPES, "uaq-3,uaq-4")
    low, high = (8 * n / space.weights for n in space.byte_range())
    found = averages(space, "spread", (2.0, 6.0), 200)
    np.testing.assert_allclose(
        np.quantile(found, [0.1, 0.5, 0.9]), np.quantile([low, high], [0.1, 0.5, 0.9]), atol=0.15
    )


def test_spread_uses_every_option() -> None:
    seen = {option for i in range(60) for option in sample(WIDE, "spread", 0, i, (2.0, 8.0)).values()}
    assert seen == set(WIDE.union)


def test_spread_prefers_the_wanted_size_within_a_configuration_too() -> None:
    """One λ for all layers: at a low target no layer is much larger than the others."""
    for i in range(10):
        chosen = sample(WIDE, "spread", 0, i, (2.6, 2.7))
        assert np.mean([option.bits <= 3 for option in chosen.values()]) > 0.8


@pytest.mark.parametrize("bits", [(2.0, 6.0), (9.5, 12.0)], ids=["above the range", "below the range"])
def test_a_range_that_cannot_be_reached_is_an_error_or_gives_the_nearest(bits: tuple[float, float]) -> None:
    space = SearchSpace.of({"a": (64, 64), "b": (64, 64)}, "uaq-8")
    try:
        chosen = sample(space, "spread", 0, 0, bits)
    except Qua2SeDiMoError:
        return
    assert set(chosen.values()) == {Option("uaq", 8)}


def test_paper_uses_the_lowest_and_the_highest_width_only() -> None:
    configurations = [sample(WIDE, "paper", 0, i, (2.0, 6.0)) for i in range(40)]
    assert {option.bits for c in configurations for option in c.values()} == {2, 8}
    paper = SearchSpace.of(SHAPES, "paper")
    configurations = [sample(paper, "paper", 0, i, (2.0, 6.0)) for i in range(40)]
    assert {option for c in configurations for option in c.values()} == set(paper.union)


def test_paper_draws_the_share_of_low_widths_evenly_from_none_to_all() -> None:
    paper = SearchSpace.of(SHAPES, "paper")
    shares = [np.mean([o.bits == 3 for o in sample(paper, "paper", 0, i, (2, 6)).values()]) for i in range(300)]
    np.testing.assert_allclose(np.quantile(shares, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.1)


def test_paper_draws_methods_evenly() -> None:
    paper = SearchSpace.of(SHAPES, "paper")
    methods = [o.method for i in range(100) for o in sample(paper, "paper", 0, i, (2, 6)).values()]
    for method in ("uaq", "kmeans_c", "kmeans_a"):
        assert methods.count(method) / len(methods) == pytest.approx(1 / 3, abs=0.04)


def test_an_unknown_sampler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Qua2SeDiMoError, match="unknown sampler 'sobol'; known: spread, paper"):
        sample(WIDE, "sobol", 0, 0, (2.0, 6.0))
