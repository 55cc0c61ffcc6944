"""Pipelines are found, or the message says what was wrong and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTPipeline, MotionAdapter
from tests.conftest import small_dit, small_pipeline, small_unet
from torch import nn

from qua2sedimo.denoisers import capture_call, denoiser_of, load_pipeline
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.denoisers.stored import denoisers_in
from qua2sedimo.errors import Qua2SeDiMoError


def refusal(model: str) -> Qua2SeDiMoError:
    with pytest.raises(Qua2SeDiMoError) as caught:
        load_pipeline(model)
    return caught.value


def test_an_unknown_name_lists_the_known_ones() -> None:
    error = refusal("no-such-model")
    assert "unknown model 'no-such-model'" in error.message
    assert "digits-dit" in str(error.remedy) and "avatars-pixart" in str(error.remedy)


@pytest.mark.parametrize("model", ["/no/such/place", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_folder_is_called_that(model: str) -> None:
    assert f"{model}: no such folder" in refusal(model).message


def test_a_folder_without_an_index_is_no_pipeline(tmp_path: Path) -> None:
    error = refusal(str(tmp_path))
    assert "model_index.json is missing" in error.message and "save_pretrained" in str(error.remedy)


def test_a_bare_denoiser_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "a denoiser without its pipeline" in refusal(str(tmp_path)).message


@pytest.mark.parametrize("content", [b'{"_class_name": ', b"\xff\xfe\x00"])
def test_a_damaged_index_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model_index.json").write_bytes(content)
    error = refusal(str(tmp_path))
    assert "model_index.json is damaged" in error.message and error.remedy


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "model.safetensors" in refusal(str(file)).message


@pytest.mark.parametrize("index", ["[]", "{}", '{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.40.0"}'])
def test_an_index_that_names_no_known_pipeline_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    assert str(tmp_path) in refusal(str(tmp_path)).message


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small_pipeline(3).save_pretrained(folder)
    return folder


def test_a_saved_pipeline_is_loaded_from_its_folder(saved: Path) -> None:
    loaded = load_pipeline(str(saved), device="cpu")
    assert isinstance(loaded, DiTPipeline)
    expected = small_pipeline(3).transformer.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in loaded.transformer.state_dict().items())


def test_a_component_that_cannot_be_read_is_an_error_of_the_pipeline(saved: Path, tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path)
    (weights,) = (tmp_path / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    error = refusal(str(tmp_path))
    assert f"cannot load pipeline '{tmp_path}'" in error.message


def test_a_missing_component_folder_is_an_error_of_the_pipeline(tmp_path: Path) -> None:
    small_pipeline().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    assert f"cannot load pipeline '{tmp_path}'" in refusal(str(tmp_path)).message


def test_the_denoiser_is_found_and_a_wrong_component_is_refused_with_those_there_are(pipeline: DiTPipeline) -> None:
    assert denoiser_of(pipeline) == ("transformer", pipeline.transformer)
    assert denoiser_of(pipeline, "vae") == ("vae", pipeline.vae)
    for component in ("unet", "scheduler", "nonsense"):
        with pytest.raises(Qua2SeDiMoError, match=f"no denoiser '{component}'.*transformer") as caught:
            denoiser_of(pipeline, component)
        assert "--component" in str(caught.value.remedy)


ARGUMENTS = {"class_labels": [3], "num_inference_steps": 2, "guidance_scale": 1.0}


def test_denoisers_of_unusual_names_are_found_by_their_class() -> None:
    unet, adapter = small_unet(), MotionAdapter(block_out_channels=(32,), motion_num_attention_heads=2)
    parts = {"motion_adapter": adapter, "text_encoder": nn.Linear(2, 2), "image_unet": unet, "prior": small_dit()}
    pipeline = SimpleNamespace(components=parts, **parts)
    index = {name: ["diffusers", type(module).__name__] for name, module in parts.items()}
    for found in (denoisers_of(pipeline), denoisers_in({"_class_name": "Any", "absent": [None, None], **index})):
        assert found == ["prior", "image_unet"]
    assert denoiser_of(SimpleNamespace(components={"image_unet": unet}, image_unet=unet)) == ("image_unet", unet)


def test_the_captured_call_runs_the_denoiser_as_the_pipeline_did(pipeline: DiTPipeline) -> None:
    call = capture_call(pipeline, pipeline.transformer, ARGUMENTS)
    (latent,) = [x for x in (*call.args, *call.kwargs.values()) if torch.is_tensor(x) and x.ndim == 4]
    assert latent.shape == (1, 1, 8, 8)
    assert call.kwargs["class_labels"].tolist() == [3]
    assert pipeline.transformer(*call.args, **call.kwargs).sample.shape == (1, 1, 8, 8)


def test_capturing_stops_at_the_first_call_and_leaves_no_hook(pipeline: DiTPipeline) -> None:
    calls: list[object] = []
    handle = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    capture_call(pipeline, pipeline.transformer, ARGUMENTS)
    handle.remove()
    assert calls == []
    assert not pipeline.transformer._forward_pre_hooks


def test_a_module_that_the_pipeline_never_calls_is_reported(pipeline: DiTPipeline) -> None:
    with pytest.raises(Qua2SeDiMoError, match="never called Linear"):
        capture_call(pipeline, torch.nn.Linear(1, 1), ARGUMENTS)
