"""The machine's name, and the memory of this process."""

from __future__ import annotations

import gc
import platform
import sys
from typing import Any

import torch


def host() -> str:
    return platform.node()


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts kilobytes


def release_memory() -> None:
    """Free unreferenced memory, including the accelerator's cache, after a failure."""
    gc.collect()
    device = torch.accelerator.current_accelerator()
    backend: Any = getattr(torch, device.type, None) if device is not None else None
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()
