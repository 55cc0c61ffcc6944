"""Documents: what is read is what was written, and nothing else is accepted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document, MaybeFloat
from qua2sedimo.options import Configuration, Option


class Example(Document):
    remedy: ClassVar[str] = "Run it again."

    format: Literal[3] = 3
    name: str
    value: MaybeFloat
    pair: tuple[int, int] | None = None
    configuration: Configuration = Configuration({})

    @classmethod
    def upgraded(cls, content: dict[str, Any], path: Path) -> dict[str, Any]:
        if content.get("format") != 2:
            return content
        return {"format": 3, "name": content["title"], "value": content["value"]}


options = st.builds(Option, st.sampled_from(["uaq", "kmeans_a", "kmeans_c"]), st.integers(2, 8))


@settings(deadline=None)
@given(
    name=st.text(),
    value=st.floats(allow_infinity=False),
    pair=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    options=st.dictionaries(st.text(), options, max_size=4),
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: float, pair: Any, options: dict[str, Option]
) -> None:
    path = tmp_path_factory.mktemp("document") / "example.json"
    made = Example(name=name, value=value, pair=pair, configuration=Configuration(options))
    made.save(path)
    found = Example.load(path)
    assert (found.name, found.pair, found.configuration) == (name, pair, made.configuration)
    assert found.value == value or (math.isnan(found.value) and math.isnan(value))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": 3, "name": "a", "value": 1.0, "more": 1}, "is damaged: more: Extra inputs"),
        ({"format": 3, "name": 1, "value": 1.0}, "is damaged: name: Input should be a valid string"),
        ({"format": 3, "name": "a", "value": "1.0"}, "is damaged: value"),
        ({"format": 3, "name": "a"}, "is damaged: value: Field required"),
        ({"format": 3, "name": "a", "value": 1.0, "configuration": {"x": "uaq-9"}}, "bits must be 1 to 8"),
        ({"format": 4, "name": "a", "value": 1.0}, "format 4 is not 3"),
        ({"name": "a", "value": 1.0}, "format None is not 3"),
        ([1], "format list is not 3"),
    ],
)
def test_anything_else_is_an_error_that_names_file_entry_and_remedy(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "example.json"
    path.write_text(json.dumps(content))
    with pytest.raises(Qua2SeDiMoError) as caught:
        Example.load(path)
    assert str(path) in caught.value.message and says in caught.value.message
    assert caught.value.remedy == "Run it again."


def test_an_earlier_format_is_upgraded(tmp_path: Path) -> None:
    (tmp_path / "example.json").write_text(json.dumps({"format": 2, "title": "a", "value": None}))
    found = Example.load(tmp_path / "example.json")
    assert found.name == "a" and math.isnan(found.value)
