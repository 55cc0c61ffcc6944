"""Sequential rounding: a chosen configuration is quantized once more from input to output, each layer knowing what its
predecessors got wrong."""

from qua2sedimo.sequential.polish import polished
from qua2sedimo.sequential.segments import segment_of

__all__ = ["polished", "segment_of"]
