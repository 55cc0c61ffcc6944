"""How SDNQ's format holds one layer: the smallest of its forms in which the layer computes what it does here.

Four forms are used. *Uniform*: codes, a scale and a zero point −z·Δ per row. *Codebooks*: one for the tensor, or one
per row, which a convolution repeats for each position of its kernel. *Branch*: codes of one bit that stand for 0, and
two 16-bit factors beside them. *Plain*: the 16-bit weight, not quantized. A row of fixed levels times a scale (``row``)
has no form of its own and becomes a codebook per row. In bf16 a zero point has too few digits, so uniform levels become
a codebook per row there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qua2sedimo.interchange.sdnq.packing import pack_codes, packed_shape, stored_width
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, LowRank, QuantizedWeight, dequantize_weight, levels_of, unpack

#: ``group_size`` of one set of parameters per row, or for the whole tensor.
PER_ROW, PER_TENSOR = -1, -2
_BRANCH_BITS = 1  # of the codes beside a branch, all of which stand for 0


@dataclass(frozen=True)
class Form:
    """One way to hold a layer: ``kind``, and its bytes in the file; ``bits`` is the width of a code."""

    kind: str
    nbytes: int
    bits: int = 0


@dataclass(frozen=True)
class StoredLayer:
    """A layer as SDNQ stores it: its own ``settings`` (None: not quantized), tensors by the last part of their name."""

    settings: dict[str, Any] | None
    tensors: dict[str, torch.Tensor]


def form_of(option: Option, shape: tuple[int, ...], dtype: torch.dtype) -> Form:
    """The smallest form that holds a layer [channels, …] of this option and 16-bit type exactly, or to rounding."""
    plain = Form("plain", 2 * math.prod(shape))
    forms = [*_forms(option, shape, dtype), plain]
    return min(forms, key=lambda form: form.nbytes)  # of equal ones the first


def stored_layer(value: QuantizedWeight, form: Form) -> StoredLayer:
    """The layer in this form, which is one of :func:`form_of` for its option, shape and type."""
    return _WRITERS[form.kind](value, form)


def _forms(option: Option, shape: tuple[int, ...], dtype: torch.dtype) -> list[Form]:
    count, channels = math.prod(shape), shape[0]
    if option.method == "lowrank":
        factors = 2 * option.number * (channels + count // channels)
        codes = _code_bytes(shape, stored_width(_BRANCH_BITS, count))
        return [Form("branch", codes + 4 + factors, stored_width(_BRANCH_BITS, count))]
    bits = stored_width(option.bits, count)
    codes = _code_bytes(shape, bits)
    if option.method == "kmeans_a":
        return [Form("tensor codebook", codes + 2 * 2**bits, bits)]
    rows = Form("row codebooks", codes + 2 * 2**bits * channels * math.prod(shape[2:]), bits)
    if option.method == "uaq" and dtype != torch.bfloat16:
        return [Form("uniform", codes + 4 * channels, bits), rows]
    return [rows]


def _code_bytes(shape: tuple[int, ...], width: int) -> int:
    return math.prod(packed_shape(shape, width))


def _uniform(value: QuantizedWeight, form: Form) -> StoredLayer:
    scale = value.parameters["scale"]
    offset = -(value.parameters["zero"].double() * scale.double())
    largest = torch.finfo(scale.dtype).max
    one = [1] * (len(value.shape) - 1)
    tensors = {
        "weight": pack_codes(_codes(value), form.bits),
        "scale": scale.view(-1, *one),
        "zero_point": offset.clamp(-largest, largest).to(scale.dtype).view(-1, *one),
    }
    return StoredLayer({"weights_dtype": f"uint{form.bits}", "group_size": PER_ROW}, tensors)


def _tensor_codebook(value: QuantizedWeight, form: Form) -> StoredLayer:
    tensors = {"weight": pack_codes(_codes(value), form.bits), "scale": _widened(value, form.bits)[0]}
    return StoredLayer(_with_codebook(form.bits, PER_TENSOR), tensors)


def _row_codebooks(value: QuantizedWeight, form: Form) -> StoredLayer:
    books = _widened(value, form.bits)
    kernel = value.shape[2:]
    books = books.view(*books.shape, *[1] * len(kernel)).expand(*books.shape, *kernel)
    tensors = {"weight": pack_codes(_codes(value), form.bits), "scale": books.contiguous()}
    return StoredLayer(_with_codebook(form.bits, PER_ROW), tensors)


def _branch(value: QuantizedWeight, form: Form) -> StoredLayer:
    method = METHODS[value.method]
    assert isinstance(method, LowRank)
    up, down = method.factors(value, value.dtype)
    nothing = torch.zeros(1, *[1] * (len(value.shape) - 1), dtype=value.dtype)
    tensors = {
        "weight": pack_codes(torch.zeros(value.shape, dtype=torch.uint8), form.bits),
        "scale": nothing,
        "zero_point": nothing.clone(),
        "svd_up": up,
        "svd_down": down,
    }
    settings = {"weights_dtype": f"uint{form.bits}", "group_size": PER_TENSOR}
    return StoredLayer({**settings, "use_svd": True, "svd_rank": value.number}, tensors)


def _plain(value: QuantizedWeight, form: Form) -> StoredLayer:
    return StoredLayer(None, {"weight": dequantize_weight(value)})


_WRITERS: dict[str, Callable[[QuantizedWeight, Form], StoredLayer]] = {
    "uniform": _uniform,
    "tensor codebook": _tensor_codebook,
    "row codebooks": _row_codebooks,
    "branch": _branch,
    "plain": _plain,
}


def _with_codebook(bits: int, group_size: int) -> dict[str, Any]:
    return {"weights_dtype": f"uint{bits}", "group_size": group_size, "use_codebook": True}


def _codes(value: QuantizedWeight) -> torch.Tensor:
    return unpack(value.codes, value.number, math.prod(value.shape)).view(value.shape)


def _widened(value: QuantizedWeight, bits: int) -> torch.Tensor:
    """Levels [channels or 1, 2^bits] in the weight's type; those that no code names are 0."""
    levels = levels_of(value, value.dtype)
    return torch.nn.functional.pad(levels, (0, 2**bits - levels.shape[1]))
