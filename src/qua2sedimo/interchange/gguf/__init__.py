"""GGUF files, which ComfyUI-GGUF, stable-diffusion.cpp and diffusers load: names of tensors, and writing them."""

from qua2sedimo.interchange.gguf.file import check_gguf_file, save_gguf
from qua2sedimo.interchange.gguf.names import Names, merged

__all__ = ["Names", "check_gguf_file", "merged", "save_gguf"]
