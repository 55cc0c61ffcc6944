"""Freed memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from qua2sedimo.system.memory import return_memory


def held() -> int:
    """Bytes of this process that are no files, resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_between_what_is_in_use_is_returned() -> None:
    kept, freed = [], []
    for _ in range(6_000):  # too small for mappings of their own
        freed.append(torch.ones(10_000))
        kept.append(torch.ones(10))
    before = held()
    freed.clear()
    return_memory()
    assert before - held() > 100_000_000
    assert len(kept) == 6_000


def test_without_such_a_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: object) -> object:
        raise OSError("no library")

    monkeypatch.setattr(ctypes, "CDLL", none)
    return_memory()
