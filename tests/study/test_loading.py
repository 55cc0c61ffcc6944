"""Studies of models in 16 bits, offloaded, or given in memory: the same numbers, or a refusal before work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, WanTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file
from tests.conftest import randomized, small_pipeline, small_settings
from tests.denoisers.small import flux
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope
from torch import nn

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.denoisers import load_pipeline, weight_modules, weight_of
from qua2sedimo.denoisers.exact import same_bits
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.denoisers.offload import is_hooked
from qua2sedimo.denoisers.pipelines import refuse_given
from qua2sedimo.images.generate import Generator
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import quantized_layers, replace_layers, save_packed
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages.export import save_configuration

OPTIONS = "row-2,row-4"


def offloaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading with the CPU in the place of an accelerator."""

    def sequential(self: Any, device: object = None) -> None:
        self.remove_all_hooks()
        for model in self.components.values():
            if isinstance(model, nn.Module):
                cpu_offload(model, torch.device("cpu"), offload_buffers=bool(model._parameters))

    monkeypatch.setattr(Loading, "place", lambda self: torch.device("cpu"))
    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", sequential)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "plain"
    small_pipeline(3).save_pretrained(folder)
    return folder


def quick(folder: Path, model: Path, **settings: Any) -> tuple[Study, Any]:
    study = Study.create(folder, small_settings(model=str(model), options=OPTIONS, **settings))
    return study, study.quick(3.0)


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quick(tmp_path_factory.mktemp("plain") / "study", model)


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_an_offloaded_study_gives_the_numbers_of_one_that_is_not(
    kind: str, model: Path, plain: tuple[Study, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded_here(monkeypatch)
    study, choice = quick(tmp_path / "study", model, offload=kind)
    assert hasattr(study.workspace.denoiser, "_hf_hook")
    expected = plain[1]
    assert (choice.configuration, choice.measured) == (expected.configuration, expected.measured)
    outs = []
    for name, (made, found) in {"plain": plain, "offloaded": (study, choice)}.items():
        made.export(found, tmp_path / name)
        (file,) = (tmp_path / name / "transformer").glob("*.safetensors")
        outs.append(load_file(file))
    assert outs[0].keys() == outs[1].keys() and all(torch.equal(t, outs[1][name]) for name, t in outs[0].items())
    assert hasattr(study.workspace.denoiser, "_hf_hook")  # exporting put the hooks back


def test_a_study_offloaded_in_groups_gives_the_numbers_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A U-Net without an autoencoder: the classes of the pipeline above cannot be offloaded in groups."""
    built(in_scope()["DDPMPipeline"], ENTRIES["DDPMPipeline"]).save_pretrained(tmp_path / "model")
    asked = {"inputs": [], "arguments": {"num_inference_steps": 2}, "rounding": "nearest", "options": "uaq-4,uaq-3"}
    settings = small_settings(model=str(tmp_path / "model"), **asked)
    records, exports = [], []
    for kind in ("none", "group"):
        if kind == "group":
            offloaded_here(monkeypatch)
        study = Study.create(tmp_path / kind, settings.model_copy(update={"offload": kind}))
        assert (is_hooked(study.workspace.denoiser) is not None) == (kind == "group")
        records.append([(r.configuration, r.measurement.means) for r in study.measure(2)])
        save_configuration(study.workspace, records[0][0][0], tmp_path / f"{kind}-out", {})
        assert (is_hooked(study.workspace.denoiser) is not None) == (kind == "group")
        (file,) = (tmp_path / f"{kind}-out" / "unet").glob("*.safetensors")
        exports.append(load_file(file))
    assert records[0] == records[1]
    assert all(torch.equal(tensor, exports[1][name]) for name, tensor in exports[0].items())


def test_a_class_that_cannot_be_offloaded_in_groups_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offloaded_here(monkeypatch)
    with pytest.raises(Qua2SeDiMoError, match="cannot be offloaded by 'group'") as caught:
        load_pipeline(str(model), Loading(offload="group"))
    assert "Try another" in str(caught.value.remedy)


def test_a_study_in_bf16_measures_what_its_export_computes(model: Path, plain: tuple[Study, Any], tmp_path) -> None:  # type: ignore[no-untyped-def]
    study, choice = quick(tmp_path / "study", model, dtype="bf16")
    inside = study.workspace
    assert inside.denoiser.dtype == torch.bfloat16 and inside.identity != plain[0].workspace.identity
    assert all(value.dtype == torch.bfloat16 for value in inside.values(choice).values())
    for layer, value in inside.values(choice).items():
        inside.switch.write(layer, value)
    measured = inside.generator(0, 2)
    study.export(choice, tmp_path / "out")
    packed = load_pipeline(str(tmp_path / "out"))  # in the dtype it was measured in
    assert packed.transformer.dtype == torch.bfloat16
    np.testing.assert_array_equal(Generator(packed, inside.generator.generation)(0, 2), measured)
    # Another dtype is another study.
    settings = StudySettings.load(tmp_path / "study" / "study.yaml")
    settings.model_copy(update={"dtype": "fp32"}).save(tmp_path / "study" / "study.yaml")
    with pytest.raises(Qua2SeDiMoError):
        _ = Study(tmp_path / "study").workspace.bank


def wan() -> nn.Module:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    return randomized(model, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_class_keeps_in_fp32_stays_so_in_the_export(dtype: torch.dtype, tmp_path: Path) -> None:
    wan().save_pretrained(tmp_path / "model")
    model = WanTransformer3DModel.from_pretrained(tmp_path / "model", torch_dtype=dtype)
    kept = {n: t for n, t in model.state_dict().items() if "scale_shift_table" in n or ".norm2." in n}
    assert kept and all(tensor.dtype == torch.float32 for tensor in kept.values())
    names = [name for name in weight_modules(model) if "attn1" in name]
    values = {n: METHODS["row"].quantize(weight_of(model.get_submodule(n)).half(), [4])[0] for n in names}
    save_packed(model, None, values, tmp_path / "out")
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "out", torch_dtype=dtype).state_dict()
    assert all(same_bits(loaded[name], tensor) for name, tensor in kept.items())


def layerwise() -> nn.Module:
    model = flux()[0]
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return model


def eight_bits() -> nn.Module:
    model = flux()[0]
    model.proj_out.weight.data = model.proj_out.weight.data.to(torch.float8_e4m3fn)
    return model


class Packed(nn.Parameter):
    """As the parameters of bitsandbytes and gguf are: of a class of their own."""


def foreign() -> nn.Module:
    model = flux()[0]
    model.proj_out.weight = Packed(model.proj_out.weight.data, requires_grad=False)
    return model


def adapted() -> nn.Module:
    model = flux()[0]
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    return model


def moved() -> nn.Module:
    model = flux()[0]
    cpu_offload(model, torch.device("cpu"))
    return model


def grouped() -> nn.Module:
    model = flux()[0]
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return model


def ours() -> nn.Module:
    model = flux()[0]
    values = {"proj_out": METHODS["row"].quantize(model.proj_out.weight.half(), [4])[0]}
    replace_layers(model, quantized_layers(model, values))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (layerwise, ("cast layer by layer", "without enable_layerwise_casting")),
        (eight_bits, ("already quantized", "'proj_out' is stored as float8_e4m3fn")),
        (foreign, ("already quantized", "a Packed")),
        (adapted, ("wrapped by an adapter (LoRA)", "unload_lora_weights")),
        (moved, ("offloaded", "remove_all_hooks")),
        (grouped, ("offloaded", "without enable_")),
        (ours, ("already quantized", "dequantize")),
    ],
)
def test_a_model_in_memory_that_cannot_be_quantized_is_refused_with_the_remedy(make: Any, words: Any) -> None:
    pipeline = small_pipeline()
    pipeline.transformer = make()
    with pytest.raises(Qua2SeDiMoError) as caught:
        refuse_given(pipeline, None)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_study_and_quantize_refuse_such_models_before_anything_is_written(tmp_path: Path) -> None:
    import qua2sedimo

    pipeline = small_pipeline()
    Study.create(tmp_path / "made", small_settings(), pipeline)
    cpu_offload(pipeline.transformer, torch.device("cpu"))
    with pytest.raises(Qua2SeDiMoError, match="offloaded"):
        qua2sedimo.quantize(pipeline, prompts=[1], folder=tmp_path / "new")
    with pytest.raises(Qua2SeDiMoError, match="offloaded"):
        _ = Study(tmp_path / "made", pipeline).workspace.pipeline
    assert not (tmp_path / "new" / "study.yaml").exists()


def test_a_pipeline_in_memory_is_not_loaded_in_another_way(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="the pipeline that was passed is in fp32, not bf16"):
        Study.create(tmp_path, small_settings(dtype="bf16"), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="is not offloaded"):
        Study.create(tmp_path, small_settings(offload="model"), small_pipeline())


def test_memory_that_runs_out_in_a_stage_is_the_one_message(plain: tuple[Study, Any], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("qua2sedimo.study.stages.export.save_packed", full)
    with pytest.raises(Qua2SeDiMoError, match="does not fit into memory") as caught:
        plain[0].export(plain[1], plain[0].folder / "out")
    assert "--dtype" in str(caught.value.remedy)


def test_where_a_model_runs_may_change_between_calls_of_a_study(model: Path, tmp_path: Path) -> None:
    settings = small_settings(model=str(model))
    Study.create(tmp_path, settings)
    Study.create(tmp_path, settings.model_copy(update={"device": "cpu"}))
    assert StudySettings.load(tmp_path / "study.yaml").device == "cpu"
    Study.create(tmp_path, settings)
    assert StudySettings.load(tmp_path / "study.yaml").device == "cpu"  # nobody asked for another
    with pytest.raises(Qua2SeDiMoError, match="other settings"):
        Study.create(tmp_path, settings.model_copy(update={"dtype": "bf16"}))
    assert settings.protocol == settings.model_copy(update={"device": "cuda", "vae_slicing": True}).protocol
    assert settings.protocol != settings.model_copy(update={"vae_tiling": True}).protocol
