"""Full-precision images that nothing can be compared with: not finite, constant, or without an effect of the noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError

_CAUSES = (
    "Usual causes: a number type that overflows (fp16 in the denoiser or the autoencoder: load them in bf16 or fp32), "
    "weights that are missing or still random, a checker in the pipeline that blacks pictures out, or arguments that "
    "leave no step to do. Look at some pictures of the model itself first."
)


def check_finite(made: np.ndarray, pipeline: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if an image of the unquantized model holds NaN or infinity. ``made``: [n, ...]"""
    bad = int((~np.isfinite(made).reshape(len(made), -1).all(axis=1)).sum())
    if bad:
        raise Qua2SeDiMoError(
            f"{pipeline} in full precision: {bad} of {len(made)} images are not finite numbers (NaN or infinite), so "
            "nothing can be compared with them",
            _CAUSES,
        )


def check_informative(images: np.ndarray, inputs: Sequence[str | int | None], pipeline: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if most full-precision images [n, h, w, c] have one colour, or ignore the noise.

    Every image has its own noise: those of the same input must differ, and so must those of different ones.
    """
    flat = images.reshape(len(images), -1, images.shape[-1])
    constant = int((flat == flat[:, :1]).all(axis=(1, 2)).sum())
    if 2 * constant > len(images):
        colour = "black" if not flat.any() else "of one colour"
        raise Qua2SeDiMoError(
            f"{pipeline} in full precision: {constant} of {len(images)} images are entirely {colour}, so every "
            "configuration would measure as perfect",
            _CAUSES,
        )
    groups: dict[str | int | None, list[np.ndarray]] = {}
    for image, given in zip(images, inputs, strict=True):
        groups.setdefault(given, []).append(image)
    repeated = [group for group in groups.values() if len(group) > 1] or [list(images)]
    if len(images) > 1 and all(np.array_equal(group[0], other) for group in repeated for other in group[1:]):
        raise Qua2SeDiMoError(
            f"{pipeline} in full precision: different noise gives identical images, so nothing could be learned from "
            "more than one",
            f"Check that the pipeline uses its generator, and that 'arguments' fix no latents. {_CAUSES}",
        )
