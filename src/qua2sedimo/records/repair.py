"""What is whole of a damaged records.db goes into a new file; the damaged one is kept beside it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import unwritable
from qua2sedimo.formats.temporary import temporary_folder
from qua2sedimo.records.schema import (
    BESIDE,
    SCHEMA,
    SEALED,
    bring_up_to_date,
    refuse_special_files,
    seal_of,
    version_of,
)


def repair(path: Path) -> tuple[int, int, Path | None]:
    """(measurements that are whole, that were lost, where the damaged file is now; None if nothing is damaged).

    Not to be called while another process uses the file. Raises :class:`Qua2SeDiMoError` if nothing can be read.
    """
    if not path.exists():
        raise Qua2SeDiMoError(f"{path} does not exist", "Measure first: `qua2sedimo measure STUDY`.")
    refuse_special_files(path)
    try:
        with closing(sqlite3.connect(path, timeout=30)) as db:
            db.row_factory = sqlite3.Row
            whole, lost, about, schema = _read(db)
    except sqlite3.DatabaseError as error:
        raise Qua2SeDiMoError(
            f"nothing in {path} can be read: {error}", "Move it away; measuring makes it again."
        ) from error
    if schema == SCHEMA and not lost and _is_sound(path):
        return len(whole), 0, None
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    kept = path.with_name(f"{path.name}.damaged-{number}")
    try:
        with temporary_folder(path.parent) as folder:
            _write(folder / path.name, whole, about)
            for end in BESIDE:
                with suppress(FileNotFoundError):
                    path.with_name(path.name + end).rename(kept.with_name(kept.name + end))
            (folder / path.name).rename(path)
    except OSError as error:
        raise unwritable(path, error) from error
    return len(whole), lost, kept


def _read(db: sqlite3.Connection) -> tuple[list[sqlite3.Row], int, dict[str, str], int]:
    """(whole rows, number of others, the table "about", schema)."""
    schema = version_of(db)
    about: dict[str, str] = {}
    with suppress(sqlite3.DatabaseError):
        about = dict(db.execute("SELECT key, value FROM about").fetchall())
    found = {row["id"]: row for direction in ("ASC", "DESC") for row in _until_damage(db, direction)}
    whole = [row for row in found.values() if _is_whole(row, schema)]
    most = max(found, default=0)
    if "space" not in about and whole and schema > 1:
        about["space"] = whole[0]["space"]
    with suppress(sqlite3.DatabaseError):
        most = int(db.execute("SELECT COUNT(*) FROM measurements NOT INDEXED").fetchone()[0])
    return sorted(whole, key=lambda row: int(row["id"])), max(most, len(found)) - len(whole), about, schema


def _until_damage(db: sqlite3.Connection, direction: str) -> Iterator[sqlite3.Row]:
    """Rows from one end of the table to the first page that cannot be read."""
    with suppress(sqlite3.DatabaseError):
        yield from db.execute(f"SELECT * FROM measurements NOT INDEXED ORDER BY id {direction}")


def _is_whole(row: sqlite3.Row, schema: int) -> bool:
    try:
        if schema >= SCHEMA:
            return bool(row["seal"] == seal_of(dict(row)))
        return all(isinstance(json.loads(row[name]), dict) for name in ("configuration", "metrics", "versions"))
    except (ValueError, TypeError, IndexError, RecursionError):
        return False


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=30)) as db:
            return bool(db.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _write(path: Path, rows: list[sqlite3.Row], about: dict[str, str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        bring_up_to_date(db, path)
        db.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        for row in rows:
            content = {name: row[name] for name in SEALED if name in row.keys()}  # noqa: SIM118 - no mapping
            columns, places = ", ".join(content), ", ".join(f":{name}" for name in content)
            db.execute(f"INSERT OR IGNORE INTO measurements ({columns}) VALUES ({places})", content)
        db.execute(f"UPDATE measurements SET seal = row_seal({', '.join(SEALED)})")
        db.execute("COMMIT")
