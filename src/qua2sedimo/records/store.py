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
from qua2sedimo.records.schema import SCHEMA, bring_up_to_date, version_of

T = TypeVar("T")


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
        about = records._read(_about)
        if "space" not in about:
            raise Qua2SeDiMoError(f"{path} holds no measurements", remedy)
        records.space = about["space"]
        return records

    @contextmanager
    def _connection(self, settled: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection; with ``settled`` it reads the file as it is, and creates no files beside it."""
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
            raise Qua2SeDiMoError(
                f"{self.path}: {error}",
                "If the disk is full, free some space. If the file is damaged, move it away; its measurements are "
                "stored nowhere else.",
            ) from error
        finally:
            if db is not None:
                db.close()  # rolls back what was not committed

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
        """Store a measurement, unless one exists for the same role, number and first image."""
        m = record.measurement
        self._put(
            record, m.start, "measured", None, m.seconds, m.values, {name: astuple(e) for name, e in m.sets.items()}
        )

    def add_failure(self, failure: Failure) -> None:
        """Store that a configuration could not be measured, unless it has been measured meanwhile."""
        self._put(failure, failure.start, "failed", failure.error, 0.0, {}, {})

    def _put(
        self, what: Record | Failure, start: int, status: str, error: str | None, seconds: float,
        metrics: Mapping[str, Any], sets: Mapping[str, Any],
    ) -> None:  # fmt: skip
        row = {
            "role": what.role, "number": what.number, "configuration": what.configuration.to_json(),
            "digest": what.configuration.digest, "average_bits": what.average_bits, "first_image": start,
            "status": status, "error": error, "seconds": seconds, "metrics": json.dumps(metrics),
            "sets": json.dumps(sets), **asdict(what.origin), "versions": json.dumps(dict(what.origin.versions)),
            "space": self.space,
        }  # fmt: skip
        columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._transaction() as db:
            db.execute(
                "DELETE FROM measurements WHERE role = :role AND number = :number AND first_image = :first_image"
                " AND status = 'failed'",
                row,
            )
            db.execute(
                f"INSERT INTO measurements ({columns}) VALUES ({places})"
                " ON CONFLICT (role, number, first_image) DO NOTHING",
                row,
            )

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
        return self._read(lambda db: db.execute(query, (status, role, role)).fetchall())


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
