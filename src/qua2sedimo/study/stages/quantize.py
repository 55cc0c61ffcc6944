"""Quantizing: every option of every layer, made now or kept, with what it changes in the output."""

from __future__ import annotations

from qua2sedimo.bank import Bank
from qua2sedimo.measuring.run import Workers
from qua2sedimo.study.building import built_by
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def quantize(study: Workspace, progress: Progress = silent, workers: Workers = Workers()) -> Bank:
    """The bank of all options, weighed; statistics that it needs are made first. Interrupted, it continues where it
    stopped."""
    with built_by(study, workers, progress):
        return study.build_bank(progress)
