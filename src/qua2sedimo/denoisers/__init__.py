"""A denoiser's weight layers, their operation types, and the graph of the data flow between them."""

from qua2sedimo.denoisers.architecture import architecture, load_denoiser
from qua2sedimo.denoisers.graph import Graph, Node
from qua2sedimo.denoisers.inputs import built_inputs, read_inputs
from qua2sedimo.denoisers.joined import JoinedCheckpoint, JoinedDenoisers, joined_graph, part_of
from qua2sedimo.denoisers.layers import WeightLayer, parse_unit, unit_weight, weight_layers, weight_modules, weight_of
from qua2sedimo.denoisers.pipelines import (
    capture_call,
    denoiser_checkpoint,
    denoiser_of,
    denoisers_named,
    load_pipeline,
)
from qua2sedimo.denoisers.trace import trace

__all__ = [
    "Graph",
    "JoinedCheckpoint",
    "JoinedDenoisers",
    "Node",
    "WeightLayer",
    "architecture",
    "built_inputs",
    "capture_call",
    "denoiser_checkpoint",
    "denoiser_of",
    "denoisers_named",
    "joined_graph",
    "load_denoiser",
    "load_pipeline",
    "parse_unit",
    "part_of",
    "read_inputs",
    "trace",
    "unit_weight",
    "weight_layers",
    "weight_modules",
    "weight_of",
]
