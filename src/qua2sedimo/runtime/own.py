"""Loading a packed denoiser that is no diffusers model into an instance that the user's own code builds."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import check_sums
from qua2sedimo.formats.files import read_json, read_object
from qua2sedimo.formats.tensorfiles import all_tensors, read_layout, shard_files
from qua2sedimo.runtime.activations import set_activation_bits
from qua2sedimo.runtime.backend import Qua2SeDiMoConfig
from qua2sedimo.runtime.modules import QuantizedLayer
from qua2sedimo.runtime.shards import check_complete
from qua2sedimo.runtime.table import install_empty_layers


def load_packed(denoiser: nn.Module, folder: str | Path) -> nn.Module:
    """Load the packed weights in ``folder`` into a denoiser of the same architecture; modifies and returns it.

    ``denoiser`` has its plain layers, with any weights; everything is computed in its dtype and on its device. Raises
    :class:`Qua2SeDiMoError`, and leaves it unchanged, if the folder is not such an export, is damaged, or has other
    layers.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file() or "quantization_config" not in (content := read_json(config)):
        raise Qua2SeDiMoError(f"{folder} is not a packed denoiser", "Export one: qua2sedimo export STUDY OUT.")
    quantization = Qua2SeDiMoConfig.from_dict(content["quantization_config"])
    table, files = quantization.table(), shard_files(folder)
    check_complete(denoiser, table, all_tensors(map(read_layout, files)))
    for file in files:
        check_sums(file)
    device = next(denoiser.parameters()).device
    install_empty_layers(denoiser, table)
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                _put(denoiser, name, stored.get_tensor(name), device)
    if quantization.act_bits is not None:
        set_activation_bits(denoiser, quantization.act_bits)
    return denoiser


def refuse_own_code(folder: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if the folder is an export of a denoiser that no library can build."""
    config = folder / "config.json"
    module = read_object(config).get("module") if config.is_file() else None
    if module is not None:
        raise Qua2SeDiMoError(
            f"{folder} holds a denoiser of your own code, {module}, which only that can build",
            "Load it into one in Python: qua2sedimo.load_packed(DENOISER, FOLDER).",
        )


@torch.no_grad()
def _put(denoiser: nn.Module, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Load one tensor: packed ones as they are, others in the dtype that the denoiser has."""
    module, _, own = name.rpartition(".")
    owner = denoiser.get_submodule(module)
    if isinstance(owner, QuantizedLayer) and own in owner.packed_names():
        owner.set_packed(own, tensor.to(device))
    else:
        getattr(owner, own).copy_(tensor)
