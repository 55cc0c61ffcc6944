"""Pipeline classes that make pictures from text, labels or noise get through a study, or are listed with a reason."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from tests.denoisers.coverage.registry import DIFFUSERS
from tests.sweep.check import STAGES, walk
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import EXCLUDED, in_scope

#: Labels beside a batch size; a copied scheduler; no lists of prompts or generators; lists of one alone; text to image.
REPRESENTATIVE = (
    "ConsistencyModelPipeline", "SkyReelsV2DiffusionForcingPipeline", "AmusedPipeline", "PRXPipeline",
    "StableDiffusion3Pipeline",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in REPRESENTATIVE else pytest.param(n, marks=pytest.mark.slow) for n in ENTRIES]
)
def test_a_pipeline_class_gets_through_a_study(name: str, tmp_path: Path) -> None:
    if name not in in_scope():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    found = walk(name, tmp_path)
    assert (found.wrong, found.passed) == ("", list(STAGES))


def test_no_class_is_without_an_entry_or_a_reason() -> None:
    assert not ENTRIES.keys() & EXCLUDED.keys()
    difference = {*ENTRIES, *EXCLUDED}.symmetric_difference(in_scope())
    if not diffusers.__version__.startswith(DIFFUSERS + "."):
        pytest.skip(f"entries are for diffusers {DIFFUSERS}; {diffusers.__version__} differs by {sorted(difference)}")
    assert difference == set(), "write a tiny instance in tests/sweep/entries.py, or give a reason in registry.py"
