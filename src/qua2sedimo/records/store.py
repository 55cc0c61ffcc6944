"""Reading and adding records: each measurement is stored once, completely, and never changed."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Configuration
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.records.schema import SCHEMA, bring_up_to_date, refuse_special_files, seal_of, version_of

T = TypeVar("T")

#: Roles whose numbers are positions in a sequence that everybody knows: a number means a configuration.
_SEQUENCES = ("sample",)


@dataclass(frozen=True)
class Origin:
    """Where a record comes from: host and worker, attempts, software versions, and memory.

    ``peak_memory``: peak bytes of the measuring process, None if unknown; ``space``: hash of search space and weights.
    """

    host: str = ""
    worker: str = ""
    attempts: int = 1
    peak_memory: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    space: str = ""


@dataclass(frozen=True)
class Record:
    """One measured configuration; its origin does not affect equality."""

    role: str
    number: int
    configuration: Configuration
    average_bits: float
    measurement: Measurement
    origin: Origin = field(default_factory=Origin, compare=False)

    def value(self, metric: str) -> float:
        """A metric's value, of the mean over images or of the set."""
        return self.measurement.means[metric]


@dataclass(frozen=True)
class Failure:
    """A configuration that could not be measured on images from ``start``, and the last error."""

    role: str
    number: int
    configuration: Configuration
    average_bits: float
    start: int
    error: str
    origin: Origin = field(default_factory=Origin, compare=False)


class Records:
    """Reads and adds measurements; a file of another search space or protocol is refused.

    ``space`` identifies search space and weights, ``protocol`` everything else that measurements depend on (inputs,
    seed, steps, images): a file holds measurements of one space and protocol only.
    """

    def __init__(self, path: Path, space: str, protocol: str) -> None:
        self.path, self.space = path, space
        mine = {"space": space, "protocol": protocol}
        if not path.exists() or self._read(version_of) != SCHEMA or self._read(_about).keys() != mine.keys():
            with self._transaction() as db:
                bring_up_to_date(db, path)
                db.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", mine.items())
        self._check_pages()
        about = self._read(_about)
        for key, value in mine.items():
            if about[key] != value:
                raise Qua2SeDiMoError(
                    f"{path} holds measurements of another {key} ({about[key]}, this study has {value})",
                    "Use a new study folder, or restore study.yaml.",
                )

    @classmethod
    def existing(cls, path: Path) -> Records:
        """Open a file of any space and protocol; raises :class:`Qua2SeDiMoError` if it holds no measurements."""
        remedy = "Measure first: `qua2sedimo measure STUDY`."
        if not path.exists():
            raise Qua2SeDiMoError(f"{path} does not exist", remedy)
        records = cls.__new__(cls)
        records.path = path
        if records._read(version_of) != SCHEMA:
            with records._transaction() as db:
                bring_up_to_date(db, path)
        records._check_pages()
        about = records._read(_about)
        if "space" not in about:
            raise Qua2SeDiMoError(f"{path} holds no measurements", remedy)
        records.space = about["space"]
        return records

    @contextmanager
    def _connection(self, settled: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection; with ``settled`` it reads the file as it is, and creates no files beside it."""
        refuse_special_files(self.path)
        db = None
        try:
            if settled:
                db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
            else:
                db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
                _write_ahead(db)
                db.execute("PRAGMA synchronous = FULL")
            db.row_factory = sqlite3.Row
            yield db
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error
        finally:
            if db is not None:
                db.close()  # rolls back what was not committed

    def _failed(self, error: sqlite3.DatabaseError) -> Qua2SeDiMoError:
        """The error for what SQLite could not do."""
        text = str(error)
        if "full" in text or "disk I/O" in text:
            remedy = "The disk is full: free some space, then run the command again."
            return Qua2SeDiMoError(f"cannot write {self.path}: {text}", remedy)
        if "readonly" in text or "unable to open" in text:
            remedy = "Allow writing there, or copy the study."
            return Qua2SeDiMoError(f"cannot write {self.path}: missing or read-only ({text})", remedy)
        if "locked" in text:
            return Qua2SeDiMoError(f"{self.path}: {text}", "Another process holds it: run the command again later.")
        if "not a database" in text:
            remedy = "If it is yours, move it away; if this program wrote it, nothing in it can be read any more."
            return Qua2SeDiMoError(f"{self.path}: {text}", remedy)
        return self._damaged(text)

    def _damaged(self, why: str) -> Qua2SeDiMoError:
        return Qua2SeDiMoError(
            f"{self.path} is damaged: {why}",
            f"`qua2sedimo records {self.path.parent} --repair` keeps every measurement that is whole; what is lost is "
            "then measured again.",
        )

    def _check_pages(self) -> None:
        """Raise :class:`Qua2SeDiMoError` if SQLite finds damage: a damaged index would hide rows."""
        found = self._read(lambda db: str(db.execute("PRAGMA integrity_check(1)").fetchone()[0]))
        if found != "ok":
            raise self._damaged(" ".join(found.split()))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The query's result, even on a disk too full for the index file that SQLite creates beside it."""
        try:
            with self._connection() as db:
                return query(db)
        except Qua2SeDiMoError as error:
            log = self.path.with_name(f"{self.path.name}-wal")
            unsettled = not self.path.exists() or (log.exists() and log.stat().st_size > 0)
            if unsettled or not isinstance(error.__cause__, sqlite3.OperationalError):
                raise
        with self._connection(settled=True) as db:
            return query(db)

    def add(self, record: Record) -> None:
        """Store a measurement; of images that are measured already, nothing is stored again.

        If another process gave the record's number to another configuration meanwhile, it gets the next free one; in a
        sequence, where a number means a configuration, that raises :class:`Qua2SeDiMoError`.
        """
        with self._transaction() as db:
            row = _row_of(record, self.space) | {"number": self._number(db, record)}
            rest: Measurement | None = record.measurement
            while rest is not None and (kept := _kept(db, row | {"first_image": rest.start})):
                rest = rest.after(kept.images)
            if rest is not None and rest.images:
                sets = {name: astuple(e) for name, e in rest.sets.items()}
                values = {"first_image": rest.start, "metrics": json.dumps(rest.values), "sets": json.dumps(sets)}
                _insert(db, row | values | {"seconds": rest.seconds})

    def add_failure(self, failure: Failure) -> None:
        """Store that a configuration could not be measured, unless it has been measured meanwhile."""
        with self._transaction() as db:
            row = _row_of(failure, self.space) | {"number": self._number(db, failure), "first_image": failure.start}
            if _kept(db, row) is None:
                _insert(db, row | {"status": "failed", "error": failure.error})

    def _number(self, db: sqlite3.Connection, what: Record | Failure) -> int:
        """The number asked for; if another configuration has it, one that this configuration has, else the next."""
        taken = "SELECT 1 FROM measurements WHERE role = ? AND number = ? AND digest != ?"
        if db.execute(taken, (what.role, what.number, what.configuration.digest)).fetchone() is None:
            return what.number
        if what.role in _SEQUENCES:
            raise Qua2SeDiMoError(
                f"{self.path} holds another configuration as number {what.number} of role '{what.role}'",
                "Restore the list of configurations that was measured, or use a new study folder.",
            )
        own = "SELECT MIN(number) FROM measurements WHERE role = ? AND digest = ?"
        following = "SELECT MAX(number) + 1 FROM measurements WHERE role = ?"
        (found,) = db.execute(own, (what.role, what.configuration.digest)).fetchone()
        return int(db.execute(following, (what.role,)).fetchone()[0] if found is None else found)

    def all(self, role: str | None = None) -> list[Record]:
        """Measured configurations, sorted by role and number."""
        return [
            Record(
                row["role"], row["number"], _configuration(row), row["average_bits"], _measurement(row), _origin(row)
            )
            for row in self._rows("measured", role)
        ]

    def failed(self, role: str | None = None) -> list[Failure]:
        """Configurations that could not be measured, sorted by role and number."""
        return [
            Failure(
                row["role"], row["number"], _configuration(row), row["average_bits"], row["first_image"],
                row["error"], _origin(row),
            )
            for row in self._rows("failed", role)
        ]  # fmt: skip

    def _rows(self, status: str, role: str | None) -> list[sqlite3.Row]:
        query = (
            "SELECT * FROM measurements WHERE status = ? AND (? IS NULL OR role = ?) ORDER BY role, number, first_image"
        )
        rows: list[sqlite3.Row] = self._read(lambda db: db.execute(query, (status, role, role)).fetchall())
        for row in rows:
            if row["seal"] != seal_of(dict(row)):
                raise self._damaged(
                    f"the checksum of number {row['number']} of role '{row['role']}' (images from "
                    f"{row['first_image']}) differs"
                )
        return rows


def _write_ahead(db: sqlite3.Connection, patience: float = 30) -> None:
    """Switch the file to a write-ahead log, unless it has one.

    SQLite does not wait its timeout for this switch: a second process that opens a new file at the same moment finds
    it locked. So wait here, up to ``patience`` seconds.
    """
    until = time.monotonic() + patience
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _row_of(what: Record | Failure, space: str) -> dict[str, Any]:
    """The columns of a row that do not depend on what was measured; the others have their default."""
    return {
        "role": what.role, "number": what.number, "configuration": what.configuration.to_json(),
        "digest": what.configuration.digest, "average_bits": what.average_bits, "status": "measured", "error": None,
        "seconds": 0.0, "metrics": "{}", "sets": "{}", **asdict(what.origin),
        "versions": json.dumps(dict(what.origin.versions)), "space": space,
    }  # fmt: skip


def _kept(db: sqlite3.Connection, row: Mapping[str, Any]) -> Measurement | None:
    """What is measured already of this configuration from this image on."""
    query = "SELECT * FROM measurements WHERE role = :role AND number = :number AND first_image = :first_image"
    found = db.execute(f"{query} AND status = 'measured'", dict(row)).fetchone()
    return None if found is None else _measurement(found)


def _insert(db: sqlite3.Connection, row: dict[str, Any]) -> None:
    """Add a row with its checksum, in the place of a failure if there is one."""
    place = "role = :role AND number = :number AND first_image = :first_image"
    db.execute(f"DELETE FROM measurements WHERE {place} AND status = 'failed'", row)
    row = {**row, "seal": seal_of(row)}
    columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    db.execute(f"INSERT INTO measurements ({columns}) VALUES ({places})", row)


def _about(db: sqlite3.Connection) -> dict[str, str]:
    return dict(db.execute("SELECT key, value FROM about").fetchall())


def _configuration(row: sqlite3.Row) -> Configuration:
    return Configuration.from_json(row["configuration"])


def _measurement(row: sqlite3.Row) -> Measurement:
    sets = {name: Estimate(*values) for name, values in json.loads(row["sets"]).items()}
    return Measurement(row["first_image"], json.loads(row["metrics"]), row["seconds"], sets)


def _origin(row: sqlite3.Row) -> Origin:
    versions = json.loads(row["versions"])
    return Origin(row["host"], row["worker"], row["attempts"], row["peak_memory"], versions, row["space"])
