"""How a weight is quantized: methods, packing, and the quantized weight as a value; only tensors in here."""

from qua2sedimo.quantizers.compensation import telling_rows
from qua2sedimo.quantizers.decoding import dequantize_traceable, dequantize_weight, levels_of
from qua2sedimo.quantizers.error import EXPONENT, quantization_error
from qua2sedimo.quantizers.gguf import GGUF_METHODS, blocks_of, from_blocks, type_of
from qua2sedimo.quantizers.lowrank import LowRank
from qua2sedimo.quantizers.method import CodeMethod, Method, check_half, stored_dtype
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.quantizers.operator import decode
from qua2sedimo.quantizers.packing import pack, packed_length, unpack
from qua2sedimo.quantizers.product import inner_product
from qua2sedimo.quantizers.registry import LEVEL_METHODS, METHODS, packed_bytes
from qua2sedimo.quantizers.threads import each
from qua2sedimo.quantizers.value import QuantizedWeight

__all__ = [
    "CodeMethod",
    "EXPONENT",
    "GGUF_METHODS",
    "LEVEL_METHODS",
    "LowRank",
    "METHODS",
    "Method",
    "Moment",
    "QuantizedWeight",
    "blocks_of",
    "check_half",
    "decode",
    "dequantize_weight",
    "dequantize_traceable",
    "each",
    "from_blocks",
    "inner_product",
    "levels_of",
    "pack",
    "packed_bytes",
    "packed_length",
    "quantization_error",
    "stored_dtype",
    "telling_rows",
    "type_of",
    "unpack",
]
