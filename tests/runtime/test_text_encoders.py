"""Packed text encoders: transformers loads them by our backend, saves them again, and computes what was packed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import randomized
from tests.sweep.texts import ENCODERS, WIDTH
from torch import nn

from qua2sedimo import Qua2SeDiMoError
from qua2sedimo.denoisers.layers import other_weights, weight_modules
from qua2sedimo.quantizers import METHODS, QuantizedWeight
from qua2sedimo.runtime import QuantizedLayer, dequantize, pack, save_packed

#: A T5, a CLIP with an output layer, a decoder whose output layer is tied to its embeddings, and one that also sees.
KINDS = (
    "T5EncoderModel", "CLIPTextModelWithProjection", "SmolLM3ForCausalLM", "Qwen2_5_VLForConditionalGeneration",
)  # fmt: skip


def encoder(kind: str) -> Any:
    return randomized(ENCODERS[kind](getattr(transformers, kind), WIDTH), seed=1).half()


def values(model: nn.Module) -> dict[str, QuantizedWeight]:
    return {name: METHODS["row"].quantize(m.weight.detach(), [4])[0] for name, m in weight_modules(model).items()}


def embedded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=torch.arange(5, 12)[None])[0]
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_encoder_is_loaded_and_saved_by_transformers(kind: str, tmp_path: Path) -> None:
    model = encoder(kind)
    packed = pack(copy.deepcopy(model), values(model))
    expected = embedded(packed)
    assert not torch.equal(expected, embedded(model))
    save_packed(model, None, values(model), tmp_path / "exported")
    loaded = type(model).from_pretrained(tmp_path / "exported", dtype=torch.float16)
    assert sum(isinstance(m, QuantizedLayer) for m in loaded.modules()) == len(values(model))
    assert torch.equal(embedded(loaded), expected)
    for number, saved in enumerate((packed, loaded)):  # packed in memory, and loaded packed
        saved.save_pretrained(tmp_path / str(number))
        again = type(model).from_pretrained(tmp_path / str(number), dtype=torch.float16)
        assert torch.equal(embedded(again), expected)
    assert loaded.float().dtype == torch.float32
    plain = dequantize(packed)
    assert torch.equal(embedded(plain), expected)
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_an_output_layer_that_is_tied_to_the_embeddings_is_left_alone(tmp_path: Path) -> None:
    model = encoder("SmolLM3ForCausalLM")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head" not in weight_modules(model)
    assert {"lm_head", "model.embed_tokens"} <= set(other_weights(model))


def test_damage_is_refused(tmp_path: Path) -> None:
    model = encoder("T5EncoderModel")
    save_packed(model, None, values(model), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "relative_attention_max_distance": 7}))
    with pytest.raises(Qua2SeDiMoError, match=r"config.json does not describe the T5EncoderModel"):
        type(model).from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(Qua2SeDiMoError, match="is not what was exported"):
        type(model).from_pretrained(tmp_path / "out")
