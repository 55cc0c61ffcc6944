"""SDNQ's checkpoints, which stock diffusers loads where ``sdnq`` is installed: what they hold, and writing them."""

from qua2sedimo.interchange.sdnq.checkpoint import layers_kept, save_sdnq
from qua2sedimo.interchange.sdnq.layer import form_of

__all__ = ["form_of", "layers_kept", "save_sdnq"]
