"""Full-precision pictures are made once; what is not just these pictures is made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import small_pipeline, small_settings

from qua2sedimo.images.generate import Generator
from qua2sedimo.images.pictures import Pictures
from qua2sedimo.images.reference import ReferenceStore
from qua2sedimo.study import Study

IMAGES = range(3, 5)


class Maker:
    """Makes pictures, and counts how often."""

    def __init__(self, latents: bool = False) -> None:
        chance = np.random.default_rng(0)
        self.pictures = Pictures(
            chance.random((2, 4, 4, 3), dtype=np.float32), chance.random((2, 1, 2, 2)) if latents else None
        )
        self.calls = 0

    def __call__(self) -> Pictures:
        self.calls += 1
        return self.pictures


def test_pictures_are_made_once_and_read_bit_for_bit(tmp_path: Path) -> None:
    maker = Maker(latents=True)
    ReferenceStore(tmp_path, "key")(IMAGES, True, maker)
    again = ReferenceStore(tmp_path, "key")(IMAGES, True, maker)
    assert maker.calls == 1
    np.testing.assert_array_equal(again.images, maker.pictures.images)
    np.testing.assert_array_equal(again.latents, maker.pictures.latents)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda p: p.write_bytes(p.read_bytes()[:-5]), lambda p: p.write_bytes(b""), Path.unlink],
    ids=["a bit flipped", "cut short", "empty", "gone"],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage) -> None:
    maker, store = Maker(), ReferenceStore(tmp_path, "key")
    store(IMAGES, False, maker)
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    assert store.find(IMAGES) is None
    np.testing.assert_array_equal(store(IMAGES, False, maker).images, maker.pictures.images)
    assert maker.calls == 2 and store.find(IMAGES) is not None


def test_pictures_of_another_key_other_images_or_without_latents_do_not_serve(tmp_path: Path) -> None:
    ReferenceStore(tmp_path, "key")(IMAGES, False, Maker())
    assert ReferenceStore(tmp_path, "key").find(IMAGES) is not None
    assert ReferenceStore(tmp_path, "other key").find(IMAGES) is None
    assert ReferenceStore(tmp_path, "key").find(range(3, 6)) is None
    assert ReferenceStore(tmp_path, "key").find(IMAGES, latents=True) is None


def test_a_resumed_study_paints_nothing_in_full_precision_and_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[tuple[int, int]] = []
    plain = Generator.__call__

    def counted(self, start, stop, *rest):
        painted.append((start, stop))
        return plain(self, start, stop, *rest)

    monkeypatch.setattr(Generator, "__call__", counted)
    settings = small_settings(options="uaq-3,uaq-4", metrics=["psnr", "kernel_full", "latent_mse"], batch=2)
    whole = Study.create(tmp_path / "whole", settings, small_pipeline()).measure(2)
    assert len(painted) == 4  # full precision, others for the set metric, two configurations
    painted.clear()
    Study.create(tmp_path / "parts", settings, small_pipeline()).measure(1)
    assert len(painted) == 3
    resumed = Study(tmp_path / "parts", small_pipeline()).measure(2)
    assert len(painted) == 4
    assert [r.measurement.means for r in resumed] == [r.measurement.means for r in whole]
