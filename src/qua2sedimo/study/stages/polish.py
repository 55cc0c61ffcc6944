"""Polishing: the weights of a choice are rounded once more in sequence, and kept if that measures better."""

from __future__ import annotations

from typing import Any

import numpy as np

from qua2sedimo.images.ledger import FINALS, LEARNING
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.sequential import polished
from qua2sedimo.statistics import sample_name
from qua2sedimo.study.choices import Choice, save_values
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

#: Images that decide whether the polished weights are kept, and images of the final check.
_DECIDING, _CHECKED = 8, 16


def polish(study: Workspace, choice: Choice, progress: Progress = silent) -> Choice:
    """The choice with its weights rounded again from input to output, each layer knowing its predecessors' errors.

    Both are measured on a few images that models may learn from, and the better is kept. If that is the new one, or the
    choice was never measured, its metrics are those of a final check, on images that nothing was learned from. A choice
    that is polished already, and one of a study with nearest rounding, is returned unchanged.
    """
    if choice.polished is not None or not study.settings.compensates:
        return choice
    path = study.folder / "choices" / f"{choice.name}.safetensors"
    found = polished(
        study.denoiser, study.graph, study.statistics.sources, sample_name(study.denoiser), study.statistics.calls,
        choice.configuration, study.bank.values(choice.configuration), study.original_weight, study.switch.write,
        int(study.settings.memory * 1e9), lambda done, total: progress(done, total, "polishing"),
    )  # fmt: skip
    deciding = study.measurer(LEARNING.images(_DECIDING))
    quality = [_mean(study, deciding(choice.configuration, values).values) for values in ({}, found)]
    better: dict[str, QuantizedWeight] = found if quality[1] > quality[0] else {}
    changes: dict[str, Any] = {}
    if better or not choice.measured:
        changes["measured"] = study.measurer(FINALS.images(_CHECKED))(choice.configuration, better).means
    if better:
        changes["polished"] = save_values(path, better)
    study.switch.restore()
    choice = choice.model_copy(update=changes)
    choice.save(study.folder / "choices" / f"{choice.name}.json")
    return choice


def _mean(study: Workspace, values: dict[str, list[float]]) -> float:
    return float(np.mean(study.objective.of_images(values)))
