"""Checkpoints as people have them: what is loaded is what the files hold, and what cannot be loaded is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import small_pipeline

from qua2sedimo.denoisers import denoiser_checkpoint, load_pipeline
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError

WEIGHTS = "diffusion_pytorch_model"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "saved"
    small_pipeline(3).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a pipeline in fp32, to be changed."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def half(variant: str | None = None, dtype: torch.dtype = torch.float16) -> Callable[[Path], None]:
    return lambda folder: small_pipeline(3).to(dtype).save_pretrained(folder, variant=variant)


def only(variant: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.rmtree(folder)
        half(variant)(folder)

    return make


def changed(change: Callable[[Tensors], None]) -> Callable[[Path], None]:
    """Rewrites the denoiser's weight file."""

    def make(folder: Path) -> None:
        path = folder / "transformer" / f"{WEIGHTS}.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})

    return make


def eight_bits(scale: Callable[[Tensors, str, torch.Tensor], None] | None) -> Callable[[Tensors], None]:
    """Matrices in 8-bit floats, with the scales that ``scale`` adds; all else in bf16."""

    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            weight = tensors[name]
            if not name.endswith(".weight") or weight.ndim < 2:
                tensors[name] = weight.bfloat16()
                continue
            factor = weight.abs().max() / 448 if scale is not None else torch.tensor(1.0)
            tensors[name] = (weight / factor).to(torch.float8_e4m3fn)
            if scale is not None:
                scale(tensors, name.removesuffix(".weight"), factor)

    return change


def comfy(tensors: Tensors, name: str, factor: torch.Tensor) -> None:
    mark = torch.zeros(0).to(torch.float8_e4m3fn)
    tensors |= {f"{name}.scale_weight": factor.reshape(1), f"{name}.scale_input": torch.ones(1), "scaled_fp8": mark}


def by_channel(tensors: Tensors, name: str, factor: torch.Tensor) -> None:
    tensors[f"{name}.weight_scale"] = factor.expand(len(tensors[f"{name}.weight"]), 1)


def stated(form: str) -> Callable[[Tensors, str, torch.Tensor], None]:
    return describing(json.dumps({"format": form}))


def describing(text: str) -> Callable[[Tensors, str, torch.Tensor], None]:
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return lambda tensors, name, factor: tensors.update(
        {f"{name}.weight_scale": factor, f"{name}.comfy_quant": content.clone()}
    )


def sharded(folder: Path) -> None:
    (folder / "transformer" / f"{WEIGHTS}.safetensors").unlink()
    small_pipeline(3).transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "loading", "dtype"),
    [
        (nothing, Loading(), torch.float32),
        (nothing, Loading(dtype="bf16"), torch.bfloat16),
        (half(dtype=torch.bfloat16), Loading(), torch.bfloat16),
        (half(dtype=torch.bfloat16), Loading(dtype="fp32"), torch.float32),
        (sharded, Loading(), torch.float32),
        (half("fp16"), Loading(), torch.float32),
        (half("fp16"), Loading(variant="fp16"), torch.float16),
        (only("fp16"), Loading(), torch.float16),
        (changed(eight_bits(None)), Loading(), torch.bfloat16),
        (changed(eight_bits(None)), Loading(dtype="fp32"), torch.float32),
        (changed(eight_bits(comfy)), Loading(), torch.bfloat16),
        (changed(eight_bits(comfy)), Loading(dtype="fp32"), torch.float32),
        (changed(eight_bits(by_channel)), Loading(), torch.bfloat16),
        (changed(eight_bits(stated("float8_e4m3fn"))), Loading(), torch.bfloat16),
    ],
)
def test_the_loaded_weights_are_those_that_are_read_from_the_files(
    folder: Path, make: Callable[[Path], None], loading: Loading, dtype: torch.dtype
) -> None:
    make(folder)
    loaded = load_pipeline(str(folder), loading, "cpu").transformer
    checkpoint = denoiser_checkpoint(str(folder), None, loading)
    assert loaded.dtype == dtype and checkpoint is not None
    assert set(checkpoint.tensors) == set(loaded.state_dict())
    original = small_pipeline(3).transformer.state_dict()
    for name, tensor in loaded.state_dict().items():
        read = checkpoint(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
        assert (tensor.float() - original[name]).norm() <= 0.05 * original[name].norm()  # scales were applied


def test_a_hub_cache_of_symlinks_and_pickles_beside_a_variant_are_loaded(saved: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "abc"
    for number, file in enumerate(p for p in saved.rglob("*") if p.is_file()):
        blob, link = cache / "blobs" / f"{number:040x}", snapshot / file.relative_to(saved)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    pickled = tmp_path / "pickled"
    small_pipeline(3).save_pretrained(pickled, safe_serialization=False)
    half("fp16")(pickled)
    expected = small_pipeline(3).transformer.state_dict()
    for place in (snapshot, pickled):
        loaded = load_pipeline(str(place), device="cpu").transformer.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    assert denoiser_checkpoint(str(snapshot)) is not None
    assert denoiser_checkpoint(str(pickled)) is None  # the weights are taken from the loaded model


def test_a_variant_that_nobody_asked_for_is_said(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("qua2sedimo.system.notes.LOGGER.propagate", True)
    only("fp16")(folder)
    load_pipeline(str(folder), device="cpu")
    assert "only as variant 'fp16'" in caplog.text
    half("bf16", torch.bfloat16)(folder)
    with pytest.raises(Qua2SeDiMoError, match="only variants: bf16, fp16"):
        load_pipeline(str(folder), device="cpu")


def without(tensors: Tensors) -> None:
    tensors["old.weight"] = tensors.pop("proj_out_1.weight")


def adapted(tensors: Tensors) -> None:
    tensors["proj_out_1.base_layer.weight"] = tensors.pop("proj_out_1.weight")


def odd_shape(tensors: Tensors) -> None:
    tensors["proj_out_1.weight"] = torch.zeros(3, 3)


def integers(tensors: Tensors) -> None:
    tensors["proj_out_1.weight"] = torch.zeros(64, 32, dtype=torch.int8)


def own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": ["mine", "MyPipeline"]}))
    (folder / "mine.py").write_text("raise SystemExit('run')")


def own_model(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "transformer": ["mine", "Mine"]}))
    (folder / "transformer" / "mine.py").write_text("raise SystemExit('run')")


def four_bits(folder: Path, method: str = "bitsandbytes") -> None:
    path = folder / "transformer" / "config.json"
    how = {"quant_method": method, "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": how}))


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length]) and None


def renamed(end: str) -> Callable[[Tensors, str, torch.Tensor], None]:
    return lambda tensors, name, factor: tensors.update({f"{name}{end}": factor.reshape(1, 1)})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (changed(without), ("lacks weights", "'proj_out_1.weight'", "'old.weight'")),
        (changed(adapted), ("adapter (LoRA)", "'proj_out_1.weight'", "unload_lora_weights")),
        (changed(odd_shape), ("proj_out_1.weight", "[64, 32]", "[3, 3]")),
        (changed(integers), ("'proj_out_1.weight' is quantized to I8",)),
        (changed(eight_bits(renamed(".weight_scale_inv"))), ("weight_scale_inv", "not known here")),
        (changed(eight_bits(stated("nvfp4"))), ("'nvfp4'", "not known here")),
        (changed(eight_bits(describing("[" * 10_000))), ("'unreadable'", "not known here")),
        (changed(lambda t: (eight_bits(None)(t), t.update(scaled_fp8=torch.zeros(0)))[1]), ("has no scale of",)),
        (own_code, ("pipeline code of its own (mine.py)", "trust_remote_code", "quantize(pipe")),
        (own_model, ("pipeline code of its own (transformer/mine.py)",)),
        (cut("vae/diffusion_pytorch_model.safetensors", 0), ("vae/diffusion_pytorch_model.safetensors is truncated",)),
        (cut("scheduler/scheduler_config.json", 40), ("scheduler/scheduler_config.json is damaged",)),
        (four_bits, ("quantized already, by bitsandbytes", "Pass the unquantized")),
    ],
)
def test_what_cannot_be_loaded_is_named_with_its_cause(
    folder: Path, make: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    make(folder)
    with pytest.raises(Qua2SeDiMoError) as caught:
        load_pipeline(str(folder), device="cpu")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "meta tensor" not in str(caught.value) and "elete" not in str(caught.value)


def test_what_decodes_a_checkpoint_of_sdnq_is_named_where_it_is_missing(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("qua2sedimo.denoisers.quantized.find_spec", lambda name: None)
    four_bits(folder, "sdnq")
    with pytest.raises(Qua2SeDiMoError, match=r"transformer is quantized already, by sdnq") as caught:
        load_pipeline(str(folder), device="cpu")
    assert "pip install sdnq" in str(caught.value.remedy) and "unquantized" in str(caught.value.remedy)


def test_weights_that_the_model_does_not_use_are_said(folder: Path, caplog, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("qua2sedimo.system.notes.LOGGER.propagate", True)
    changed(lambda tensors: tensors.update({"ema.weight": torch.zeros(3)}))(folder)
    load_pipeline(str(folder), device="cpu")
    assert "does not use: 'ema.weight'" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.gguf", b"GGUF", "is damaged, or no GGUF file"),
        ("a.ckpt", b"PK", "is a pickle"),
        ("a.txt", b"hello", "no safetensors checkpoint"),
        ("a.safetensors", b"\x10", "is truncated"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Qua2SeDiMoError) as caught:
        load_pipeline(str(tmp_path / name))
    assert words in caught.value.message and "elete" not in str(caught.value) and "ove it away" not in str(caught.value)


def test_a_file_of_unknown_names_or_of_a_folder_says_where_the_rest_is(folder: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(Qua2SeDiMoError, match="no model that diffusers knows") as caught:
        load_pipeline(str(tmp_path / "odd.safetensors"))
    assert "--config FOLDER" in str(caught.value.remedy)
    with pytest.raises(Qua2SeDiMoError, match=r"cannot load DiT\w+ from a single file"):
        load_pipeline(str(tmp_path / "odd.safetensors"), Loading(config=str(folder)))
    with pytest.raises(Qua2SeDiMoError, match="belongs to the pipeline folder"):
        load_pipeline(str(folder / "transformer" / f"{WEIGHTS}.safetensors"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"offload": "model", "device": "cpu"}, "'model' needs an accelerator"),
        ({"device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({"vae_tiling": True, "device": "cpu"}, "has no tiling"),
        ({"dtype": "int4"}, "dtype: 'int4' is unknown"),
        ({"offload": "disk"}, "offload: 'disk' is unknown"),
        ({"variant": "ema", "device": "cpu"}, "has no files of variant 'ema'"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_by_name(saved: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(Qua2SeDiMoError) as caught:
        load_pipeline(str(saved), Loading(**asked))
    assert words in caught.value.message and caught.value.remedy


def test_memory_that_runs_out_while_a_pipeline_is_moved_is_one_message(saved: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("diffusers.DiffusionPipeline.to", full)
    with pytest.raises(Qua2SeDiMoError, match="DiTPipeline does not fit into memory") as caught:
        load_pipeline(str(saved))
    assert all(word in str(caught.value.remedy) for word in ("--dtype", "--offload", "--vae-tiling", "--batch"))
