"""What a report tells, as plain data: the report knows nothing of how any of it was computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError

RowKind = Literal["full", "uniform", "ours", "activations"]
PointKind = Literal["random", "uniform", "candidate", "frontier", "choice", "ours", "full"]


@dataclass(frozen=True)
class MetricValue:
    """A measured value with its 95 % interval, and how many images (or records) it rests on."""

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class MetricInfo:
    """What a metric is called and means; ``name`` is its key in ``TableRow.metrics``."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    explanation: str


@dataclass(frozen=True)
class TableRow:
    """One model of the main table: its average bits per weight, its bytes, its metrics by name."""

    name: str
    kind: RowKind
    bits: float
    nbytes: int
    metrics: dict[str, MetricValue]


@dataclass(frozen=True, eq=False)
class PictureRow:
    """The pictures one model made: uint8 arrays, H×W×3 or H×W, one for each caption of the report."""

    name: str
    images: list[np.ndarray]


@dataclass(frozen=True)
class MeasuredPoint:
    """One measured configuration: average bits and the objective with its interval.

    ``frontier``: proposed for the frontier; ``candidate``: measured for a budget and not chosen; ``choice``: chosen for
    another budget than the report's.
    """

    bits: float
    value: float
    low: float
    high: float
    kind: PointKind
    label: str = ""


@dataclass(frozen=True)
class LayerScore:
    """One option of one layer: its score (higher: better pictures), size and error, and what it costs the objective.

    ``folds`` are what each fold expects of the objective with this option, higher better, up to a constant of the
    layer; ``cost`` is what is lost from the layer's best option to this one, with its standard error over folds. Both
    are in ``ReportData.cost_unit``.
    """

    layer: str
    operation: str
    block: str
    block_index: int | None
    option: str
    method: str
    bits: int
    average_bits: float
    score: float
    spread: float
    folds: tuple[float, ...] = ()
    nbytes: int = 0
    relative_mse: float = math.nan
    cost: float = math.nan
    cost_spread: float = math.nan


@dataclass(frozen=True)
class LayerChoice:
    """The option chosen for one layer, what it costs, how well it keeps the weights, and why it was chosen.

    ``decided`` says in a word or two what decided, ``reason`` in a sentence.
    """

    layer: str
    operation: str
    block: str
    shape: tuple[int, ...]
    weights: int
    option: str
    nbytes: int
    average_bits: float
    relative_mse: float
    score: float
    spread: float
    decided: str = ""
    reason: str = ""


@dataclass(frozen=True)
class GraphNode:
    """A weight layer (``kind == "layer"``) or a place where data meet; ``inputs`` are positions of earlier nodes."""

    name: str
    kind: str
    block: str
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class PredictorQuality:
    """How well the predictor ranks records it never saw, beside simpler models on the same records.

    ``predicted`` and ``measured`` are paired, in the same order. ``noise_ceiling`` is the rank
    correlation that a perfect predictor could reach, given how noisy the measurements are.
    """

    rank_correlation: MetricValue
    baselines: dict[str, MetricValue]
    predicted: list[float]
    measured: list[float]
    noise_ceiling: float | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything one report shows; ``scores``, ``choices`` and ``nodes`` come in the order the data flows.

    ``cost_unit`` is that of ``LayerScore.folds``; ``commands`` repeat the study where ``settings``, a YAML text, is its
    study.yaml.

    Raises ``Qua2SeDiMoError`` when its parts do not fit together.
    """

    title: str
    model: str
    pipeline: str
    layers: int
    weights: int
    full_bytes: int
    budget_bits: float
    ours_bits: float
    ours_bytes: int
    table: list[TableRow]
    metric_infos: list[MetricInfo]
    pictures: list[PictureRow]
    captions: list[str]
    objective: str
    points: list[MeasuredPoint]
    scores: list[LayerScore]
    choices: list[LayerChoice]
    predictor: PredictorQuality | None
    provenance: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    nodes: list[GraphNode] = field(default_factory=list)
    cost_unit: str = ""
    commands: list[str] = field(default_factory=list)
    settings: str = ""

    def __post_init__(self) -> None:
        for row in self.pictures:
            if len(row.images) != len(self.captions):
                raise Qua2SeDiMoError(
                    f"report pictures '{row.name}': expected one for each of the "
                    f"{len(self.captions)} captions, got {len(row.images)}"
                )
        quality = self.predictor
        if quality is not None and len(quality.predicted) != len(quality.measured):
            raise Qua2SeDiMoError(
                f"report predictor: expected as many predicted as measured values, "
                f"got {len(quality.predicted)} and {len(quality.measured)}"
            )

    @property
    def objective_info(self) -> MetricInfo:
        """The objective's description; an unknown objective is shown by its own name, higher as better."""
        for info in self.metric_infos:
            if info.name == self.objective:
                return info
        return MetricInfo(self.objective, self.objective, "", True, "")
