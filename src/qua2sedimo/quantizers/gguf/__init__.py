"""The block types of GGUF files as methods: what a block holds, how it is fitted, and its raw bytes."""

from qua2sedimo.quantizers.gguf.blocks import blocks_of, from_blocks
from qua2sedimo.quantizers.gguf.method import GGUF_METHODS, BlockMethod
from qua2sedimo.quantizers.gguf.types import TYPES, BlockType, type_of

__all__ = ["GGUF_METHODS", "TYPES", "BlockMethod", "BlockType", "blocks_of", "from_blocks", "type_of"]
