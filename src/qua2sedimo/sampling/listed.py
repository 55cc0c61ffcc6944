"""Configurations from a file: a list of {layer pattern: option}, in JSON or YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qua2sedimo.denoisers import parse_unit
from qua2sedimo.denoisers.patterns import matching
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.yamls import read_yaml
from qua2sedimo.options import Configuration, Option, SearchSpace

_EXAMPLE = "Expected a list like: [{'*': uaq-4, '*.attn1.*': uaq-6}, {'*': kmeans_c-3}]."


def read_list(path: Path, space: SearchSpace) -> list[Configuration]:
    """The file's configurations in order; within one, later patterns override earlier ones.

    A layer that no pattern matches is in full precision. Raises :class:`Qua2SeDiMoError` naming the file and the entry
    if a pattern matches no layer or an option is invalid.
    """
    content = read_yaml(path, _EXAMPLE)
    if not isinstance(content, list) or not content:
        raise Qua2SeDiMoError(f"{path} holds no list of configurations", _EXAMPLE)
    return [_configuration(f"{path}, entry {i + 1}", entry, space) for i, entry in enumerate(content)]


def _configuration(where: str, entry: Any, space: SearchSpace) -> Configuration:
    if not isinstance(entry, dict) or not entry:
        raise Qua2SeDiMoError(f"{where}: not a map of layer patterns to options", _EXAMPLE)
    chosen: dict[str, Option] = {}
    for pattern, text in entry.items():
        found = matching(str(pattern), {n: (n, parse_unit(n)[0]) for n in space.layers})
        if not found:
            raise Qua2SeDiMoError(f"{where}: no layer matches '{pattern}'", "See `qua2sedimo inspect MODEL`.")
        try:
            option = Option.parse(str(text))
        except Qua2SeDiMoError as error:
            raise Qua2SeDiMoError(f"{where}, '{pattern}': {error.message}", error.remedy) from error
        chosen |= dict.fromkeys(found, option)
    return Configuration((name, chosen[name]) for name in space.layers if name in chosen)
