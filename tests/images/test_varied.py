"""Varied inputs: different, repeatable, and only such as the pipeline takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.calibration.pipelines import pixart_pipeline
from tests.conftest import small_pipeline

from qua2sedimo import Qua2SeDiMoError, Study, StudySettings, zoo
from qua2sedimo.images.generate import check_inputs
from qua2sedimo.images.varied import varied_inputs, varied_prompts


def test_prompts_differ_repeat_and_use_many_words() -> None:
    prompts = varied_prompts(300)
    assert len(set(prompts)) == 300
    assert prompts[:40] == varied_prompts(40) and prompts[:40] != varied_prompts(40, seed=1)
    words = {word.strip(",") for prompt in prompts for word in prompt.split()}
    assert len(words) > 250
    lengths = sorted(len(prompt.split()) for prompt in prompts)
    assert lengths[0] <= 3 and lengths[-1] >= 15


def test_inputs_are_what_the_pipeline_takes() -> None:
    pipeline = pixart_pipeline()
    assert varied_inputs(pipeline, pipeline.transformer, 5) == varied_prompts(5)
    pipeline = small_pipeline(0, classes=7)
    found = varied_inputs(pipeline, pipeline.transformer, 20)
    assert sorted(found) == list(range(7))
    check_inputs(pipeline, found)
    nothing = SimpleNamespace(__call__=lambda: None)
    assert varied_inputs(nothing, pipeline.transformer, 5) == []


@pytest.mark.parametrize("name", sorted(zoo.ENTRIES))
def test_the_zoo_has_inputs_besides_its_examples(name: str) -> None:
    entry = zoo.ENTRIES[name]
    found = list(entry.varied(30))
    assert len(set(found)) == len(found) == (30 if "avatars" in name else 10)
    assert {type(one) for one in found} == {type(entry.inputs[0])}


def test_a_study_without_prompts_has_varied_ones_and_keeps_them(tmp_path: Path) -> None:
    pipeline = pixart_pipeline()
    settings = StudySettings(model="made here", arguments={"num_inference_steps": 2}, images=2)
    made = Study.create(tmp_path / "study", settings, pipeline)
    assert made.workspace.settings.inputs == varied_prompts(24)
    again = Study.create(tmp_path / "study", settings, pipeline)
    assert again.workspace.settings.inputs == varied_prompts(24)
    with pytest.raises(Qua2SeDiMoError, match="other settings"):
        Study.create(tmp_path / "study", settings.model_copy(update={"inputs": ["a cat"]}), pipeline)
