"""Image metrics by name, each with an interval.

*Paired* metrics compare image i with the full-precision image i and need few images; *set* metrics compare
distributions of features and need many; *input* metrics ask whether image i shows what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation.features import feature_distance, pooled_features

PSNR_LIMIT = 80.0  # dB; identical images have no finite PSNR
_REPLICATES = 200


@dataclass(frozen=True)
class Estimate:
    """A metric's value with a 95 % bootstrap interval and the number of images behind it."""

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Metric:
    """What a metric is called, which way is better, and how it is computed."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    kind: str  # "paired", "set" or "input"
    explanation: str
    compute: Callable[..., Any]


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image in dB, for images in 0 to 1; at most 80."""
    error = ((images.astype(np.float64) - references) ** 2).reshape(len(images), -1).mean(axis=1)
    return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_LIMIT / 10)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features [n, d] and [m, d]: |μ₁−μ₂|² + tr(Σ₁+Σ₂−2(Σ₁Σ₂)^½)."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b))
    # tr (Σ₁Σ₂)^½ is the sum of singular values of √Σ₁·√Σ₂, which needs no complex square root.
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(max(0.0, ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³ (KID, arXiv 1801.01401)."""
    n, m, d = len(a), len(b), a.shape[1]
    kernels = [(x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = sum((k.sum() - np.trace(k)) / (s * (s - 1)) for k, s in zip(kernels[:2], (n, m)))
    return float(within - 2 * kernels[2].mean())


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "psnr", "PSNR", "dB", True, "paired",
            "Closeness to the full-precision pictures, mean over images; at most 80.", psnr,
        ),
        Metric(
            "features", "Feature distance", "", False, "paired",
            "Squared distance of unit feature vectors to the full-precision pictures; 0 is equal.", feature_distance,
        ),
        Metric(
            "frechet_full", "Fréchet to full precision", "", False, "set",
            "Fréchet distance between features of these pictures and of other full-precision pictures.",
            frechet_distance,
        ),
        Metric(
            "kernel_full", "Kernel dist. to full precision", "", False, "set",
            "Unbiased kernel distance to other full-precision pictures; 0 means indistinguishable.", kernel_distance,
        ),
        Metric(
            "frechet_real", "Fréchet to real", "", False, "set",
            "Fréchet distance between features of these pictures and of real reference pictures.", frechet_distance,
        ),
        Metric(
            "kernel_real", "Kernel dist. to real", "", False, "set",
            "Unbiased kernel distance to real reference pictures.", kernel_distance,
        ),
        Metric(
            "accuracy", "Accuracy", "%", True, "input",
            "Share of what was asked for that a classifier finds in the picture.", lambda values: 100 * values,
        ),
    )
}  # fmt: skip


def metric(name: str) -> Metric:
    if name not in METRICS:
        raise Qua2SeDiMoError(f"unknown metric '{name}'; known: {', '.join(METRICS)}")
    return METRICS[name]


def mean_estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of per-image values with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(values), size=(_REPLICATES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def set_estimate(
    distance: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, seed: int = 0
) -> Estimate:
    """Distance of two feature sets with a bootstrap interval over both.

    Repeated images inflate a resampled distance, so the spread of the replicates is used around the estimate, not
    their level.
    """
    rng = np.random.default_rng(seed)
    value = distance(a, b)
    replicates = [
        distance(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))]) for _ in range(50)
    ]
    low, high = np.quantile(replicates, [0.025, 0.975]) - np.mean(replicates)
    return Estimate(value, value + float(low), value + float(high), len(a))


def features_of(images: np.ndarray) -> np.ndarray:
    """The features that set metrics compare: float64 [n, 112]."""
    return pooled_features(images)


def check_metrics(names: Sequence[str]) -> None:
    for name in names:
        metric(name)
