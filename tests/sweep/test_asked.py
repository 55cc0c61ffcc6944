"""Files as people have them, 16 bits, fine-tunes and LoRA files of every pipeline class, or a reason why not."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from tests.answers import YES
from tests.sweep.asked import asked_of
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope

_ALWAYS = ("DiTPipeline",)
#: Beginnings of answers that are right; the last is of classes whose from_single_file knows no file of theirs.
_FINE = (YES, "n/a:", "refused: diffusers cannot load ")


@pytest.mark.parametrize("name", [n if n in _ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in ENTRIES])
def test_a_pipeline_class_is_loaded_changed_and_saved_as_people_do(name: str, tmp_path: Path) -> None:
    if name not in in_scope():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    found = asked_of(name, tmp_path)
    assert not {question: answer for question, answer in found.items() if not answer.startswith(_FINE)}
