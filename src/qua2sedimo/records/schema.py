"""Tables of records.db, and migrations from older schemas.

A new file runs the same migrations as an old one, so that the tables have one definition.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import refuse_special

#: What SQLite appends to the name of a database for the files of one.
BESIDE = ("", "-wal", "-shm", "-journal")

_FIRST = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS measurements (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,              -- why it was measured: see qua2sedimo.images.ledger
    number INTEGER NOT NULL,         -- position in the role's sequence
    configuration TEXT NOT NULL,     -- JSON: layer -> option; a layer left out is at full precision
    digest TEXT NOT NULL,
    average_bits REAL NOT NULL,
    first_image INTEGER NOT NULL,
    metrics TEXT NOT NULL,           -- JSON: metric -> value per image
    seconds REAL NOT NULL,
    versions TEXT NOT NULL,          -- JSON: package -> version
    UNIQUE (role, number, first_image)
)""",
)
_FAILURES_AND_ORIGIN = (
    "ALTER TABLE measurements ADD COLUMN status TEXT NOT NULL DEFAULT 'measured'"
    " CHECK (status IN ('measured', 'failed'))",
    "ALTER TABLE measurements ADD COLUMN sets TEXT NOT NULL DEFAULT '{}'",  # JSON: metric -> [value, low, high, images]
    "ALTER TABLE measurements ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE measurements ADD COLUMN error TEXT",
    "ALTER TABLE measurements ADD COLUMN peak_memory INTEGER",  # bytes of the process that measured; unknown before
    "ALTER TABLE measurements ADD COLUMN host TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE measurements ADD COLUMN worker TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE measurements ADD COLUMN space TEXT NOT NULL DEFAULT ''",  # hash of search space and weights
    "UPDATE measurements SET space = COALESCE((SELECT value FROM about WHERE key = 'space'), '')",
)
#: Every column that a row's checksum covers.
SEALED = (
    "role", "number", "configuration", "digest", "average_bits", "first_image", "metrics", "sets", "seconds", "status",
    "error", "versions", "attempts", "peak_memory", "host", "worker", "space",
)  # fmt: skip
_CHECKSUMS = (
    "ALTER TABLE measurements ADD COLUMN seal TEXT NOT NULL DEFAULT ''",
    f"UPDATE measurements SET seal = row_seal({', '.join(SEALED)})",  # rows of before are believed as they are
)
#: Step n migrates schema n to n + 1; 0 is an empty file.
STEPS: tuple[Sequence[str], ...] = (_FIRST, _FAILURES_AND_ORIGIN, _CHECKSUMS)
SCHEMA = len(STEPS)


def seal_of(row: Mapping[str, object]) -> str:
    """The checksum of a row: of its configuration, its values and where they come from."""
    return _seal(*(row[name] for name in SEALED))


def _seal(*values: object) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()[:16]


def version_of(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    """Run the missing steps, within the caller's transaction.

    Raises :class:`Qua2SeDiMoError` if a newer program made the file.
    """
    found = version_of(db)
    if not 0 <= found <= len(STEPS):
        raise Qua2SeDiMoError(f"{path}: schema {found} is newer than {len(STEPS)}", "Update qua2sedimo.")
    db.create_function("row_seal", len(SEALED), _seal, deterministic=True)
    for statement in (statement for step in STEPS[found:] for statement in step):
        db.execute(statement)
    if found < len(STEPS):
        db.execute(f"PRAGMA user_version = {len(STEPS)}")


def refuse_special_files(path: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if a folder, a pipe or a device is in place of a file of the database."""
    for end in BESIDE:
        refuse_special(path.with_name(f"{path.name}{end}"), "Move it away, or restore it.")
