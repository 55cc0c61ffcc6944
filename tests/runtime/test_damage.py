"""Damaged checkpoints are refused with an error that names what is wrong, before anything is allocated."""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoModel, DiTTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import read_header
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import save_packed
from qua2sedimo.runtime.backend import Qua2SeDiMoConfig, Qua2SeDiMoQuantizer
from qua2sedimo.runtime.intact import check_config, config_digest, digest

from .helpers import dit, edit_header, mixed, output

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
    """Alter entries of quantization_config, and the digest with them: what comes after the digest is looked at."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    entries = {k: v for k, v in content["quantization_config"].items() if k != "digest"} | changes
    content["quantization_config"] = {**entries, "digest": digest(entries)}
    path.write_text(json.dumps(content))


def model_config(folder: Path, **changes: object) -> None:
    """Alter what the model is made from, and no digest."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    config(folder, format_version=6, novelty=True)
    refused(folder, "format version 6 is unknown; this program reads versions 4 and 5")


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


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 10**6, "attention_head_dim": 10**6},  # 10^12 channels
        {"num_layers": 10**9},
        {"sample_size": 10**7},
        {"num_embeds_ada_norm": 10**12},
        {"norm_eps": 2e-5},
        {"activation_fn": "geglu"},
        {"upcast_attention": True},
    ],
)
def test_a_model_config_that_was_altered_is_refused_before_a_model_is_made(folder: Path, change: dict) -> None:
    model_config(folder, **change)
    with patch.object(DiTTransformer2DModel, "__init__", side_effect=AssertionError("a model is made")):
        refused(folder, "does not describe the DiTTransformer2DModel that was exported")


def forged(folder: Path, **changes: object) -> None:
    """Alter what the model is made from, and both digests with it."""
    model_config(folder, **changes)
    config(folder, config=config_digest(DiTTransformer2DModel, json.loads((folder / "config.json").read_text())))


@contextlib.contextmanager
def nothing_allocated() -> Iterator[None]:
    """Within, a model is made on the meta device only."""
    make = DiTTransformer2DModel.__init__

    @functools.wraps(make)  # its signature tells which entries of a config count
    def made(self: DiTTransformer2DModel, *args: object, **kwargs: object) -> None:
        assert torch.empty(0).is_meta, "a model is made in memory"
        make(self, *args, **kwargs)

    with patch.object(DiTTransformer2DModel, "__init__", made):
        yield


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 40, "attention_head_dim": 40}, "expected shape"),
        ({"num_attention_heads": 1000, "attention_head_dim": 1000}, "expected shape"),  # 10^12 weights a layer
        ({"num_attention_heads": 10**6, "attention_head_dim": 10**6}, "impossible sizes"),
        ({"num_embeds_ada_norm": 10**12}, "expected shape"),
        ({"num_layers": 10**9}, "modules, far more than"),
        ({"sample_size": 10**5}, "tables of 3.2e"),
        ({"sample_size": 10**12}, "impossible sizes"),
    ],
)
def test_a_config_that_asks_for_far_more_with_digests_that_fit(folder: Path, changes: dict, message: str) -> None:
    forged(folder, **changes)
    with nothing_allocated():
        refused(folder, message)


_SIZES = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(_SIZES), st.sampled_from([10**n for n in (4, 5, 6, 9, 12, 18, 30)])))
def test_no_sizes_in_a_config_with_digests_that_fit_allocate_anything(folder: Path, changes: dict) -> None:
    before = (folder / "config.json").read_text()
    try:
        forged(folder, **changes)
        if changes:
            with nothing_allocated(), pytest.raises(Qua2SeDiMoError):
                DiTTransformer2DModel.from_pretrained(folder)
        else:
            DiTTransformer2DModel.from_pretrained(folder)
    finally:
        (folder / "config.json").write_text(before)


def test_altered_model_configs_are_noticed_even_if_diffusers_hides_its_variables(folder: Path) -> None:
    model_config(folder, norm_eps=2e-5)
    with patch.object(Qua2SeDiMoQuantizer, "_check_early"):
        refused(folder, "does not describe the DiTTransformer2DModel that was exported")


def test_another_default_of_a_later_diffusers_version_is_noticed_and_a_new_entry_is_not() -> None:
    class Then:
        def __init__(self, width: int = 3, depth: int = 2) -> None: ...

    class Now:
        def __init__(self, width: int = 3, depth: int = 4, novelty: bool = False) -> None: ...

    written = {"width": 5, "_class_name": "Then"}
    exported = config_digest(Then, written)
    check_config(Then, {**written, "depth": 2, "_diffusers_version": "1"}, exported)
    check_config(Now, {**written, "novelty": False}, exported)
    for cls, config in ((Then, {"width": 3}), (Then, {**written, "depth": 4}), (Now, {**written, "depth": 2})):
        with pytest.raises(Qua2SeDiMoError, match=f"does not describe the {cls.__name__}"):
            check_config(cls, config, exported)


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
    shard = weights(folder)
    shard.unlink()
    refused(folder, f"shard .*{shard.name} is missing")


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 3}}', b"\xff"])
def test_a_missing_or_damaged_index(folder: Path, content: bytes | None) -> None:
    index = next(folder.glob("*.index.json"))
    index.unlink() if content is None else index.write_bytes(content)
    refused(folder, "index.json|holds no diffusion_pytorch_model.safetensors")


def test_entries_that_were_altered_without_their_digest(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())["quantization_config"]
    model_config(folder, quantization_config={**content, "act_bits": 8})
    refused(folder, "an entry was changed")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_any_file_changes_the_output_unnoticed(folder: Path, data: st.DataObject) -> None:
    expected = output(DiTTransformer2DModel.from_pretrained(folder))
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    whole = file.read_bytes()
    headers = len(whole) - 1 if file.suffix == ".json" else 20_000  # the weights' bytes have a test of their own
    word = whole.find(b"quantization_config")  # without this very word diffusers takes the model for a plain one
    places = st.integers(0, min(headers, len(whole) - 1)).filter(lambda at: not word <= at < word + 19)
    at = data.draw(places)
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        file.write_bytes(changed)
        try:
            loaded = DiTTransformer2DModel.from_pretrained(folder)
        except Exception as error:  # diffusers' own, where it reads the file before us
            assert str(error)
        else:
            assert torch.equal(output(loaded), expected)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("act_bits", [3, 9, True, "8", 8.0])
def test_a_width_that_activations_cannot_have(folder: Path, act_bits: object) -> None:
    config(folder, act_bits=act_bits)
    refused(folder, "'act_bits' must be 4 to 8")
