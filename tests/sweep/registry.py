"""The pipeline classes that must get through a study, found by signature, and those that cannot, with the reason."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from qua2sedimo.images.generate import INPUTS

#: Words in a class's name that say that it needs a picture, a film or a sound to begin with.
CONDITIONED = (
    "Img2Img", "Inpaint", "Control", "ImageToVideo", "Image2Video", "VideoToVideo", "VideoToWorld", "Edit", "Adapter",
    "Upscale", "Upsample", "SuperRes", "Pix2Pix", "Depth2", "Variation", "Refine", "Fill", "Kontext", "Cloze",
    "Layered", "LEdits", "I2V", "InContext", "GLIGENTextImage", "HDR", "I2VGen",
)  # fmt: skip
#: Words in a class's name that say that it makes sound, text or shapes.
OTHER_OUTPUTS = ("Audio", "Music", "AceStep", "LLaDA", "DiffusionGemma", "ShapE", "TI2VA")


def in_scope() -> dict[str, type[Any]]:
    """Pipeline classes that make pictures from text, labels or noise, and take a generator: by signature and name."""
    found = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)) or cls is DiffusionPipeline:
            continue
        parameters = inspect.signature(cls.__call__).parameters
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = {p.name for p in parameters.values() if p.default is p.empty and p.kind in plain and p.name != "self"}
        if not {"generator", "output_type"} <= parameters.keys() or needed - INPUTS.keys():
            continue
        if not any(word in name for word in (*CONDITIONED, *OTHER_OUTPUTS)):
            found[name] = cls
    return found


_TORCHVISION = "its processor needs torchvision, which is not installed with this package"
_GUARD = "its safety checker needs cosmos_guardrail, which is not installed with this package"
_EMBEDDINGS = "makes embeddings, not images; the pipeline that it is a part of is studied instead"
_LOST = "diffusers cannot load what it saves: a class of a component is no longer exported"

#: Classes in scope without an entry, each with its reason.
EXCLUDED: dict[str, str] = {
    "AllegroPipeline": "its autoencoder decodes only in tiles, which `vae.enable_tiling()` must switch on",
    "Cosmos2TextToImagePipeline": _GUARD,
    "Cosmos2_5_PredictBasePipeline": _GUARD,
    "CosmosTextToWorldPipeline": _GUARD,
    "BriaFibo2Pipeline": _TORCHVISION,
    "DreamLitePipeline": _TORCHVISION,
    "DreamLiteMobilePipeline": _TORCHVISION,
    "GlmImagePipeline": _TORCHVISION,
    "Kandinsky5T2IPipeline": _TORCHVISION,
    "Kandinsky5T2VPipeline": _TORCHVISION,
    "LongCatImagePipeline": _TORCHVISION,
    "NucleusMoEImagePipeline": _TORCHVISION,
    "OmniGenPipeline": _TORCHVISION,
    "QwenImage21Pipeline": _TORCHVISION,
    "KarrasVePipeline": _LOST,
    "StableCascadeCombinedPipeline": _LOST,
    "WuerstchenCombinedPipeline": _LOST,
    "TextToVideoZeroPipeline": "diffusers loads it only with a safety checker; TextToVideoZeroSDXLPipeline has one",
    "KandinskyPriorPipeline": _EMBEDDINGS,
    "KandinskyV22PriorPipeline": _EMBEDDINGS,
    "StableCascadePriorPipeline": _EMBEDDINGS,
    "WuerstchenPriorPipeline": _EMBEDDINGS,
    "AltDiffusionPipeline": _LOST,
    "UnCLIPPipeline": _LOST,
    "VQDiffusionPipeline": _LOST,
}
