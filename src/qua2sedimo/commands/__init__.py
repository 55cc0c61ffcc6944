"""The commands, one module for each group in --help: each parses its arguments, calls the Study, and prints.

The order in which the modules are imported is that of the commands in --help.
"""

# isort: off
from qua2sedimo.commands import start
from qua2sedimo.commands import inspecting
from qua2sedimo.commands import collecting
from qua2sedimo.commands import analysis
from qua2sedimo.commands import selection
from qua2sedimo.commands import delivery
from qua2sedimo.commands import presentation

__all__ = ["analysis", "delivery", "inspecting", "collecting", "presentation", "selection", "start"]
