"""Metrics agree with independent implementations, and intervals with statistics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch.profiler import ProfilerActivity, profile
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.exported import Evaluation
from qua2sedimo.metrics.catalogue import BUILT_IN, METRICS, Metric, check_measurable, check_metrics, metric
from qua2sedimo.metrics.distances import (
    PSNR_LIMIT,
    frechet_distance,
    kernel_distance,
    mean_squared_error,
    psnr,
    ssim,
)
from qua2sedimo.metrics.estimates import Estimate, mean_estimate, set_estimate


class Identity(torch.nn.Module):
    """Images are their own features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def features(seed: int, count: int, width: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + shift


def double_loop(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(sum(u * v for u, v in zip(x, y)) / len(x) + 1) ** 3

    within = [sum(kernel(x, y) for x, y in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (a, b)]
    return sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_psnr_by_hand() -> None:
    reference = np.zeros((3, 2, 2, 1), dtype=np.float32)
    images = reference.copy()
    images[0] += 0.1  # mean squared error 0.01: 20 dB
    images[1, 0, 0] = 1.0  # 1 of 4 pixels wrong by 1: 10·log10(4)
    np.testing.assert_allclose(psnr(images, reference), [20, 10 * np.log10(4), PSNR_LIMIT], rtol=1e-6)


def test_psnr_agrees_with_torchmetrics() -> None:
    a, b = np.random.default_rng(0).random((2, 4, 5, 6, 3))
    expected = [
        float(PeakSignalNoiseRatio(data_range=1.0)(torch.from_numpy(x), torch.from_numpy(y))) for x, y in zip(a, b)
    ]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)


def test_psnr_is_at_most_its_limit_and_is_that_of_each_image_alone() -> None:
    reference = np.random.default_rng(0).random((3, 4, 4, 3))
    images = reference + np.array([1e-9, 1e-2, 1e-1])[:, None, None, None]
    together = psnr(images, reference)
    assert together[0] == PSNR_LIMIT
    assert [float(psnr(images[i : i + 1], reference[i : i + 1])[0]) for i in range(3)] == pytest.approx(together)


@pytest.mark.parametrize(("n", "m", "width"), [(40, 60, 8), (200, 100, 16), (50, 50, 1)])
def test_frechet_distance_agrees_with_scipy(n: int, m: int, width: int) -> None:
    a, b = features(0, n, width), features(1, m, width, 0.5)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    difference = a.mean(axis=0) - b.mean(axis=0)
    expected = difference @ difference + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    a, b = features(2, 80, 12), features(3, 70, 12, 0.3)
    fid = FrechetInceptionDistance(feature=Identity(12)).set_dtype(torch.float64)
    fid.update(torch.from_numpy(a).reshape(-1, 3, 2, 2), real=True)
    fid.update(torch.from_numpy(b).reshape(-1, 3, 2, 2), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-6)


def test_frechet_distance_of_fewer_images_than_features_agrees_with_scipy() -> None:
    """Singular covariances: the root is taken of a matrix with a tiny ridge."""
    a, b = features(4, 20, 30), features(5, 25, 30, 0.5)
    ridge = 1e-9 * np.eye(30)
    cov_a, cov_b = (np.cov(x, rowvar=False) + ridge for x in (a, b))
    difference = a.mean(axis=0) - b.mean(axis=0)
    expected = difference @ difference + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_frechet_distance_is_symmetric_zero_for_equals_and_counts_a_shift(seed: int) -> None:
    a, b = features(seed, 30, 5), features(seed + 1, 40, 5, 1.0)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2.0) == pytest.approx(5 * 4.0, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (7, 12), (2, 3)])
def test_kernel_distance_agrees_with_a_double_loop(n: int, m: int) -> None:
    a, b = features(0, n, 4), features(1, m, 4, 0.2)
    assert kernel_distance(a, b) == pytest.approx(double_loop(a, b), rel=1e-9)


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    a, b = features(6, 40, 10), features(7, 40, 10, 0.4)
    expected = float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)))
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_for_two_draws_of_one_distribution() -> None:
    rng = np.random.default_rng(0)
    draws = [kernel_distance(rng.standard_normal((10, 6)), rng.standard_normal((10, 6))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20
    assert min(draws) < 0 < max(draws)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40))
def test_the_interval_of_a_mean_contains_it(values: list[float]) -> None:
    estimate = mean_estimate(np.array(values))
    assert estimate.images == len(values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= estimate.low <= estimate.value + 1e-9
    assert estimate.value - 1e-9 <= estimate.high <= max(values) + 1e-9


def test_one_image_has_a_value_and_no_interval() -> None:
    for estimate in (
        mean_estimate(np.array([3.0])),
        set_estimate(lambda a, b: float((a - b).mean()), features(0, 1, 4), features(1, 6, 4)[:1]),
    ):
        assert np.isnan([estimate.low, estimate.high]).all() and not estimate.has_interval
        assert np.isfinite(estimate.value) and estimate.images == 1
        kept = json.loads(json.dumps(estimate.to_json(), allow_nan=False))
        assert kept["low"] is None and repr(Estimate.from_json(kept)) == repr(estimate)
    assert mean_estimate(np.array([3.0, 4.0])).has_interval


def test_an_evaluation_of_one_image_is_kept_and_read_again(tmp_path: Path) -> None:
    about = {"export": "e", "model": "m", "inputs": [], "arguments": {}, "seed": 0, "versions": {}}
    made = Evaluation(**about, metrics={"psnr": mean_estimate(np.array([3.0]))}, full={})
    made.save(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["psnr"]["low"] is None
    assert repr(Evaluation.load(tmp_path / "evaluation.json")) == repr(made)


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_estimate(rng.normal(3.0, 2.0, 40), seed=i) for i in range(200)]
    assert 0.87 < np.mean([e.low <= 3.0 <= e.high for e in intervals]) < 0.99


def test_the_interval_of_a_mean_narrows_with_the_root_of_the_images() -> None:
    values = np.random.default_rng(1).normal(size=1600)
    few, many = mean_estimate(values[:100]), mean_estimate(values)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.35)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_the_interval_of_a_set_distance_contains_it_and_is_reproducible(distance) -> None:
    a, b = features(8, 60, 6), features(9, 50, 6, 0.5)
    estimate = set_estimate(distance, a, b)
    assert estimate.value == distance(a, b)
    assert estimate.images == 60
    assert estimate.low < estimate.value < estimate.high
    assert estimate == set_estimate(distance, a, b)


def test_ssim_agrees_with_the_formula_written_out() -> None:
    """Wang et al.: (2μₐμ_b + C₁)(2σ_ab + C₂) / ((μₐ² + μ_b² + C₁)(σₐ² + σ_b² + C₂)), mean over pixels."""
    a, b = np.random.default_rng(0).random((2, 3, 14, 13, 1))
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(image: np.ndarray) -> np.ndarray:
        mirrored = np.pad(image, 5, mode="reflect")
        return np.lib.stride_tricks.sliding_window_view(mirrored, (11, 11)).reshape(14, 13, -1) @ window.ravel()

    def by_hand(x: np.ndarray, y: np.ndarray) -> float:
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        return float(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())

    expected = [by_hand(x[..., 0], y[..., 0]) for x, y in zip(a, b)]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize("distance", [psnr, ssim])
def test_distances_of_many_large_pictures_take_little_memory(distance: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 192, 256, 3), dtype=np.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        distance(a, b)
    most = max(event.cpu_memory_usage for event in seen.events())
    assert most < 16 * a[0].nbytes  # one operation on one image at a time


@pytest.mark.parametrize("side", [3, 4, 5, 6, 16])
@pytest.mark.parametrize("count", [1, 3])
def test_ssim_is_one_for_equal_pictures_of_any_size_and_falls_with_noise(side: int, count: int) -> None:
    rng = np.random.default_rng(side)
    images = rng.random((count, side, side, 3)).astype(np.float32)
    noise = rng.normal(size=images.shape)
    little, much = (np.clip(images + s * noise, 0, 1) for s in (0.02, 0.3))
    np.testing.assert_allclose(ssim(images, images), np.ones(count), rtol=1e-9)
    assert ssim(images, images).shape == (count,)
    assert (ssim(much, images) < ssim(little, images)).all() and (ssim(little, images) < 1).all()


def test_mean_squared_error_is_that_of_each_row_alone() -> None:
    a = np.zeros((2, 3, 2, 2), dtype=np.float32)
    b = a.copy()
    b[1, 0] = 3.0  # 4 of 12 values are wrong by 3
    np.testing.assert_allclose(mean_squared_error(a, b), [0.0, 3.0])


def test_an_unknown_metric_is_refused_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        Qua2SeDiMoError, match=r"unknown metric 'psnrr'; known: psnr, ssim[^\n]*\nDid you mean 'psnr'\?"
    ):
        metric("psnrr")
    with pytest.raises(Qua2SeDiMoError, match="unknown metric 'xyzzy'") as caught:
        check_metrics(["psnr", "xyzzy"])
    assert "Did you mean" not in str(caught.value)


def test_every_metric_has_what_its_kind_is_computed_from() -> None:
    for m in METRICS.values():
        assert metric(m.name) is m
        assert (m.features is not None) == (m.kind == "set")
        assert m.kind == "input" or m.judge is None
    better = {"psnr", "ssim", "features_db", "accuracy", "clip_score"}
    assert {name for name, m in METRICS.items() if m.higher_is_better} == better
    assert set(BUILT_IN) == set(METRICS) - {"clip_score", "fid_inception"}
    check_metrics(BUILT_IN)


def test_a_source_is_part_of_the_name_where_weights_are_asked_for() -> None:
    m = metric("clip_score:owner/name")
    assert (m.name, m.source, m.title) == ("clip_score:owner/name", "owner/name", "CLIP score")
    for wrong in ("psnr:somewhere", "clip_score:"):
        with pytest.raises(Qua2SeDiMoError, match="takes no source"):
            metric(wrong)


@pytest.mark.parametrize(
    ("name", "facts", "lacks"),
    [
        ("accuracy", {"judge": False}, "classifier"),
        ("kernel_real", {"real": False}, "real pictures"),
        ("clip_score", {"inputs": [3, 4]}, "needs prompts"),
        ("clip_score", {"inputs": []}, "needs prompts"),
        ("latent_mse", {"latents": False}, "no scheduler"),
    ],
)
def test_a_metric_is_refused_where_a_study_lacks_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, name: str, facts: dict[str, Any], lacks: str
) -> None:
    monkeypatch.setattr(Metric, "load", lambda self: None)  # weights are another matter
    has = {"inputs": ["a cat"], "judge": True, "real": True, "latents": True}
    check_measurable([name], **has)
    with pytest.raises(Qua2SeDiMoError, match=f"'{name}' cannot be measured here: .*{lacks}"):
        check_measurable(["psnr", name], **{**has, **facts})
