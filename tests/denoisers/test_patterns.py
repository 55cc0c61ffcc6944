"""Patterns for names of layers: parts by their own names, wildcards as in shells, and nothing that takes long."""

from __future__ import annotations

import pytest

from qua2sedimo.denoisers.patterns import matching
from qua2sedimo.errors import Qua2SeDiMoError

NAMES = {n: (n,) for n in ("up.0.conv1[0:32]", "up.0.conv1[32:64]", "up.1.conv1[0:32]", "up.0.conv10", "up.0.conv13")}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_matches_itself_and_nothing_else(name: str) -> None:
    assert matching(name, NAMES) == [name]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.conv1[0:32]", ["up.0.conv1[0:32]", "up.1.conv1[0:32]"]),
        ("up.?.conv1[32:64]", ["up.0.conv1[32:64]"]),
        ("up.0.conv1[03]", ["up.0.conv10", "up.0.conv13"]),
        ("up.0.conv1[[]*", ["up.0.conv1[0:32]", "up.0.conv1[32:64]"]),
        ("up.[!0].*", ["up.1.conv1[0:32]"]),
        ("up.0.conv1[0:3]", []),
        ("UP.*", []),
        ("[a-", []),
    ],
)
def test_wildcards(pattern: str, found: list[str]) -> None:
    assert matching(pattern, NAMES) == found


def test_any_of_several_names_may_match() -> None:
    assert matching("copy", {1: ("first", "copy"), 2: ("second",)}) == [1]


@pytest.mark.parametrize("pattern", ["[" * 100_000, "*a" * 50_000, "x" * 2_000])
def test_what_is_longer_than_any_name_is_refused(pattern: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match="is longer than any layer's name"):
        matching(pattern, NAMES)


def test_many_wildcards_end() -> None:
    assert matching("*a" * 400 + "b", {1: ("a" * 900,)}) == []
