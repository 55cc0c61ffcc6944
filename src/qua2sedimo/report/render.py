"""From chart specifications to files: drawing without a browser, and writing whole files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from qua2sedimo.errors import Qua2SeDiMoError


def vegalite_version() -> str:
    """The Vega-Lite version (``6.4``) that altair's specifications are written for."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def svg_of(specification: dict[str, Any]) -> str:
    """Draw a chart as SVG."""
    return str(vl_convert.vegalite_to_svg(specification, vl_version=vegalite_version()))


def png_of(specification: dict[str, Any], scale: float = 2) -> bytes:
    """Draw a chart as PNG, ``scale`` times as large as its size in points."""
    return bytes(vl_convert.vegalite_to_png(specification, vl_version=vegalite_version(), scale=scale))


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file that is whole or absent: beside its place, then renamed. Raises ``Qua2SeDiMoError``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise Qua2SeDiMoError(
            f"cannot write {path}: {error.strerror or error}", "Free disk space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path
