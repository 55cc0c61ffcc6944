"""The package as it stands in this repository, whatever is installed: imported first by scripts that test it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
sys.path[:0] = [str(SOURCE), str(ROOT)]

import qua2sedimo  # noqa: E402


def verified() -> Path:
    """Where the package is imported from; processes that this one starts import it from there too.

    Ends the script if that is not this repository.
    """
    found = Path(qua2sedimo.__file__).resolve().parent
    if found.parent != SOURCE:
        raise SystemExit(f"qua2sedimo comes from {found}, not from {SOURCE}: start a new Python process")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCE), str(ROOT), before)))
    return found
