"""Work that a stage gives to others: worker processes, perhaps on other machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qua2sedimo.errors import Qua2SeDiMoError

_SEEN_AFTER = 30.0  # seconds, in which network storage shows what another machine wrote
_POLL = 0.2


class Elsewhere(Protocol):
    """Those who do the work."""

    @property
    def width(self) -> int:
        """How many jobs are done at a time."""

    def each(self, contents: Sequence[Mapping[str, Any]], what: str) -> Iterator[tuple[int, Any]]:
        """Have jobs of plain data done; (position, result) as they finish. An error says that ``what`` failed."""


def written_elsewhere(path: Path) -> Path:
    """The file that others wrote; raises :class:`Qua2SeDiMoError` if it does not appear here."""
    until = time.monotonic() + _SEEN_AFTER
    while not path.exists():
        if time.monotonic() > until:
            raise Qua2SeDiMoError(
                f"{path} was written by a worker, and is not there",
                "The study folder must be on storage that all machines share, at the same path.",
            )
        time.sleep(_POLL)
    return path
