"""Pack a denoiser in memory: afterwards it is used, saved and loaded as one that was loaded packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime.backend import Qua2SeDiMoQuantizer
from qua2sedimo.runtime.description import described
from qua2sedimo.runtime.guards import guard
from qua2sedimo.runtime.libraries import is_known, note_quantization, of_transformers
from qua2sedimo.runtime.replace import replace_layers
from qua2sedimo.runtime.text_backend import Qua2SeDiMoTextQuantizer
from qua2sedimo.runtime.units import NO_COPIES, Copies, quantized_layers


def pack(denoiser: Any, values: Mapping[str, QuantizedWeight], copies: Copies = NO_COPIES) -> Any:
    """Replace the layers of quantized weights (by unit name) by packed ones; modifies and returns ``denoiser``.

    A model of diffusers or transformers also gets the ``quantization_config`` of a packed checkpoint, for
    ``save_pretrained``.

    Raises :class:`Qua2SeDiMoError` if parts are missing, a weight does not fit its layer, or copies differ.
    """
    replace_layers(denoiser, quantized_layers(denoiser, values, copies))
    if is_known(denoiser):
        config, _ = described(denoiser)
        note_quantization(denoiser, config)
        backend = Qua2SeDiMoTextQuantizer if of_transformers(type(denoiser)) else Qua2SeDiMoQuantizer
        denoiser.hf_quantizer = backend(config, pre_quantized=True)
        guard(denoiser)
    return denoiser
