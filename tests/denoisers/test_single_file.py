"""One file with original names becomes the pipeline that its diffusers folder is."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from tests.conftest import randomized
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
