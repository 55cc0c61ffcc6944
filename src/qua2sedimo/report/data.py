"""The plain data of a report and of a model card; charts, page, paper and card read nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.sensitivity import ExpectedDamage
from qua2sedimo.sensitivity.tables import LayerStep, OptionRow

RowKind = Literal["full", "uniform", "outside", "ours", "activations"]
PointKind = Literal["random", "uniform", "outside", "candidate", "frontier", "choice", "ours", "full"]


@dataclass(frozen=True)
class MetricInfo:
    """Name, title, unit and meaning of a metric or an objective; ``name`` is its key in ``TableRow.metrics``.

    ``paired``: it compares each picture with the full-precision one, so full precision is not compared with itself.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = True
    explanation: str = ""
    paired: bool = False


@dataclass(frozen=True)
class TableRow:
    """One model of the main table: its average bits per weight, its bytes, its metrics by name, and the seconds of a
    picture, if known.

    ``outside``: what another tool makes of the model.
    """

    name: str
    kind: RowKind
    bits: float
    nbytes: int
    metrics: dict[str, Estimate]
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class PictureRow:
    """The pictures of one model: uint8 arrays, H×W×3 or H×W, one for each caption of the report."""

    name: str
    images: list[np.ndarray]


@dataclass(frozen=True)
class MeasuredPoint:
    """One measured configuration: average bits per weight, and the objective.

    ``frontier``: proposed for the Pareto frontier; ``candidate``: measured for a budget and not chosen; ``choice``:
    another choice than the report's.
    """

    bits: float
    quality: Estimate
    kind: PointKind
    label: str = ""


@dataclass(frozen=True)
class OtherSize:
    """What another size would be like: average bits, bytes, the expected ``change`` of quality from the report's choice
    in dB, positive if better, and the average bits of each operation's weights."""

    bits: float
    nbytes: int
    change: float
    operations: dict[str, float]


@dataclass(frozen=True)
class LayerChoice(OptionRow):
    """The option chosen for one layer, the layer's weight shape, and the reason: in a word or two, and in sentences."""

    shape: tuple[int, ...]
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
    """How well the predictor ranks configurations that it was not fitted to, compared with simpler models.

    ``pairs``: predicted and measured value of each configuration. ``noise_ceiling`` is the rank correlation of a
    perfect predictor, given the noise of the measurements.
    """

    rank_correlation: Estimate
    baselines: dict[str, Estimate]
    pairs: list[tuple[float, float]]
    noise_ceiling: float | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything one report shows; ``options``, ``steps``, ``choices`` and ``nodes`` are in the order of the data flow.

    ``steps``: what each layer loses from 4 to 3 bits, in ``cost_unit``. ``commands`` repeat the study in a folder with
    its study.yaml, the text ``settings``. ``code``: Python that loads the packed model. ``other_bytes``: what of the
    pipeline is not quantized. ``expected`` and ``sizes``: what is expected of every layer, and of other sizes, from
    ``expected_from``; empty where nothing is.

    Raises ``Qua2SeDiMoError`` unless each model has a picture for each caption.
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
    objective: MetricInfo
    points: list[MeasuredPoint]
    options: list[OptionRow]
    steps: list[LayerStep]
    choices: list[LayerChoice]
    predictor: PredictorQuality | None
    provenance: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    nodes: list[GraphNode] = field(default_factory=list)
    cost_unit: str = ""
    commands: list[str] = field(default_factory=list)
    settings: str = ""
    code: str = ""
    other_bytes: int = 0
    expected: list[ExpectedDamage] = field(default_factory=list)
    expected_from: str = "gradients"
    sizes: list[OtherSize] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.pictures:
            if len(row.images) != len(self.captions):
                raise Qua2SeDiMoError(
                    f"report pictures '{row.name}': expected one for each of the "
                    f"{len(self.captions)} captions, got {len(row.images)}"
                )


#: Name of the export's row where the export itself was measured.
OWN = "this export"


@dataclass(frozen=True)
class BaseModel:
    """The model that was quantized; ``name`` is its hub name or its folder's name, ``hub`` its hub name.

    None and "" are unknown. ``licence`` is the hub's identifier (``apache-2.0``, ``other``); ``licence_name`` and
    ``licence_link`` go with ``other``; ``note`` is a remark on the licence.
    """

    name: str
    hub: str | None = None
    licence: str = ""
    licence_name: str = ""
    licence_link: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class CardPicture:
    """The pictures of one input by both models from the same noise, uint8 [height, width(, channels)]."""

    caption: str
    full: np.ndarray
    ours: np.ndarray


@dataclass(frozen=True)
class OperationOptions:
    """How the layers of one operation are stored: option → number of layers, their weights and packed bytes."""

    operation: str
    options: dict[str, int]
    weights: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class CardData:
    """Everything a model card shows. What is unknown is empty, and left out of the card or called unknown.

    ``pipeline``: class name; ``code``: Python that loads and calls the model; ``other_bytes``: tensors of the denoiser
    that are not quantized; ``whole``: denoisers that are not packed at all; ``rows``: the study's comparison,
    ``own_row`` the name of the export's row; ``measured``: full precision and the export itself (:data:`OWN`), as
    ``measured_how`` says; ``provenance`` and ``commands``: how it was made.
    """

    title: str
    base: BaseModel
    pipeline: str
    denoiser: str
    average_bits: float
    weights: int
    quantized_bytes: int
    other_bytes: int
    act_bits: int | None
    operations: list[OperationOptions]
    code: str
    task: str = ""
    whole: tuple[str, ...] = ()
    own_row: str = ""
    rows: list[TableRow] = field(default_factory=list)
    metric_infos: list[MetricInfo] = field(default_factory=list)
    measured: list[TableRow] = field(default_factory=list)
    measured_infos: list[MetricInfo] = field(default_factory=list)
    measured_how: str = ""
    pictures: list[CardPicture] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
