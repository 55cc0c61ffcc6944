"""The option bank: the options of every layer, packed, on disk, memory-mapped."""

from qua2sedimo.bank.making import Observed, OptionError, stored_weight
from qua2sedimo.bank.store import Bank, bank_bytes, quantize_layer

__all__ = ["Bank", "Observed", "OptionError", "bank_bytes", "quantize_layer", "stored_weight"]
