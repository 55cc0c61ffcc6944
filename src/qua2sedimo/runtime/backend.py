"""The diffusers quantizer backend: after :func:`register`, ``from_pretrained`` loads packed checkpoints."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import SumCheck
from qua2sedimo.formats.files import read_json
from qua2sedimo.formats.tensorfiles import StoredTensor, all_tensors, read_layout, shard_files
from qua2sedimo.runtime.demands import meta_model
from qua2sedimo.runtime.description import Qua2SeDiMoConfig, QuantMethod
from qua2sedimo.runtime.guards import guard_averages
from qua2sedimo.runtime.hub import model_folder
from qua2sedimo.runtime.intact import check_config
from qua2sedimo.runtime.loaded import check_compute_dtype, dequantize_for, finish_loading, with_checksums
from qua2sedimo.runtime.modules import QuantizedLayer
from qua2sedimo.runtime.shards import check_complete, model_tensors
from qua2sedimo.runtime.table import install_empty_layers


class Qua2SeDiMoQuantizer(DiffusersQuantizer):
    """Replaces layers of the meta-device model with empty quantized layers, into which diffusers loads the tensors.

    Checks before and after loading that the tensors are complete.
    """

    use_keep_in_fp32_modules = True  # as in the unquantized model

    def __init__(self, quantization_config: Qua2SeDiMoConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            raise Qua2SeDiMoError(
                "a plain checkpoint cannot be quantized while it is loaded",
                "Export a packed checkpoint first: qua2sedimo export.",
            )
        super().__init__(quantization_config, **kwargs)
        self._stored: dict[str, StoredTensor] | None = None
        self._files: list[Path] = []
        self._sums: SumCheck | None = None
        self._places: dict[str, QuantizedLayer] = {}
        self._saved: set[str] | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Called by diffusers before it builds the model, and again when the device map is known.

        Raises :class:`Qua2SeDiMoError` if the dtype has fewer than 16 bits or a file is damaged.
        """
        dtype = kwargs.get("torch_dtype")
        check_compute_dtype(dtype)
        if self._stored is None:
            with without_garbage_collection():
                self._check_early(sys._getframe(1).f_locals)

    def _check_early(self, known: Mapping[str, Any]) -> None:
        """Refuse a changed config and missing or damaged files before diffusers builds a model from them.

        diffusers passes neither config nor folder to a quantizer, so they are read from the local variables of
        ``from_pretrained``. If a diffusers version names them differently, the checks run later, on the built model.
        """
        config, cls = known.get("config"), known.get("cls")
        shown = (cls, config) if isinstance(config, Mapping) and isinstance(cls, type) else None
        if shown is not None:
            check_config(*shown, self.quantization_config.config)
        folder = model_folder(known)
        if folder is not None and folder.is_dir():
            stored = self._open(shard_files(folder, known.get("variant")))
            model = meta_model(*shown, stored) if shown is not None else None
            if model is not None:
                check_complete(model, self.quantization_config.table(), stored, _ignored(model, stored))

    def _open(self, files: list[Path]) -> dict[str, StoredTensor]:
        """Read the files' headers and start comparing their tensors with the checksums in the background."""
        if files != self._files:
            layouts = [read_layout(file) for file in files]
            self._stored, self._files, self._sums = all_tensors(layouts), files, SumCheck(layouts)
        return self._stored or {}

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[Any]) -> list[str]:
        """Called by diffusers with the files of an indexed checkpoint before it reads a tensor: read their headers."""
        self._open([Path(file) for file in checkpoint_files])
        return loaded_keys

    def _process_model_before_weight_loading(
        self, model: nn.Module, keep_in_fp32_modules: Iterable[str] = (), **kwargs: Any
    ) -> nn.Module:
        if self._stored is None:
            raise Qua2SeDiMoError(
                "this diffusers version does not pass checkpoint files to quantizers", "Update diffusers."
            )
        written = read_json(self._files[0].parent / "config.json")
        check_config(type(model), written, self.quantization_config.config)
        table = self.quantization_config.table()
        with without_garbage_collection():
            check_complete(model, table, self._stored, _ignored(model, self._stored))
            layers = install_empty_layers(model, table, keep_in_fp32_modules)
            self._places = {f"{n}.{b}": layer for n, layer in layers.items() for b in layer.packed_names()}
        model.config.quantization_config = self.quantization_config  # type: ignore[union-attr]
        return model

    def check_if_quantized_param(self, model: nn.Module, param_value: Any, param_name: str, *_: Any, **__: Any) -> bool:
        """Whether the parameter is a packed tensor, which diffusers then passes to :meth:`create_quantized_param`."""
        return param_name in self._places

    def create_quantized_param(
        self, model: nn.Module, param_value: torch.Tensor, param_name: str, target_device: Any, *_: Any, **__: Any
    ) -> None:
        """Store a packed tensor in its layer without a cast or a shape check, faster than diffusers' own path."""
        self._places[param_name].set_packed(param_name.rpartition(".")[2], param_value.to(target_device))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self._places = {}
        sums, self._sums = self._sums, None
        finish_loading(model, sums, self.quantization_config.act_bits, "diffusers")
        return model

    @contextmanager
    def saving(self, names: set[str]) -> Iterator[None]:
        """While ``save_pretrained`` runs in the body, it writes only the tensors ``names``: shared ones once."""
        self._saved = names
        try:
            yield
        finally:
            self._saved = None

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors to store, and their checksums, which diffusers writes into the metadata of every file."""
        names = state_dict.keys() if self._saved is None else self._saved
        return with_checksums({name: tensor for name, tensor in state_dict.items() if name in names})

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Drop alternative names of shared modules: their tensors are stored once, under the first name."""
        needed = {name for name, _ in model_tensors(model)} if missing_keys else set()
        return [name for name in missing_keys if name in needed]

    def _dequantize(self, model: nn.Module) -> nn.Module:
        return dequantize_for(self, model)

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _ignored(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names that the model's class allows in a checkpoint although the model does not have them."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collector: none of the thousands of objects created within is garbage."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def register() -> None:
    """Register the format with diffusers; there is no public function for it, so add an entry to its two tables.

    Averages of parameters, which diffusers saves without asking a quantizer, are guarded too.
    """
    name = QuantMethod.QUA2SEDIMO.value
    auto.AUTO_QUANTIZER_MAPPING[name] = Qua2SeDiMoQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[name] = Qua2SeDiMoConfig
    guard_averages()
