"""A quantized denoiser as other formats see it: whole layers by module, and the tensors beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.text import size_text
from qua2sedimo.quantizers import QuantizedWeight, dequantize_weight, stored_dtype
from qua2sedimo.runtime.checkpoint import Values, kept_tensor
from qua2sedimo.runtime.shards import model_tensors
from qua2sedimo.runtime.units import Copies, quantized_layers

_TOLERATED = 0.01  # growth over the packed size
_SHOWN = 5


@dataclass(frozen=True)
class WholeLayer:
    """A layer of a denoiser with the values of its parts, ``(None, value)`` for one that is not split.

    ``first`` is whether it is the first of its copies; ``dtype`` is the 16-bit type of its weight.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[tuple[int, int] | None, QuantizedWeight], ...]
    first: bool

    @property
    def value(self) -> QuantizedWeight | None:
        """The layer's only value; None if it has parts."""
        (span, value), *others = self.parts
        return None if others or span is not None else value

    @property
    def dtype(self) -> torch.dtype:
        return stored_dtype(self.parts[0][1].dtype)

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes and parameters in a packed checkpoint, where copies are stored once."""
        return sum(value.nbytes for _, value in self.parts) if self.first else 0

    @property
    def weights(self) -> int:
        return math.prod(self.shape) if self.first else 0

    @property
    def what(self) -> str:
        """How it is quantized, for a message."""
        if self.value is None:
            return f"{len(self.parts)} parts"
        return self.value.option if self.first else f"{self.value.option}, a copy"

    def dequantized(self) -> torch.Tensor:
        """The whole weight in its 16-bit type."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for span, value in self.parts:
            dequantize_weight(value, whole if span is None else whole[:, span[0] : span[1]])
        return whole


def whole_layers(denoiser: Any, values: Values, copies: Copies) -> dict[str, WholeLayer]:
    """The quantized layers by module name, each copy by itself.

    Raises :class:`Qua2SeDiMoError` if parts are missing or a value does not fit its layer.
    """
    given = values if isinstance(values, Mapping) else dict(values)
    found: dict[str, WholeLayer] = {}
    seen: set[int] = set()
    for name, layer in quantized_layers(denoiser, given, copies).items():
        spans = [part.span for part in layer.parts]
        parts = tuple((span, _on_cpu(value)) for span, value in zip(spans, layer.quantized_weights()))
        found[name] = WholeLayer(name, layer.shape, parts, id(layer) not in seen)
        seen.add(id(layer))
    return found


def refuse_growth(form: str, layers: Mapping[str, WholeLayer], nbytes: Mapping[str, int], remedy: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if layers of these bytes each take more than 1 % more than packed ones.

    ``form`` names the format; ``remedy`` is how to make a study whose options it holds.
    """
    packed = sum(layer.packed_bytes for layer in layers.values())
    grown = {name: nbytes[name] - layer.packed_bytes for name, layer in layers.items()}
    if sum(grown.values()) <= _TOLERATED * packed:
        return
    largest = sorted(grown, key=lambda name: -grown[name])[:_SHOWN]
    shown = "; ".join(f"'{name}' ({layers[name].what}) +{size_text(grown[name])}" for name in largest)
    count = sum(growth > 0 for growth in grown.values())
    raise Qua2SeDiMoError(
        f"{form}'s format has no form as small for {count} of {len(layers)} layers: they would take "
        f"{size_text(packed + sum(grown.values()))} instead of {size_text(packed)}. Largest: {shown}",
        f"{remedy}, which tries only what the format holds, or write it larger: --any-size.",
    )


def other_tensors(denoiser: Any, quantized: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of all that is not the weight of a quantized layer, as it is kept beside them."""
    as_kept = kept_tensor(denoiser)
    weights = {f"{name}.weight" for name in quantized}
    for name, tensor in model_tensors(denoiser):
        if name not in weights:
            yield name, as_kept(name, tensor)


def _on_cpu(value: QuantizedWeight) -> QuantizedWeight:
    parameters = {name: t.cpu() for name, t in value.parameters.items()}
    return QuantizedWeight(value.method, value.number, value.shape, value.dtype, value.codes.cpu(), parameters)
