"""Memory of the process: running out of it, on any device, recognised in one place and reported by one message with its
remedies; and returned to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qua2sedimo.errors import Qua2SeDiMoError

_SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed",
)  # fmt: skip
#: What helps, from the cheapest: settings of study.yaml, which `init`, `run` and `inspect` take as options.
REMEDY = (
    "In study.yaml, or as options: a smaller 'batch:' (--batch); smaller images ('arguments:'); 'dtype: bf16' "
    "(--dtype) halves the memory of fp32; 'vae_slicing: true', 'vae_tiling: true' (--vae-slicing, --vae-tiling); on "
    "a GPU 'offload: model', 'group' or 'sequential' (--offload), slower in this order. Or use a larger machine, or "
    "'device: cpu' (--device)."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, on any device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)
    )


def out_of_memory(message: str) -> Qua2SeDiMoError:
    """The error for whatever does not fit into memory, which ``message`` says, with the remedies."""
    return Qua2SeDiMoError(message, REMEDY)


def return_memory() -> None:
    """Give freed memory back to the system, where the C library can: it keeps what threads freed in holes between what
    is in use, which are gigabytes after large tensors of many sizes."""
    with suppress(OSError, AttributeError, TypeError):  # no glibc: other libraries return memory by themselves
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def within_memory(message: str) -> Iterator[None]:
    """Raise :func:`out_of_memory` with ``message`` if memory runs out within the context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(message) from error
