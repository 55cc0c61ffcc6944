"""What a configuration costs: generate images with it and compare them with full precision."""

from qua2sedimo.evaluation.generate import Generation, Generator
from qua2sedimo.evaluation.measure import Measurement, Measurer
from qua2sedimo.evaluation.metrics import METRICS, Estimate, Metric, metric
from qua2sedimo.evaluation.switch import Switch

__all__ = [
    "METRICS",
    "Estimate",
    "Generation",
    "Generator",
    "Measurement",
    "Measurer",
    "Metric",
    "Switch",
    "metric",
]
