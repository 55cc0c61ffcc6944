"""Random configurations are functions of seed and number, and go where they are asked to go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.sampling import Sampler, read_list, sample
from qua2sedimo.search.knapsack import best_choices

SHAPES = {f"layer{i}": (64, 64 * (1 + i % 3)) for i in range(40)}
WIDE = SearchSpace.of(SHAPES, "wide")
#: Samplers that give every layer an option, without end.
WHOLE = ("spread", "stratified", "paper")


def averages(space: SearchSpace, sampler: str, bits: tuple[float, float], count: int) -> np.ndarray:
    return np.array([space.average_bits(sample(space, sampler, 0, i, bits)) for i in range(count)])


@pytest.mark.parametrize("sampler", (*WHOLE, "singles"))
def test_a_configuration_is_a_function_of_seed_and_number_only(sampler: str) -> None:
    forward = [sample(WIDE, sampler, 5, i, (2.5, 6.0)) for i in range(6)]
    np.random.seed(1)
    backward = [sample(SearchSpace.of(SHAPES, "wide"), sampler, 5, i, (2.5, 6.0)) for i in reversed(range(6))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("sampler", WHOLE)
def test_other_seeds_and_numbers_give_other_configurations(sampler: str) -> None:
    found = {sample(WIDE, sampler, seed, i, (2.5, 6.0)).digest for seed in range(4) for i in range(5)}
    assert len(found) == 20


@pytest.mark.parametrize("sampler", WHOLE)
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


def test_paper_uses_every_width_and_spreads_their_mean_evenly() -> None:
    space = SearchSpace.of(SHAPES, "uaq-2,uaq-3,uaq-4,uaq-5,uaq-6")
    configurations = [sample(space, "paper", 0, i, (2.0, 6.0)) for i in range(300)]
    assert {option for c in configurations for option in c.values()} == set(space.union)
    means = [np.mean([option.bits for option in c.values()]) for c in configurations]
    np.testing.assert_allclose(np.quantile(means, [0.1, 0.3, 0.5, 0.7, 0.9]), [2.4, 3.2, 4.0, 4.8, 5.6], atol=0.25)


def test_paper_uses_every_option_of_the_paper() -> None:
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
    with pytest.raises(Qua2SeDiMoError, match="unknown sampler 'sobol'; known: spread, stratified, near, paper"):
        sample(WIDE, "sobol", 0, 0, (2.0, 6.0))


# Stratified -----------------------------------------------------------------------------------------------------

BLOCKS, OPERATIONS = 8, 5


def unit(name: str, position: int) -> WeightLayer:
    block, operation = f"block {position // OPERATIONS}", f"operation {position % OPERATIONS}"
    return WeightLayer(name, name, None, SHAPES[name], "Linear", operation, block, None, "")


LAYERS = {name: unit(name, i) for i, name in enumerate(SHAPES)}


def stratified(space: SearchSpace = WIDE, bits: tuple[float, float] = (2.5, 6.0), seed: int = 0) -> Sampler:
    return Sampler("stratified", space, seed, bits, LAYERS)


def drawn(sampler: Sampler, count: int) -> list[Configuration]:
    """The first so many that are no anchors."""
    return [sampler(i) for i in range(count * 8 // 7) if i % 8 != 7]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(2.2, 3.5), st.floats(3.6, 6.0), st.integers(20, 60))
def test_every_first_part_covers_the_range_evenly(seed: int, low: float, high: float, count: int) -> None:
    """The averages differ from evenly spaced ones by little more than random ones would by chance."""
    found = np.sort([WIDE.average_bits(c) for c in drawn(stratified(bits=(low, high), seed=seed), count)])
    assert low - 0.1 <= found[0] and found[-1] <= high + 0.1
    even = low + (high - low) * (np.arange(len(found)) + 0.5) / len(found)
    assert np.abs(found - even).max() < 3.5 * (high - low) / len(found) + 0.1


def test_the_corners_of_the_space_are_reached() -> None:
    low, high = (8 * n / WIDE.weights for n in WIDE.byte_range())
    found = [WIDE.average_bits(c) for c in drawn(stratified(bits=(0.0, 99.0)), 60)]
    assert min(found) < low + 0.03 * (high - low)
    assert max(found) > high - 0.03 * (high - low)


def test_mixtures_reach_from_nearly_one_method_to_even_ones() -> None:
    most = []
    for configuration in drawn(stratified(bits=(3.5, 4.5)), 60):
        methods = [option.method for option in configuration.values()]
        most.append(max(map(methods.count, set(methods))) / len(methods))
    assert min(most) < 0.55 and max(most) > 0.9


def bit_table(configurations: list[Configuration]) -> np.ndarray:
    """Widths less the configuration's mean: [configurations, layers]."""
    table = np.array([[c[name].bits for name in SHAPES] for c in configurations], dtype=float)
    return table - table.mean(axis=1, keepdims=True)


def test_layers_of_one_block_or_one_operation_go_together() -> None:
    space = SearchSpace.of(SHAPES, "uaq-2,uaq-3,uaq-4,uaq-5,uaq-6,uaq-8")
    correlation = np.corrcoef(bit_table(drawn(stratified(space), 150)).T)
    position = np.arange(len(SHAPES))
    same_block = (position[:, None] // OPERATIONS == position // OPERATIONS) & ~np.eye(len(SHAPES), dtype=bool)
    same_operation = (position[:, None] % OPERATIONS == position % OPERATIONS) & ~np.eye(len(SHAPES), dtype=bool)
    neither = ~same_block & ~same_operation & ~np.eye(len(SHAPES), dtype=bool)
    assert correlation[same_block].mean() > 0.15 > abs(correlation[neither].mean())
    assert correlation[same_operation].mean() > 0.1


def test_anchors_are_uniform_within_the_range_and_each_comes_before_one_comes_again() -> None:
    space = SearchSpace.of(SHAPES, "uaq-2,uaq-4,uaq-6,kmeans_a-4,uaq-8")
    sampler = stratified(space, (3.5, 6.5))
    found = [set(sampler(8 * turn + 7).values()) for turn in range(3)]
    assert all(len(options) == 1 for options in found)
    assert {str(option) for options in found for option in options} == {"uaq-4", "uaq-6", "kmeans_a-4"}


# Singles and lists ----------------------------------------------------------------------------------------------


def test_singles_give_every_layer_alone_a_low_and_a_middle_width() -> None:
    sampler = Sampler("singles", WIDE, 0, (2.0, 6.0))
    assert sampler.count == 2 * len(SHAPES)
    found = [sampler(i) for i in range(sampler.count)]
    assert all(len(configuration) == 1 for configuration in found)
    widths = {name: sorted(c[name].bits for c in found if name in c) for name in SHAPES}
    assert set(map(tuple, widths.values())) == {(2, 4)}
    with pytest.raises(Qua2SeDiMoError, match="'singles' has 80 configurations, 81 were asked for"):
        sampler(80)


def test_layers_that_are_not_named_count_16_bits() -> None:
    space = SearchSpace.of({"a": (64, 64), "b": (64, 64)}, "uaq-4")
    four = space.average_bits(space.uniform(Option("uaq", 4)))
    assert space.average_bits(Configuration({"a": Option("uaq", 4)})) == pytest.approx((four + 16) / 2)
    assert space.average_bits(Configuration({})) == 16
    with pytest.raises(Qua2SeDiMoError, match="names layer 'c'"):
        space.average_bits(Configuration({"c": Option("uaq", 4)}))
    with pytest.raises(Qua2SeDiMoError, match="leaves 1 of 2 layers in full precision"):
        space.encode(Configuration({"a": Option("uaq", 4)}))


def test_a_list_is_read_in_order_and_later_patterns_hold(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text('[{"layer?": "uaq-4", "layer3": "uaq-6"}, {"layer[12]*": "kmeans_c-3"}]')
    first, second = read_list(path, WIDE)
    assert first["layer3"] == Option("uaq", 6) and first["layer4"] == Option("uaq", 4) and len(first) == 10
    assert set(second.values()) == {Option("kmeans_c", 3)} and "layer3" not in second
    sampler = Sampler("list", WIDE, 0, (2.0, 6.0), listed=[first, second])
    assert sampler.count == 2 and sampler(1) == second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: uaq-4}", "holds no list"),
        ("[]", "holds no list"),
        ("[3]", "entry 1: not a map"),
        ("[{layer1: uaq-4}, {leyer1: uaq-4}]", "entry 2: no layer matches 'leyer1'"),
        ("[{layer1: uaq-9}]", "entry 1, 'layer1': .*bits must be 1 to 8"),
        ("[{layer1: fast}]", "entry 1, 'layer1': .*METHOD-BITS"),
        ("[{", "neither JSON nor YAML"),
    ],
)
def test_a_list_with_a_mistake_is_refused_by_entry(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(Qua2SeDiMoError, match=message):
        read_list(tmp_path / "list.yaml", WIDE)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"none\.yaml does not exist"):
        read_list(tmp_path / "none.yaml", WIDE)


# near ------------------------------------------------------------------------------------------------------------


def near_sampler(space: SearchSpace, damage: Mapping[str, Mapping[Option, float]], seed: int = 0) -> Sampler:
    return Sampler("near", space, seed, (2.5, 6.0), damage=lambda: damage)


def expected(space: SearchSpace, seed: int = 0) -> dict[str, dict[Option, float]]:
    """Damage that falls by a factor of four a bit, from a start of each layer's own."""
    starts = np.exp(np.random.default_rng(seed).normal(size=len(space.layers)))
    return {n: {o: s * 4.0**-o.bits for o in space.options[n]} for n, s in zip(space.layers, starts)}


def test_near_configurations_are_functions_of_seed_and_number_and_keep_their_size() -> None:
    sampler, again = near_sampler(WIDE, expected(WIDE)), near_sampler(WIDE, expected(WIDE))
    found = [sampler(i) for i in range(40)]
    assert found[::-1] == [again(i) for i in reversed(range(40))]
    assert len({c.digest for c in found}) == 40
    sizes = np.array([WIDE.average_bits(c) for c in found])
    assert sizes.max() <= 6.0 + 1e-9
    np.testing.assert_allclose(np.quantile(sizes, [0.1, 0.5, 0.9]), [2.85, 4.25, 5.65], atol=0.4)


def test_near_configurations_are_better_than_random_ones_of_their_size_and_none_is_beaten_by_much() -> None:
    damage = expected(WIDE)

    def total(configuration: Configuration) -> float:
        return sum(damage[n][o] for n, o in configuration.items())

    sampler = near_sampler(WIDE, damage)
    for i in range(0, 30, 3):  # the narrowest of the three spreads
        near = sampler(i)
        size = WIDE.average_bits(near)
        random = sample(WIDE, "spread", 0, i, (size, size))
        assert total(near) < total(random)
        losses = [np.array([damage[n][o] for o in WIDE.options[n]]) for n in WIDE.layers]
        best = next(best_choices(WIDE.option_bytes, losses, WIDE.nbytes(near)))
        assert total(near) < 1.5 * total(WIDE.decode(best))


def test_near_without_what_is_expected_is_refused() -> None:
    with pytest.raises(Qua2SeDiMoError, match="expected damage"):
        sample(WIDE, "near", 0, 0, (2.5, 6.0))
