"""Pack a denoiser in memory: afterwards it is used, saved and loaded as one that was loaded packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ConfigMixin

from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime.backend import Qua2SeDiMoQuantizer
from qua2sedimo.runtime.description import described
from qua2sedimo.runtime.guards import guard
from qua2sedimo.runtime.replace import replace_layers
from qua2sedimo.runtime.units import NO_COPIES, Copies, quantized_layers


def pack(denoiser: Any, values: Mapping[str, QuantizedWeight], copies: Copies = NO_COPIES) -> Any:
    """Replace the layers of quantized weights (by unit name) by packed ones; modifies and returns ``denoiser``.

    A denoiser of diffusers also gets the ``quantization_config`` of a packed checkpoint, for ``save_pretrained``.

    Raises :class:`Qua2SeDiMoError` if parts are missing, a weight does not fit its layer, or copies differ.
    """
    replace_layers(denoiser, quantized_layers(denoiser, values, copies))
    if isinstance(denoiser, ConfigMixin):
        config, _ = described(denoiser)
        denoiser.register_to_config(quantization_config=config)
        denoiser.hf_quantizer = Qua2SeDiMoQuantizer(config, pre_quantized=True)  # type: ignore[attr-defined]
        guard(denoiser)
    return denoiser
