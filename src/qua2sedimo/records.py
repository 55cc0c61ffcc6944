"""The measured configurations of a study: one SQLite file in WAL mode, one transaction a measurement."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation.measure import Measurement
from qua2sedimo.options import Configuration

SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS measurements (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,              -- why it was measured: sample, candidate, uniform
    number INTEGER NOT NULL,         -- position in the role's sequence
    configuration TEXT NOT NULL,     -- JSON: layer -> option
    digest TEXT NOT NULL,
    average_bits REAL NOT NULL,
    first_image INTEGER NOT NULL,
    metrics TEXT NOT NULL,           -- JSON: metric -> value per image
    seconds REAL NOT NULL,
    versions TEXT NOT NULL,
    UNIQUE (role, number, first_image)
);
"""


@dataclass(frozen=True)
class Record:
    """One measured configuration."""

    role: str
    number: int
    configuration: Configuration
    average_bits: float
    measurement: Measurement

    def value(self, metric: str) -> float:
        """The metric's value, of per-image or set kind."""
        return self.measurement.means[metric]


class Records:
    """Reads and adds measurements; a file of another search space or protocol is refused.

    ``space`` names the search space and ``protocol`` everything else that makes numbers comparable (inputs, seed,
    steps, images): measurements made under different ones never share a file.
    """

    def __init__(self, path: Path, space: str, protocol: str) -> None:
        self.path = path
        with self._connection() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise Qua2SeDiMoError(f"{path}: schema {version} is newer than {SCHEMA}", "Update qua2sedimo.")
            db.executescript(_TABLES)
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            for key, value in (("space", space), ("protocol", protocol)):
                db.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", (key, value))
                (found,) = db.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
                if found != value:
                    raise Qua2SeDiMoError(
                        f"{path} holds measurements of another {key} ({found}, this study has {value})",
                        "Use a new study folder, or put study.yaml back as it was.",
                    )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = None
        try:
            db = sqlite3.connect(self.path, timeout=30)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db
        except sqlite3.DatabaseError as error:
            raise Qua2SeDiMoError(
                f"{self.path}: {error}",
                "If the disk is full, free some space. If the file is damaged, move it away; nothing else holds "
                "its measurements.",
            ) from error
        finally:
            if db is not None:
                db.close()

    def add(self, record: Record, versions: dict[str, str]) -> None:
        """Store one measurement; one already there for the same role, number and images is kept."""
        row = (
            record.role,
            record.number,
            record.configuration.to_json(),
            record.configuration.digest,
            record.average_bits,
            record.measurement.start,
            json.dumps(record.measurement.values),
            record.measurement.seconds,
            json.dumps(versions),
        )
        with self._connection() as db:
            db.execute(
                "INSERT INTO measurements (role, number, configuration, digest, average_bits, first_image,"
                " metrics, seconds, versions) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (role, number, first_image) DO NOTHING",
                row,
            )

    def all(self, role: str | None = None) -> list[Record]:
        """Records in order of role and number."""
        query = (
            "SELECT role, number, configuration, average_bits, first_image, metrics, seconds FROM measurements"
            " WHERE ? IS NULL OR role = ? ORDER BY role, number, first_image"
        )
        with self._connection() as db:
            rows = db.execute(query, (role, role)).fetchall()
        return [
            Record(
                role_,
                number,
                Configuration.from_json(configuration),
                bits,
                Measurement(first, json.loads(metrics), s),
            )
            for role_, number, configuration, bits, first, metrics, s in rows
        ]
