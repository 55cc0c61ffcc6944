"""Measured configurations: each kept once, of one study, and safe when the process dies."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation import Measurement
from qua2sedimo.options import Configuration, Option
from qua2sedimo.records import SCHEMA, Record, Records

VERSIONS = {"torch": "0"}


def record(role: str = "sample", number: int = 0, start: int = 0, psnr: float = 20.0) -> Record:
    configuration = Configuration({"a": Option("uaq", 2 + number % 7), "b": Option("kmeans_c", 3)})
    values = {"psnr": [psnr, psnr + 2], "features": [0.1, 0.1 + 0.2]}
    return Record(role, number, configuration, 3.0 + number / 7, Measurement(start, values, 0.25))


def opened(folder: Path, space: str = "space", protocol: str = "protocol") -> Records:
    return Records(folder / "records.db", space, protocol)


def test_what_is_added_is_read_back_exactly_also_after_reopening(tmp_path: Path) -> None:
    added = [record("sample", i) for i in range(3)]
    records = opened(tmp_path)
    for one in added:
        records.add(one, VERSIONS)
    assert records.all() == added
    assert opened(tmp_path).all() == added
    assert [one.value("psnr") for one in records.all()] == [21.0] * 3


def test_a_metric_that_is_not_a_number_is_kept(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record(psnr=math.nan), VERSIONS)
    (found,) = records.all()
    assert math.isnan(found.value("psnr"))
    assert found.value("features") == pytest.approx(0.2)


def test_the_same_role_and_number_is_kept_once_the_first(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for psnr in (20.0, 30.0):
        records.add(record(psnr=psnr), VERSIONS)
    assert records.all() == [record(psnr=20.0)]


def test_the_same_number_in_another_role_or_on_other_images_is_another_record(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for one in (record("sample", 1), record("uniform", 1), record("sample", 1, start=16)):
        records.add(one, VERSIONS)
    assert len(records.all()) == 3


def test_records_come_in_order_of_role_and_number_and_can_be_had_by_role(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for role, number in (("uniform", 1), ("sample", 10), ("sample", 9), ("candidate", 2)):
        records.add(record(role, number), VERSIONS)
    keys = [(one.role, one.number) for one in records.all()]
    assert keys == [("candidate", 2), ("sample", 9), ("sample", 10), ("uniform", 1)]
    assert [one.number for one in records.all("sample")] == [9, 10]
    assert records.all("absent") == []


@pytest.mark.parametrize(("other", "named"), [(("other", "protocol"), "space"), (("space", "other"), "protocol")])
def test_another_space_or_protocol_is_refused_and_nothing_is_lost(tmp_path: Path, other, named: str) -> None:
    opened(tmp_path).add(record(), VERSIONS)
    with pytest.raises(
        Qua2SeDiMoError, match=rf"records.db holds measurements of another {named} \({named}, .*other\)"
    ):
        opened(tmp_path, *other)
    assert opened(tmp_path).all() == [record()]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with sqlite3.connect(tmp_path / "records.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    with pytest.raises(Qua2SeDiMoError, match=f"schema {SCHEMA + 1} is newer than {SCHEMA}"):
        opened(tmp_path)


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"these are no records, but somebody's words. " * 100)
    before = path.read_bytes()
    with pytest.raises(Qua2SeDiMoError, match=r"records\.db: file is not a database") as caught:
        opened(tmp_path)
    assert "move it away" in str(caught.value.remedy)
    assert path.read_bytes() == before


def test_a_damaged_file_is_an_error_not_a_shorter_list(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for i in range(100):
        records.add(record("sample", i), VERSIONS)
    with sqlite3.connect(tmp_path / "records.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = tmp_path / "records.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    with pytest.raises(Qua2SeDiMoError, match=r"records\.db"):
        opened(tmp_path).all()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="unable to open"):
        opened(tmp_path / "absent")


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(role: str) -> None:
        records = opened(tmp_path)
        for i in range(25):
            records.add(record(role, i), VERSIONS)

    threads = [threading.Thread(target=write, args=(role,)) for role in ("candidate", "sample")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.role, one.number) for one in opened(tmp_path).all()] == [
        (role, i) for role in ("candidate", "sample") for i in range(25)
    ]


def add_forever(folder: Path, first: int, acknowledge: int) -> None:
    """What the killed process does: a number goes to the pipe once its record is added."""
    records = opened(folder)
    for number in itertools.count(first):
        records.add(record("sample", number), VERSIONS)
        os.write(acknowledge, f"{number}\n".encode())


def test_a_process_killed_while_adding_loses_no_acknowledged_record_and_leaves_no_half_one(tmp_path: Path) -> None:
    first = 0
    for wanted in (7, 20, 33):
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=add_forever, args=(tmp_path, first, writing))
        process.start()
        os.close(writing)
        acknowledged = []
        with open(reading) as lines:  # noqa: PTH123
            for line in lines:
                acknowledged.append(int(line))
                if len(acknowledged) == wanted:
                    process.kill()  # what it still said before it died is read too
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        found = opened(tmp_path).all()
        # everything acknowledged, and at most one more whose acknowledgement was cut off
        assert acknowledged == list(range(first, first + len(acknowledged)))
        assert acknowledged[-1] + 1 <= len(found) <= acknowledged[-1] + 2
        assert found == [record("sample", i) for i in range(len(found))]
        first = len(found)
