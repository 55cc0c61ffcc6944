"""Pipelines that draw the noise of several images from one generator, or make one film whatever they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from qua2sedimo.images.generate import Generation, Generator

SHAPE = (2, 2, 3)


class Fair:
    """Every image from its own generator."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, prompt: Any, generator: Any = None, output_type: str = "np") -> Any:
        self.calls.append(len(prompt))
        return SimpleNamespace(images=self.noise(len(prompt), generator).numpy())

    def noise(self, n: int, generator: list[torch.Generator]) -> torch.Tensor:
        return randn_tensor((n, *SHAPE), generator=generator)


class OnlyFirst(Fair):
    def noise(self, n: int, generator: list[torch.Generator]) -> torch.Tensor:
        return randn_tensor((n, *SHAPE), generator=generator[0])


class MoreFromFirst(Fair):
    def noise(self, n: int, generator: list[torch.Generator]) -> torch.Tensor:
        noise = super().noise(n, generator)
        return noise + noise.new_empty(noise.shape).normal_(generator=generator[0])


class OneFilm(Fair):
    """Makes a film of the first prompt, without an axis for several."""

    def __call__(self, prompt: Any, generator: Any = None, output_type: str = "np") -> Any:
        self.calls.append(len(prompt))
        return SimpleNamespace(video=self.noise(1, generator)[0].expand(4, *SHAPE).numpy(), sound=None)


def made(pipeline: Any, batch: int = 4) -> Generator:
    return Generator(pipeline, Generation(["a", "b"], {}, seed=5, batch=batch))


@pytest.mark.parametrize("pipeline", [OnlyFirst, MoreFromFirst, OneFilm])
def test_images_that_share_a_generator_are_made_one_by_one(pipeline: type[Fair]) -> None:
    make = made(pipeline())
    images = make(0, 5)
    assert make.one_by_one
    np.testing.assert_array_equal(images, made(pipeline(), batch=1)(0, 5))
    np.testing.assert_array_equal(images[3:], made(pipeline())(3, 5))


def test_images_of_their_own_generators_are_made_together() -> None:
    pipeline = Fair()
    make = made(pipeline)
    np.testing.assert_array_equal(make(0, 5), made(Fair(), batch=1)(0, 5))
    assert pipeline.calls == [4, 1] and not make.one_by_one


def test_what_one_call_gives_is_found_out_in_the_first_call_for_several() -> None:
    pipeline = OnlyFirst()
    make = made(pipeline)
    first = make(0, 1)
    assert not make.one_by_one
    assert len(make.run(range(3)).images) == 1 and make.batch == 1
    np.testing.assert_array_equal(make(0, 1), first)


def test_a_film_without_an_axis_for_several_is_one() -> None:
    assert made(OneFilm())(0, 2).shape == (2, 4 * SHAPE[0], *SHAPE[1:])


def test_that_sound_is_not_compared_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Sounding(Fair):
        def __call__(self, prompt: Any, generator: Any = None, output_type: str = "np") -> Any:
            return SimpleNamespace(**vars(super().__call__(prompt, generator)), audio=torch.zeros(2, 9))

    for pipeline, times in ((Sounding, 1), (OneFilm, 0)):
        caplog.clear()
        make = made(pipeline())
        for start in (0, 4):
            make.full_precision(start, start + 4)
        assert caplog.text.count("makes sound too, which is not compared") == times


@pytest.mark.parametrize("key", ["images", "image", "rgb"])
def test_pictures_are_found_by_the_names_that_pipelines_give_them(key: str) -> None:
    class Named(Fair):
        def __call__(self, prompt: Any, generator: Any = None, output_type: str = "np") -> Any:
            return SimpleNamespace(**{key: self.noise(len(prompt), generator).numpy(), "depth": None})

    assert made(Named())(0, 3).shape == (3, *SHAPE)
