"""What a config.json asks for, found out before diffusers makes the model: it is made on the meta device first.

There a weight takes no memory, however large. A config that was altered together with its digest is so refused by the
shapes in the files' headers, and before a table of positions for 10^7 × 10^7 pixels is computed, or 10^9 blocks are
made.
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

_MOST_COMPUTED = 1 << 30  # bytes of tables that are computed and not stored
_MODULES_A_TENSOR = 20
_FEW_MODULES = 1000
_REMEDY = "The config.json is damaged or was made up: download the checkpoint again."


def asked_for(cls: type[Any], config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> nn.Module | None:
    """The model of this config on the meta device; None if its class cannot be made there, which says nothing.

    Raises :class:`Qua2SeDiMoError` if it has far more modules than the checkpoint has tensors, or computes tables
    beside which the checkpoint is small, or if its sizes cannot be counted.
    """
    given = {name: entry for name, entry in config.items() if name != "quantization_config"}
    most = _MODULES_A_TENSOR * len(stored) + _FEW_MODULES
    try:
        with _silent(), _at_most(most), no_init_weights(), torch.device("meta"):
            model: nn.Module = cls.from_config(given)
    except Qua2SeDiMoError:
        raise
    except Exception as error:  # the class's own, which diffusers will meet too, or that of an operation without values
        if isinstance(error, OverflowError | MemoryError) or "overflow" in str(error).lower():
            raise Qua2SeDiMoError(
                f"config.json asks for sizes that cannot be: {str(error).splitlines()[0]}", _REMEDY
            ) from error
        return None
    tables = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in stored)
    limit = _MOST_COMPUTED + sum(tensor.nbytes for tensor in stored.values())
    if tables > limit:
        raise Qua2SeDiMoError(
            f"config.json asks for tables of {tables:.3g} bytes, beside {sum(t.nbytes for t in stored.values()):.3g} "
            "bytes of the checkpoint",
            _REMEDY,
        )
    return model


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Raise :class:`Qua2SeDiMoError` when this thread puts more modules into each other than this."""
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
    """What diffusers has to say of a config, it says when the model is made in earnest."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
