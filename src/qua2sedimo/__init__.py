"""Qua²SeDiMo: which layers of a diffusion denoiser tolerate low-bit weights, and a packed model that uses it."""

from qua2sedimo.api import quantize
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.own import CallablePipeline
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.runtime import dequantize
from qua2sedimo.runtime.own import load_packed
from qua2sedimo.study import Study
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.settings import StudySettings

__version__ = "0.1.0"

__all__ = [
    "CallablePipeline",
    "Choice",
    "Configuration",
    "Option",
    "Qua2SeDiMoError",
    "SearchSpace",
    "Study",
    "StudySettings",
    "dequantize",
    "load_packed",
    "quantize",
]
