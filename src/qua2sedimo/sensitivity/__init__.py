"""From the predictor's embedding norms to scores of options, and what they say by operation and block."""

from qua2sedimo.sensitivity.aggregate import step_costs, strip
from qua2sedimo.sensitivity.scores import OptionScore, Scores, op_scores

__all__ = ["OptionScore", "Scores", "op_scores", "step_costs", "strip"]
