"""What each layer, operation, block and stage costs: by the predictor's scores, and by gradients alone."""

from qua2sedimo.sensitivity.block_scores import block_level, block_scores
from qua2sedimo.sensitivity.block_settings import BlockScores, BlockSettings
from qua2sedimo.sensitivity.effects import Effects, option_effects
from qua2sedimo.sensitivity.expected import (
    THIRDS,
    ExpectedDamage,
    ExpectedOfGroup,
    at_width,
    expected_by,
    expected_damage,
    write_expected,
)
from qua2sedimo.sensitivity.findings import findings
from qua2sedimo.sensitivity.scores import OptionScore, Scores, op_scores
from qua2sedimo.sensitivity.sources import Agreement, GroupShares, Source, agreements, shares_by, sources
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
    "Agreement",
    "BlockScores",
    "BlockSettings",
    "Distribution",
    "Effects",
    "ExpectedDamage",
    "ExpectedOfGroup",
    "GroupShares",
    "LayerStep",
    "OptionRow",
    "OptionScore",
    "Scores",
    "Sensitivity",
    "Source",
    "THIRDS",
    "agreements",
    "at_width",
    "block_level",
    "block_scores",
    "distributions",
    "expected_by",
    "expected_damage",
    "findings",
    "layer_steps",
    "op_scores",
    "option_effects",
    "option_rows",
    "shares_by",
    "sources",
    "step_distributions",
    "write_expected",
    "write_tables",
]
