"""What the backends of diffusers and of transformers have in common: both load and save packed models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import SumCheck, checksum, checksum_metadata
from qua2sedimo.formats.tensorfiles import tensor_bytes
from qua2sedimo.runtime.activations import set_activation_bits
from qua2sedimo.runtime.guards import guard
from qua2sedimo.runtime.plain import dequantize
from qua2sedimo.runtime.shards import model_tensors

_COMPUTE_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_compute_dtype(dtype: Any) -> None:
    """Raise :class:`Qua2SeDiMoError` if packed layers cannot compute in a dtype."""
    if dtype not in _COMPUTE_DTYPES:
        raise Qua2SeDiMoError(f"packed layers cannot compute in {dtype}", "Choose a float dtype of 16 bits or more.")


def finish_loading(model: Any, sums: SumCheck | None, act_bits: int | None, library: str) -> None:
    """Compare the files with their checksums, check that ``library`` has loaded every tensor, and guard the model."""
    if sums is not None:
        sums.result()
    offloaded = {"disk", "cpu"} & set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    empty = [] if offloaded else [name for name, tensor in model_tensors(model) if tensor.is_meta]
    if empty:
        raise Qua2SeDiMoError(f"tensor '{empty[0]}' was not loaded by {library}", f"Update {library}.")
    if act_bits is not None:
        set_activation_bits(model, act_bits)
    # The library refuses to cast a model with this mark. A packed one can be cast: only what is not packed changes.
    model.is_quantized = False
    guard(model)


def with_checksums(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors to store, and their checksums, which the library writes into the metadata of every file."""
    sums = {name: checksum(tensor_bytes(tensor.detach().cpu().contiguous())) for name, tensor in tensors.items()}
    return dict(tensors), checksum_metadata(sums)


def dequantize_for(quantizer: Any, model: Any) -> nn.Module:
    """The model with plain weights, as the ``_dequantize`` of a library's quantizer returns it."""
    dequantize(model)
    model.hf_quantizer = quantizer  # the caller deletes it
    found: nn.Module = model
    return found
