"""The last comparison of a search: what it found and what gradients alone choose, both polished, on fresh images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qua2sedimo.images.ledger import FINALS
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.search.halving import paired_p
from qua2sedimo.study.choices import Candidate, Choice, load_values, save_choice, save_values, values_file
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.measurements import per_image
from qua2sedimo.study.stages.polish import agreed, better_weights
from qua2sedimo.study.stages.search_log import Compared, SearchLog
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress

#: Images that decide at most.
COMPARED = 48
_AFTER = 1_000  # they come after those of the finals


def compared_and_kept(
    study: Workspace, choice: Choice, rival: Configuration, log: SearchLog, path: Path, progress: Progress
) -> tuple[Choice, Compared | None]:  # fmt: skip
    """(the choice, or ``rival`` in its place if most images are nearer to full precision with that; the comparison).

    Both are polished first: that changes more than finalists differ by. Polished weights lie beside the log at ``path``
    until the choice is stored, so that an interrupted comparison goes on. Nothing is compared in a study that is not
    polished, or if both are the same.
    """
    if not study.settings.compensates:
        return save_choice(study.folder / "choices", choice), None
    rivals = list(dict.fromkeys([choice.configuration, rival]))
    images = FINALS.images(COMPARED, skip=_AFTER)
    try:
        for configuration in rivals:
            log = _with_polished(study, configuration, log, path, progress)
        sides = [_Side(study, configuration, _kept(configuration, log, path)) for configuration in rivals]

        def gains(part: range) -> np.ndarray:
            measured = [side.measure(part) for side in sides]
            return measured[0] - measured[-1]

        found = agreed(
            images, gains, lambda done: progress(done, len(images), "comparing with the choice of gradients")
        )
    finally:  # also if it is interrupted, the live denoiser is as it was
        study.switch.restore()
    best = sides[0] if np.median(found) >= 0 else sides[-1]
    rows = {c.configuration: c for c in choice.candidates}
    rows |= {side.configuration: side.row(rows.get(side.configuration)) for side in sides}
    row = rows[best.configuration]
    about = {"candidates": list(rows.values()), "measured": row.measured, "predicted": row.predicted}
    if len(sides) > 1:
        about["p_value"] = paired_p(best.quality, next(s for s in sides if s is not best).quality)
    made = Choice.of(
        row.model_copy(update={"origin": "search"}), study.space, choice.owner, choice.budget,
        constraints=choice.constraints, images=choice.images, **about,
    )  # fmt: skip
    made = save_choice(study.folder / "choices", made, best.values)
    for configuration in rivals:
        values_file(path.parent, _name(configuration, path), log.polished[configuration.digest]).unlink(missing_ok=True)
    if len(sides) == 1:
        return made, None
    quality = [float(side.quality.mean()) for side in sides]
    return made, Compared(measured=quality[0], gradients=quality[1], gain=float(np.median(found)), images=len(found))


@dataclass
class _Side:
    """A configuration with its polished weights (none: those of the bank), and its ``quality`` in each image so far."""

    study: Workspace
    configuration: Configuration
    values: Mapping[str, QuantizedWeight]
    quality: np.ndarray = field(default_factory=lambda: np.empty(0))
    _metrics: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, images: range) -> np.ndarray:
        """The objective of each of more images [images]."""
        measured = self.study.measurer(images)(self.configuration, self.values)
        for name, values in measured.values.items():
            self._metrics.setdefault(name, []).extend(values)
        found = per_image(self.study, measured)
        self.quality = np.append(self.quality, found)
        return found

    def row(self, known: Candidate | None) -> Candidate:
        """The candidate with what was measured now; ``known``, if it was one before."""
        space = self.study.space
        row = known or Candidate(
            origin="gradients", configuration=self.configuration, average_bits=space.average_bits(self.configuration),
            predicted=float(evidence(self.study).predicted([self.configuration])[0]), measured={},
        )  # fmt: skip
        return row.model_copy(update={"measured": {name: float(np.mean(of)) for name, of in self._metrics.items()}})


def _with_polished(
    study: Workspace, configuration: Configuration, log: SearchLog, path: Path, progress: Progress
) -> SearchLog:  # fmt: skip
    """The log, in which the weights of this configuration are polished."""
    checksum = log.polished.get(configuration.digest)
    if checksum == "" or (checksum and values_file(path.parent, _name(configuration, path), checksum).exists()):
        return log
    values = better_weights(study, configuration, progress)
    study.switch.restore()
    checksum = save_values(path.parent, _name(configuration, path), values) if values else ""
    log = log.model_copy(update={"polished": {**log.polished, configuration.digest: checksum}})
    log.save(path)
    return log


def _kept(configuration: Configuration, log: SearchLog, path: Path) -> Mapping[str, QuantizedWeight]:
    checksum = log.polished[configuration.digest]
    return load_values(path.parent, _name(configuration, path), checksum) if checksum else {}


def _name(configuration: Configuration, path: Path) -> str:
    return f"{path.stem}-{configuration.digest[:8]}"
