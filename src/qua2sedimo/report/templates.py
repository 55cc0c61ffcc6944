"""Jinja templates of the page and the card, which lie beside the modules that fill them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jinja2


@cache
def template(module: str, name: str, autoescape: bool, *filters: Callable[..., str]) -> jinja2.Template:
    """The template ``name`` beside the file ``module``; ``filters`` are called by their names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(module).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(name)
