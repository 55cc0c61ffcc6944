"""What a place holds after a command, in a form that equal runs have in common, and what dead processes left there."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

#: A folder within a place for what programs keep for a moment; nothing may stay in it.
TEMPORARY = "temporary"
#: Of what is compared: no seconds, no versions, nothing that only says when.
_PASSING = ("seconds", "peak_memory", "host", "worker", "id", "seal", "attempts")


def rows(place: Path) -> list[dict[str, Any]]:
    """The records of a study without what differs from run to run."""
    path = place / "study" / "records.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        try:
            found = [dict(row) for row in db.execute("SELECT * FROM measurements ORDER BY role, number, first_image")]
        except sqlite3.DatabaseError as error:
            return [{"error": str(error)}]
    return [{k: v for k, v in row.items() if k not in _PASSING} for row in found]


def essence(place: Path, numbers: bool = True) -> dict[str, Any]:
    """All that a place holds, by file, in a form that equal runs have in common.

    Without ``numbers``, records are a set: which came first does not matter.
    """
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        passing = name.endswith((".db", ".db-wal", ".db-shm")) or name.startswith(TEMPORARY)
        if passing or path.is_symlink() or not path.is_file():
            continue
        found[name] = _content(path, name)
    measured = rows(place)
    if not numbers:
        measured = sorted(({**row, "number": 0} for row in measured), key=lambda row: json.dumps(row, default=str))
    found["records"] = measured
    return found


def _content(path: Path, name: str) -> Any:
    if path.suffix == ".json":
        with suppress(ValueError):  # one that was damaged has its bytes compared
            return _lasting(json.loads(path.read_text()))
    if name.endswith("checksums.jsonl"):
        return sorted(set(path.read_bytes().splitlines()))
    if name.endswith("study.yaml"):
        return path.read_text().split("case-")[0]  # all before the model's place
    if path.suffix in (".html", ".md", ".csv", ".svg", ".pdf", ".lock"):
        return "there" if path.stat().st_size else "empty"
    found = hashlib.sha256()
    if path.suffix == ".safetensors":
        with suppress(SafetensorError):  # the order of entries in its metadata is random
            for key, tensor in sorted(load_file(path).items()):
                found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            return found.hexdigest()
    found.update(path.read_bytes())
    return found.hexdigest()


def _lasting(content: Any) -> Any:
    """JSON without seconds, checksums of files that hold seconds, and times."""
    if isinstance(content, dict):
        left_out = ("checksum", "seconds", "made", "date", "time", "files")
        return {k: _lasting(v) for k, v in content.items() if k not in left_out}
    return [_lasting(v) for v in content] if isinstance(content, list) else repr(content)


def leftovers(place: Path) -> list[str]:
    """What a dead process left."""
    kept = [p for p in place.rglob(".*") if p.name.startswith(".qua2sedimo") or "tmp" in p.name]
    return [p.relative_to(place).as_posix() for p in (*kept, *(place / TEMPORARY).glob("*"))]


def unequal(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
