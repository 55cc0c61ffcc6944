"""Export a choice to other runtimes: a torchao configuration by layer name, or GGUF tensor types by pattern.

A recipe has only methods and bit widths. The other program quantizes the plain checkpoint with its own groups and
rounding, so size and quality differ from what was measured here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option

_SHOWN = 3


@dataclass(frozen=True)
class Recipe:
    """``text`` is the recipe; ``nbytes`` is the size of its layers, with ``weights`` weights, in the target format."""

    text: str
    nbytes: int
    weights: int

    @property
    def average_bits(self) -> float:
        return 8 * self.nbytes / self.weights


class _Form(Protocol):
    """A target format: which layers it supports, their sizes, and the recipe's text, in which ``mark`` stands."""

    mark: str

    def reason(self, shape: tuple[int, ...], bits: int) -> str | None:
        """Why the format does not support a whole UAQ layer of this shape; None if it does."""

    def nbytes(self, shape: tuple[int, ...], bits: int) -> int: ...

    def text(self, layers: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
        """The recipe for module name → (shape, bits)."""


class _TorchAO:
    """torchao's ``FqnToConfig`` as the JSON that ``torchao.core.config.config_from_dict`` reads.

    Each layer gets an asymmetric ``IntxWeightOnlyConfig`` with one scale per output channel (Conv2d: per output channel
    and kernel position). torchao stores one byte per code at any bit width unless it packs for a kernel library.
    """

    mark = "FqnToConfig"

    def reason(self, shape: tuple[int, ...], bits: int) -> str | None:
        return None if len(shape) in (2, 4) else "torchao quantizes Linear and Conv2d layers only"

    def nbytes(self, shape: tuple[int, ...], bits: int) -> int:
        scales = shape[0] * math.prod(shape[2:])
        return math.prod(shape) + 3 * scales  # a 16-bit scale and an 8-bit zero point

    def text(self, layers: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
        configs = {name: self._config(bits) for name, (_, bits) in layers.items()}
        return json.dumps(_tagged(self.mark, 1, {"fqn_to_config": configs}), indent=1)

    @staticmethod
    def _config(bits: int) -> dict[str, Any]:
        return _tagged(
            "IntxWeightOnlyConfig",
            2,
            {
                "weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
                "granularity": _tagged("PerAxis", 1, {"axis": 0}),
                "mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"},
            },
        )


def _tagged(kind: str, version: int, data: dict[str, Any]) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}


@dataclass(frozen=True)
class _Type:
    """A GGUF tensor type: each block of ``block`` weights in a row takes ``nbytes``."""

    name: str
    block: int
    nbytes: int


class _GGUF:
    """``PATTERN=TYPE,…`` for ``--tensor-type-rules`` of stable-diffusion.cpp's converter.

    Of the types with the same bit width, the first with blocks that divide the rows is used; types with a minimum per
    block are preferred to symmetric ones. Each pattern is a regular expression that matches one tensor.
    """

    mark = r"^(model\.diffusion_model\.)?"

    types: Mapping[int, tuple[_Type, ...]] = {
        2: (_Type("q2_K", 256, 84),),
        3: (_Type("q3_K", 256, 110),),
        4: (_Type("q4_K", 256, 144), _Type("q4_1", 32, 20)),
        5: (_Type("q5_K", 256, 176), _Type("q5_1", 32, 24)),
        6: (_Type("q6_K", 256, 210),),
        8: (_Type("q8_0", 32, 34),),
    }

    def reason(self, shape: tuple[int, ...], bits: int) -> str | None:
        if bits not in self.types:
            return f"GGUF has no type of {bits} bits"
        if len(shape) != 2:
            return "the rows of a convolution have the length of its kernel, shorter than a GGUF block"
        if self._type(shape, bits) is None:
            return f"its rows of {shape[1]} weights are not a multiple of the block size {self.types[bits][-1].block}"
        return None

    def nbytes(self, shape: tuple[int, ...], bits: int) -> int:
        kind = self._type(shape, bits)
        assert kind is not None
        return math.prod(shape) // kind.block * kind.nbytes

    def text(self, layers: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
        rules = []
        for name, (shape, bits) in layers.items():
            kind = self._type(shape, bits)
            assert kind is not None
            rules.append(rf"{self.mark}{re.escape(name)}\.weight$={kind.name}")
        return ",".join(rules)

    def _type(self, shape: tuple[int, ...], bits: int) -> _Type | None:
        return next((kind for kind in self.types[bits] if shape[1] % kind.block == 0), None)


FORMS: Mapping[str, _Form] = {"torchao": _TorchAO(), "gguf": _GGUF()}


def recipe(form: str, configuration: Mapping[str, Option], layers: Mapping[str, WeightLayer]) -> Recipe:
    """A configuration as a recipe in the format ``form``: ``torchao`` or ``gguf``.

    ``layers`` are those of the graph; copies of a layer get the same option and are counted separately. Layers that are
    not in the configuration are not quantized.

    Raises :class:`Qua2SeDiMoError` with the reason if the format does not support a layer: a method other than
    ``uaq``, whose levels alone are evenly spaced, a part of a layer, its shape, or its bit width.
    """
    if form not in FORMS:
        raise Qua2SeDiMoError(f"unknown recipe format '{form}'", f"Known: {', '.join(FORMS)}.")
    held, refused = FORMS[form], {}
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for unit, option in configuration.items():
        layer = layers[unit]
        reason = _unfit(layer, option) or held.reason(layer.shape, option.bits)
        if reason is not None:
            refused[unit] = reason
        found |= dict.fromkeys((layer.module, *layer.copies), (layer.shape, option.bits))
    if refused:
        raise _refusal(form, refused)
    if not found:
        raise Qua2SeDiMoError("the choice quantizes no layer", "Choose a smaller size.")
    nbytes = sum(held.nbytes(shape, bits) for shape, bits in found.values())
    return Recipe(held.text(found), nbytes, sum(math.prod(shape) for shape, _ in found.values()))


def _unfit(layer: WeightLayer, option: Option) -> str | None:
    """Why no other format supports a layer, None if one may."""
    if option.method != "uaq":
        return f"{option} has no evenly spaced levels, the format no others"
    if layer.span is not None:
        return "it is one of several parts of a layer, the format has one type per layer"
    return None


def _refusal(form: str, refused: Mapping[str, str]) -> Qua2SeDiMoError:
    shown = [f"'{name}': {reason}" for name, reason in list(refused.items())[:_SHOWN]]
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    return Qua2SeDiMoError(
        f"a recipe for {form} cannot hold {len(refused)} of the choice's layers: {'; '.join(shown)}{more}",
        "Create the study with `--options wide`, make a choice with `--methods uaq`, and `--keep PATTERN` for layers "
        "that the format does not support.",
    )
