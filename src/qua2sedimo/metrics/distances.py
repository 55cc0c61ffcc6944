"""Distances between images, latents, and sets of features: plain functions of arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

PSNR_LIMIT = 80.0  # dB; identical images have no finite PSNR
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5  # Wang et al. 2004


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image in dB, for images [n, h, w, c] in 0 to 1; at most 80."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    def value(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return peak_signal_noise_ratio(a.double(), b.double(), data_range=1.0, reduction="none", dim=(1, 2, 3))

    return np.minimum(_one_by_one(value, images, references), PSNR_LIMIT)


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Structural similarity per image, −1 to 1, for images [n, h, w, c] in 0 to 1.

    Gaussian window of 11 pixels, σ = 1.5 (Wang et al. 2004), with reflection padding at the borders. Images of fewer
    than 6 pixels a side use the largest odd window that fits, with σ in proportion.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(images.shape[1:3])
    window = _SSIM_WINDOW if side > _SSIM_WINDOW // 2 else side - 1 + side % 2
    sigma = _SSIM_SIGMA * window / _SSIM_WINDOW

    # In fp32: torch convolves fp64 by copying every window, 30 GB for 96 images of 256 pixels a side.
    def value(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = structural_similarity_index_measure(a.float(), b.float(), sigma=sigma, data_range=1.0, reduction="none")
        return torch.as_tensor(found)

    return _one_by_one(value, images, references)


def mean_squared_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean of squared differences per row of [n, ...]: [n]."""
    return ((a.astype(np.float64) - b) ** 2).reshape(len(a), -1).mean(axis=1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features [n, d] and [m, d]: |μ₁−μ₂|² + tr(Σ₁+Σ₂−2(Σ₁Σ₂)^½).

    With Σ₁ = AᵀA and Σ₂ = BᵀB, tr (Σ₁Σ₂)^½ is the sum of singular values of ABᵀ. A and B have at most d rows (QR
    reduces longer ones), so few images are cheap, and no square root of a singular matrix is needed.
    """
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = (root_a**2).sum() + (root_b**2).sum()
    return float(max(0.0, ((mean_a - mean_b) ** 2).sum() + spread - 2 * cross))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and A such that AᵀA is the covariance."""
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    return mean, root if len(root) <= root.shape[1] else np.asarray(np.linalg.qr(root, mode="r"))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³ (KID, arXiv 1801.01401)."""
    n, m, d = len(a), len(b), a.shape[1]
    kernels = [(x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = sum((k.sum() - np.trace(k)) / (s * (s - 1)) for k, s in zip(kernels[:2], (n, m)))
    return float(within - 2 * kernels[2].mean())


def _one_by_one(
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], images: np.ndarray, references: np.ndarray
) -> np.ndarray:
    """The value of each pair of images [1, c, h, w], float64 [n]; so memory does not grow with their number."""

    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]

    return np.array([float(value(tensor(a), tensor(b))) for a, b in zip(images, references, strict=True)])
