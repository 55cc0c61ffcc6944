"""Every command in tables and sentences of README and docs runs."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from tests.documented import in_full, marked, must, quick, with_few_steps
from tests.pages import PAGES, Code, inline

INLINE = [code for page in PAGES for code in inline(page)]


def commands(page_codes: list[Code]) -> list[Code]:
    """The runnable ones: a command with its arguments, each text once in all pages."""
    seen: dict[str, Code] = {}
    for code in page_codes:
        text = in_full(code.text)
        if text.startswith("qua2sedimo ") and not code.reason and len(text.split()) > 2:
            seen.setdefault(text, code)
    return list(seen.values())


@pytest.mark.parametrize("code", [marked(code, in_full(code.text)) for code in commands(INLINE)])
def test_every_command_of_tables_and_sentences_runs(
    code: Code, world: dict[str, str], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, *words = shlex.split(in_full(code.text))[1:]
    places = {**world, "FILE": str(tmp_path / "file"), "STUDY2": world["STUDY"]}
    if name in ("init", "run"):
        places["STUDY"] = str(tmp_path / "study")
    if name in (
        "choose",
        "export",
        "search",
        "frontier",
        "report",
        "explain",
        "quantize",
        "observe",
        "quick",
        "polish",
    ):
        places["STUDY"] = str(shutil.copytree(world["STUDY"], tmp_path / "study"))
    if name in ("export", "polish"):
        places |= {"OUT": str(tmp_path / "out"), "NAME": "3.5"}
    if name == "recipe":
        places |= {"STUDY": world["PLAIN"], "NAME": "NAME"}
        words += [] if "--choice" in words else ["--choice", "NAME"]
    made = quick([name, *words], places)
    patch.chdir(tmp_path)
    must(with_few_steps(made, places["MODEL"]), patch, code.place)
