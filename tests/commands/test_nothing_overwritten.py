"""A file that a command writes is replaced if the same command wrote it, and refused if it is anyone else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import choice_of

from qua2sedimo import Study
from qua2sedimo.options import Option

MINE = b"mine, not to be lost"


@pytest.fixture
def measured(study: Path) -> Path:
    """A study with records, and a choice that any recipe can hold."""
    opened = Study(study)
    opened.measure(3)
    configuration = opened.workspace.space.uniform(Option.parse("uaq-4"))
    choice_of(opened, configuration).save(study / "choices" / "plain.json")
    return study


@pytest.mark.parametrize(
    ("command", "name", "written"),
    [
        ("records STUDY --out PLACE", "table.csv", "table.csv"),
        ("records STUDY --out PLACE", "table.json", "table.json"),
        ("records STUDY --out PLACE", "table.parquet", "table.parquet"),
        ("recipe STUDY PLACE --choice plain", "recipe.json", "recipe.json"),
        ("inspect MODEL --graph PLACE", "graph.json", "graph.json"),
        ("inspect MODEL --graph PLACE", "graph.svg", "graph.svg"),
        ("figures STUDY PLACE --format svg", "drawn", "drawn/quality-against-bits.svg"),
        ("figures STUDY PLACE --format svg", "drawn", "drawn/captions.md"),
        ("generate MODEL --prompt 1 --out PLACE", "one.png", "one.png"),
        ("generate MODEL --prompt 1 --count 2 --out PLACE", "several", "several/0001.png"),
    ],
)
def test_only_what_the_same_command_wrote_is_replaced(  # type: ignore[no-untyped-def]
    run, refused, measured: Path, model: Path, tmp_path: Path, command: str, name: str, written: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    places = {"STUDY": measured, "MODEL": model, "PLACE": tmp_path / "to" / name}
    words = [places.get(word, word) for word in command.split()]
    path = tmp_path / "to" / written
    path.parent.mkdir(parents=True)
    path.write_bytes(MINE)
    message = refused(*words)
    assert f"{path} exists" in message and "Choose another name" in message
    assert path.read_bytes() == MINE and len(list((tmp_path / "to").rglob("*.*"))) == 1  # nothing beside it either
    path.unlink()
    for _ in range(2):
        ended = run(*words)
        assert ended.status == 0, ended.err
        assert path.read_bytes() != MINE
