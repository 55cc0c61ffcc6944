"""SDNQ's format read by other means than the package's: bit by bit, as its loader was seen to read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

#: Width → the bits of a group's bytes from the lowest on: a letter names the code, the digit its bit.
BITS = {
    1: "a0b0c0d0e0f0g0h0",
    2: "a0a1b0b1c0c1d0d1",
    3: "a0a1a2d0d1d2g0g1 b0b1b2e0e1e2h0h1 c0c1c2f0f1f2g2h2",
    4: "a0a1a2a3b0b1b2b3",
    5: "a0a1a2a3a4f0f1f2 b0b1b2b3b4g0g1g2 c0c1c2c3c4h0h1h2 d0d1d2d3d4f3f4h4 e0e1e2e3e4g3g4h3",
    6: "a0a1a2a3a4a5d4d5 b0b1b2b3b4b5d2d3 c0c1c2c3c4c5d0d1",
    7: "a0a1a2a3a4a5a6h6 b0b1b2b3b4b5b6h5 c0c1c2c3c4c5c6h4 d0d1d2d3d4d5d6h3 "
    "e0e1e2e3e4e5e6h2 f0f1f2f3f4f5f6h1 g0g1g2g3g4g5g6h0",
    8: "a0a1a2a3a4a5a6a7",
}


def codes_of(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The codes in order: int64 [count]."""
    bits = BITS[width].replace(" ", "")
    pairs = [(ord(bits[i]) - ord("a"), int(bits[i + 1])) for i in range(0, len(bits), 2)]
    groups = packed.reshape(-1, len(pairs) // 8).long()
    codes = torch.zeros(len(groups), max(code for code, _ in pairs) + 1, dtype=torch.long)
    for place, (code, bit) in enumerate(pairs):
        codes[:, code] |= ((groups[:, place // 8] >> place % 8) & 1) << bit
    return codes.flatten()


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor]]:
    """(weights by layer, the quantization settings, all tensors) of a denoiser's folder; every layer as SDNQ has it."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    weights = {}
    for name, own in settings["modules_quant_config"].items():
        layer = name.removesuffix(".weight")
        part = {k.rpartition(".")[2]: t for k, t in tensors.items() if k.rpartition(".")[0] == layer}
        weights[layer] = _weight(part, int(own["weights_dtype"].removeprefix("uint")), own)
    for name in settings["modules_to_not_convert"]:
        weights[name.removesuffix(".weight")] = tensors[name].float()
    return weights, settings, tensors


def _weight(part: dict[str, torch.Tensor], width: int, own: dict[str, Any]) -> torch.Tensor:
    codes, scale = codes_of(part["weight"], width), part["scale"].float()
    if own.get("use_codebook") and own["group_size"] == -2:
        return scale[codes]
    if own.get("use_codebook"):  # [channels, 2^width, *kernel]
        n = codes.numel() // scale[:, 0].numel()
        shaped = codes.view(len(scale), n, *scale.shape[2:])
        return torch.gather(scale, 1, shaped)
    if own.get("use_svd"):
        assert not scale.any() and not part["zero_point"].any()
        return part["svd_up"].float() @ part["svd_down"].float()
    return (
        codes.view(len(scale) if len(scale) > 1 else 1, -1) * scale.flatten()[:, None]
        + part["zero_point"].float().flatten()[:, None]
    )
