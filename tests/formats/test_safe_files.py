"""Leftovers, locks, checksums and permissions: what processes that die, wait or share a folder may rely on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_space, read_text, write_text, write_via
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.formats.tensorfiles import read_layout

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64), "c": torch.zeros(0, 2)}


def hang_while_writing(path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        (path.parent / "writing").touch()
        time.sleep(60)

    write_via(path, write)


def hold(folder: Path, seconds: float) -> None:
    with alone(folder):
        (folder / "held").touch()
        time.sleep(seconds)
        (folder / "done").touch()


def started(work, *arguments: object, mark: Path) -> multiprocessing.process.BaseProcess:  # type: ignore[no-untyped-def]
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    while not mark.exists():
        time.sleep(0.01)
    return process


def test_what_a_killed_writer_left_is_removed_but_nothing_of_one_that_lives(tmp_path: Path) -> None:
    process = started(hang_while_writing, tmp_path / "file", mark=tmp_path / "writing")
    (tmp_path / ".notes.tmp").write_text("mine")
    clear_leftovers(tmp_path)
    assert len(list(tmp_path.glob(".qua2sedimo-*"))) == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".notes.tmp", "writing"}


def test_a_second_process_waits_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    process = started(hold, tmp_path, 0.5, mark=tmp_path / "held")
    said: list[bool] = []
    with alone(tmp_path, lambda: said.append(True)), alone(tmp_path):  # who is inside already goes on
        assert (tmp_path / "done").exists() and said == [True]
    process.join()
    (tmp_path / "held").unlink()
    process = started(hold, tmp_path, 60, mark=tmp_path / "held")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with alone(tmp_path):
        pass
    assert not list(tmp_path.glob(".*"))


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "text")
        save_tensors(tmp_path / "a.safetensors", TENSORS)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o640}


def test_tensors_come_back_with_what_is_said_of_them(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {**TENSORS, "n": np.ones(2, dtype=np.float32)}, {"key": [1, None]})
    found, about = load_tensors(tmp_path / "a.safetensors", "")
    assert about == {"key": [1, None]} and found.keys() == {*TENSORS, "n"}
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_any_flipped_bit_of_a_file_of_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"key": "space"})
    whole = path.read_bytes()
    expected, silent = load_tensors(path, ""), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found, about = load_tensors(path, "Make it again.")
        except Qua2SeDiMoError as error:
            assert "a.safetensors" in error.message and error.remedy == "Make it again."
            continue
        silent += 1  # the name of the checksum itself: the file is then one of an earlier version
        assert all(torch.equal(found[name], tensor) for name, tensor in expected[0].items()) or about != expected[1]
    assert silent <= len("about") + len("checksum") + len("__metadata__") + 4


def test_a_place_is_read_only_or_full_and_is_called_so(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        def write(temporary: Path) -> None:
            raise OSError(number, os.strerror(number), str(temporary))

        write_via(tmp_path / "file", write, 5_000_000)

    with pytest.raises(Qua2SeDiMoError, match=r"file: No space left on device; it needs 5\.00 MB, .* are free") as full:
        fail(errno.ENOSPC)
    assert "Free disk space" in str(full.value.remedy)
    with pytest.raises(Qua2SeDiMoError, match="file: its place is read-only") as locked:
        fail(errno.EROFS)
    assert "disk space" not in str(locked.value.remedy)
    with pytest.raises(Qua2SeDiMoError, match=r"the bank needs 1\.00e\+06 TB in .*, where .* are free"):
        check_space(tmp_path / "bank", 10**18, "the bank")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "long name", "no text"])
def test_what_is_no_file_of_text_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe")
    path = {"device": Path("/dev/zero"), "folder": tmp_path, "long name": tmp_path / ("x" * 300)}.get(kind, path)
    with pytest.raises(Qua2SeDiMoError):
        read_text(path)


def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "a.safetensors", TENSORS)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "read_text", refused)
    for read in (lambda path: load_tensors(path, "It is damaged."), read_layout, read_text):
        with pytest.raises(Qua2SeDiMoError, match=r"cannot read .*a\.safetensors: Permission denied") as caught:
            read(tmp_path / "a.safetensors")
        assert caught.value.remedy == "Allow reading it, then run the command again."
