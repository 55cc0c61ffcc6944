"""Tables as files for other programs: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_via

Row = Mapping[str, Any]


def write_rows(kind: type, rows: Sequence[Any], path: Path) -> None:
    """Write instances of the dataclass ``kind`` atomically as a table, a column per field; the extension decides.

    In CSV, None is an empty cell and a tuple is joined by semicolons. Raises :class:`Qua2SeDiMoError` for an extension
    other than .csv or .parquet, or for Parquet without pyarrow.
    """
    hints = get_type_hints(kind)
    columns = {f.name: hints[f.name] for f in fields(kind)}
    table = [asdict(row) for row in rows]
    if path.suffix == ".csv":
        flat = [{k: "; ".join(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in table]
        content = as_csv(flat, list(columns), "\r\n")
    elif path.suffix == ".parquet":
        content = as_parquet(table, columns)
    else:
        raise Qua2SeDiMoError(f"{path}: unknown ending '{path.suffix}'", "Name the table .csv or .parquet.")
    write_via(path, lambda temporary: temporary.write_bytes(content))


def as_csv(table: Sequence[Row], columns: Sequence[str], newline: str = "\n") -> bytes:
    """CSV in UTF-8, with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator=newline)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def as_parquet(table: Sequence[Row], columns: Mapping[str, Any]) -> bytes:
    """Parquet; ``columns`` gives each column's type. Raises :class:`Qua2SeDiMoError` without pyarrow."""
    pyarrow = require_pyarrow()
    kinds = {
        int: pyarrow.int64(), int | None: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string(),
        tuple[str, ...]: pyarrow.list_(pyarrow.string()),
    }  # fmt: skip
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table), schema=schema), buffer)
    return buffer.getvalue()


def require_pyarrow() -> Any:
    """pyarrow with its Parquet writer; raises :class:`Qua2SeDiMoError` without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Qua2SeDiMoError(
            "Parquet needs pyarrow, which is not installed",
            "Install it with `pip install 'qua2sedimo[parquet]'`, or use CSV.",
        ) from None
    return pyarrow
