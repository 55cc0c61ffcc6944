"""Figures of a benchmark that are kept one by one, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qua2sedimo.formats.files import write_json

RESULTS = Path(__file__).parent / "results"


class Kept:
    """The figures of ``results/NAME.json`` by name, measured only where they are absent.

    ``about`` is what all figures of one file depend on (threads, versions): a file about something else is begun anew.
    """

    def __init__(self, name: str, about: dict[str, Any], again: bool = False) -> None:
        self.path = RESULTS / f"{name}.json"
        RESULTS.mkdir(exist_ok=True)
        self.figures: dict[str, Any] = {"about": about}
        if self.path.is_file() and not again:
            found = json.loads(self.path.read_text())
            if found.get("about") == json.loads(json.dumps(about)):
                self.figures = found

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.figures:
            self.figures[name] = measure()
            write_json(self.path, self.figures)
        return self.figures[name]
