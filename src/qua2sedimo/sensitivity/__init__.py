"""From the predictor to scores of options and settings, and what they say by layer, operation, block and stage."""

from qua2sedimo.sensitivity.block_scores import block_level, block_scores
from qua2sedimo.sensitivity.block_settings import BlockScores, BlockSettings
from qua2sedimo.sensitivity.effects import Effects, option_effects
from qua2sedimo.sensitivity.findings import findings
from qua2sedimo.sensitivity.scores import OptionScore, Scores, op_scores
from qua2sedimo.sensitivity.summary import Sensitivity
from qua2sedimo.sensitivity.tables import (
    Distribution,
    LayerStep,
    OptionRow,
    distributions,
    layer_steps,
    option_rows,
    step_distributions,
    write_tables,
)

__all__ = [
    "BlockScores",
    "BlockSettings",
    "Distribution",
    "Effects",
    "LayerStep",
    "OptionRow",
    "OptionScore",
    "Scores",
    "Sensitivity",
    "block_level",
    "block_scores",
    "distributions",
    "findings",
    "layer_steps",
    "op_scores",
    "option_effects",
    "option_rows",
    "step_distributions",
    "write_tables",
]
