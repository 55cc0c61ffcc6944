"""External networks that metrics use: CLIP and Inception v3, from the hub, a folder, or a file.

Their weights are not part of the package. They are loaded when a study needs them; if that fails, the error says what
is missing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError, first_line
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.system.quiet import quiet

CLIP = "openai/clip-vit-large-patch14"  # torchmetrics' default
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's, in torch.hub's folder
_BATCH = 16
_HUB_SECONDS = 5.0  # timeout of the check whether the hub can be reached


def clip_judge(source: str | None) -> Callable[[np.ndarray, Sequence[str | int]], np.ndarray]:
    """CLIP score of each picture (uint8 [n, h, w, 1 or 3]) with its prompt: 100·cos of their embeddings, 0 to 100.

    Computed by torchmetrics' ``clip_score`` (Hessel et al., arXiv 2104.08718). ``source`` is a hub name or a folder;
    None means :data:`CLIP`. Raises :class:`Qua2SeDiMoError` if the model cannot be loaded.
    """
    pair: Any = _load_clip(source or CLIP)

    @torch.inference_mode()
    def judge(images: np.ndarray, inputs: Sequence[str | int]) -> np.ndarray:
        from torchmetrics.functional.multimodal import clip_score

        # One at a time: torchmetrics returns the mean of a batch.
        values = [clip_score(picture, str(prompt), lambda: pair) for picture, prompt in zip(_rgb(images), inputs)]
        return np.array([float(value) for value in values])

    return judge


@lru_cache(maxsize=2)
def _load_clip(source: str) -> tuple[_ClipModel, _ClipProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    here_only = not Path(source).is_dir() and not _hub_answers()
    try:
        with quiet():
            model = CLIPModel.from_pretrained(source, local_files_only=here_only)
            processor = CLIPProcessor.from_pretrained(source, local_files_only=here_only)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise Qua2SeDiMoError(
            f"clip_score: CLIP model '{source}' cannot be loaded: {first_line(error)}",
            "Check the network, or give a folder with a saved CLIPModel and CLIPProcessor: clip_score:FOLDER.",
        ) from error
    return _ClipModel(model.eval().requires_grad_(False)), _ClipProcessor(processor)


def _hub_answers() -> bool:
    """Whether the hub can be reached; without this check, every file request would run into several timeouts."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # its type depends on huggingface_hub's HTTP library
        return False
    return True


class _ClipModel:
    """Returns features as tensors, as torchmetrics expects; transformers 5 wraps them in an output object."""

    def __init__(self, model: Any) -> None:
        self._model, self.config = model, model.config

    def to(self, device: Any) -> _ClipModel:
        self._model.to(device)
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return _bare(self._model.get_image_features(pixels))

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _bare(self._model.get_text_features(ids, mask))


class _ClipProcessor:
    """Truncates prompts that are too long before the end token is added, so that it is kept."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, **arguments: Any) -> Any:
        if "text" in arguments:
            arguments["truncation"] = True
        return self._processor(**arguments)


def _bare(features: Any) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def inception_features(source: str | None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from float images [n, h, w, 1 or 3] in 0 to 1 to Inception v3's pooled features, float64 [n, 2048].

    The network of the original FID, as torchmetrics loads it through torch-fidelity. ``source`` is a file with its
    weights; with None torch-fidelity downloads them. Raises :class:`Qua2SeDiMoError` if the package or the weights are
    missing.
    """
    network = _load_inception(source)

    @torch.inference_mode()
    def features(images: np.ndarray) -> np.ndarray:
        return torch.cat([network(batch) for batch in _rgb(to_uint8(images)).split(_BATCH)]).double().numpy()

    return features


@lru_cache(maxsize=2)
def _load_inception(source: str | None) -> torch.nn.Module:
    if find_spec("torch_fidelity") is None:
        raise Qua2SeDiMoError(
            "fid_inception needs the package torch-fidelity, which is not installed",
            "Run: pip install 'qua2sedimo[inception]'",
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        if source is not None:  # torch-fidelity would execute code that is pickled in the file
            torch.load(source, map_location="cpu", weights_only=True)
        with quiet():
            return NoTrainInceptionV3("inception-v3-compat", ["2048"], source)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise Qua2SeDiMoError(
            f"fid_inception: Inception's weights cannot be loaded from {source or 'the network'}: {first_line(error)}",
            f"Check the network, or fetch torch-fidelity's {_INCEPTION_FILE} and name it: fid_inception:FILE.",
        ) from error


def clip_presence(source: str | None) -> str:
    """Whether CLIP is available, in a few words; nothing is loaded or downloaded."""
    from huggingface_hub import try_to_load_from_cache

    name = source or CLIP
    if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return "yes"
    return "downloads"


def inception_presence(source: str | None) -> str:
    """Whether Inception is available, in a few words; nothing is loaded or downloaded."""
    if find_spec("torch_fidelity") is None:
        return "needs torch-fidelity"
    if source is not None:
        return "yes" if Path(source).is_file() else "file not found"
    return "yes" if (Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE).is_file() else "downloads"


def _rgb(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 1 or 3] as [n, 3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
