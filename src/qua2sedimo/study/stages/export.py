"""Exporting: a choice becomes a pipeline folder, packed or in the format of another program."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from qua2sedimo.denoisers.components import refuse_beside
from qua2sedimo.denoisers.hub_names import public_name
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.own import CallablePipeline
from qua2sedimo.interchange.gguf import Names, check_gguf_file, merged, save_gguf
from qua2sedimo.interchange.plain import save_plain
from qua2sedimo.interchange.sdnq import save_sdnq
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import METHODS, QuantizedWeight
from qua2sedimo.runtime import PackedSize, save_packed
from qua2sedimo.runtime.checkpoint import check_export_folder
from qua2sedimo.search import Budget
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.choose import choose
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.quiet import quiet
from qua2sedimo.system.versions import versions

#: Formats that are written: this package's own, SDNQ's, plain 16-bit weights, and GGUF files with diffusers' names of
#: tensors or those of the model's authors.
FORMS = ("packed", "sdnq", "diffusers", "gguf", "gguf-original")
_NAMES: dict[str, Names] = {"gguf": "diffusers", "gguf-original": "original"}


def export(
    study: Workspace, what: float | Budget | Choice, out: str | Path, act_bits: int | None = None,
    form: str = "packed", any_size: bool = False,
) -> PackedSize:  # fmt: skip
    """Write a choice, or the one for a budget, as a pipeline folder or a GGUF file; returns its sizes in bytes.

    ``act_bits``: the width of activations in the loaded model (None: unchanged). ``form`` is one of :data:`FORMS`;
    ``any_size`` allows ``sdnq`` and ``gguf`` more bytes than the packed layers have.
    """
    check_form(form, act_bits)
    choice = what if isinstance(what, Choice) else choose(study, what)
    provenance = {
        "model": public_name(study.settings.model), "average_bits": choice.average_bits, "origin": choice.origin,
        "arguments": study.settings.arguments, "inputs": list(study.settings.inputs), "versions": versions(),
    }  # fmt: skip
    if form == "packed":
        return save_values(study, study.values(choice), out, provenance, act_bits)
    return _save_as(study, study.values(choice), Path(out), provenance, form, any_size)


def check_form(form: str, act_bits: int | None) -> None:
    """Raise :class:`Qua2SeDiMoError` if the format is unknown, or cannot hold the width of activations."""
    if form not in FORMS:
        raise Qua2SeDiMoError(f"unknown export format '{form}'", f"Known: {', '.join(FORMS)}.")
    if act_bits is not None and form != "packed":
        raise Qua2SeDiMoError(f"the format {form} has no place for a width of activations", "Leave out --act-bits.")


def _save_as(
    study: Workspace, values: Mapping[str, QuantizedWeight], out: Path, extra: dict[str, Any], form: str, any_size: bool
) -> PackedSize:
    """Write quantized weights as another program loads them."""
    if isinstance(study.pipeline, CallablePipeline):
        raise Qua2SeDiMoError(
            f"the format {form} is of diffusers pipelines, and this study's denoiser is of your own code",
            "Leave out --format, and load the export with qua2sedimo.load_packed.",
        )
    refuse_beside(study.denoisers, form)
    study.switch.restore()
    model, components, copies = study.pipeline, tuple(study.denoisers), study.copies
    with study.without_offload(), quiet():
        if form == "sdnq":
            return save_sdnq(model, components, values, out, extra, copies, any_size)
        if form in _NAMES:
            alike = _alike(study, values, _NAMES[form])
            return save_gguf(model, components, alike, out, extra, copies, any_size, _NAMES[form])
        return save_plain(model, components, values, out, extra, copies)


def check_place(form: str, out: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if this format cannot be written at ``out``."""
    if form in _NAMES:
        check_gguf_file(out)
    else:
        check_export_folder(out)


def _alike(study: Workspace, values: Mapping[str, QuantizedWeight], names: Names) -> dict[str, QuantizedWeight]:
    """The values, where layers that the names put into one tensor all have the largest of their options.

    A layer of another option is quantized again, by its own statistics.
    """
    found = dict(values)
    for component, denoiser in study.denoisers.items():
        start = f"{component}." if study.settings.several else ""
        for group in merged(denoiser, names):
            units = [start + layer for layer in group if start + layer in found]
            largest = max(
                (found[unit] for unit in units), key=lambda value: value.nbytes / prod(value.shape), default=None
            )
            for unit in units:
                if largest is not None and found[unit].option != largest.option:
                    moment = study.observed(unit).moment
                    (found[unit],) = METHODS[largest.method].quantize(study.weight(unit), [largest.number], moment)
    return found


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
