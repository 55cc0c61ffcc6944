"""Exporting: a choice becomes a packed diffusers pipeline folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qua2sedimo.denoisers.hub_names import public_name
from qua2sedimo.images.own import CallablePipeline
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime import PackedSize, save_packed
from qua2sedimo.search import Budget
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.choose import choose
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.quiet import quiet
from qua2sedimo.system.versions import versions


def export(
    study: Workspace, what: float | Budget | Choice, out: str | Path, act_bits: int | None = None
) -> PackedSize:  # fmt: skip
    """Write a choice, or the one for a budget, as a packed pipeline folder; returns its sizes in bytes.

    ``act_bits``: the width of activations in the loaded model (None: unchanged).
    """
    choice = what if isinstance(what, Choice) else choose(study, what)
    provenance = {
        "model": public_name(study.settings.model), "average_bits": choice.average_bits, "origin": choice.origin,
        "arguments": study.settings.arguments, "inputs": list(study.settings.inputs), "versions": versions(),
    }  # fmt: skip
    return save_values(study, study.values(choice), out, provenance, act_bits)


def save_configuration(
    study: Workspace, configuration: Configuration, out: str | Path, extra: dict[str, Any], act_bits: int | None = None
) -> PackedSize:
    """Write any configuration as a packed pipeline folder, with ``extra`` as JSON; returns its sizes in bytes."""
    return save_values(study, study.bank.values(configuration), out, extra, act_bits)


def save_values(
    study: Workspace, values: Mapping[str, QuantizedWeight], out: str | Path, extra: dict[str, Any],
    act_bits: int | None = None,
) -> PackedSize:  # fmt: skip
    """Write quantized weights as a packed pipeline folder, or the denoiser alone if the pipeline is the user's code."""
    study.switch.restore()
    own = isinstance(study.pipeline, CallablePipeline)
    model, components = (study.denoiser, None) if own else (study.pipeline, tuple(study.denoisers))
    with study.without_offload(), quiet():
        return save_packed(model, components, values, Path(out), extra, study.copies, act_bits)
