"""Digests that detect changes to an exported config.json: of the model's arguments and of ``quantization_config``.

A changed digit in ``sample_size`` or ``norm_eps`` would keep all tensor shapes but change the pictures. The digests
detect damage; they are not a signature.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import transformers

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime.libraries import computing_entries, of_transformers


def config_digest(cls: type[Any], config: Mapping[str, Any]) -> str:
    """Digest of the constructor arguments in a model's config, or of the entries of a transformers config.

    Those equal to the class's default are left out, because a later version may add some and writes their defaults when
    it saves the model again.
    """
    computing = computing_entries(cls, config)
    if computing is not None:
        return digest({name: _plain(value) for name, value in computing.items()})
    known = inspect.signature(cls.__init__).parameters
    given = {name: _plain(value) for name, value in config.items() if name in known}
    return digest({name: text for name, text in given.items() if text != _plain(known[name].default)})


def check_config(cls: type[Any], config: Mapping[str, Any], wanted: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if the digest of a model's config differs from the exported one."""
    if config_digest(cls, config) != wanted:
        library = transformers if of_transformers(cls) else diffusers
        raise Qua2SeDiMoError(
            f"config.json does not describe the {cls.__name__} that was exported: an entry was changed, or a missing "
            f"entry has another default in {library.__name__} {library.__version__}",
            f"Load it with the {library.__name__} version named in config.json, or download or export the model again.",
        )


def digest(content: Mapping[str, Any]) -> str:
    """A digest of a JSON object, 16 hexadecimal digits."""
    return hashlib.sha256(_plain(dict(content)).encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
