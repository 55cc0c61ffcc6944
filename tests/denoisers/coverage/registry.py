"""All entries, the classes diffusers exports, and those that have no entry, each with its reason."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers.models.transformers
import diffusers.models.unets
from diffusers import ModelMixin
from tests.denoisers.coverage.configuration import Small
from tests.denoisers.coverage.images import IMAGES
from tests.denoisers.coverage.joint import JOINT
from tests.denoisers.coverage.others import OTHERS
from tests.denoisers.coverage.unets import UNETS
from tests.denoisers.coverage.videos import VIDEOS
from tests.denoisers.coverage.worlds import WORLDS

#: The release whose classes the entries were written for; another may have more, or fewer.
DIFFUSERS = "0.42"

FAMILIES: dict[str, dict[str, Small]] = {
    "U-Nets": UNETS,
    "Image transformers": IMAGES,
    "Image transformers with joint attention": JOINT,
    "Video transformers": VIDEOS,
    "Video with audio, camera, action": WORLDS,
    "Audio, priors and others": OTHERS,
}
CONFIGURATIONS: dict[str, Small] = {name: entry for family in FAMILIES.values() for name, entry in family.items()}

#: Exported classes without an entry.
EXCLUDED: dict[str, str] = {
    "MotionAdapter": "holds weights for a UNetMotionModel and has no forward pass of its own",
}


def exported() -> dict[str, type[Any]]:
    """The transformer and U-Net classes of the installed diffusers, by name."""
    modules = (diffusers.models.transformers, diffusers.models.unets)
    found = {name: getattr(module, name) for module in modules for name in dir(module)}
    return {n: value for n, value in found.items() if inspect.isclass(value) and issubclass(value, ModelMixin)}
