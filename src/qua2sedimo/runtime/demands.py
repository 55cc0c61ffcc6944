"""Check the sizes in a config.json before diffusers builds the model, by building it on the meta device first.

Meta tensors take no memory. A config that was changed together with its digest is refused because its shapes do not
match the headers of the weight files, before a position table for 10^7 × 10^7 pixels is computed or 10^9 blocks are
created.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.modeling_utils import no_init_weights
from diffusers.utils import logging
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import StoredTensor

_MOST_COMPUTED = 1 << 30  # bytes of computed tables, which are not in the checkpoint
_MODULES_A_TENSOR = 20
_FEW_MODULES = 1000
_REMEDY = "The config.json is damaged or forged: download the checkpoint again."


def meta_model(cls: type[Any], config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> nn.Module | None:
    """The model of this config on the meta device, or None if its class cannot be built there.

    Raises :class:`Qua2SeDiMoError` if the model has far more modules than the checkpoint has tensors, computes tables
    far larger than the checkpoint, or has sizes that overflow.
    """
    given = {name: entry for name, entry in config.items() if name != "quantization_config"}
    most = _MODULES_A_TENSOR * len(stored) + _FEW_MODULES
    try:
        with _silent(), _at_most(most), no_init_weights(), torch.device("meta"):
            model: nn.Module = cls.from_config(given)
    except Qua2SeDiMoError:
        raise
    except Exception as error:  # diffusers reports it itself, or it is an operation that meta tensors do not support
        if isinstance(error, OverflowError | MemoryError) or "overflow" in str(error).lower():
            raise Qua2SeDiMoError(
                f"config.json asks for impossible sizes: {str(error).splitlines()[0]}", _REMEDY
            ) from error
        return None
    tables = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in stored)
    limit = _MOST_COMPUTED + sum(tensor.nbytes for tensor in stored.values())
    if tables > limit:
        raise Qua2SeDiMoError(
            f"config.json asks for tables of {tables:.3g} bytes; the whole checkpoint has "
            f"{sum(t.nbytes for t in stored.values()):.3g}",
            _REMEDY,
        )
    return model


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Raise :class:`Qua2SeDiMoError` when this thread registers more submodules than this."""
    thread, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal made
        if threading.get_ident() == thread:
            made += 1
            if made > modules:
                raise Qua2SeDiMoError(
                    f"config.json asks for more than {modules} modules, far more than the checkpoint has tensors",
                    _REMEDY,
                )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _silent() -> Iterator[None]:
    """Silence diffusers' warnings about the config; it repeats them when it builds the real model."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
