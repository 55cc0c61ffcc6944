"""The API reference: every public name is in it, with a docstring that states shapes and errors."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.pages import ROOT


def _loaded() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_site_build", ROOT / "docs" / "site" / "build.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


site = _loaded()
PUBLIC = [(module, name) for module in site.public_modules() for name in module.__all__]


def documented() -> Iterator[tuple[str, object, str]]:
    """Every public function, class and method of a public class once: its name, itself, its docstring.

    A method's docstring may leave to its class what holds for all methods, so the class's is appended to it.
    """
    seen: set[int] = set()
    for module, name in PUBLIC:
        found = getattr(module, name)
        if id(found) in seen or not (inspect.isclass(found) or inspect.isfunction(found)):
            continue
        seen.add(id(found))
        yield f"{module.__name__}.{name}", found, found.__doc__ or ""
        for method, value in vars(found).items() if inspect.isclass(found) else ():
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"{module.__name__}.{name}.{method}", function, f"{function.__doc__ or ''} {found.__doc__ or ''}"


FOUND = {name: (value, text) for name, value, text in documented()}


def test_public_modules_are_found() -> None:
    names = {module.__name__ for module in site.public_modules()}
    assert {"qua2sedimo", "qua2sedimo.runtime", "qua2sedimo.search", "qua2sedimo.zoo"} <= names
    assert len(FOUND) > 100


@pytest.mark.parametrize("module", site.public_modules(), ids=lambda module: module.__name__)
def test_what_a_module_calls_public_is_there_and_is_in_the_navigation(module: ModuleType) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
    assert (module.__doc__ or "").strip()
    assert f"docs/api/{module.__name__}\n" in site.toctrees([])


def test_every_public_name_has_a_docstring() -> None:
    bare = [name for name, (value, _) in FOUND.items() if not (getattr(value, "__doc__", "") or "").strip()]
    assert bare == []


def test_docstrings_of_what_takes_or_gives_arrays_state_their_shape() -> None:
    silent = []
    for name, (value, text) in FOUND.items():
        arrays = inspect.isfunction(value) and re.search(r"Tensor|ndarray", str(inspect.signature(value)))
        if arrays and not re.search(r"\[[^\]]*\]|shape|H×W", text):
            silent.append(name)
    assert silent == []


def test_docstrings_of_what_raises_say_so() -> None:
    silent = []
    for name, (value, text) in FOUND.items():
        told = re.search(r"[Rr]aise|[Ee]rror|refuse|must|at least|only", text)
        if inspect.isfunction(value) and raises(value) and not told:
            silent.append(name)
    assert silent == []


def raises(function: object) -> bool:
    """Whether the function itself raises an error that its caller meets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    calls = (n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call))
    kinds = ("Qua2SeDiMoError", "ValueError", "KeyError")
    return any(isinstance(call.func, ast.Name) and call.func.id in kinds for call in calls)


@pytest.mark.slow
def test_the_site_is_made_without_a_warning_and_holds_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    assert site.build(tmp_path) == 0
    for module, name in PUBLIC:
        if not (inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))):
            continue  # tables, constants and PyTorch operators are told of where they are used
        page = (tmp_path / "docs" / "api" / f"{module.__name__}.html").read_text(encoding="utf-8")
        assert f'id="{module.__name__}.{name}"' in page, f"{module.__name__}.{name}"
    assert (tmp_path / "README.html").is_file() and (tmp_path / "index.html").is_file()
    for page in tmp_path.rglob("*.html"):
        source = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)", source)
        assert loaded == [], f"{page} loads {loaded}"
