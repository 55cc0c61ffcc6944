"""A study whose full-precision pictures tell nothing stops and says so; a ruined configuration is still measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.images.soundness import check_informative
from qua2sedimo.system.progress import silent


def overflowing(pipeline: Any) -> None:
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda z, *_, **__: decode(z * float("nan"))


def black(pipeline: Any) -> None:
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda z, *_, **__: decode(torch.full_like(z, -1.0))


def deaf(pipeline: Any) -> None:
    """Its pictures do not depend on the noise."""
    decode = pipeline.vae.decode
    ramp = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    pipeline.vae.decode = lambda z, *_, **__: decode(ramp.expand_as(z))


def blind(pipeline: Any) -> None:
    """As :func:`deaf`, though different for each of the two first labels: image 2 has the label of image 0."""
    decode = pipeline.vae.decode
    ramp = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    pipeline.vae.decode = lambda z, *_, **__: decode(torch.stack([ramp[0] * (1 - i % 2 / 2) for i in range(len(z))]))


FAULTS: dict[Callable[[Any], None], str] = {
    overflowing: "4 of 4 images are not finite numbers",
    black: "4 of 4 images are entirely black",
    deaf: "different noise gives identical images",
    blind: "different noise gives identical images",
}


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_pictures_that_tell_nothing_stop_the_study(
    fault: Callable[[Any], None], rounding: Any, tmp_path: Path
) -> None:  # fmt: skip
    pipeline = small_pipeline()
    settings = small_settings(images=4, inputs=[0, 1], options="uaq-4,uaq-3", rounding=rounding)
    study = Study.create(tmp_path / "study", settings, pipeline)
    fault(pipeline)
    message = "images are not finite" if fault is overflowing else FAULTS[fault]
    for stage in (lambda: study.plan(2), lambda: study.measure(2)):
        with pytest.raises(Qua2SeDiMoError, match=message) as refused:
            stage()
        assert "fp16" in (refused.value.remedy or "")
    assert not study.workspace.folder.joinpath("reference").exists()


def test_black_pictures_that_were_stored_before_are_not_compared_with(tmp_path: Path) -> None:
    settings = small_settings(options="uaq-4,uaq-3", rounding="nearest")
    study = Study.create(tmp_path / "study", settings, small_pipeline()).workspace
    made = study.full_precision(range(2))
    study.references(range(2), False, lambda: pytest.fail("they are stored"))
    study.references._write(study.references._path(range(2)), type(study.references.find(range(2)))(made * 0))  # type: ignore[misc]
    with pytest.raises(Qua2SeDiMoError, match="entirely black"):
        study.full_precision(range(2))


def test_a_ruined_configuration_is_measured(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    study = Study.create(tmp_path / "study", small_settings(options="uaq-4,uaq-3", rounding="nearest"), pipeline)
    decode, bank = pipeline.vae.decode, study.workspace.build_bank(silent)
    study.workspace.measurer(range(2)).prepare()
    pipeline.vae.decode = lambda z, *_, **__: decode(z * float("nan"))
    found = study.workspace.measurer(range(2))(study.workspace.space.uniform(bank.space.options["proj_out_1"][0]))
    assert np.isfinite(found.means["psnr"])


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_a_few_plain_pictures_are_no_fault(background: float) -> None:
    images = np.random.default_rng(0).random((4, 6, 6, 3)).astype(np.float32)
    images[1] = background
    check_informative(images, [0, 1, 0, 1], "pipeline")
