"""From scores and a budget to configurations: an integer program and its best distinct answers."""

from qua2sedimo.search.budget import Budget, budget_bytes
from qua2sedimo.search.choose import best_configurations
from qua2sedimo.search.proposals import propose

__all__ = ["Budget", "best_configurations", "budget_bytes", "propose"]
