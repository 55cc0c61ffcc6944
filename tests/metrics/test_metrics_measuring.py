"""Measuring with metrics of every kind: per image, per set, and of latents, at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from tests.conftest import Task, randomized, small_dit, small_pipeline, small_settings

from qua2sedimo import Study
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.images.latents import final_latents
from qua2sedimo.images.ledger import SET_REFERENCES
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.switch import Switch
from qua2sedimo.metrics.catalogue import BUILT_IN
from qua2sedimo.metrics.distances import frechet_distance, mean_squared_error, psnr
from qua2sedimo.metrics.estimates import Estimate, mean_estimate, set_estimate
from qua2sedimo.metrics.estimator import MetricEstimator, References
from qua2sedimo.metrics.features import pooled_features
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration, Option
from qua2sedimo.records import Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.report.fill.predictor import noise_ceiling

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 1.0}


def generator(pipeline: Any, **changes: Any) -> Generator:
    return Generator(pipeline, Generation(**{"inputs": [0, 1, 2], "arguments": ARGUMENTS, "seed": 5, **changes}))


class Counting(Generator):
    """Remembers which ranges of images were asked for."""

    def __init__(self, pipeline: Any, generation: Generation) -> None:
        super().__init__(pipeline, generation)
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        self.asked.append((start, stop))
        return super().__call__(start, stop, progress)


def blobs(count: int, seed: int) -> np.ndarray:
    """Pictures uint8 [count, 8, 8, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def measured(task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[Measurer, Measurement, Measurement]:
    """A measurer of metrics of all kinds, and what it says of a good and of a bad configuration."""
    monkeypatch.setattr("qua2sedimo.measuring.measurer.REFERENCE_IMAGES", 6)
    pipeline = small_pipeline()
    made = Counting(pipeline, Generation([0, 1, 2], ARGUMENTS, 5, 4))
    switch = Switch(pipeline.transformer, task.bank, task.graph.layers)

    def judge(images: np.ndarray, inputs: Any) -> np.ndarray:
        assert images.dtype == np.uint8 and len(images) == len(inputs)
        return (images.mean(axis=(1, 2, 3)) > 128).astype(float)

    measurer = Measurer(made, switch, BUILT_IN, range(3, 9), judge, blobs(7, 0))
    good, bad = (measurer(task.space.uniform(Option.parse(o))) for o in ("kmeans_a-4", "kmeans_a-2"))
    return measurer, good, bad


def test_a_measurement_has_values_per_image_and_estimates_of_sets(measured: Any) -> None:
    _, good, bad = measured
    assert set(good.values) == {"psnr", "ssim", "features", "features_db", "latent_mse", "accuracy"}
    assert all(len(values) == 6 for values in good.values.values())
    assert set(good.sets) == {"frechet_full", "kernel_full", "frechet_real", "kernel_real"}
    assert all(e.images == 6 and e.low <= e.value <= e.high for e in good.sets.values())
    assert set(good.means) == set(BUILT_IN)
    for name in ("psnr", "ssim"):
        assert good.value(name) > bad.value(name)
    for name in ("features", "latent_mse", "frechet_full"):
        assert good.value(name) < bad.value(name)


def test_values_are_those_of_the_metrics_on_the_images(measured: Any, task: Task) -> None:
    measurer, good, _ = measured
    measurer.switch.apply(task.space.uniform(Option.parse("kmeans_a-4")))
    images = measurer.generator(3, 9)
    measurer.switch.restore()
    full, other = measurer.generator(3, 9), measurer.generator(SET_REFERENCES.first, SET_REFERENCES.first + 6)
    np.testing.assert_allclose(good.values["psnr"], psnr(images, full))
    own = pooled_features(images)
    assert good.sets["frechet_full"] == set_estimate(frechet_distance, own, pooled_features(other))
    real = pooled_features(blobs(7, 0).astype(np.float32) / 255)
    assert good.value("frechet_real") == pytest.approx(frechet_distance(own, real))


def test_references_are_made_once_and_from_noise_of_their_own(measured: Any) -> None:
    measurer, *_ = measured
    asked = measurer.generator.asked
    assert asked.count((SET_REFERENCES.first, SET_REFERENCES.first + 6)) == 1
    assert asked.count((3, 9)) == 3 and len(asked) == 4  # full precision and two configurations


def test_references_are_not_made_for_metrics_that_do_not_ask_for_them(task: Task) -> None:
    pipeline = small_pipeline()
    made = Counting(pipeline, Generation([0], ARGUMENTS, 5, 4))
    switch = Switch(pipeline.transformer, task.bank, task.graph.layers)
    measure = Measurer(made, switch, ["psnr", "kernel_real"], range(2), real=blobs(7, 0))
    assert set(measure(task.space.uniform(Option.parse("kmeans_a-4"))).sets) == {"kernel_real"}
    assert made.asked == [(0, 2), (0, 2)]


def test_a_metric_without_its_judge_or_real_pictures_is_an_error_not_a_gap(task: Task) -> None:
    pipeline = small_pipeline()
    switch = Switch(pipeline.transformer, task.bank, task.graph.layers)
    for name, lacks in (("accuracy", "classifier"), ("kernel_real", "real pictures")):
        measure = Measurer(generator(pipeline), switch, [name], range(2))
        with pytest.raises(Qua2SeDiMoError, match=f"'{name}' needs .*{lacks}"):
            measure(task.space.uniform(Option.parse("kmeans_a-4")))


def test_a_measurement_answers_for_both_kinds_and_names_what_it_does_not_have() -> None:
    m = Measurement(0, {"psnr": [20.0, 30.0]}, 1.0, {"kernel_full": Estimate(0.5, 0.4, 0.6, 2)})
    assert m.value("psnr") == 25.0 and m.value("kernel_full") == 0.5
    assert m.estimate("kernel_full").high == 0.6 and m.estimate("psnr") == mean_estimate(np.array([20.0, 30.0]))
    assert m.means == {"psnr": 25.0, "kernel_full": 0.5}
    for ask in (m.value, m.estimate):
        with pytest.raises(Qua2SeDiMoError, match="'ssim' was not measured; measured: psnr, kernel_full"):
            ask("ssim")


# Latents ------------------------------------------------------------------------------------------------------


def test_latents_of_a_pixel_pipeline_are_its_images(pipeline: DiTPipeline) -> None:
    make = generator(pipeline, batch=2)
    with final_latents(pipeline) as latents:
        images = make(0, 5)
    as_images = latents.array(5).transpose(0, 2, 3, 1) / 2 + 0.5
    np.testing.assert_allclose(np.clip(as_images, 0, 1), images, atol=1e-6)


def test_observing_changes_no_image_and_leaves_the_scheduler_as_it_was(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    before, state = make(0, 2), set(vars(pipeline.scheduler))
    with final_latents(pipeline):
        during = make(0, 2)
    assert np.array_equal(before, during)
    assert set(vars(pipeline.scheduler)) == state and "step" not in vars(pipeline.scheduler)
    assert np.array_equal(before, make(0, 2))


def test_of_guided_batches_the_latents_that_are_decoded_are_taken() -> None:
    """DiT steps guided and unguided halves together; only the first half is decoded."""
    pipeline = small_pipeline(classes=1000)
    make = generator(pipeline, arguments={**ARGUMENTS, "guidance_scale": 3.0}, batch=2)
    with final_latents(pipeline) as latents:
        images = make(0, 3)
    as_images = latents.array(3).transpose(0, 2, 3, 1) / 2 + 0.5
    np.testing.assert_allclose(np.clip(as_images, 0, 1), images, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_latents_of_images_that_are_made_one_by_one_are_theirs(task: Task, batch: int) -> None:
    """A scheduler that draws from the global generator: the batch that showed it counts for nothing."""
    pipeline = small_pipeline()
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=50)
    made = generator(pipeline, batch=batch)
    measurer = Measurer(made, Switch(pipeline.transformer, task.bank, task.graph.layers), ["latent_mse"], range(3, 7))
    values = measurer(task.space.uniform(Option.parse("kmeans_a-2"))).values["latent_mse"]
    assert len(values) == 4 and made.one_by_one == (batch > 1) and min(values) > 0
    np.testing.assert_allclose(measurer(Configuration({})).values["latent_mse"], 0, atol=1e-12)


def test_latents_of_a_latent_pipeline_are_what_its_autoencoder_decodes() -> None:
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=1, block_out_channels=(8,), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), scaling_factor=0.18,
    )  # fmt: skip
    pipeline = DiTPipeline(transformer=small_dit(), vae=randomized(vae, 0), scheduler=small_pipeline().scheduler)
    pipeline.set_progress_bar_config(disable=True)
    with final_latents(pipeline) as latents:
        images = generator(pipeline, batch=2)(0, 3)
    with torch.inference_mode():
        decoded = pipeline.vae.decode(torch.from_numpy(latents.array(3)) / 0.18).sample
    np.testing.assert_allclose((decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), images, atol=1e-4)


def test_latents_of_a_pipeline_without_autoencoder() -> None:
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = DDPMPipeline(randomized(unet, 0), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    make = Generator(pipeline, Generation([], {"num_inference_steps": 2}, 0, 2))
    with final_latents(pipeline) as latents:
        images = make(0, 3)
    as_images = np.clip(latents.array(3).transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(as_images, images, atol=1e-6)


class Pieces(DiffusionPipeline):
    """Makes a film piece by piece, each with sound that a copy of the scheduler makes."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, generator: Any, batch_size: int = 1, output_type: str = "np") -> Any:
        for _ in range(2):
            film, sound = (randn_tensor((batch_size, 1, 4, 4), generator=generator) for _ in range(2))
            self.scheduler.set_timesteps(2)
            beside = copy.deepcopy(self.scheduler)
            for t in self.scheduler.timesteps:
                film = self.scheduler.step(0.1 * film, t, film).prev_sample
                sound = beside.step(0.1 * sound, t, sound).prev_sample
        return SimpleNamespace(images=film.permute(0, 2, 3, 1).numpy())


def test_of_a_film_in_pieces_with_sound_the_last_pictures_are_taken() -> None:
    pipeline = Pieces(DDIMScheduler(clip_sample=False))
    with final_latents(pipeline) as latents:
        images = Generator(pipeline, Generation([], {}, 0, 2))(0, 3)
    np.testing.assert_array_equal(latents.array(3).transpose(0, 2, 3, 1), images)


def test_a_ruined_latent_counts_as_an_empty_one(pipeline: DiTPipeline) -> None:
    with final_latents(pipeline) as latents:
        generator(pipeline)(0, 1)
    pipeline.transformer.proj_out_2.weight.fill_(float("nan"))
    with final_latents(pipeline) as ruined:
        generator(pipeline)(0, 1)
    assert mean_squared_error(ruined.array(1), latents.array(1)) == pytest.approx((latents.array(1) ** 2).mean())


def test_a_pipeline_without_a_scheduler_and_a_wrong_count_are_errors(pipeline: DiTPipeline) -> None:
    with pytest.raises(Qua2SeDiMoError, match="object has no scheduler"), final_latents(object()):
        pass
    with final_latents(pipeline) as latents:
        generator(pipeline)(0, 2)
    with pytest.raises(Qua2SeDiMoError, match="2 latents for 3 images"):
        latents.array(3)


# Comparison and studies ---------------------------------------------------------------------------------------


def test_a_comparison_computes_what_it_can_of_what_is_asked(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    paired, other = make(0, 4), make(4, 8)
    without = MetricEstimator(References(paired, other, None), [0, 1, 2, 0], BUILT_IN)
    assert {m.name for m in without.metrics} == {
        "psnr", "ssim", "features", "features_db", "frechet_full", "kernel_full"
    }  # fmt: skip
    real = MetricEstimator(
        References(paired, other, blobs(5, 1)), [0, 1, 2, 0], [*BUILT_IN, "psnr"], lambda *_: np.ones(4)
    )
    assert [m.name for m in real.metrics] == [name for name in BUILT_IN if name != "latent_mse"]
    estimates = real(paired)
    assert estimates["ssim"].value == pytest.approx(1.0) and estimates["accuracy"].value == 100.0
    assert estimates["frechet_full"].images == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "ssmi"}, "unknown name 'ssmi'. Did you mean 'ssim'"),
        ({"metrics": ["psnr", "accuracy"]}, "'accuracy' cannot be measured here: only a shipped model"),
        ({"objective": "frechet_real"}, "'frechet_real' cannot be measured here"),
        ({"metrics": ["clip_score"]}, "needs prompts"),
    ],
)
def test_metrics_that_a_study_cannot_have_are_refused_before_there_is_a_folder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Qua2SeDiMoError, match=message):
        Study.create(tmp_path / "study", small_settings(**changes), small_pipeline())
    assert not (tmp_path / "study").exists()


def test_a_study_measures_an_objective_of_sets_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qua2sedimo.measuring.measurer.REFERENCE_IMAGES", 4)
    settings = small_settings(objective="kernel_full", metrics=["psnr", "latent_mse"], options="uaq-4,uaq-2")
    study = Study.create(tmp_path / "study", settings, small_pipeline())
    measurement = study.workspace.measurer(range(2))(study.workspace.space.uniform(Option.parse("uaq-4")))
    assert set(measurement.means) == {"kernel_full", "psnr", "latent_mse"}
    record = Record("sample", 0, study.workspace.space.uniform(Option.parse("uaq-4")), 4.0, measurement)
    assert record.value("kernel_full") == measurement.sets["kernel_full"].value
    assert study.workspace.objective.sign == -1


def test_a_metric_of_sets_has_no_noise_ceiling() -> None:
    def record(number: int, shift: float) -> Record:
        values = {"psnr": [20.0 + shift, 21.0 + shift, 22.0 + shift, 23.0 + shift]}
        sets = {"kernel_full": Estimate(shift, shift - 1, shift + 1, 4)}
        return Record("sample", number, Configuration({}), 4.0, Measurement(0, values, 1.0, sets))

    records = [record(i, float(i)) for i in range(5)]
    assert noise_ceiling(records, Objective.parse("kernel_full")) is None
    assert noise_ceiling(records, Objective.parse("psnr")) == pytest.approx(1.0)
