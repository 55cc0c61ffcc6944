"""Polishing: the weights of a choice are rounded once more in sequence, and kept if that brings images nearer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from qua2sedimo.denoisers.components import is_encoder
from qua2sedimo.images.ledger import FINALS, LEARNING
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.sequential import polished
from qua2sedimo.statistics import sample_name
from qua2sedimo.study.choices import Choice, save_choice
from qua2sedimo.study.parts import DenoiserPart
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

#: Images that decide whether the polished weights are kept: at first so many; if they do not agree, a third as many as
#: were observed. By chance alone 3 of 16 or fewer, or 13 or more, come nearer in 2 % of cases.
DECIDING, _DISAGREE = 16, range(4, 13)
CHECKED = 16  # images of the final check


def polish(study: Workspace, choice: Choice, progress: Progress = silent) -> Choice:
    """The choice with its weights rounded again from input to output, each layer knowing its predecessors' errors.

    Kept if it brings most of a few images that models may learn from nearer to full precision. If so, or if the choice
    was never measured, its metrics are those of a final check, on images that nothing was learned from. A choice that
    is polished already, and one of a study with nearest rounding, is returned unchanged.
    """
    if choice.polished is not None or not study.settings.compensates:
        return choice
    return polished_and_kept(study, choice, progress)


def polished_and_kept(study: Workspace, choice: Choice, progress: Progress = silent) -> Choice:
    """As :func:`polish`, of a choice that was never polished; it is stored in any case."""
    if not study.settings.compensates:
        return save_choice(study.folder / "choices", choice)
    try:
        better = better_weights(study, choice.configuration, progress)
        if better or not choice.measured:
            choice = checked(study, choice, better, progress)
    finally:  # also if it is interrupted, the live denoiser is as it was
        study.switch.restore()
    return save_choice(study.folder / "choices", choice, better)


def better_weights(
    study: Workspace, configuration: Configuration, progress: Progress = silent
) -> dict[str, QuantizedWeight]:
    """The weights of a configuration rounded again in sequence; none if most of a few images are not nearer to full
    precision with them. Leaves quantized weights in the live denoisers."""
    values, found = study.bank.values(configuration), dict[str, QuantizedWeight]()
    for part in study.parts:
        if not is_encoder(part.denoiser):  # observed with far more prompts than there are calls to polish it with
            found |= _polished_part(study, part, configuration, values, progress)
    return found if found and _nearer(study, configuration, found, progress) else {}


def _polished_part(
    study: Workspace,
    part: DenoiserPart,
    configuration: Configuration,
    values: Mapping[str, QuantizedWeight],
    progress: Progress,
) -> dict[str, QuantizedWeight]:
    """The units of one denoiser rounded again."""
    of_part = study.statistics.part(part.component)
    found = polished(
        part.denoiser, part.graph, of_part.sources, sample_name(part.denoiser), of_part.calls,
        part.own(configuration), part.own(values), lambda unit: study.original_weight(part.prefix + unit),
        lambda unit, value: study.switch.write(part.prefix + unit, value), int(study.settings.memory * 1e9),
        lambda done, total: progress(done, total, f"polishing {part.component}".strip()),
    )  # fmt: skip
    return {part.prefix + unit: value for unit, value in found.items()}


def checked(
    study: Workspace, choice: Choice, values: Mapping[str, QuantizedWeight] = MappingProxyType({}),
    progress: Progress = silent,
) -> Choice:  # fmt: skip
    """The choice with metrics on images that nothing was learned from, also for candidates without any; ``values`` are
    weights that differ from those of the bank."""
    what = "checking on fresh images"
    progress(0, CHECKED, what)
    measured = study.measurer(FINALS.images(CHECKED))(choice.configuration, values).means
    progress(CHECKED, CHECKED, what)
    candidates = [c if c.measured else c.model_copy(update={"measured": measured}) for c in choice.candidates]
    return choice.model_copy(update={"measured": measured, "candidates": candidates})


def _nearer(
    study: Workspace, configuration: Configuration, values: Mapping[str, QuantizedWeight], progress: Progress = silent
) -> bool:
    """Whether the images of these weights are nearer to full precision than those of the bank's, by median gain in
    PSNR.

    Not by the mean: where a small error early in sampling decides between two pictures, single images differ by 20 dB
    either way, and the mean of a few says more of them than of the weights.
    """

    def gains(images: range) -> np.ndarray:
        deciding = study.measurer(images, metrics=("psnr",))
        before, after = (np.array(deciding(configuration, of).values["psnr"]) for of in ({}, values))
        return after - before

    most, what = max(DECIDING, study.observed_images // 3), "comparing images with and without polishing"
    return bool(np.median(agreed(LEARNING.images(most), gains, lambda done: progress(done, most, what))) > 0)


def agreed(
    images: range, gains: Callable[[range], np.ndarray], progress: Callable[[int], object] = lambda done: None
) -> np.ndarray:
    """The gain of one over another in each of the first :data:`DECIDING` images, or of all where these do not agree."""
    found = np.empty(0)
    while len(found) < len(images):
        progress(len(found))
        following = images[len(found) :] if len(found) else images[:DECIDING]
        found = np.append(found, gains(following))
        if np.sum(found > 0) not in _DISAGREE:
            break
    progress(len(images))
    return found
