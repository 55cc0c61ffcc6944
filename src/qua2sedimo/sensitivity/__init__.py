"""From the predictor's embedding norms to scores of options and settings, and what they say by operation and block."""

from qua2sedimo.sensitivity.aggregate import step_costs, strip
from qua2sedimo.sensitivity.block_scores import block_scores
from qua2sedimo.sensitivity.block_settings import BlockScores, BlockSettings, Setting
from qua2sedimo.sensitivity.scores import OptionScore, Scores, op_scores

__all__ = [
    "BlockScores",
    "BlockSettings",
    "OptionScore",
    "Scores",
    "Setting",
    "block_scores",
    "op_scores",
    "step_costs",
    "strip",
]
