"""Text encoders quantized beside the denoiser: T5 and CLIP of Flux, and the language model of Flux 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from diffusers import DiffusionPipeline
from tests.commands.conftest import refused, run  # noqa: F401
from tests.study.tiny import packed, settings_of, tiny
from tests.sweep.entries import ENTRIES
from tests.sweep.texts import WIDTH, clip_eyes

from qua2sedimo import Qua2SeDiMoError, Study, StudySettings, quantize
from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.formats.files import read_json
from qua2sedimo.images.generate import Generator
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import pack

KINDS = {
    "FluxPipeline": ["transformer", "text_encoder", "text_encoder_2"],
    "Flux2KleinPipeline": ["transformer", "text_encoder"],
}


def settings(kind: str, model: Path | str, component: str | list[str] = "", **changes: Any) -> StudySettings:
    return settings_of(kind, model, component or KINDS[kind], **changes)


@pytest.fixture(scope="module", params=sorted(KINDS))
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp(request.param)
    tiny(request.param).save_pretrained(folder / "model")
    return Study.create(folder / "study", settings(request.param, folder / "model"))


def test_encoders_share_the_budget_and_are_packed_in_the_export(study: Study, run: Any, tmp_path: Path) -> None:  # noqa: F811
    choice = study.quick(3.0)
    inside = study.workspace
    assert choice.average_bits <= 3.0 and inside.statistics.has_gradients
    out = tmp_path / "out"
    study.export(choice, out)
    assert read_json(out / "qua2sedimo.json")["components"] == list(inside.denoisers)
    inside.switch.apply(choice.configuration)
    polished = inside.polished_values(choice)
    assert not any(unit.startswith("text_encoder") for unit in polished)
    for unit, value in polished.items():
        inside.switch.write(unit, value)
    expected = inside.generator(0, 2)
    inside.switch.restore()
    for loaded in (load_pipeline(str(out)), DiffusionPipeline.from_pretrained(out)):
        loaded.set_progress_bar_config(disable=True)
        for name in inside.denoisers:
            units = [u for u in choice.configuration if u.startswith(f"{name}.")]
            assert 0 < packed(getattr(loaded, name)) <= len(units)
        assert np.abs(Generator(loaded, inside.generation)(0, 2) - expected).max() < 1e-3
    ended = run("card", out, "--study", inside.folder)
    assert ended.status == 0, ended.err
    card = (out / "README.md").read_text().replace("\\", "")
    assert f"({', '.join(inside.denoisers)}) is quantized" in card


def test_encoders_are_written_as_plain_weights_but_not_as_gguf(study: Study, tmp_path: Path) -> None:
    choice, inside = study.quick(3.0), study.workspace
    size = study.export(choice, tmp_path / "out", form="diffusers")
    assert size.quantized_bytes == 2 * sum(copied(study, unit) for unit in choice.configuration)
    inside.switch.restore()
    for unit, value in inside.values(choice).items():
        inside.switch.write(unit, value)
    expected = inside.generator(0, 2)
    inside.switch.restore()
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    assert all(packed(getattr(loaded, name)) == 0 for name in inside.denoisers)
    assert np.abs(Generator(loaded, inside.generation)(0, 2) - expected).max() < 1e-3
    with pytest.raises(Qua2SeDiMoError, match=r"'text_encoder' is a text encoder .* the format gguf") as error:
        study.export(choice, tmp_path / "out.gguf", form="gguf", any_size=True)
    assert "sdnq or diffusers" in str(error.value.remedy)


def test_an_encoder_is_quantized_by_itself(tmp_path: Path) -> None:
    tiny("FluxPipeline").save_pretrained(tmp_path / "model")
    study = Study.create(tmp_path / "study", settings("FluxPipeline", tmp_path / "model", component="text_encoder"))
    inside = study.workspace
    assert inside.unmeasured.features.groups.keys() >= {"cost"}, "it is weighed by what it changes in the picture"
    assert study.search(4.0, 64).choice.average_bits <= 4.0
    choice = study.quick(4.0)
    study.export(choice, tmp_path / "out")
    loaded = load_pipeline(str(tmp_path / "out"))
    assert packed(loaded.text_encoder) == len(choice.configuration) and packed(loaded.transformer) == 0
    inside.switch.apply(choice.configuration)
    expected = inside.generator(0, 2)
    inside.switch.restore()
    assert np.abs(Generator(loaded, inside.generation)(0, 2) - expected).max() < 1e-3


def copied(study: Study, unit: str) -> int:
    """Weights of a unit and of its copies."""
    layer = study.workspace.graph.layers[unit]
    return int(np.prod(layer.shape)) * (1 + len(layer.copies))


def test_what_t5_converts_its_input_to_stays_whole_for_sdnq(tmp_path: Path) -> None:
    pipeline = tiny("FluxPipeline")
    asked = settings("FluxPipeline", "flux", target="sdnq", options="kmeans_a-2,uaq-4", component=KINDS["FluxPipeline"])
    layers = Study.create(tmp_path / "study", asked, pipeline).workspace.candidates.layers
    second = [layer for layer in layers if layer.startswith("text_encoder_2.")]
    assert any(layer.endswith("DenseReluDense.wi_0") or ".wi" in layer for layer in second)
    assert not any(layer.endswith(".wo") for layer in second)


def test_prompts_are_encoded_by_the_quantized_encoder(study: Study) -> None:
    inside = study.workspace
    full = inside.full_precision(range(2))
    for name in [name for name in inside.denoisers if name.startswith("text_encoder")]:
        units = [u for u in inside.space.layers if u.startswith(f"{name}.")]
        assert all(inside.observed(u).moment is not None for u in units)
        inside.switch.apply({u: inside.space.options[u][0] for u in units})
        assert np.abs(inside.generator(0, 2) - full).max() > 0
        inside.switch.restore()
        assert np.array_equal(inside.generator(0, 2), full)


def test_an_encoder_is_inspected(study: Study, run: Any) -> None:  # noqa: F811
    ended = run("inspect", study.workspace.settings.model, "--component", "text_encoder")
    assert ended.status == 0, ended.err
    assert "SA-Q" in ended.out and "FF 1" in ended.out


def test_what_cannot_be_quantized_is_said(tmp_path: Path) -> None:
    def study_of(pipeline: Any, name: str, *components: str) -> Study:
        return Study.create(tmp_path / name, settings("FluxPipeline", "flux", component=list(components)), pipeline)

    pipeline = tiny("FluxPipeline")
    pipeline.register_modules(image_encoder=clip_eyes(transformers.CLIPVisionModelWithProjection, WIDTH))
    with pytest.raises(Qua2SeDiMoError, match="never called CLIPVisionModelWithProjection"):
        study_of(pipeline, "a", "transformer", "image_encoder").quick(3.0)
    pipeline.text_encoder_2.encoder.block[0] = pipeline.text_encoder_2.encoder.block[1]  # within one component: copies
    assert study_of(pipeline, "b", "transformer", "text_encoder_2").workspace.graph.layers
    unit = "text_model.encoder.layers.0.mlp.fc1"
    layer = pipeline.text_encoder.get_submodule(unit.removeprefix("text_model."))
    pack(pipeline.text_encoder, {unit.removeprefix("text_model."): METHODS["row"].quantize(layer.weight, [4])[0]})
    with pytest.raises(Qua2SeDiMoError, match="CLIPTextModel is already quantized"):
        study_of(pipeline, "c", "transformer", "text_encoder")
    encoders = settings("FluxPipeline", "flux", target="gguf", options="default")
    with pytest.raises(Qua2SeDiMoError, match=r"'text_encoder' is a text encoder .* the format gguf"):
        Study.create(tmp_path / "e", encoders, tiny("FluxPipeline"))
    other = tiny("FluxPipeline")
    other.text_encoder_2.shared.weight = other.text_encoder.embeddings.token_embedding.weight
    with pytest.raises(Qua2SeDiMoError, match="'text_encoder' and 'text_encoder_2' share weights"):
        study_of(other, "d", "transformer", "text_encoder")


def test_quantize_in_memory_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_OBSERVED_SMALL", "_TEXTS"):
        monkeypatch.setattr(f"qua2sedimo.study.workspace.{name}", 2)
    pipeline, arguments = tiny("Flux2KleinPipeline"), ENTRIES["Flux2KleinPipeline"].arguments
    quantize(pipeline, 4.0, ["a fox"], arguments=arguments, effort="quick", component=KINDS["Flux2KleinPipeline"])
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    for name in KINDS["Flux2KleinPipeline"]:
        assert packed(getattr(loaded, name)) == packed(getattr(pipeline, name)) > 0
