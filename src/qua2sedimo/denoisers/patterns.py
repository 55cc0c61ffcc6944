"""Patterns for names of layers: a name itself, or the wildcards of shells."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from qua2sedimo.errors import Qua2SeDiMoError

K = TypeVar("K")

#: The end of a part's name, ``[16:32]``, which would be a set of characters among wildcards.
_PART = re.compile(r"\[(\d+:\d+)\]")
_MOST_CHARACTERS = 1_000


def matching(pattern: str, names: Mapping[K, Collection[str]]) -> list[K]:
    """Keys of which a name is the pattern itself; without any, those with a name that its wildcards match.

    Wildcards are ``*``, ``?`` and sets such as ``[ab]``; the end of a part's name, such as ``[16:32]``, stands for
    itself. Raises :class:`Qua2SeDiMoError` for a pattern that is longer than any name.
    """
    literal = [key for key, of in names.items() if pattern in of]
    if literal:
        return literal
    if len(pattern) > _MOST_CHARACTERS:
        raise Qua2SeDiMoError(
            f"a pattern of {len(pattern):,} characters, starting '{pattern[:40]}', is longer than any layer's name",
            "See `qua2sedimo inspect MODEL`.",
        )
    matches = re.compile(fnmatch.translate(_PART.sub(r"[[]\1]", pattern))).match
    return [key for key, of in names.items() if any(matches(name) for name in of)]
