"""Files are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json, write_json, write_text, write_via


def half_then(error: BaseException) -> Callable[[Path], None]:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    return write


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failing_writer_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(type(error)):
        write_via(path, half_then(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_first_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_via(tmp_path / "file.txt", half_then(RuntimeError()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(Qua2SeDiMoError, match=r"file\.txt: No space left on device") as caught:
        write_via(path, half_then(OSError(28, "No space left on device")))
    assert caught.value.remedy
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_is_untouched_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        seen.append((temporary.parent.parent, path.read_text()))

    write_via(path, write)
    assert seen == [(tmp_path, "old")]  # beside its place: a rename never crosses file systems
    assert path.read_text() == "new"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"k": [1, "²"]})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"k": [1, "²"]}


def test_a_file_where_a_folder_is_needed_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(Qua2SeDiMoError, match="taken"):
        write_text(tmp_path / "taken" / "file.txt", "text")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00"], ids=["empty", "cut", "not text"])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(Qua2SeDiMoError, match=r"damaged\.json is damaged") as caught:
        read_json(path)
    assert "Restore it" in str(caught.value)


def test_json_is_written_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"z": 1, "a": None})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["z", "a"]
