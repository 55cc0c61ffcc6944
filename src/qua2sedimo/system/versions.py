"""Software versions that results may depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version

_PACKAGES = ("qua2sedimo", "torch", "diffusers", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect measurements."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
