"""Every block of README and docs runs, in its order."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.documented import marked, must, quick, quick_arguments, with_few_steps
from tests.pages import PAGES, ROOT, Block, blocks

from qua2sedimo import StudySettings
from qua2sedimo.metrics.catalogue import METRICS
from qua2sedimo.options import Option
from qua2sedimo.quantizers import LEVEL_METHODS, METHODS

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUNNABLE = [p for p in PAGES if any(b.page == p and b.language in ("bash", "sh", "python") for b in BLOCKS)]


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a page adds to the tables of methods and metrics is gone after it."""
    tables: tuple[dict[str, Any], ...] = (METHODS, LEVEL_METHODS, METRICS)
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept):
        table.clear()
        table.update(before)


@pytest.mark.parametrize("page", [marked(page, page.name) for page in RUNNABLE])
def test_the_blocks_of_a_page_run_in_order(
    page: Path, world: dict[str, str], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runnable = [b for b in BLOCKS if b.page == page and not b.reason]
    made_here = any(re.search(r"qua2sedimo (init|run) \S+ STUDY", b.text) for b in runnable)
    places = {**world, "STUDY": str(tmp_path / "STUDY"), "OUT": str(tmp_path / "OUT"), "FILE": str(tmp_path / "FILE")}
    places["STUDY2"] = str(shutil.copytree(world["STUDY"], tmp_path / "STUDY2"))
    for name in ("STUDY", "OUT"):
        if not (name == "STUDY" and made_here):
            shutil.copytree(world[name], places[name])
    patch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in runnable:
        if block.language in ("bash", "sh"):
            run_shell(block, places, patch)
        elif block.language == "python":
            source = quick_arguments(block.text.replace("my/pipeline", places["MODEL"]))
            exec(compile(source, block.place, "exec"), names)


def run_shell(block: Block, places: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    for words in block.lines:
        made = quick(words[1:], places)
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            patch.setattr("sys.argv", made)
            runpy.run_path(str(ROOT / made[0]), run_name="__main__")
            continue
        assert words[0] == "qua2sedimo", f"{block.place}: '{words[0]}' cannot be run here: say why above the block"
        if made[0] == "export" and Path(made[2]).exists():
            shutil.rmtree(made[2])
        must(with_few_steps(made, places["MODEL"]), patch, block.place)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.place)
def test_settings_in_yaml_are_understood(block: Block) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict):
        StudySettings.model_validate({"model": "m", **content})
    for entry in content if isinstance(content, list) else ():
        assert all(Option.parse(option) for option in entry.values())
