"""Check that safetensors files have exactly the tensors of a model, and write such files in shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import checksum, checksum_metadata
from qua2sedimo.formats.files import write_json
from qua2sedimo.formats.tensorfiles import DAMAGED_FILE, FLOATS, WEIGHTS, StoredTensor, tensor_bytes
from qua2sedimo.runtime.modules import Part
from qua2sedimo.runtime.table import LayerTable, layer_modules

_CODE = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}


def model_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers by name; those of a module with several names once, under the first, and what
    transformers ties to another parameter not at all."""
    tied = _tied(model)
    for prefix, module in model.named_modules():
        start, volatile = f"{prefix}." if prefix else "", module._non_persistent_buffers_set
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and name not in volatile and start + name not in tied:
                yield start + name, tensor


def _tied(model: nn.Module) -> Mapping[str, str]:
    """Names of the parameters that transformers ties to others after it has loaded those."""
    found: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def check_complete(
    model: nn.Module, table: LayerTable, stored: Mapping[str, StoredTensor], ignored: Iterable[str] = ()
) -> None:
    """Raise :class:`Qua2SeDiMoError` unless ``stored`` has exactly the tensors of ``model``, packed as in ``table``.

    The model is unquantized and may be on the meta device. ``ignored`` are names that may be stored although the model
    does not have them.
    """
    expected = expected_tensors(model, table)
    _refuse_adapters(stored.keys() - expected.keys())
    for name, (dtype, shape) in expected.items():
        if name not in stored:
            plain = f"{name.rpartition('.')[0]}.weight"
            if plain in stored and plain not in expected:
                raise Qua2SeDiMoError(
                    f"the checkpoint has the plain weight '{plain}', but its config.json says that the layer is packed",
                    "It was saved by a program that built a plain model from the config of a packed one. Save the "
                    "packed model itself, or export it again.",
                )
            raise Qua2SeDiMoError(f"tensor '{name}' is missing from the checkpoint", DAMAGED_FILE)
        found = stored[name]
        if found.shape != shape:
            raise Qua2SeDiMoError(
                f"tensor '{name}': expected shape {list(shape)}, the checkpoint has {list(found.shape)}",
                DAMAGED_FILE,
            )
        fits = found.dtype in FLOATS if dtype.is_floating_point else found.dtype == _CODE.get(dtype)
        if not fits:
            wanted = "a float type" if dtype.is_floating_point else str(dtype)
            raise Qua2SeDiMoError(f"tensor '{name}': expected {wanted}, the checkpoint has {found.dtype}", DAMAGED_FILE)
    extra = other_tensors(model, table, stored.keys() - set(ignored))
    if extra:
        raise Qua2SeDiMoError(
            f"the checkpoint holds a tensor '{min(extra)}' that the model does not have", DAMAGED_FILE
        )


def expected_tensors(model: nn.Module, table: LayerTable) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """(dtype, shape) by name of the tensors stored for a plain ``model`` when it is packed as in ``table``."""
    return _expected(model, *table.assign(layer_modules(model)))


def other_tensors(model: nn.Module, table: LayerTable, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that are not stored for a ``model`` packed as in ``table``, nor other names of what is."""
    packed, copies = table.assign(layer_modules(model))
    expected = _expected(model, packed, copies)
    extra = set(names) - expected.keys()
    return extra - set(_other_names(model, expected, copies, extra)) if extra else extra


#: Parts of the names of tensors that belong to adapters, not to a model.
_OF_ADAPTERS = (".base_layer.", ".lora_", ".lokr_", ".loha_", ".to_k_ip.", ".to_v_ip.", "encoder_hid_proj.image_")


def of_adapters(names: Iterable[str]) -> list[str]:
    """Those of the names of tensors that an adapter (LoRA, IP-Adapter) adds to a model."""
    return sorted(name for name in names if any(part in name for part in _OF_ADAPTERS))


def _refuse_adapters(names: Iterable[str]) -> None:
    """Raise :class:`Qua2SeDiMoError` if a checkpoint was saved while an adapter was attached to the model."""
    found = of_adapters(names)
    if found:
        raise Qua2SeDiMoError(
            f"the checkpoint was saved with an adapter attached: it has a tensor '{found[0]}'",
            "Export it again; or load the model that it was saved from, unload the adapter "
            "(pipeline.unload_lora_weights(), pipeline.unload_ip_adapter()), and save it again.",
        )


def _expected(
    model: nn.Module, packed: Mapping[str, tuple[Part, ...]], copies: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """(dtype, shape) by name of the tensors stored for a model; those of copies are stored once."""
    left_out = tuple(f"{copy}." for names in copies.values() for copy in names)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in model_tensors(model):
        layer, _, own = name.rpartition(".")
        if layer in packed and own == "weight":
            for part in packed[layer]:
                expected |= {f"{layer}.{buffer}": e for buffer, e in part.layout(tuple(tensor.shape)).items()}
        elif not left_out or not name.startswith(left_out):
            expected[name] = (tensor.dtype, tuple(tensor.shape))
    return expected


def _other_names(
    model: nn.Module, expected: Mapping[str, object], copies: Mapping[str, tuple[str, ...]], names: Iterable[str]
) -> Iterator[str]:
    """Those of ``names`` that are alternative names of expected tensors, from shared modules, copies or ties."""
    firsts: dict[int, str] = {}
    first = {name: firsts.setdefault(id(m), name) for name, m in model.named_modules(remove_duplicate=False)}
    first |= {copy: name for name, group in copies.items() for copy in group}
    tied = _tied(model)
    for name in names:
        module, _, tensor = name.rpartition(".")
        if name in tied or f"{first.get(module)}.{tensor}" in expected:
            yield name


class ShardWriter:
    """Writes tensors in the order they arrive into shards of about ``limit`` bytes, and at :meth:`close` an index.

    There is an index even for a single shard, because only then does diffusers pass the files to the quantizer before
    it reads a tensor.
    """

    def __init__(self, folder: Path, limit: int, base: str = WEIGHTS) -> None:
        """``base`` is how the names of the files begin."""
        self._folder, self._limit, self._base = folder, limit, base
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes, self._total = 0, 0
        self._shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self._limit:
            self._flush()
        self._pending[name] = tensor
        self._bytes += size
        self._total += size

    def close(self) -> list[Path]:
        """Write the last shard and the index; returns the files, named with their number and the total."""
        self._flush()
        count = len(self._shards)
        files = [self._folder / f"{self._base}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for i, file in enumerate(files):
            self._unnamed(i).replace(file)
        names = {name: file.name for file, shard in zip(files, self._shards) for name in shard}
        index = {"metadata": {"total_size": self._total}, "weight_map": names}
        write_json(self._folder / f"{self._base}.safetensors.index.json", index)
        return files

    def _unnamed(self, number: int) -> Path:
        return self._folder / f".shard-{number}.safetensors"

    def _flush(self) -> None:
        seen: set[int] = set()
        for name, tensor in self._pending.items():  # safetensors refuses tensors that share memory
            pointer = tensor.untyped_storage().data_ptr()
            if tensor.numel() and pointer in seen:
                self._pending[name] = tensor.clone()
            seen.add(pointer)
        sums = {name: checksum(tensor_bytes(tensor)) for name, tensor in self._pending.items()}
        metadata = {"format": "pt", **checksum_metadata(sums)}
        save_file(self._pending, self._unnamed(len(self._shards)), metadata=metadata)
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0
