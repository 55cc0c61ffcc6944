"""How a model is loaded: dtype, device, variant, revision, and what saves memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from qua2sedimo.errors import Qua2SeDiMoError

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
OffloadName = Literal["none", "model", "group", "sequential"]
DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OFFLOADS: tuple[str, ...] = get_args(OffloadName)
_ON_ACCELERATORS = (
    "Leave out 'offload:' (--offload): it moves weights between the memory of an accelerator and the CPU's."
)


@dataclass(frozen=True)
class Loading:
    """How a pipeline is loaded.

    ``dtype``: that of all components, but for what a class keeps in fp32; ``auto`` for that of the denoiser's files.
    ``device``: any of torch's, None for an accelerator if there is one. ``variant``, ``revision``: of the files, None
    for the usual ones, or the only variant that there is. ``config``: for a single file, the pipeline folder or hub
    name with its configuration, and with the components that the file lacks. ``offload``: weights stay in the CPU's
    memory and are moved to the device for each ``model`` of the pipeline, ``group`` of layers, or layer by layer
    (``sequential``). ``vae_slicing``, ``vae_tiling``: decode images one by one, and in tiles.
    """

    dtype: DtypeName = "auto"
    device: str | None = None
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    offload: OffloadName = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False

    def check(self) -> None:
        """Raise :class:`Qua2SeDiMoError` naming a setting that is unknown or that this machine cannot do."""
        if self.dtype not in get_args(DtypeName):
            raise Qua2SeDiMoError(f"dtype: '{self.dtype}' is unknown", f"Known: {', '.join(get_args(DtypeName))}.")
        if self.offload not in OFFLOADS:
            raise Qua2SeDiMoError(f"offload: '{self.offload}' is unknown", f"Known: {', '.join(OFFLOADS)}.")
        self.place()

    def place(self) -> torch.device:
        """Where the denoiser computes; raises :class:`Qua2SeDiMoError` if there is no such device here."""
        try:
            device = torch.device(self.device or default_device())
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise Qua2SeDiMoError(
                f"device: '{self.device}' cannot be used here: {str(error).splitlines()[0]}",
                f"Leave it out for '{default_device()}', or give another.",
            ) from error
        if device.type == "meta":
            raise Qua2SeDiMoError("device: 'meta' holds no values", f"Leave it out for '{default_device()}'.")
        if self.offload != "none" and device.type == "cpu":
            raise Qua2SeDiMoError(
                f"offload: '{self.offload}' needs an accelerator, the device is 'cpu'", _ON_ACCELERATORS
            )
        return device


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """``torch.bfloat16`` → ``bf16``; ``fp32`` for what has more bits."""
    return next((name for name, known in DTYPES.items() if known == dtype), "fp32")


def save_memory(pipeline: Any, loading: Loading) -> None:
    """Turn on slicing and tiling of the autoencoder; raises :class:`Qua2SeDiMoError` if it has none."""
    vae = getattr(pipeline, "vae", None)
    for asked, what in ((loading.vae_slicing, "slicing"), (loading.vae_tiling, "tiling")):
        if not asked:
            continue
        enable = getattr(vae, f"enable_{what}", None)
        try:
            if enable is None:
                raise NotImplementedError
            enable()
        except NotImplementedError as error:
            name = type(vae).__name__ if vae is not None else f"{type(pipeline).__name__}, which has no autoencoder,"
            raise Qua2SeDiMoError(f"vae_{what}: {name} has no {what}", f"Leave out 'vae_{what}'.") from error
