"""Every transformer and U-Net class of diffusers: traced, quantized, stored, loaded, the same output."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from tests.denoisers.coverage.check import check
from tests.denoisers.coverage.registry import CONFIGURATIONS, DIFFUSERS, EXCLUDED, exported

import qua2sedimo  # noqa: F401 — makes the packed format known to diffusers


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_class_is_traced_quantized_stored_and_loaded_with_the_same_output(name: str, tmp_path: Path) -> None:
    if name not in exported():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    assert check(name, tmp_path / "packed").wrong == ""


def test_no_exported_class_is_without_an_entry_or_a_reason() -> None:
    known = {*CONFIGURATIONS, *EXCLUDED}
    difference = known.symmetric_difference(exported())
    if not diffusers.__version__.startswith(DIFFUSERS + "."):
        pytest.skip(f"entries are for diffusers {DIFFUSERS}; {diffusers.__version__} differs by {sorted(difference)}")
    assert difference == set()
    assert not CONFIGURATIONS.keys() & EXCLUDED.keys()
