"""Measured configurations: each kept once, of one study, and safe when the process dies."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import resource
import signal
import sqlite3
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Configuration, Option
from qua2sedimo.records import SCHEMA, Failure, Origin, Record, Records, content, export, repair, schema
from qua2sedimo.records.measurement import Measurement


def record(role: str = "sample", number: int = 0, start: int = 0, psnr: float = 20.0) -> Record:
    configuration = Configuration({"a": Option("uaq", 2 + number % 7), "b": Option("kmeans_c", 3)})
    values = {"psnr": [psnr, psnr + 2], "features": [0.1, 0.1 + 0.2]}
    return Record(role, number, configuration, 3.0 + number / 7, Measurement(start, values, 0.25))


def failure(role: str = "sample", number: int = 0, error: str = "out of memory") -> Failure:
    one = record(role, number)
    return Failure(role, number, one.configuration, one.average_bits, 0, error)


def opened(folder: Path, space: str = "space", protocol: str = "protocol") -> Records:
    return Records(folder / "records.db", space, protocol)


def test_what_is_added_is_read_back_exactly_also_after_reopening(tmp_path: Path) -> None:
    added = [record("sample", i) for i in range(3)]
    records = opened(tmp_path)
    for one in added:
        records.add(one)
    assert records.all() == added
    assert opened(tmp_path).all() == added
    assert [one.value("psnr") for one in records.all()] == [21.0] * 3


def test_a_metric_that_is_not_a_number_is_kept(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record(psnr=math.nan))
    (found,) = records.all()
    assert math.isnan(found.value("psnr"))
    assert found.value("features") == pytest.approx(0.2)


def test_the_same_role_and_number_is_kept_once_the_first(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for psnr in (20.0, 30.0):
        records.add(record(psnr=psnr))
    assert records.all() == [record(psnr=20.0)]


def test_the_same_number_in_another_role_or_on_other_images_is_another_record(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for one in (record("sample", 1), record("uniform", 1), record("sample", 1, start=16)):
        records.add(one)
    assert len(records.all()) == 3


def test_records_come_in_order_of_role_and_number_and_can_be_had_by_role(tmp_path: Path) -> None:
    records = opened(tmp_path)
    for role, number in (("uniform", 1), ("sample", 10), ("sample", 9), ("candidate", 2)):
        records.add(record(role, number))
    keys = [(one.role, one.number) for one in records.all()]
    assert keys == [("candidate", 2), ("sample", 9), ("sample", 10), ("uniform", 1)]
    assert [one.number for one in records.all("sample")] == [9, 10]
    assert records.all("absent") == []


@pytest.mark.parametrize(("other", "named"), [(("other", "protocol"), "space"), (("space", "other"), "protocol")])
def test_another_space_or_protocol_is_refused_and_nothing_is_lost(tmp_path: Path, other, named: str) -> None:
    opened(tmp_path).add(record())
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
        records.add(record("sample", i))
    with sqlite3.connect(tmp_path / "records.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = tmp_path / "records.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    with pytest.raises(Qua2SeDiMoError, match=r"records\.db"):
        opened(tmp_path).all()


@pytest.mark.parametrize("end", ["", "-wal"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, end: str, kind: str) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    path = tmp_path / "records.db"
    Records(path, "space", "protocol")
    place = path.with_name(f"records.db{end}")
    place.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[kind](place)
    for read in (lambda: Records(path, "space", "protocol"), lambda: Records.existing(path), lambda: repair(path)):
        with pytest.raises(Qua2SeDiMoError, match=f"records.db{end} is not a regular file"):
            read()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="unable to open"):
        opened(tmp_path / "absent")


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(role: str) -> None:
        records = opened(tmp_path)
        for i in range(25):
            records.add(record(role, i))

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
        records.add(record("sample", number))
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


# What cannot be measured -------------------------------------------------------------------------------------------


def test_a_failure_is_kept_apart_with_its_error(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record(number=0))
    records.add_failure(failure(number=1))
    assert records.all() == [record(number=0)]
    assert records.failed() == opened(tmp_path).failed("sample") == [failure(number=1)]
    assert records.failed("single") == []


def test_what_failed_before_can_be_measured_later_and_counts_once(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add_failure(failure())
    records.add_failure(failure(error="out of memory again"))
    assert [one.error for one in records.failed()] == ["out of memory again"]
    records.add(record())
    assert records.all() == [record()] and records.failed() == []


def test_what_was_measured_does_not_fail_afterwards(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record())
    records.add_failure(failure())
    assert records.all() == [record()] and records.failed() == []


ORIGIN = Origin("upstairs", "4711", 2, 123_456_789, {"torch": "2.0", "numpy": "1.9"}, "space")


def from_afar(number: int = 0) -> Record:
    """A record with a set metric, and all that is known of where it comes from."""
    plain = record(number=number)
    sets = {"frechet_full": Estimate(3.5, 3.0, 4.25, 2)}
    measurement = Measurement(0, plain.measurement.values, 0.25, sets)
    return Record("sample", number, plain.configuration, plain.average_bits, measurement, ORIGIN)


def test_set_metrics_and_origin_are_read_back(tmp_path: Path) -> None:
    opened(tmp_path).add(from_afar())
    (found,) = opened(tmp_path).all()
    assert found == from_afar() and found.origin == ORIGIN
    assert found.value("frechet_full") == 3.5


# Two processes -----------------------------------------------------------------------------------------------------


def test_a_number_that_another_process_took_costs_no_measurement(tmp_path: Path) -> None:
    """Both took their numbers from what they had read before."""
    one, two = opened(tmp_path), opened(tmp_path)
    one.add(record("round", 0))
    two.add(replace(record("round", 1), number=0))
    one.add(replace(record("round", 1, start=4), number=0))
    two.add_failure(replace(failure("round", 2), number=0))
    numbers = [(r.number, r.configuration, r.measurement.start) for r in one.all("round")]
    assert numbers == [
        (0, record(number=0).configuration, 0), (1, record(number=1).configuration, 0),
        (1, record(number=1).configuration, 4),
    ]  # fmt: skip
    assert [(f.number, f.configuration) for f in one.failed("round")] == [(2, record(number=2).configuration)]


def test_in_a_sequence_a_number_means_a_configuration(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record("sample", 0))
    with pytest.raises(Qua2SeDiMoError, match="holds another configuration as number 0"):
        records.add(replace(record("sample", 1), number=0))


def test_of_images_that_another_process_measured_meanwhile_only_the_rest_is_added(tmp_path: Path) -> None:
    records = opened(tmp_path)
    records.add(record("round", 0))  # two images
    values = {"psnr": [20.0, 22.0, 24.0, 26.0, 28.0], "features": [0.1, 0.3, 0.5, 0.7, 0.9]}
    records.add(replace(record("round", 0), measurement=Measurement(0, values, 1.0)))
    first, rest = (r.measurement for r in records.all("round"))
    assert first.values["psnr"] == [20.0, 22.0]
    assert (rest.start, rest.values["psnr"], rest.seconds) == (2, [24.0, 26.0, 28.0], pytest.approx(0.6))


# Damage ------------------------------------------------------------------------------------------------------------


def changed(folder: Path, statement: str) -> None:
    db = sqlite3.connect(folder / "records.db")
    db.execute(statement)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE measurements SET metrics = replace(metrics, '20.0', '59.0') WHERE number = 1",
        "UPDATE measurements SET configuration = replace(configuration, 'uaq-3', 'uaq-2') WHERE number = 1",
        "UPDATE measurements SET average_bits = 2.5 WHERE number = 1",
        "UPDATE measurements SET status = 'failed' WHERE number = 1",
        "UPDATE measurements SET seal = '' WHERE number = 1",
    ],
)
def test_a_changed_row_is_named_and_a_repair_costs_only_this_row(tmp_path: Path, statement: str) -> None:
    records = opened(tmp_path)
    for i in range(3):
        records.add(record("sample", i))
    assert repair(tmp_path / "records.db") == (3, 0, None)
    changed(tmp_path, statement)
    with pytest.raises(Qua2SeDiMoError, match=r"records\.db is damaged: the checksum of number 1") as caught:
        records.failed(), records.all()
    assert f"qua2sedimo records {tmp_path} --repair" in str(caught.value.remedy)
    whole, lost, kept = repair(tmp_path / "records.db")
    assert (whole, lost) == (2, 1) and kept is not None and kept.exists()
    assert opened(tmp_path).all() == [record("sample", 0), record("sample", 2)]
    opened(tmp_path).add(record("sample", 1))
    assert len(opened(tmp_path).all()) == 3 and repair(tmp_path / "records.db") == (3, 0, None)


def test_any_flipped_byte_is_noticed_or_harmless_and_a_repair_keeps_the_rest(tmp_path: Path) -> None:
    made = [record("sample", i) for i in range(20)]
    records = opened(tmp_path)
    for one in made:
        records.add(one)
    changed(tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")
    path = tmp_path / "records.db"
    whole = path.read_bytes()
    for at in range(4096, len(whole), len(whole) // 60):  # the first page says what the others are
        for file in tmp_path.glob("records.db*"):
            file.unlink()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :])
        try:
            assert opened(tmp_path).all() == made
        except Qua2SeDiMoError as error:
            assert "records.db" in error.message and error.remedy
            if "--repair" in error.remedy:
                kept, _, _ = repair(path)
                found = opened(tmp_path).all()
                assert len(found) == kept >= 10 and all(one in made for one in found)


# Older files -------------------------------------------------------------------------------------------------------

#: Written down again, not taken from the program: what a file of the first schema looks like must not change.
_SCHEMA_1 = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY, role TEXT NOT NULL, number INTEGER NOT NULL, configuration TEXT NOT NULL,
    digest TEXT NOT NULL, average_bits REAL NOT NULL, first_image INTEGER NOT NULL, metrics TEXT NOT NULL,
    seconds REAL NOT NULL, versions TEXT NOT NULL, UNIQUE (role, number, first_image)
);
INSERT INTO about VALUES ('space', 'space'), ('protocol', 'protocol');
PRAGMA user_version = 1;
"""


def of_schema_1(folder: Path, count: int) -> list[Record]:
    """A records.db as the first release made it, and what is in it."""
    made = [record("sample", i) for i in range(count)]
    db = sqlite3.connect(folder / "records.db")
    db.executescript(_SCHEMA_1)
    for one in made:
        row = (
            one.role, one.number, one.configuration.to_json(), one.configuration.digest, one.average_bits,
            one.measurement.start, json.dumps(one.measurement.values), one.measurement.seconds, '{"torch": "1"}',
        )  # fmt: skip
        db.execute(
            "INSERT INTO measurements (role, number, configuration, digest, average_bits, first_image, metrics,"
            " seconds, versions) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row,
        )  # fmt: skip
    db.commit()
    db.close()
    return made


def user_version(folder: Path) -> int:
    db = sqlite3.connect(folder / "records.db")
    found = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return int(found)


@pytest.mark.parametrize("reading", [opened, lambda folder: Records.existing(folder / "records.db")])
def test_a_file_of_the_first_schema_is_migrated_with_all_its_records(tmp_path: Path, reading) -> None:
    made = of_schema_1(tmp_path, 5)
    records = reading(tmp_path)
    assert records.all() == made and records.failed() == []
    assert records.all()[0].origin == Origin("", "", 1, None, {"torch": "1"}, "space")
    assert user_version(tmp_path) == SCHEMA
    records.add_failure(failure(number=5))
    records.add(record(number=4, psnr=99.0))  # already there
    assert opened(tmp_path).all() == made and opened(tmp_path).failed() == [failure(number=5)]


def test_a_migration_that_breaks_off_leaves_the_old_file_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_schema_1(tmp_path, 3)
    with monkeypatch.context() as broken:
        broken.setattr(schema, "STEPS", (*schema.STEPS[:1], (*schema.STEPS[1], "INSERT INTO absent VALUES (1)")))
        with pytest.raises(Qua2SeDiMoError, match="no such table: absent"):
            opened(tmp_path)
    assert user_version(tmp_path) == 1
    assert opened(tmp_path).all() == made


def test_an_old_file_of_another_study_is_refused(tmp_path: Path) -> None:
    of_schema_1(tmp_path, 1)
    with pytest.raises(Qua2SeDiMoError, match="another space"):
        opened(tmp_path, "other")


# A full disk -------------------------------------------------------------------------------------------------------


def fill(folder: Path, say: int) -> None:
    """In a process that may write no byte: read, and try to add; with room for 60 kB a file: add until it fails."""
    records = opened(folder)
    for number in range(5):
        records.add(record("sample", number))
    readable = []
    for room in (0, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(Qua2SeDiMoError) as caught:
            for number in itertools.count(len(records.all())):
                records.add(record("sample", number))
        readable.append([number, len(records.all()), len(opened(folder).all())])
    readable.append([number, len(records.all()), len(Records.existing(folder / "records.db").all())])
    os.write(say, json.dumps([number, str(caught.value), readable]).encode())


def test_a_full_disk_is_a_clear_error_loses_nothing_and_can_be_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path, writing))
    process.start()
    os.close(writing)
    with open(reading) as said:  # noqa: PTH123
        added, error, readable = json.loads(said.read())
    process.join(60)
    assert process.exitcode == 0
    assert added > 10 and readable == [[5] * 3, [added] * 3, [added] * 3]
    assert "records.db" in error and "free some space" in error
    records = opened(tmp_path)
    assert records.all() == [record("sample", i) for i in range(added)]
    records.add(record("sample", added))  # there is room again
    assert len(records.all()) == added + 1


# For other programs ------------------------------------------------------------------------------------------------


def exported(tmp_path: Path) -> Records:
    records = opened(tmp_path)
    records.add(from_afar(0))
    records.add(record(number=1, psnr=math.nan))
    records.add_failure(failure(number=2, error='out of "memory",\nsorry'))
    return records


def test_the_csv_has_a_line_a_record_with_intervals_and_the_configuration(tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(content(exported(tmp_path), "csv").decode())))
    assert [(line["number"], line["status"]) for line in lines] == [
        ("0", "measured"),
        ("1", "measured"),
        ("2", "failed"),
    ]
    first, _, last = lines
    estimate = from_afar().measurement.estimate("psnr")
    assert float(first["psnr"]) == estimate.value == 21.0
    assert (float(first["psnr_low"]), float(first["psnr_high"])) == (estimate.low, estimate.high)
    assert (first["frechet_full_low"], first["frechet_full_high"]) == ("3.0", "4.25")
    assert (first["peak_memory"], first["host"], first["attempts"]) == ("123456789", "upstairs", "2")
    assert Configuration.from_json(first["configuration"]) == from_afar().configuration
    assert json.loads(first["versions"]) == dict(ORIGIN.versions)
    assert (last["psnr"], last["error"]) == ("", 'out of "memory",\nsorry')


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_the_interval_of_one_image_is_an_empty_cell(form: str, tmp_path: Path) -> None:
    records = opened(tmp_path)
    one = record(number=0)
    records.add(replace(one, measurement=Measurement(0, {"psnr": [21.0]}, 1.0)))
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        (row,) = parquet.read_table(io.BytesIO(content(records, form))).to_pylist()
    elif form == "json":
        (row,) = json.loads(content(records, form), parse_constant=pytest.fail)
    else:
        (row,) = csv.DictReader(io.StringIO(content(records, form).decode()))
    assert (float(row["psnr"]), row["psnr_low"] or None, row["psnr_high"] or None) == (21.0, None, None)


def test_the_json_is_strict_and_has_objects(tmp_path: Path) -> None:
    first, second, last = json.loads(content(exported(tmp_path), "json"), parse_constant=pytest.fail)
    assert first["configuration"] == {"a": "uaq-2", "b": "kmeans_c-3"} and first["versions"]["numpy"] == "1.9"
    assert first["psnr"] == 21.0 and second["psnr"] is None and last["status"] == "failed"


def test_the_parquet_has_the_same_cells_with_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = exported(tmp_path)
    export(records, "parquet", tmp_path / "all.parquet")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.num_rows == 3
    assert [str(table.schema.field(n).type) for n in ("number", "psnr", "error")] == ["int64", "double", "string"]
    assert table["average_bits"].to_pylist() == [one.average_bits for one in (*records.all(), *records.failed())]
    assert table["frechet_full"].to_pylist() == [3.5, None, None]


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Qua2SeDiMoError, match="needs pyarrow") as caught:
        export(exported(tmp_path), "parquet", tmp_path / "all.parquet")
    assert "qua2sedimo[parquet]" in str(caught.value.remedy)
    assert not (tmp_path / "all.parquet").exists()


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="unknown format 'xls'; known: csv, json, parquet"):
        content(exported(tmp_path), "xls")


def test_a_study_that_measured_nothing_has_nothing_to_export_and_gets_no_file(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="does not exist"):
        Records.existing(tmp_path / "records.db")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    assert content(opened(tmp_path), "csv").decode().startswith("role,number,status,average_bits,")
    assert json.loads(content(opened(tmp_path), "json")) == []
