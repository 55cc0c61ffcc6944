"""Work that a stage gives to others: worker processes, perhaps on other machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol


class Elsewhere(Protocol):
    """Those who do the work."""

    @property
    def width(self) -> int:
        """How many jobs are done at a time."""

    def each(self, contents: Sequence[Mapping[str, Any]], what: str) -> Iterator[tuple[int, Any]]:
        """Have jobs of plain data done; (position, result) as they finish. An error says that ``what`` failed."""
