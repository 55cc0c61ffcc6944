"""Observing: calibration statistics of a study's layers, made now or kept."""

from __future__ import annotations

from qua2sedimo.measuring.run import Workers
from qua2sedimo.statistics import JoinedStatistics, Statistics
from qua2sedimo.study.building import built_by
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def observe(
    study: Workspace, progress: Progress = silent, workers: Workers = Workers()
) -> Statistics | JoinedStatistics:
    """Statistics that rounding with compensation needs: of ``observe`` images in full precision, whose noise no other
    image has. Interrupted, it continues where it stopped."""
    with built_by(study, workers, progress):
        return study.observe(progress)
