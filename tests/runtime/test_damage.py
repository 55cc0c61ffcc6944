"""Damaged checkpoints are refused with an error that names what is wrong, before anything is allocated."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiTTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import save_packed
from qua2sedimo.runtime.backend import Qua2SeDiMoConfig
from qua2sedimo.tensorfiles import read_header

from .helpers import dit, edit_header, mixed

NAME = "transformer_blocks.0.attn1.to_k"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = dit()
    values = dict(mixed(model)) | {NAME: METHODS["uaq"].quantize(model.get_submodule(NAME).weight, [3])[0]}
    save_packed(model, None, values, tmp_path / "out")
    return tmp_path / "out"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match=match) as caught:
        DiTTransformer2DModel.from_pretrained(folder)
    assert caught.value.remedy


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:keep])
    refused(folder, "truncated")


@pytest.mark.parametrize("part", ["codes", "scale", "zero", "bias"])
def test_a_missing_tensor(folder: Path, part: str) -> None:
    def drop(header: dict, data: bytes) -> bytes:
        begin, end = header.pop(f"{NAME}.{part}")["data_offsets"]
        for name, entry in header.items():
            if name != "__metadata__" and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
        return data[:begin] + data[end:]

    edit_header(weights(folder), drop)
    refused(folder, f"'{NAME}.{part}' is missing")


def test_an_extra_tensor(folder: Path) -> None:
    def add(header: dict, data: bytes) -> bytes:
        header["virus"] = {"dtype": "U8", "shape": [3], "data_offsets": [len(data), len(data) + 3]}
        return data + b"abc"

    edit_header(weights(folder), add)
    refused(folder, "'virus' that the model does not have")


def test_a_wrong_shape_and_a_wrong_type(folder: Path) -> None:
    def set_entry(name: str, **change: object) -> None:
        def change_it(header: dict, data: bytes) -> bytes:
            header[name] |= change
            return data

        edit_header(weights(folder), change_it)

    set_entry(f"{NAME}.scale", shape=[4, 8])
    refused(folder, rf"'{NAME}.scale': expected shape \[32\], the checkpoint has \[4, 8\]")
    set_entry(f"{NAME}.scale", shape=[32], dtype="F16")
    refused(folder, rf"'{NAME}.scale': expected torch.int16, the checkpoint has F16")


def test_tensors_that_overlap(folder: Path) -> None:
    def move(header: dict, data: bytes) -> bytes:
        header[f"{NAME}.scale"]["data_offsets"] = header[f"{NAME}.zero"]["data_offsets"]
        return data

    edit_header(weights(folder), move)
    refused(folder, "unreadable header: a tensor of 64 bytes")


def test_a_tensor_larger_than_the_file(folder: Path) -> None:
    def grow(header: dict, data: bytes) -> bytes:
        header[f"{NAME}.zero"]["shape"] = [10**12]
        return data

    edit_header(weights(folder), grow)
    refused(folder, "unreadable header: a tensor of 2000000000000 bytes")


def test_an_unknown_version(folder: Path) -> None:
    config(folder, format_version=4, novelty=True)
    refused(folder, "format version 4 is unknown")


@pytest.mark.parametrize(
    "change",
    [
        {"options": ["uaq-4/float64"]},
        {"options": ["uaq-9/float16"]},
        {"options": "uaq-4/float16"},
        {"options": [4]},
        {"layers": "?" * 30},
        {"layers": None},
        {"layers": "a"},
        {"layers": "." * 1_000_000},
        {"names": 7},
        {"cuts": 3},
        {"cuts": [[0]]},
        {"cuts": [[0, 8, 4]]},
        {"cuts": [[0, 4, 8]]},
        {"ties": [[0, 1]]},
        {"ties": [["a", "b"]]},
        {"names": "0" * 16},
        {"novelty": 1},
    ],
)
def test_a_senseless_quantization_config(folder: Path, change: dict) -> None:
    config(folder, **change)
    with pytest.raises(Qua2SeDiMoError):
        DiTTransformer2DModel.from_pretrained(folder)


def test_another_option_than_the_file_holds(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())["quantization_config"]
    config(folder, options=content["options"][1:] + content["options"][:1])
    refused(folder, "the checkpoint|missing from the checkpoint")


@pytest.mark.parametrize("size", [40, 1000])
def test_a_model_config_that_asks_for_far_more_weights(folder: Path, size: int) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | {"num_attention_heads": size, "attention_head_dim": size}
    path.write_text(json.dumps(content))
    with pytest.raises((Qua2SeDiMoError, RuntimeError), match=r"expected shape|allocate"):
        DiTTransformer2DModel.from_pretrained(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="not a safetensors file"):
        read_header(folder / "diffusion_pytorch_model.bin")


def test_a_plain_checkpoint_is_not_quantized_on_the_fly(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "config.json").read_text())["quantization_config"]
    dit().save_pretrained(tmp_path / "plain")
    with pytest.raises(Qua2SeDiMoError, match="cannot be quantized while it is loaded"):
        AutoModel.from_pretrained(tmp_path / "plain", quantization_config=Qua2SeDiMoConfig.from_dict(content))
    with pytest.raises(Qua2SeDiMoError, match="cannot compute in"):
        AutoModel.from_pretrained(folder, torch_dtype=torch.float8_e4m3fn)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_string_breaks_the_header_reader(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.binary(max_size=60), st.sampled_from([b"[]", b"{}", b'{"a":1}', b"[" * 9000])))
    length = data.draw(st.one_of(st.just(len(text)), st.integers(0, 2**64 - 1)))
    file = tmp_path / "x.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + text)
    with contextlib.suppress(Qua2SeDiMoError):
        assert isinstance(read_header(file), dict)


def test_equal_shapes_that_were_swapped(folder: Path) -> None:
    def swap(header: dict, data: bytes) -> bytes:
        one, other = header[f"{NAME}.scale"], header[f"{NAME}.zero"]
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        return data

    edit_header(weights(folder), swap)
    refused(folder, f"'{NAME}.(scale|zero)' in .* is not what was exported")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_altered_byte_and_no_cut_passes(folder: Path, data: st.DataObject) -> None:
    file = weights(folder)
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    try:
        if data.draw(st.booleans()):
            changed = bytearray(whole)
            changed[at] ^= data.draw(st.integers(1, 255))
            file.write_bytes(changed)
        else:
            file.write_bytes(whole[:at])
        with contextlib.suppress(Qua2SeDiMoError):
            loaded = DiTTransformer2DModel.from_pretrained(folder)
            file.write_bytes(whole)  # it was in the metadata, or in the padding of the header: no weight changed
            sound = DiTTransformer2DModel.from_pretrained(folder).state_dict()
            assert all(torch.equal(sound[name], tensor) for name, tensor in loaded.state_dict().items())
    finally:
        file.write_bytes(whole)


def test_a_missing_shard(folder: Path) -> None:
    weights(folder).unlink()
    with pytest.raises((Qua2SeDiMoError, OSError)):
        DiTTransformer2DModel.from_pretrained(folder)


@pytest.mark.parametrize("act_bits", [3, 9, True, "8", 8.0])
def test_a_width_that_activations_cannot_have(folder: Path, act_bits: object) -> None:
    config(folder, act_bits=act_bits)
    refused(folder, "'act_bits' must be 4 to 8")
