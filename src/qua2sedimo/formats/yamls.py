"""Reading YAML that anyone may have written: aliases that multiply, deep nesting and long numbers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_text

#: Values in a document, each counted as often as an alias repeats it.
_MOST_VALUES = 1_000_000


def read_yaml(path: Path, remedy: str) -> Any:
    """The content of a YAML or JSON file; raises :class:`Qua2SeDiMoError` naming the file if it cannot be read."""
    text = read_text(path, remedy)
    try:
        return _parsed(text)
    except RecursionError:
        raise Qua2SeDiMoError(f"{path} is neither JSON nor YAML: it is nested too deep", remedy) from None
    except (yaml.YAMLError, ValueError) as error:
        raise Qua2SeDiMoError(f"{path} is neither JSON nor YAML: {error}", remedy) from error


def _parsed(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _values(root, {}, set()) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node has, with those of its aliases; raises ValueError if it contains itself."""
    if id(node) in above:
        raise ValueError("an alias stands for what contains it")
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = parts if isinstance(node, yaml.CollectionNode) else []
        above.add(id(node))
        known[id(node)] = 1 + sum(_values(part, known, above) for part in inner)
        above.remove(id(node))
    return known[id(node)]
