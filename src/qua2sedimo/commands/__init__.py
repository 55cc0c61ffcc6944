"""The commands, grouped by what they are for; each parses, calls Study, prints.

The order in which their modules are imported is that of the commands in --help.
"""

# isort: off
from qua2sedimo.commands import whole
from qua2sedimo.commands import looking, metrics, planning, measuring
from qua2sedimo.commands import explaining, choosing, searching
from qua2sedimo.commands import using, reporting

__all__ = [
    "choosing", "explaining", "looking", "measuring", "metrics", "planning", "reporting", "searching", "using", "whole",
]  # fmt: skip
