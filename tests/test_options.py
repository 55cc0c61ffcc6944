"""Options, their exact size, and the space they span."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import (
    PAPER_BITS,
    PAPER_METHODS,
    RANKS,
    Configuration,
    Option,
    SearchSpace,
    bit_operations,
    options_for,
    small_layers,
    within_reach,
)
from qua2sedimo.quantizers import METHODS

SHAPES = {"small": (4, 3), "linear": (64, 128), "conv": (32, 16, 3, 3)}

options = st.sampled_from([Option(m.name, n) for m in METHODS.values() for n in m.numbers])
shapes = st.lists(st.integers(1, 80), min_size=1, max_size=4).map(tuple)


@given(options)
def test_parse_inverts_str(option: Option) -> None:
    assert Option.parse(str(option)) == option


@pytest.mark.parametrize(
    "text", ["", "uaq", "uaq-", "uaq4", "-4", "uaq-4.5", "uaq--4", "uaq- 4", "4-uaq", "uaq-²", "uaq-four", "uaq-9",
             "uaq-0", "lowrank-0", "lowrank-513", "row-9", "foo-4", "UAQ-4", "uaq_4"]
)  # fmt: skip
def test_text_that_is_no_option_is_refused_by_name(text: str) -> None:
    with pytest.raises(Qua2SeDiMoError) as caught:
        Option.parse(text)
    assert f"'{text}'" in caught.value.message or f"'{text.rpartition('-')[0]}'" in caught.value.message


@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_bits_outside_1_to_8_are_refused(bits: int) -> None:
    with pytest.raises(Qua2SeDiMoError, match=f"bits must be 1 to 8, got {bits}"):
        Option("uaq", bits)


@pytest.mark.parametrize("rank", [0, 513])
def test_ranks_outside_1_to_512_are_refused(rank: int) -> None:
    with pytest.raises(Qua2SeDiMoError, match=f"rank must be 1 to 512, got {rank}"):
        Option("lowrank", rank)


def test_bits_are_those_of_one_stored_number() -> None:
    assert [Option(*o).bits for o in (("uaq", 4), ("row", 1), ("lowrank", 1), ("lowrank", 64))] == [4, 1, 8, 8]
    assert bit_operations({"a": 100, "b": 10}, {"a": Option("row", 2)}) == 16 * (200 + 160)
    assert bit_operations({"a": 100}, {"a": Option("lowrank", 4)}, 8) == 8 * 800


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        Qua2SeDiMoError, match="unknown quantization method 'gptq'; known: uaq, kmeans_c, kmeans_a, row, low"
    ):
        Option("gptq", 4)


def test_average_bits_by_hand() -> None:
    space = SearchSpace.of({"a": (10, 20), "b": (4, 9)}, "paper")
    configuration = Configuration({"a": Option("kmeans_c", 3), "b": Option("uaq", 4)})
    # a: 200 weights at 3 bits = 75 bytes, 8 entries of 2 bytes for each of 10 channels = 160
    # b: 36 weights at 4 bits = 18 bytes, scale and zero point of 2 bytes for each of 4 channels = 16
    assert space.nbytes(configuration) == 75 + 160 + 18 + 16
    assert space.weights == 236
    assert space.average_bits(configuration) == pytest.approx(8 * 269 / 236)
    per_tensor = Configuration({"a": Option("kmeans_a", 3), "b": Option("kmeans_a", 3)})
    assert space.nbytes(per_tensor) == 75 + 16 + math.ceil(36 * 3 / 8) + 16


def test_the_paper_set_is_three_methods_at_four_and_three_bits() -> None:
    expected = {Option(m, b) for m in ("uaq", "kmeans_c", "kmeans_a") for b in (3, 4)}
    assert set(options_for("paper", (8, 8))) == expected
    assert len(options_for("paper", (8, 8))) == 6


@settings(max_examples=100)
@given(shapes)
def test_wide_options_have_at_most_one_bit_of_overhead_or_are_the_papers(shape: tuple[int, ...]) -> None:
    found = options_for("wide", shape)
    paper = options_for("paper", shape)
    assert set(paper) <= set(found)
    for option in set(found) - set(paper):
        assert 8 * option.nbytes(shape) / math.prod(shape) <= option.bits + 1
    assert all(o.bits in PAPER_BITS for o in found if 8 * o.nbytes(shape) / math.prod(shape) > o.bits + 1)


def test_wide_options_of_a_large_layer_reach_from_two_to_eight_bits() -> None:
    found = options_for("wide", (256, 4096))
    assert {o.bits for o in found} == {2, 3, 4, 5, 6, 8}
    assert {o.method for o in found} == set(PAPER_METHODS)


@settings(max_examples=100)
@given(shapes)
def test_the_default_set_is_row_and_ranks_that_pay(shape: tuple[int, ...]) -> None:
    found = options_for("default", shape)
    assert list(found) == sorted(set(found))
    assert {o.number for o in found if o.method == "row"} == {1, 2, 3, 4, 5, 6, 8}
    assert {o.number for o in found if o.method == "kmeans_a"} == {3, 4, 5, 6, 8}
    ranks = [o for o in found if o.method not in ("row", "kmeans_a")]
    assert all(o.method == "lowrank" and o.number in RANKS for o in ranks)
    weights = math.prod(shape)
    for option in ranks:
        assert option.number < min(shape[0], weights // shape[0])
        assert 8 * option.nbytes(shape) <= 4 * weights


def test_a_large_layer_has_every_rank_and_a_narrow_one_none() -> None:
    assert [o.number for o in options_for("default", (1024, 1024)) if o.method == "lowrank"] == list(RANKS)
    assert {o.method for o in options_for("default", (8, 4096))} == {"row", "kmeans_a"}
    space = within_reach(SearchSpace.of({"large": (1024, 1024), "tiny": (16, 16)}, "default"), {})
    assert Option("row", 8) in space.options["tiny"] and Option("row", 8) not in space.options["large"]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-9, 1e9)), min_size=2, max_size=8), st.floats(2.0, 6.0))
def test_within_reach_has_the_best_widths_of_every_budget(layers: list[tuple[int, float]], bits: float) -> None:
    """With damage stake · 4^-bits, the best configuration of any budget needs none of the widths that are left out."""
    shapes = {f"layer {i}": (16 * n, 16) for i, (n, _) in enumerate(layers)}
    stakes = {f"layer {i}": stake for i, (_, stake) in enumerate(layers)}
    whole = SearchSpace(shapes, {name: tuple(Option("row", b) for b in (1, 2, 3, 4, 5, 6, 8)) for name in shapes})
    kept = within_reach(whole, stakes)
    # For any price of a bit, the widths of least damage + price · bits: those on the convex hull, one is best.
    weights = dict(zip(whole.layers, whole.layer_weights))
    price = math.exp(math.log(1e-12) + (bits - 2) / 4 * math.log(1e24))
    best = {
        name: min((1, 2, 3, 4, 5, 6, 8), key=lambda b: stakes[name] * 4.0**-b + price * b * weights[name])
        for name in shapes
    }
    spent = sum(best[name] * weights[name] for name in shapes) / whole.weights
    if 2.0 <= spent <= 6.0:
        assert all(Option("row", best[name]) in kept.options[name] for name in shapes)
    for name in shapes:
        widths = [o.number for o in kept.options[name]]
        assert widths == [b for b in (1, 2, 3, 4, 5, 6, 8) if widths[0] <= b <= widths[-1]]


def test_what_has_more_at_stake_has_the_greater_widths() -> None:
    space = SearchSpace.of({"much": (64, 64), "usual": (64, 64), "little": (64, 64), "unknown": (64, 64)}, "default")
    found = within_reach(space, {"much": 1e6, "usual": 1e2, "little": 1e-2})
    widths = {name: [o.number for o in found.options[name] if o.method == "row"] for name in space.layers}
    assert widths["much"][-1] == 8 and widths["little"][0] == 1 and widths["little"][-1] < 6
    assert widths["much"][0] > widths["usual"][0] >= widths["little"][0]
    assert widths["unknown"] == [1, 2, 3, 4, 5, 6]
    assert {o.method for o in found.options["much"]} == {"row", "kmeans_a", "lowrank"}
    codes = {o.number for o in found.options["little"] if o.method == "kmeans_a"}
    assert codes == {b for b in widths["little"] if b >= 3}


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 1000).map(lambda n: (n, 3)), max_size=12))
def test_small_layers_are_the_smallest_that_make_up_a_twentieth(shapes: dict[str, tuple[int, ...]]) -> None:
    found, sizes = small_layers(shapes), {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    assert 20 * sum(sizes[name] for name in found) <= total
    others = sorted(sizes[name] for name in shapes if name not in found)
    if others:
        assert all(sizes[name] <= others[0] for name in found)
        assert 20 * (sum(sizes[name] for name in found) + others[0]) > total


def test_options_that_cannot_store_a_shape_are_left_out() -> None:
    both = Option("gguf_k", 4), Option("gguf_0", 4)
    shapes = {"wide": (8, 512), "middle": (8, 96), "narrow": (8, 40), "conv": (8, 32, 3, 3)}
    space = SearchSpace.of(shapes, "gguf_k-4,gguf_0-4")
    assert space.options == {"wide": tuple(sorted(both)), "middle": both[1:], "conv": both[1:]}
    assert space.shapes == {name: shapes[name] for name in ("wide", "middle", "conv")}
    assert set(options_for("gguf", (8, 40))) == {Option("half", 16)}
    types = {str(o) for o in options_for("gguf", (8, 256))}
    assert types == {
        *(f"gguf_k-{b}" for b in range(2, 7)), "gguf_0-4", "gguf_0-5", "gguf_0-8", "gguf_1-4", "gguf_1-5", "gguf_nl-4",
        "half-16",
    }  # fmt: skip
    with pytest.raises(Qua2SeDiMoError, match=r"'gguf_k-4' can store any layer: 'narrow' \[8, 40\], 'conv'"):
        SearchSpace.of({name: shapes[name] for name in ("narrow", "conv")}, "gguf_k-4")
    with pytest.raises(Qua2SeDiMoError, match="option 'gguf_0-6': bits must be 4, 5, 8, got 6"):
        Option.parse("gguf_0-6")


@given(st.lists(options, min_size=1, max_size=6))
def test_a_listed_set_is_sorted_without_repetition(chosen: list[Option]) -> None:
    text = ", ".join(str(o) for o in chosen)
    assert options_for(text, (4, 256)) == tuple(sorted(set(chosen)))


@pytest.mark.parametrize("text", ["", "uaq-4,,uaq-3", "broad", "uaq-4;uaq-3"])
def test_a_set_that_is_neither_known_nor_a_list_is_refused(text: str) -> None:
    with pytest.raises(Qua2SeDiMoError):
        options_for(text, (4, 4))


@given(st.data())
def test_decode_inverts_encode_and_the_configuration_survives_json(data) -> None:
    space = SearchSpace.of(SHAPES, data.draw(st.sampled_from(["wide", "paper", "uaq-2,kmeans_a-8"])))
    chosen = Configuration({n: data.draw(st.sampled_from(space.options[n])) for n in space.layers})
    indices = space.encode(chosen)
    assert indices.shape == (len(SHAPES),)
    assert [space.options[n][i] for n, i in zip(space.layers, indices)] == [chosen[n] for n in space.layers]
    assert space.decode(indices) == chosen
    again = Configuration.from_json(chosen.to_json())
    assert (again, again.digest, hash(again)) == (chosen, chosen.digest, hash(chosen))


def test_a_foreign_configuration_is_not_encoded() -> None:
    space = SearchSpace.of(SHAPES, "paper")
    missing_layer = Configuration({"small": Option("uaq", 4)})
    foreign_option = space.uniform(Option("uaq", 8))
    for configuration in (missing_layer, foreign_option):
        with pytest.raises(Qua2SeDiMoError, match="does not belong to this search space"):
            space.encode(configuration)


@given(st.permutations(["a", "b", "c"]))
def test_equal_configurations_have_equal_hash_and_digest_in_any_order(order: list[str]) -> None:
    choices = {"a": Option("uaq", 4), "b": Option("kmeans_a", 3), "c": Option("kmeans_c", 2)}
    one, other = Configuration(choices), Configuration((name, choices[name]) for name in order)
    assert one == other
    assert hash(one) == hash(other)
    assert one.digest == other.digest


def test_different_configurations_have_different_digests() -> None:
    space = SearchSpace.of({"a": (8, 8), "b": (8, 8)}, "wide")
    counts = [len(space.options[layer]) for layer in space.layers]
    digests = {space.decode(choice).digest for choice in itertools.product(*map(range, counts))}
    assert len(digests) == math.prod(counts)


def test_a_configuration_cannot_be_changed_through_what_it_was_made_from() -> None:
    choices = {"a": Option("uaq", 4)}
    configuration = Configuration(choices)
    choices["a"] = Option("uaq", 3)
    assert configuration["a"] == Option("uaq", 4)
    with pytest.raises(TypeError):
        configuration["a"] = Option("uaq", 3)  # type: ignore[index]


def test_the_hash_of_a_space_changes_with_names_shapes_options_and_order() -> None:
    spaces = [
        SearchSpace.of({"a": (8, 8), "b": (4, 4)}, "paper"),
        SearchSpace.of({"b": (4, 4), "a": (8, 8)}, "paper"),
        SearchSpace.of({"a": (8, 8), "c": (4, 4)}, "paper"),
        SearchSpace.of({"a": (8, 8), "b": (4, 2, 2)}, "paper"),
        SearchSpace.of({"a": (8, 8), "b": (4, 4)}, "uaq-4,uaq-3"),
    ]
    assert len({space.hash for space in spaces}) == len(spaces)
    assert SearchSpace.of({"a": (8, 8), "b": (4, 4)}, "paper").hash == spaces[0].hash


def test_byte_range_is_that_of_the_smallest_and_largest_choice_of_each_layer() -> None:
    space = SearchSpace.of(SHAPES, "wide")
    extremes = [
        sum(pick(o.nbytes(space.shapes[n]) for o in space.options[n]) for n in space.layers) for pick in (min, max)
    ]
    assert space.byte_range() == tuple(extremes)
    assert extremes[0] < extremes[1]


def test_union_holds_every_option_once_in_order() -> None:
    space = SearchSpace.of({"tiny": (2, 2), "large": (256, 4096)}, "wide")
    assert set(space.union) == set(space.options["tiny"]) | set(space.options["large"])
    assert list(space.union) == sorted(set(space.union))


def test_json_of_a_configuration_is_a_plain_map() -> None:
    configuration = Configuration({"a": Option("kmeans_c", 4)})
    assert json.loads(configuration.to_json()) == {"a": "kmeans_c-4"}
