"""Calibration statistics: what a denoiser's layers see while the full-precision model generates images."""

from qua2sedimo.statistics.calls import RecordedCall, RecordedCalls
from qua2sedimo.statistics.changes import output_changes
from qua2sedimo.statistics.columns import positions, unit_columns
from qua2sedimo.statistics.differences import OutputDifference
from qua2sedimo.statistics.gradients import squared_gradients
from qua2sedimo.statistics.joined import JoinedStatistics
from qua2sedimo.statistics.moments import observe_moments
from qua2sedimo.statistics.observing import Observation, observe, sample_name
from qua2sedimo.statistics.recording import record_calls
from qua2sedimo.statistics.sources import Source, find_sources
from qua2sedimo.statistics.store import Statistics

__all__ = [
    "JoinedStatistics",
    "Observation",
    "OutputDifference",
    "RecordedCall",
    "RecordedCalls",
    "Source",
    "Statistics",
    "find_sources",
    "observe",
    "observe_moments",
    "output_changes",
    "positions",
    "record_calls",
    "sample_name",
    "squared_gradients",
    "unit_columns",
]
