"""A list of files that were finished, with their checksums: what an interrupted command made is known by it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from qua2sedimo.formats.files import parse_json, refuse_special, unwritable


def add_finished(path: Path, name: str, checksum: str) -> None:
    """Append a name and its checksum to the list in ``path``, which is made if there is none; after a kill the last
    line may be cut. Raises :class:`Qua2SeDiMoError` naming the file if it cannot be written."""
    refuse_special(path)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, checksum]) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def finished(path: Path) -> dict[str, str]:
    """Checksums by name; what a damaged line was about is unknown, and so is everything if there is no such file."""
    found: dict[str, str] = {}
    if path.is_file():  # a pipe might never end
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                name, checksum = parse_json(line.decode())
                found[name] = checksum
    return found
