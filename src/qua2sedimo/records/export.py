"""Records as a table for other programs: a row per record, in CSV, JSON or Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats import tabular
from qua2sedimo.formats.files import check_ours, write_via
from qua2sedimo.records.store import Failure, Record, Records

Row = dict[str, Any]

#: Columns before and after the metrics, with their types.
_BEFORE = {"role": str, "number": int, "status": str, "average_bits": float, "first_image": int, "images": int}
_AFTER = {
    "seconds": float, "peak_memory": int, "attempts": int, "error": str, "host": str, "worker": str, "space": str,
    "versions": str, "digest": str, "configuration": str,
}  # fmt: skip
_NESTED = ("versions", "configuration")


def rows(records: Records) -> list[Row]:
    """A mapping per record, measured ones first; all have the same keys.

    A metric such as ``psnr`` has three columns: ``psnr``, its mean, and ``psnr_low`` and ``psnr_high``, its 95 %
    bootstrap interval. Missing values and NaN are None.
    """
    found = [*map(_measured, records.all()), *map(_failed, records.failed())]
    metrics = dict.fromkeys(key for row in found for key in row if key not in _BEFORE and key not in _AFTER)
    return [{key: row.get(key) for key in (*_BEFORE, *metrics, *_AFTER)} for row in found]


def content(records: Records, form: str) -> bytes:
    """The table in the given format.

    Raises :class:`Qua2SeDiMoError` for an unknown format, or for Parquet without pyarrow.
    """
    if form not in FORMATS:
        raise Qua2SeDiMoError(f"unknown format '{form}'; known: {', '.join(FORMATS)}")
    return FORMATS[form](rows(records))


def export(records: Records, form: str, path: Path) -> None:
    """Write the table atomically.

    Raises as :func:`content`, and if another file than such a table is at ``path``.
    """
    check_ours(path, "average_bits")
    written = content(records, form)
    write_via(path, lambda temporary: temporary.write_bytes(written))


def as_csv(table: Sequence[Row]) -> bytes:
    return tabular.as_csv(table, _columns(table))


def as_json(table: Sequence[Row]) -> bytes:
    """An array of objects; configuration and versions are nested objects, and non-finite numbers are null."""
    plain = [{key: json.loads(cell) if key in _NESTED else _finite(cell) for key, cell in row.items()} for row in table]
    return json.dumps(plain, indent=1, allow_nan=False).encode()


def as_parquet(table: Sequence[Row]) -> bytes:
    return tabular.as_parquet(table, {name: {**_BEFORE, **_AFTER}.get(name, float) for name in _columns(table)})


def _columns(table: Sequence[Row]) -> list[str]:
    return list(table[0]) if table else [*_BEFORE, *_AFTER]


#: Format → function from :func:`rows` to a file's content.
FORMATS: dict[str, Callable[[Sequence[Row]], bytes]] = {"csv": as_csv, "json": as_json, "parquet": as_parquet}


def _measured(record: Record) -> Row:
    m = record.measurement
    metrics: Row = {}
    for name in (*m.values, *m.sets):
        plain = m.estimate(name).to_json()
        metrics |= {name: plain["value"], f"{name}_low": plain["low"], f"{name}_high": plain["high"]}
    return {
        **_common(record), "status": "measured", "first_image": m.start, "images": m.images or None,
        "seconds": m.seconds, **metrics,
    }  # fmt: skip


def _failed(failure: Failure) -> Row:
    return {**_common(failure), "status": "failed", "first_image": failure.start, "error": failure.error}


def _common(record: Record | Failure) -> Row:
    o = record.origin
    return {
        "role": record.role, "number": record.number, "average_bits": record.average_bits,
        "peak_memory": o.peak_memory, "attempts": o.attempts, "host": o.host, "worker": o.worker, "space": o.space,
        "versions": json.dumps(dict(o.versions)), "digest": record.configuration.digest,
        "configuration": record.configuration.to_json(),
    }  # fmt: skip


def _finite(cell: Any) -> Any:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
