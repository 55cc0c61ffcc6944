"""What commands in pages are run with: a tiny pipeline, a finished study of it, and few epochs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from tests.conftest import choice_of, randomized, small_pipeline
from tests.documented import must, with_few_steps

import qua2sedimo
from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.options import Option
from qua2sedimo.predictor import FitSettings


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Few epochs for every fit of this file, and a width that does not wrap what is printed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "200")
        for place in ("qua2sedimo.predictor.FitSettings", "qua2sedimo.study.stages.fit.FitSettings"):
            patched.setattr(place, partial(FitSettings, epochs=40, channels=8, hops=1))
        few = partial(qua2sedimo.quantize, configurations=20)
        patched.setattr(qua2sedimo, "quantize", few)
        yield patched


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """What placeholders stand for: a tiny text-to-image pipeline, a finished study of it, an export, files."""
    here = tmp_path_factory.mktemp("docs")
    pipeline = zoo.load("avatars-unet")
    pipeline.unet = tiny_unet(pipeline.text_encoder.config.hidden_size)
    pipeline.save_pretrained(here / "model")
    names = ("MODEL", "STUDY", "OUT", "PLAIN")
    places = {name: str(here / name.lower()) for name in names}
    study = Path(places["STUDY"])
    for words in (
        ["init", places["MODEL"], places["STUDY"]],
        ["measure", places["STUDY"], "--configurations", "20"],
        ["fit", places["STUDY"]],
        ["choose", places["STUDY"], "--bits", "3.5", "--bits", "4.5", "--candidates", "2"],
        ["export", places["STUDY"], places["OUT"], "--bits", "3.5"],
    ):
        must(with_few_steps(words), patch, "the tests' own study")
    plain(Path(places["PLAIN"]))
    first, second = sorted((study / "choices").glob("*.json"))
    layer = next(iter(Study(study).workspace.space.layers))
    more = {"A": first, "B": second, "LAYER": layer, "PATTERN": "conv_in*", "NAME": "psnr", "N": "20", "JSON": "{}"}
    return {**places, **{name: str(value) for name, value in more.items()}}


def tiny_unet(width: int) -> UNet2DConditionModel:
    """One stage of 8×8 pixels that reads texts of this width: few layers, so that a whole study takes seconds."""
    model = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=width, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    return randomized(model, 0)


def plain(folder: Path) -> None:
    """A study without convolutions to quantize, with a choice of uniform options: what recipes are for."""
    small_pipeline().save_pretrained(folder / "model")
    model = str(folder / "model")
    settings = StudySettings(model=model, inputs=[1], arguments={"guidance_scale": 1.0}, keep=["pos_embed*"])
    study = Study.create(folder, settings)
    configuration = study.workspace.space.uniform(Option.parse("uaq-4"))
    choice_of(study, configuration).save(folder / "choices" / "NAME.json")
