"""Plain 16-bit exports: stock diffusers loads them, with the weights of the packed model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tests.runtime.helpers import dit, mixed, output, pipeline

from qua2sedimo.interchange.plain import save_plain
from qua2sedimo.runtime import QuantizedLayer, save_packed


@pytest.mark.parametrize("trained_in", [torch.float16, torch.bfloat16], ids=str)
def test_a_plain_export_computes_what_the_packed_one_does(trained_in: torch.dtype, tmp_path: Path) -> None:
    model = dit().to(trained_in)
    values = dict(mixed(model))
    first, second = (f"transformer_blocks.0.attn1.to_{which}" for which in "qk")
    model.get_submodule(second).load_state_dict(model.get_submodule(first).state_dict())
    values.pop(second)
    made, copies = pipeline(model), {first: (second,)}
    plain = save_plain(made, None, values, tmp_path / "plain", copies=copies)
    save_packed(made, None, values, tmp_path / "packed", copies=copies)
    one, other = (DiffusionPipeline.from_pretrained(tmp_path / name).transformer for name in ("plain", "packed"))
    assert not any(isinstance(m, QuantizedLayer) for m in one.modules())
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "transformer" / "config.json").read_text())
    assert torch.equal(output(one), output(other))
    files = sum(file.stat().st_size for file in (tmp_path / "plain" / "transformer").glob("*.safetensors"))
    assert plain.denoiser_bytes < files < plain.denoiser_bytes + 20_000
    assert json.loads((tmp_path / "plain" / "qua2sedimo.json").read_text())["format"] == "diffusers"
