"""One file with original names becomes the pipeline that its diffusers folder is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tests.conftest import randomized
from tests.denoisers.original import FILES, by_table
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES, XL
from tests.sweep.registry import in_scope
from transformers import T5Config, T5EncoderModel

from qua2sedimo import zoo
from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.denoisers.exact import same_bits
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError

_ORIGINAL = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("norm2", "norm_of_cross"), ("norm3", "norm2"), ("norm_of_cross", "norm3"),
    ("attn1", "self_attn"), ("attn2", "cross_attn"), (".to_out.0", ".o"), (".to_", "."),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("proj_out.", "head.head."),
)  # fmt: skip


def original(name: str) -> str:
    """The name that Wan's authors gave a tensor."""
    for new, old in _ORIGINAL:
        name = name.replace(new, old)
    if name == "scale_shift_table":
        return "head.modulation"
    return name.replace("scale_shift_table", "modulation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import PreTrainedTokenizerFast

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(zoo.ENTRIES["avatars-unet"].folder / "tokenizer"),
        text_encoder=T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        transformer=randomized(transformer, 4), vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    made = tmp_path_factory.mktemp("wan") / "folder"
    pipeline.save_pretrained(made)
    tensors = {original(name): tensor.clone() for name, tensor in transformer.state_dict().items()}
    save_file(tensors, made.parent / "wan.safetensors")
    scaled: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        matrix = name.endswith(".weight") and tensor.ndim == 2
        factor = tensor.abs().max() / 448
        scaled[name] = (tensor / factor).to(torch.float8_e4m3fn) if matrix else tensor.bfloat16()
        scaled |= {f"{name.removesuffix('.weight')}.scale_weight": factor.reshape(1)} if matrix else {}
    save_file(scaled, made.parent / "scaled.safetensors")
    del tensors["head.head.weight"]
    save_file(tensors, made.parent / "incomplete.safetensors")
    return made


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_a_file_with_original_names_loads_as_its_folder_does(folder: Path, dtype: str) -> None:
    loading = Loading(dtype=dtype, config=str(folder))  # type: ignore[arg-type]
    one = load_pipeline(str(folder.parent / "wan.safetensors"), loading, "cpu").transformer.state_dict()
    other = load_pipeline(str(folder), Loading(dtype=dtype), "cpu").transformer.state_dict()  # type: ignore[arg-type]
    assert one.keys() == other.keys()
    assert all(t.dtype == one[name].dtype and same_bits(t, one[name]) for name, t in other.items())
    assert one["scale_shift_table"].dtype == torch.float32  # kept so by its class


def test_scales_of_a_single_file_are_applied(folder: Path) -> None:
    loaded = load_pipeline(str(folder.parent / "scaled.safetensors"), Loading(config=str(folder)), "cpu").transformer
    expected = load_pipeline(str(folder), device="cpu").transformer.state_dict()
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert (tensor.float() - expected[name]).norm() <= 0.05 * expected[name].norm()


@pytest.mark.parametrize("named", ["diffusers", "original"])
def test_a_gguf_file_is_decoded_and_said_to_be_quantized(
    folder: Path, tmp_path: Path, caplog, monkeypatch, named: str
) -> None:  # type: ignore[no-untyped-def]
    """With diffusers' names, or the authors', as other programs write them."""
    monkeypatch.setattr("qua2sedimo.system.notes.LOGGER.propagate", True)
    model = load_pipeline(str(folder), Loading(dtype="fp16"), "cpu").transformer
    expected, writer = model.state_dict(), gguf.GGUFWriter(tmp_path / "wan.gguf", "wan")
    for name, tensor in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q5_1 if tensor.ndim == 2 and tensor.shape[1] == 32 else None
        data = tensor.numpy() if kind is None else gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name if named == "diffusers" else original(name), data, raw_dtype=kind)
        if kind is not None:
            expected[name] = torch.from_numpy(gguf.quants.dequantize(data, kind)).half()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_pipeline(str(tmp_path / "wan.gguf"), Loading(config=str(folder)), "cpu").transformer.state_dict()
    assert "was quantized already (Q5_1)" in caplog.text and "wan.gguf" in caplog.text
    assert sum(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.items()) == 2
    assert found.keys() == expected.keys()
    wrong = [n for n, t in found.items() if t.dtype != expected[n].dtype or not torch.equal(t, expected[n])]
    assert not wrong


def test_what_a_single_file_lacks_is_named(folder: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"lacks weights of WanTransformer3DModel: 'proj_out\.weight'"):
        load_pipeline(str(folder.parent / "incomplete.safetensors"), Loading(config=str(folder)), "cpu")


def test_without_a_network_the_message_says_what_is_needed_and_how_else(folder: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(Qua2SeDiMoError, match=r"needs the configuration of 'Wan-AI/.*' from the hub") as caught:
        load_pipeline(str(folder.parent / "wan.safetensors"))
    assert "--config FOLDER" in str(caught.value.remedy)


#: Two text encoders of Stable Diffusion XL and 3 are told apart by their widths.
_WIDTHS = {"text_encoder": 8, "text_encoder_2": 16}
_CHANGED = {
    "StableDiffusionXLPipeline": {
        "width": _WIDTHS,
        "sizes": {"unet": {**XL, "projection_class_embeddings_input_dim": 40}},
    },
    "StableDiffusion3Pipeline": {"width": {**_WIDTHS, "text_encoder_3": 24}},
}


@pytest.fixture(scope="module", params=[n for n in FILES if n != "FluxPipeline"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(pipeline class, a folder with the tiny pipeline and one.safetensors, the same with its authors' names)."""
    name = request.param
    pipeline = built(in_scope()[name], replace(ENTRIES[name], **_CHANGED.get(name, {})))
    if name == "StableDiffusion3Pipeline":  # as published: it has no projection of its own
        torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    place = tmp_path_factory.mktemp("published")
    pipeline.save_pretrained(place / "folder")
    save_file({n: t.contiguous().clone() for n, t in FILES[name](pipeline).items()}, place / "one.safetensors")
    return name, place


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    models = {n: m for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    return {f"{n} {place}": tensor for n, model in models.items() for place, tensor in model.state_dict().items()}


def test_published_files_load_as_their_folders_do(published: tuple[str, Path]) -> None:
    """Stable Diffusion with its autoencoder and text encoders, and transformers alone."""
    _, place = published
    for dtype in ("auto", "bf16"):
        loading = Loading(dtype=dtype, config=str(place / "folder"))  # type: ignore[arg-type]
        one = weights(load_pipeline(str(place / "one.safetensors"), loading, "cpu"))
        folder = weights(load_pipeline(str(place / "folder"), replace(loading, config=None), "cpu"))
        assert one.keys() == folder.keys()
        assert not [n for n, t in folder.items() if t.dtype != one[n].dtype or not torch.equal(t, one[n])]


def test_a_published_file_that_lacks_a_weight_says_which(published: tuple[str, Path], tmp_path: Path) -> None:
    name, place = published
    loading = Loading(config=str(place / "folder"))
    tensors = load_file(place / "one.safetensors")
    parts = {"first_stage_model.decoder.", "model.diffusion_model.", "cond_stage_model.", "transformer_blocks."}
    for part in [part for part in sorted(parts) if any(n.startswith(part) for n in tensors)]:
        gone = [n for n in tensors if n.startswith(part) and n.endswith(".weight")][5]
        save_file({n: t for n, t in tensors.items() if n != gone}, tmp_path / "one.safetensors")
        with pytest.raises(Qua2SeDiMoError, match="lacks") as caught:
            load_pipeline(str(tmp_path / "one.safetensors"), loading, "cpu")
        assert "meta tensor" not in str(caught.value), (name, gone)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer.", ""])
def test_names_of_diffusers_with_and_without_a_prefix(folder: Path, tmp_path: Path, prefix: str) -> None:
    expected = load_pipeline(str(folder), device="cpu").transformer.state_dict()
    file = tmp_path / "one.safetensors"
    save_file({prefix + name: tensor.clone() for name, tensor in expected.items()}, file)
    found = load_pipeline(str(file), Loading(config=str(folder)), "cpu").transformer.state_dict()
    assert all(same_bits(tensor, found[name]) for name, tensor in expected.items())
    del expected["proj_out.weight"]
    save_file({prefix + name: tensor.clone() for name, tensor in expected.items()}, file)
    with pytest.raises(Qua2SeDiMoError, match=r"lacks weights of WanTransformer3DModel: 'proj_out\.weight'"):
        load_pipeline(str(file), Loading(config=str(folder)), "cpu")


def test_a_file_of_another_model_than_its_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    wrong = {name: torch.zeros(3, *t.shape[1:]) for name, t in load_file(folder.parent / "wan.safetensors").items()}
    for name, tensors, words in (
        ("vae", {"decoder.conv_in.weight": torch.zeros(3)}, "has no weights of WanTransformer3DModel"),
        ("wider", wrong, "it is ["),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(Qua2SeDiMoError) as caught:
            load_pipeline(str(tmp_path / f"{name}.safetensors"), Loading(config=str(folder)), "cpu")
        assert words in caught.value.message and "--config" in str(caught.value.remedy)


def test_the_configuration_may_be_in_the_hubs_cache(published: tuple[str, Path], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    name, place = published
    if name != "StableDiffusionPipeline":
        pytest.skip("the others are guessed by layers that tiny models do not have")
    cached = tmp_path / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    shutil.copytree(place / "folder", cached / "snapshots" / ("a" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one = weights(load_pipeline(str(place / "one.safetensors"), device="cpu"))
    folder = weights(load_pipeline(str(place / "folder"), device="cpu"))
    assert all(torch.equal(tensor, one[n]) for n, tensor in folder.items())


@pytest.mark.slow
def test_flux_with_its_authors_names_in_its_full_width(tmp_path: Path) -> None:
    """diffusers' conversion knows only this width: one block of each kind, 1 GB in bf16."""
    entry = ENTRIES["FluxPipeline"]
    tiny = built(in_scope()["FluxPipeline"], entry)
    wide = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
    config = {**tiny.transformer.config, **wide, "num_layers": 1, "num_single_layers": 1}
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = type(tiny.transformer).from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    tiny.register_modules(transformer=transformer)
    tiny.save_pretrained(tmp_path / "folder")
    save_file({n: t.contiguous().clone() for n, t in by_table(transformer).items()}, tmp_path / "flux.safetensors")
    expected = transformer.state_dict()
    del transformer
    loading = Loading(config=str(tmp_path / "folder"))
    found = load_pipeline(str(tmp_path / "flux.safetensors"), loading, "cpu").transformer.state_dict()
    assert all(found[name].dtype == torch.bfloat16 and torch.equal(t, found[name]) for name, t in expected.items())
