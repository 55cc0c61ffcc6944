"""Files that other programs load: a quantized model in the formats of SDNQ, GGUF and plain diffusers."""
