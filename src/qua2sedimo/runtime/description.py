"""``quantization_config``: how a denoiser is packed, as it is written into its config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.runtime.activations import ACTIVATION_BITS, activation_bits
from qua2sedimo.runtime.intact import config_digest, digest
from qua2sedimo.runtime.libraries import config_of, plain_model
from qua2sedimo.runtime.modules import DAMAGED, Part, QuantizedLayer
from qua2sedimo.runtime.table import LayerTable, layer_modules

#: Versions that are read. A checkpoint has the first that knows its options, so that older programs read it too.
FORMAT_VERSIONS = (4, 5)
_METHODS_OF_4 = ("uaq", "kmeans_c", "kmeans_a")


class QuantMethod(str, Enum):
    """The name in ``quantization_config``; diffusers expects a string enum."""

    QUA2SEDIMO = "qua2sedimo"


@dataclass(kw_only=True)
class Qua2SeDiMoConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed checkpoint.

    It has the format version, the :class:`LayerTable`, the digest of the model's config, and the bit width of
    activations (None: not quantized). Raises :class:`Qua2SeDiMoError` on an unknown version or invalid entries, before
    anything is allocated.
    """

    format_version: int
    options: list[str]
    layers: str
    names: str
    config: str
    cuts: list[list[int]]
    ties: list[list[int]]
    act_bits: int | None = None
    quant_method: QuantMethod = QuantMethod.QUA2SEDIMO

    def __post_init__(self) -> None:
        if self.format_version not in FORMAT_VERSIONS:
            raise Qua2SeDiMoError(
                f"quantization_config: format version {self.format_version!r} is unknown; "
                f"this program reads versions {' and '.join(map(str, FORMAT_VERSIONS))}",
                "Install the qua2sedimo version that wrote the checkpoint, or a newer one.",
            )
        self.quant_method = QuantMethod.QUA2SEDIMO
        if self.act_bits is not None and (type(self.act_bits) is not int or self.act_bits not in ACTIVATION_BITS):
            raise Qua2SeDiMoError(f"quantization_config: 'act_bits' must be 4 to 8, got {self.act_bits!r}", DAMAGED)
        self.table()

    @classmethod
    def of(cls, table: LayerTable, config: str, act_bits: int | None = None) -> Qua2SeDiMoConfig:
        """The ``quantization_config`` for a layer table; ``config`` is the digest of the model's config."""
        options = [str(storage) for storage in table.storages]
        return cls(
            format_version=format_version(storage.option for storage in table.storages),
            options=options,
            layers=table.layers,
            names=table.names,
            config=config,
            cuts=[list(cut) for cut in table.cuts],
            ties=[list(tie) for tie in table.ties],
            act_bits=act_bits,
        )

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but strict: unknown or missing keys and a wrong digest are errors."""
        known = {field.name for field in fields(cls)}
        version = config_dict.get("format_version")
        wrong = sorted((known | {"digest"}).symmetric_difference(config_dict))
        if version in FORMAT_VERSIONS and wrong:  # another version may have other keys; it is refused below
            raise Qua2SeDiMoError(f"quantization_config: missing or unknown key '{wrong[0]}'", DAMAGED)
        entries = {name: config_dict.get(name) for name in known}
        config = cls(**entries)  # type: ignore[arg-type]
        if config.to_dict()["digest"] != config_dict["digest"]:
            raise Qua2SeDiMoError("quantization_config is not what was exported: an entry was changed", DAMAGED)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """The entries for config.json, with their digest."""
        entries = {field.name: getattr(self, field.name) for field in fields(self)}
        entries["quant_method"] = self.quant_method.value
        return {**entries, "digest": digest(entries)}

    def to_diff_dict(self) -> dict[str, Any]:
        """What diffusers prints: all entries, since none has an implied default."""
        return self.to_dict()

    def table(self) -> LayerTable:
        """The option of each layer; raises :class:`Qua2SeDiMoError` if the entries are inconsistent."""
        return LayerTable.parse(self.options, self.layers, self.names, self.cuts, self.ties)


def format_version(options: Iterable[Option]) -> int:
    """The first format version that has all these options: 5 added ``row``, ``lowrank``, ``half``, GGUF's types and
    codes of one bit."""
    known = all(option.method in _METHODS_OF_4 and option.bits > 1 for option in options)
    return FORMAT_VERSIONS[0] if known else FORMAT_VERSIONS[1]


def described(model: Any) -> tuple[Qua2SeDiMoConfig, nn.Module]:
    """How a live denoiser is packed, and the plain model of its config, on the meta device.

    A layer that the model lacks, or that an adapter wraps, counts as plain.
    """
    config = config_of(model)
    plain = plain_model(type(model), config)
    names = layer_modules(plain)
    stored: dict[str, tuple[Part, ...]] = {}
    copies: dict[str, list[str]] = {}
    firsts: dict[int, str] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        layer = modules.get(name)
        if isinstance(layer, QuantizedLayer):
            first = firsts.setdefault(id(layer), name)
            if first == name:
                stored[name] = layer.parts
            else:
                copies.setdefault(first, []).append(name)
    table = LayerTable.of(names, stored, copies)
    return Qua2SeDiMoConfig.of(table, config_digest(type(model), config), activation_bits(model)), plain
