"""Image metrics by name: meaning, direction, and computation.

*Paired* metrics compare image i with the full-precision image i and need few images; *set* metrics compare
distributions of features and need many; *input* metrics score how well image i matches its prompt or class.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.distances import frechet_distance, kernel_distance, mean_squared_error, psnr, ssim
from qua2sedimo.metrics.features import map_decibels, map_distance, pooled_features, unit_maps
from qua2sedimo.metrics.pretrained import clip_judge, clip_presence, inception_features, inception_presence

InputScore = Callable[[np.ndarray, Sequence[str | int]], np.ndarray]
Features = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A metric: its name, direction, and computation.

    ``compute`` of a paired metric takes two arrays, images or latents (``of``) or their ``view``, and returns a value
    per image; that of a set metric takes two arrays of ``features``; that of an input metric takes its judge's scores.
    ``source`` names weights outside the package, and ``presence`` says in a few words whether they are available.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    kind: Literal["paired", "set", "input"]
    explanation: str
    compute: Callable[..., Any]
    of: Literal["images", "latents"] = "images"
    view: Callable[[np.ndarray], Any] | None = None
    against: Literal["full", "real"] = "full"
    features: Callable[[str | None], Features] | None = None
    judge: Callable[[str | None], InputScore] | None = None
    source: str | None = None
    needs: str = ""
    presence: Callable[[str | None], str] | None = None

    def load(self) -> None:
        """Load weights outside the package; raises :class:`Qua2SeDiMoError` if that fails."""
        loader = self.features or self.judge
        if self.presence is not None and loader is not None:
            loader(self.source)

    def here(self) -> str:
        """``yes``, ``downloads`` (at first use), or what is missing."""
        return self.presence(self.source) if self.presence is not None else "yes"


def _lite(source: str | None) -> Features:
    return pooled_features


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "psnr", "PSNR", "dB", True, "paired",
            "Closeness to the full-precision pictures, mean over images; at most 80.", psnr,
        ),
        Metric(
            "ssim", "SSIM", "", True, "paired",
            "Structural similarity to the full-precision pictures: brightness, contrast and pattern; 1 is equal.", ssim,
        ),
        Metric(
            "features", "Feature distance", "", False, "paired",
            "Squared distance of unit feature vectors to the full-precision pictures; 0 is equal.",
            map_distance, view=unit_maps,
        ),
        Metric(
            "features_db", "Feature distance, −10·log10", "dB", True, "paired",
            "The same in decibels, as PSNR is of the squared error of pixels: it can be added to PSNR in an objective.",
            map_decibels, view=unit_maps,
        ),
        Metric(
            "latent_mse", "Latent MSE", "", False, "paired",
            "Mean squared difference to full precision's final latents, before any autoencoder; 0 is equal.",
            mean_squared_error, of="latents", needs="a pipeline with a scheduler",
        ),
        Metric(
            "frechet_full", "Fréchet to full precision", "", False, "set",
            "Fréchet distance between features of these pictures and of other full-precision pictures.",
            frechet_distance, features=_lite,
        ),
        Metric(
            "kernel_full", "Kernel dist. to full precision", "", False, "set",
            "Unbiased kernel distance to other full-precision pictures; 0 means indistinguishable.", kernel_distance,
            features=_lite,
        ),
        Metric(
            "frechet_real", "Fréchet to real", "", False, "set",
            "Fréchet distance between features of these pictures and of real reference pictures.", frechet_distance,
            against="real", features=_lite, needs="real pictures: shipped models have them",
        ),
        Metric(
            "kernel_real", "Kernel dist. to real", "", False, "set",
            "Unbiased kernel distance to real reference pictures.", kernel_distance,
            against="real", features=_lite, needs="real pictures: shipped models have them",
        ),
        Metric(
            "accuracy", "Accuracy", "%", True, "input",
            "Share of the requested attributes that a classifier finds in the picture.", lambda values: 100 * values,
            needs="a shipped model: its classifier is the judge",
        ),
        Metric(
            "clip_score", "CLIP score", "", True, "input",
            "100 times the cosine of CLIP's embeddings of picture and prompt; clip_score:FOLDER takes another CLIP.",
            lambda values: values, judge=clip_judge, presence=clip_presence,
            needs="prompts, and CLIP's weights from the hub or a folder",
        ),
        Metric(
            "fid_inception", "FID (Inception)", "", False, "set",
            "Fréchet distance between Inception v3 features of these pictures and of other full-precision pictures; "
            "fid_inception:FILE takes weights from a file.",
            frechet_distance, features=inception_features, presence=inception_presence,
            needs="the package torch-fidelity, and Inception's weights",
        ),
    )
}  # fmt: skip

#: Metrics without weights outside the package.
BUILT_IN: tuple[str, ...] = tuple(name for name, m in METRICS.items() if m.presence is None)


def metric(name: str) -> Metric:
    """The metric of that name; ``NAME:SOURCE`` takes its weights from a folder, file or hub name.

    Raises :class:`Qua2SeDiMoError` for an unknown name, suggesting the nearest, and for a source where none is used.
    """
    base, colon, source = name.partition(":")
    if base not in METRICS:
        near = difflib.get_close_matches(base, METRICS, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise Qua2SeDiMoError(
            f"unknown metric '{name}'; known: {', '.join(METRICS)}", f"{hint}`qua2sedimo metrics` explains each."
        )
    found = METRICS[base]
    if not colon:
        return found
    if found.presence is None or not source:
        able = ", ".join(f"{n}:SOURCE" for n, m in METRICS.items() if m.presence is not None)
        raise Qua2SeDiMoError(f"metric '{name}': {base} takes no source '{source}'", f"These do: {able}.")
    return replace(found, name=name, source=source)


def check_metrics(names: Sequence[str]) -> None:
    """Raise :class:`Qua2SeDiMoError` unless every name is known."""
    for name in names:
        metric(name)


def check_measurable(names: Sequence[str], inputs: Sequence[str | int], judge: bool, real: bool, latents: bool) -> None:
    """Raise :class:`Qua2SeDiMoError` if a metric needs what a study does not have, or weights that cannot be loaded.

    ``inputs``: the study's prompts or classes; ``judge``, ``real``: whether it has a classifier and real images;
    ``latents``: whether its pipeline has a scheduler that can be observed.
    """
    for m in map(metric, names):
        lacks = ""
        if m.kind == "input" and m.judge is None and not judge:
            lacks = "only a shipped model has a classifier"
        elif m.judge is not None and not (inputs and all(isinstance(value, str) for value in inputs)):
            lacks = "it needs prompts, and this study has none"
        elif m.against == "real" and not real:
            lacks = "only a shipped model has real pictures"
        elif m.of == "latents" and not latents:
            lacks = "the pipeline has no scheduler whose steps can be observed"
        if lacks:
            raise Qua2SeDiMoError(
                f"metric '{m.name}' cannot be measured here: {lacks}",
                "Leave it out of 'metrics' and 'objective'; `qua2sedimo metrics` says what each needs.",
            )
        m.load()
