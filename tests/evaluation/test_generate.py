"""Image i is a function of (seed, i) and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline, UNet2DModel
from tests.conftest import randomized

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation import Generation, Generator
from qua2sedimo.evaluation.generate import check_inputs, input_argument

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 1.0}


def generator(pipeline: Any, **changes: Any) -> Generator:
    return Generator(pipeline, Generation(**{"inputs": [0, 1, 2], "arguments": ARGUMENTS, "seed": 5, **changes}))


def test_images_are_floats_in_0_to_1_with_channels_last(pipeline: DiTPipeline) -> None:
    images = generator(pipeline)(0, 3)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1


def test_the_noise_of_an_image_depends_on_seed_and_index_only() -> None:
    def draw(seed: int, index: int, batch: int = 16) -> list[float]:
        return torch.randn(4, generator=Generation([], {}, seed, batch).noise(index)).tolist()

    assert draw(1, 2) == draw(1, 2) == draw(1, 2, batch=3)
    assert len({tuple(draw(seed, index)) for seed in range(4) for index in range(4)}) == 16


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_do_not_depend_on_the_batch_size(pipeline: DiTPipeline, batch: int) -> None:
    whole = generator(pipeline, batch=16)(0, 5)
    np.testing.assert_allclose(generator(pipeline, batch=batch)(0, 5), whole, atol=1e-5)


def test_images_do_not_depend_on_where_the_range_starts(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    np.testing.assert_allclose(make(2, 5), make(0, 5)[2:], atol=1e-5)


def test_the_same_call_gives_the_same_bits_whatever_the_global_random_state(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    torch.manual_seed(1)
    first = make(0, 3)
    torch.manual_seed(2)
    assert np.array_equal(first, make(0, 3))


def test_another_seed_gives_other_images_and_images_differ_among_themselves(pipeline: DiTPipeline) -> None:
    first = generator(pipeline, inputs=[4])(0, 3)
    other = generator(pipeline, inputs=[4], seed=6)(0, 3)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first[0] - first[1]).max() > 0.01


def test_inputs_are_taken_in_turn(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    assert [make.generation.input(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert make.call_arguments(range(2, 5))["class_labels"] == [2, 0, 1]


def test_progress_counts_images_up_to_the_end(pipeline: DiTPipeline) -> None:
    seen: list[int] = []
    generator(pipeline, batch=2)(3, 8, seen.append)
    assert seen == [2, 4, 5]


class Painter:
    """Stands for a pipeline: paints what the test says."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __call__(self, generator: Any = None, output_type: str = "np", **_: Any) -> Painter:
        return self


def test_ruined_pictures_come_out_as_pictures() -> None:
    bad = np.full((1, 2, 2, 3), np.nan)
    bad[0, 0, 0] = [np.inf, -np.inf, 0.5]
    (image,) = Generator(Painter(bad), Generation([]))(0, 1)
    assert image[0, 0].tolist() == [1.0, 0.0, 0.5]
    assert image[1].tolist() == [[0.0] * 3] * 2


def test_pictures_without_a_channel_axis_get_one() -> None:
    assert Generator(Painter(np.zeros((1, 4, 5))), Generation([]))(0, 1).shape == (1, 4, 5, 1)


@pytest.fixture(scope="module")
def unconditional() -> DDPMPipeline:
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    made = DDPMPipeline(randomized(model, 0), DDPMScheduler(num_train_timesteps=10))
    made.set_progress_bar_config(disable=True)
    return made


def test_an_unconditional_pipeline_is_asked_for_a_number_of_pictures(unconditional: DDPMPipeline) -> None:
    make = Generator(unconditional, Generation([], {"num_inference_steps": 2}, batch=4))
    assert make.call_arguments(range(3))["batch_size"] == 3
    assert make(0, 3).shape == (3, 8, 8, 1)
    assert make(0, 1).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_stochastic_sampling_too_is_fixed_for_each_image(unconditional: DDPMPipeline, batch: int) -> None:
    whole = Generator(unconditional, Generation([], {"num_inference_steps": 3}, batch=4))(0, 4)
    parts = Generator(unconditional, Generation([], {"num_inference_steps": 3}, batch=batch))(0, 4)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_the_kind_of_input_a_pipeline_takes_is_known(pipeline: DiTPipeline, unconditional: DDPMPipeline) -> None:
    assert input_argument(pipeline) == "class_labels"
    assert input_argument(unconditional) is None
    check_inputs(pipeline, [1, 2])
    check_inputs(unconditional, [])


def test_inputs_of_the_wrong_kind_are_refused(pipeline: DiTPipeline, unconditional: DDPMPipeline) -> None:
    with pytest.raises(Qua2SeDiMoError, match="input 'seven': class_labels must be int"):
        check_inputs(pipeline, [1, "seven"])
    with pytest.raises(Qua2SeDiMoError, match="DiTPipeline needs inputs: class_labels") as caught:
        check_inputs(pipeline, [])
    assert "--prompt" in str(caught.value.remedy)
    with pytest.raises(Qua2SeDiMoError, match="takes no prompts, got 1"):
        check_inputs(unconditional, ["a cat"])


def test_colour_images_of_another_process_are_those_of_this_one(tmp_path: Path) -> None:
    """Arrays that are not contiguous come out of safetensors scrambled."""
    from qua2sedimo import zoo
    from qua2sedimo.evaluation.replay import replay

    entry = zoo.ENTRIES["avatars-pixart"]
    generation = Generation(list(entry.inputs), {**entry.arguments, "num_inference_steps": 2}, seed=3, batch=2)
    pipeline = zoo.load(entry.name)
    pipeline.set_progress_bar_config(disable=True)
    here = Generator(pipeline, generation)(5, 8)
    np.testing.assert_allclose(replay(entry.folder, generation, range(5, 8), tmp_path), here, atol=1e-5)
