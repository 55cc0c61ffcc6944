"""The block and stage of a layer: which repeated module contains it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Place:
    """Position of a layer: ``block`` is a readable name, ``index`` the block's number, None outside numbered blocks."""

    block: str
    index: int | None
    stage: str


def block_of(name: str, denoiser: nn.Module | None = None) -> Place:
    """The repeated block that contains a layer.

    In a U-Net it is the ResNet, attention or sampler within a stage: ``down_blocks.1.attentions.0.to_q`` is in *down 1
    attention 0*. In other models it is the outermost numbered module on the path that diffusers declares as a block
    (``_repeated_blocks``, ``_no_split_modules``), whose list is named blocks or layers, or that has several layers:
    ``transformer_blocks.3.attn1.to_q`` is in *block 3*. A layer outside all blocks is in *input* or *output*.
    """
    match = re.match(r"(down|up)_blocks\.(\d+)|(mid)_block", name)
    if match:
        stage = f"{match[1]} {match[2]}" if match[1] else "mid"
        inner = re.search(r"(resnet|attention|motion_module|downsampler|upsampler)s\w*\.(\d+)", name)
        return Place(f"{stage} {inner[1]} {inner[2]}" if inner else stage, None, stage)
    parts = name.split(".")
    for i in range(1, len(parts) - 1):
        if parts[i].isdigit() and _is_block(parts[: i + 1], denoiser):
            stage = re.sub(r"_?(blocks?|layers?)$", "", parts[i - 1]).strip("_") or "block"
            label = "block" if stage in ("transformer", "block") else f"{stage} block"
            return Place(f"{label} {parts[i]}", int(parts[i]), stage)
    stage = "output" if re.match(r"((\w+_)?proj_out|norm_out|conv_out|final|out\b|head|lm_head|clf)", name) else "input"
    return Place(stage, None, stage)


def _is_block(path: list[str], denoiser: nn.Module | None) -> bool:
    if re.search(r"(block|layer)s?$", path[-2]):
        return True
    if denoiser is None:
        return False
    module = denoiser.get_submodule(".".join(path))
    hints = {
        *(getattr(denoiser, "_repeated_blocks", None) or ()),
        *(getattr(denoiser, "_no_split_modules", None) or ()),
    }
    if type(module).__name__ in hints:
        return True
    siblings = denoiser.get_submodule(".".join(path[:-1]))
    several = sum(isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in module.modules()) > 1
    return isinstance(siblings, nn.ModuleList) and several
