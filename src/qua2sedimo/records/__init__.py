"""The measured configurations of a study: one SQLite file in WAL mode, one transaction per measurement."""

from qua2sedimo.records.export import FORMATS, content, export, rows
from qua2sedimo.records.repair import repair
from qua2sedimo.records.schema import SCHEMA
from qua2sedimo.records.store import Failure, Origin, Record, Records

__all__ = ["FORMATS", "SCHEMA", "Failure", "Origin", "Record", "Records", "content", "export", "repair", "rows"]
