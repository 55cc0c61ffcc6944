"""One call for a pipeline in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from qua2sedimo.formats.temporary import scratch_folder
from qua2sedimo.runtime import pack
from qua2sedimo.study import Study
from qua2sedimo.study.settings import Effort, StudySettings
from qua2sedimo.system.progress import Progress, silent


def quantize(
    pipeline: Any,
    bits: float = 3.5,
    prompts: Sequence[str | int] = (),
    *,
    arguments: Mapping[str, Any] | None = None,
    effort: Effort | None = None,
    configurations: int | None = None,
    component: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    progress: Progress = silent,
) -> Any:
    """Quantize the denoiser of a diffusers pipeline in place, to at most ``bits`` average bits; returns the pipeline.

    ``pipeline.save_pretrained(FOLDER)`` then writes a packed checkpoint for ``DiffusionPipeline.from_pretrained``.
    ``pipeline`` may also be a :class:`~qua2sedimo.CallablePipeline`: any module with a function that makes images.

    Runs a whole study on ``prompts`` (or class labels; by default varied ones) with the pipeline's ``arguments``
    (steps, guidance, size). ``effort``: "quick", the default, chooses by calibration statistics and measures only the
    result; "search", the default with ``configurations``, measures so many random configurations (or 100), then
    searches with up to twice as many images; "paper" chooses by the predictor alone. ``component`` names the denoiser
    if the pipeline has several, or several that share the budget, among which text encoders may be. With ``folder``,
    the study is kept there and can be resumed, reported and exported; otherwise it is deleted.

    Raises :class:`Qua2SeDiMoError` if the budget cannot be reached, or the pipeline has no denoiser.
    """
    place: Any = nullcontext(folder) if folder is not None else scratch_folder()
    with place as where:
        settings = StudySettings(
            model=str(getattr(pipeline.config, "_name_or_path", "") or type(pipeline).__name__),
            inputs=list(prompts),
            arguments=dict(arguments or {}),
            component=component if component is None or isinstance(component, str) else list(component),
        )
        study = Study.create(Path(where), settings, pipeline)
        chosen = study.run(bits, configurations, progress, effort=effort)
        inside = study.workspace
        inside.switch.restore()
        values = inside.values(chosen)
        for part in inside.parts:
            pack(part.denoiser, part.own(values), part.copies)
    return pipeline
