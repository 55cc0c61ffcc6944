"""The modules of quantizers import each other in one direction only, also inside functions."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

from qua2sedimo import quantizers

PACKAGE = "qua2sedimo.quantizers"


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name != PACKAGE, f"{path} imports the package itself"
            if name.startswith(f"{PACKAGE}."):
                found.add(name.removeprefix(f"{PACKAGE}."))
    return found


def test_there_is_no_circle_of_imports() -> None:
    folder = Path(quantizers.__file__).parent
    graph = {path.stem: imported(path) for path in folder.glob("*.py") if path.stem != "__init__"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert {"value", "registry"} < set(order) and graph["value"] == set()
