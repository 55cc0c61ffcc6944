"""The transformers quantizer backend: after :func:`register_texts`, ``from_pretrained`` loads packed text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import SumCheck
from qua2sedimo.formats.files import read_json
from qua2sedimo.formats.tensorfiles import all_tensors, read_layout
from qua2sedimo.runtime.description import Qua2SeDiMoConfig, QuantMethod
from qua2sedimo.runtime.guards import description_to_save
from qua2sedimo.runtime.intact import check_config
from qua2sedimo.runtime.loaded import check_compute_dtype, dequantize_for, finish_loading, with_checksums
from qua2sedimo.runtime.shards import check_complete
from qua2sedimo.runtime.table import install_empty_layers


class Qua2SeDiMoTextQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces layers of the meta-device model with empty quantized layers, into which transformers loads the tensors.

    Checks before and after loading that the tensors are complete.
    """

    def __init__(self, quantization_config: Qua2SeDiMoConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            raise Qua2SeDiMoError(
                "a plain checkpoint cannot be quantized while it is loaded",
                "Export a packed checkpoint first: qua2sedimo export.",
            )
        super().__init__(quantization_config, **kwargs)
        self._sums: SumCheck | None = None

    def update_dtype(self, dtype: Any) -> Any:
        """The dtype itself; raises :class:`Qua2SeDiMoError` if packed layers cannot compute in it."""
        check_compute_dtype(dtype)
        return dtype

    def _process_model_before_weight_loading(
        self, model: Any, dtype: Any = None, checkpoint_files: Any = None, **kwargs: Any
    ) -> nn.Module:
        files = [Path(file) for file in checkpoint_files or ()]
        if not files:
            raise Qua2SeDiMoError(
                f"{type(model).__name__}: a packed model is loaded from its files only", "Leave out state_dict."
            )
        check_config(type(model), read_json(files[0].parent / "config.json"), self.quantization_config.config)
        layouts = [read_layout(file) for file in files]
        table = self.quantization_config.table()
        check_complete(model, table, all_tensors(layouts))
        self._sums = SumCheck(layouts)
        in_fp32 = [name for name, kept in model._get_dtype_plan(dtype).items() if kept == torch.float32]
        for layer in install_empty_layers(model, table, in_fp32).values():
            layer._is_hf_initialized = True  # type: ignore[assignment]  # else it would be decoded, to draw nothing
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> nn.Module:
        sums, self._sums = self._sums, None
        finish_loading(model, sums, self.quantization_config.act_bits, "transformers")
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """The tensors to store, each once, and their checksums; transformers writes both."""
        _, names = description_to_save(model)
        return with_checksums({name: tensor for name, tensor in model.state_dict().items() if name in names})

    def _dequantize(self, model: Any, dtype: Any = None) -> nn.Module:
        return dequantize_for(self, model)

    def is_serializable(self) -> bool:
        """True: ``save_pretrained`` writes the packed tensors."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def register_texts() -> None:
    """Register the format with transformers, as :func:`~qua2sedimo.runtime.register` does with diffusers."""
    name = QuantMethod.QUA2SEDIMO.value
    auto.AUTO_QUANTIZER_MAPPING[name] = Qua2SeDiMoTextQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[name] = Qua2SeDiMoConfig
