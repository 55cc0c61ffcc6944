"""Whether config.json is still the one that was exported: a digest of what the model is made from, and of our entries.

A digit that flips in ``sample_size`` or ``norm_eps`` gives tensors of the same shapes and other pictures. It is a check
for damage, not a signature.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers

from qua2sedimo.errors import Qua2SeDiMoError


def config_digest(cls: type[Any], config: Mapping[str, Any]) -> str:
    """Names the arguments that a model of this class is made with from its config.

    Those that are the class's defaults do not count: a later diffusers version may add some, and writes them when it
    saves the model again.
    """
    known = inspect.signature(cls.__init__).parameters
    given = {name: _plain(value) for name, value in config.items() if name in known}
    return digest({name: text for name, text in given.items() if text != _plain(known[name].default)})


def check_config(cls: type[Any], config: Mapping[str, Any], wanted: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if the digest of a model's config is not the one that was exported."""
    if config_digest(cls, config) != wanted:
        raise Qua2SeDiMoError(
            f"config.json does not make the {cls.__name__} that was exported: an entry was altered, or an absent one "
            f"has another default in diffusers {diffusers.__version__}",
            "Load it with the diffusers version that its config.json names, or download it or export it again.",
        )


def digest(content: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a JSON object."""
    return hashlib.sha256(_plain(dict(content)).encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
