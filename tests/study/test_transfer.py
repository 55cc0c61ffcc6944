"""A choice made for a base model, exported for its fine-tune: the same options, its own statistics and rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.commands.conftest import refused, run  # noqa: F401
from tests.conftest import choice_of, small_dit, small_pipeline, small_settings

from qua2sedimo import Study
from qua2sedimo.denoisers import load_pipeline, weight_modules
from qua2sedimo.formats.files import read_json
from qua2sedimo.options import Option
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.transfer import transferred


def folder_of(place: Path, seed: int) -> Path:
    """A model: the base with seed 0; a fine-tune is a small step away from it."""
    pipeline, other = small_pipeline(0, classes=1000), small_pipeline(seed, classes=1000)
    with torch.no_grad():
        for own, far in zip(pipeline.transformer.parameters(), other.transformer.parameters()):
            own.copy_((own + 0.05 * far * (seed > 0)).half())
    pipeline.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def polished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick choice of the base model's study, which was polished: whether that helps a random model is chance."""
    place = tmp_path_factory.mktemp("base")
    settings = small_settings(
        model=str(folder_of(place / "model", 0)), options="row-2,row-3,row-4", keep=["*proj_out_2"]
    )
    study = Study.create(place / "study", settings)
    choices = (study.quick(bits) for bits in (2.6, 2.8, 3.6, 3.8, 3.0, 3.2))
    found = next(choice for choice in choices if choice.polished is not None)
    return place / "study" / "choices" / f"{found.name}.json"


def test_a_fine_tune_gets_the_options_of_its_base_and_its_own_rounding(
    run: Any,  # noqa: F811
    polished: Path,
    tmp_path: Path,
) -> None:
    tuned, work, out = folder_of(tmp_path / "a fine-tune", 1), tmp_path / "work", tmp_path / "out"
    ended = run("export", tuned, out, "--choice", polished, "--work", work)
    assert ended.status == 0, ended.err
    chosen, own = Choice.load(polished), Choice.load(work / "choices" / polished.name)
    assert own.configuration == chosen.configuration
    assert "proj_out_2" not in own.configuration
    assert (work / "statistics" / "index.json").exists()
    assert chosen.polished is not None
    assert own.measured  # it was decided whether polishing helps here too
    written = weight_modules(load_pipeline(str(tuned)).transformer)
    for name, layer in weight_modules(load_pipeline(str(out)).transformer).items():
        packed = layer.dequantized() if hasattr(layer, "dequantized") else layer.weight  # type: ignore[operator]
        assert (packed - written[name].weight).norm() < 0.6 * written[name].weight.norm(), name
    before = (work / "bank" / "index.json").stat().st_mtime_ns
    study, again = transferred(polished, str(tuned), work)
    assert again == own
    assert (work / "bank" / "index.json").stat().st_mtime_ns == before
    assert study.space.union == tuple(sorted({*chosen.configuration.values()}))


def test_without_a_folder_for_work_nothing_is_left_but_the_export(run: Any, polished: Path, tmp_path: Path) -> None:  # noqa: F811
    tuned, out = folder_of(tmp_path / "tuned", 2), tmp_path / "out"
    settings = small_settings(model=str(polished.parents[2] / "model"), options="uaq-4,uaq-3", rounding="nearest")
    study = Study.create(tmp_path / "study", settings)
    choice = choice_of(study, study.workspace.space.uniform(Option.parse("uaq-3")))
    choice.save(tmp_path / "study" / "choices" / "plain.json")
    assert run("export", tuned, out, "--choice", tmp_path / "study" / "choices" / "plain.json").status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "study", "tuned"]
    assert read_json(out / "qua2sedimo.json")["average_bits"] == pytest.approx(choice.average_bits)


def test_what_cannot_be_transferred_is_refused(refused: Any, polished: Path, tmp_path: Path) -> None:  # noqa: F811
    tuned, out = folder_of(tmp_path / "tuned", 1), tmp_path / "out"
    lone = tmp_path / "lone.json"
    lone.write_bytes((polished).read_bytes())
    assert "is not the file of a choice in a study's folder" in refused("export", tuned, out, "--choice", lone)
    wider = small_pipeline(0, classes=1000)
    wider.register_modules(transformer=type(small_dit())(**{**small_dit(0, 1000).config, "num_layers": 1}))
    wider.save_pretrained(tmp_path / "shallow")
    message = refused("export", tmp_path / "shallow", out, "--choice", polished)
    assert "lacks layers" in message and "transformer_blocks.1" in message and "qua2sedimo run" in message
    assert not out.exists()
