"""The list of finished files: what a kill or a stranger may leave in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.formats.finished import add_finished, finished


def test_what_was_added_is_read_and_the_last_of_equal_names_counts(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    assert finished(path) == {}
    for name, checksum in (("a", "1"), ("b\u2028\n", "2"), ("a", "3")):
        add_finished(path, name, checksum)
    assert finished(path) == {"a": "3", "b\u2028\n": "2"}


@pytest.mark.parametrize("damage", [b'["c", "4', b"\x00\xff", b"7", b'{"c": 1}', b'["c"]', b"[" * 10_000])
def test_a_damaged_line_costs_its_own_file_only(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "list.jsonl"
    add_finished(path, "a", "1")
    path.write_bytes(path.read_bytes() + damage + b"\n")
    add_finished(path, "b", "2")
    assert finished(path) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("folder", ["bank", "statistics"])
def test_a_pipe_a_folder_or_a_device_in_its_place_is_refused_and_nothing_waits_for_it(
    tmp_path: Path, put: Callable[[Path], object], folder: str
) -> None:
    study = Study.create(tmp_path / "study", small_settings(options="uaq-3,uaq-4"), small_pipeline())
    place = study.folder / folder / "checksums.jsonl"
    place.parent.mkdir()
    put(place)
    with pytest.raises(Qua2SeDiMoError, match=r"checksums\.jsonl is not a regular file"):
        study.quantize()
