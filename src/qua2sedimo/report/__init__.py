"""What the study found, told to people: one offline HTML page and the same figures as files."""

from qua2sedimo.report.data import (
    GraphNode,
    LayerChoice,
    LayerScore,
    MeasuredPoint,
    MetricInfo,
    MetricValue,
    PictureRow,
    PredictorQuality,
    ReportData,
    TableRow,
)
from qua2sedimo.report.figures import write_compared, write_figures
from qua2sedimo.report.page import write_report

__all__ = [
    "GraphNode",
    "LayerChoice",
    "LayerScore",
    "MeasuredPoint",
    "MetricInfo",
    "MetricValue",
    "PictureRow",
    "PredictorQuality",
    "ReportData",
    "TableRow",
    "write_compared",
    "write_figures",
    "write_report",
]
