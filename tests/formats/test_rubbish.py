"""Every document, fed with anything: only the project's own errors come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qua2sedimo.measuring.exported
import qua2sedimo.report
import qua2sedimo.study.facade  # noqa: F401 - all documents are known
from qua2sedimo.bank import Bank
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document
from qua2sedimo.formats.sealed import sealed
from qua2sedimo.options import SearchSpace
from qua2sedimo.runtime.contents import check_contents
from qua2sedimo.sampling import read_list
from qua2sedimo.study.settings import StudySettings

SPACE = SearchSpace.of({"a": (4, 4)}, "uaq-4")
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
#: Texts that are no JSON, or hard to read.
TEXTS = [
    "", "nul", '"a name"', "[" * 100_000, '{"a":' * 50_000, "9" * 5000, '{"format": ' + "9" * 5000 + "}",
    "[1e999, NaN]", '{"format": 1e999}', '"\\ud800"', "\x00",
]  # fmt: skip


def documents() -> dict[str, type[Document]]:
    def below(cls: type[Document]) -> list[type[Document]]:
        return [one for sub in cls.__subclasses__() for one in (sub, *below(sub))]

    return {cls.__name__: cls for cls in below(Document) if cls.__module__.startswith("qua2sedimo")}


def fields_of(cls: type[Document]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have the right names, format and checksum, and anything for values."""
    names = {name: anything for name in cls.model_fields if name != "format"}
    formats = st.sampled_from([cls.model_fields["format"].default, 1, None])
    made = st.fixed_dictionaries({"format": formats}, optional={**names, "key": anything})
    return made | made.map(sealed)


def only_own_errors(load, path: Path, text: str) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        load(path)
    except Qua2SeDiMoError as error:
        assert path.name in error.message or path.parent.name in error.message


@pytest.mark.parametrize("name", sorted(documents()))
def test_a_document_of_rubbish_is_refused_by_name(tmp_path: Path, name: str) -> None:
    cls = documents()[name]

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(anything | fields_of(cls))
    def feed(content: Any) -> None:
        only_own_errors(cls.load, tmp_path / "document.json", json.dumps(content))

    feed()
    for text in TEXTS:
        only_own_errors(cls.load, tmp_path / "document.json", text)


#: How files that are no documents are read, and their names.
OTHERS = {
    "study.yaml": StudySettings.load,
    "list.yaml": lambda path: read_list(path, SPACE),
    "qua2sedimo.json": lambda path: check_contents(path.parent),
    "index.json": lambda path: Bank(path.parent, SPACE, "owner"),
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_files_of_rubbish_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder" / name
    entries = st.sampled_from(
        ["format", "version", "model", "layers", "owner", "files", "extra", "inputs", "objective", "seed", "*"]
    )

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(anything | st.dictionaries(entries, anything) | st.dictionaries(entries, anything).map(sealed))
    def feed(content: Any) -> None:
        only_own_errors(OTHERS[name], path, json.dumps(content))

    feed()
    for text in (*TEXTS, BOMB, "model: &a [*a]\n", "- &a {'*': uaq-4}\n- *a\n", "x: !!python/object:os.system {}"):
        only_own_errors(OTHERS[name], path, text)


def test_a_few_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- &a {'*': uaq-4}\n- *a\n")
    assert len(read_list(tmp_path / "list.yaml", SPACE)) == 2
    with pytest.raises(Qua2SeDiMoError, match="aliases stand for more than"):
        (tmp_path / "bomb.yaml").write_text(BOMB)
        read_list(tmp_path / "bomb.yaml", SPACE)
