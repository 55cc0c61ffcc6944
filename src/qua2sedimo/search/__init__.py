"""From measurements and a budget to configurations: scores by several proposers, and an exact program that adds them
up."""

from qua2sedimo.search.argmax import argmax_configuration
from qua2sedimo.search.budget import Budget, budget_bytes
from qua2sedimo.search.constraints import Allowed, Constraints, allow, kept_bytes
from qua2sedimo.search.pareto import pareto_front
from qua2sedimo.search.programs import Setting, Values, best_configurations, best_settings, non_dominated
from qua2sedimo.search.proposals import propose
from qua2sedimo.search.proposers import (
    Evidence,
    Measured,
    Proposer,
    by_gradients,
    drawn,
    most_likely,
    one_at_a_time,
    sum_of_errors,
)
from qua2sedimo.search.reasons import DECIDED, LayerReason, in_decibels, reasons

__all__ = [
    "DECIDED",
    "Allowed",
    "Budget",
    "Constraints",
    "Evidence",
    "LayerReason",
    "Measured",
    "Proposer",
    "Setting",
    "Values",
    "allow",
    "argmax_configuration",
    "best_configurations",
    "best_settings",
    "budget_bytes",
    "by_gradients",
    "drawn",
    "in_decibels",
    "kept_bytes",
    "most_likely",
    "non_dominated",
    "one_at_a_time",
    "pareto_front",
    "propose",
    "reasons",
    "sum_of_errors",
]
