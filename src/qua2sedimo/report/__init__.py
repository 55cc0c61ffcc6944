"""What a study found: one HTML page that needs no network, the same figures as files, and model cards."""

from qua2sedimo.report.data import (
    GraphNode,
    LayerChoice,
    MeasuredPoint,
    MetricInfo,
    PictureRow,
    PredictorQuality,
    ReportData,
    TableRow,
)
from qua2sedimo.report.page.html import write_report
from qua2sedimo.report.paper.files import write_figures, write_two_studies

__all__ = [
    "GraphNode",
    "LayerChoice",
    "MeasuredPoint",
    "MetricInfo",
    "PictureRow",
    "PredictorQuality",
    "ReportData",
    "TableRow",
    "write_figures",
    "write_report",
    "write_two_studies",
]
