"""Reading single tensors of a checkpoint: whole, sharded, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import small_pixart

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import Checkpoint


@pytest.fixture(params=["whole", "sharded", "variant"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str | None]:
    """A model saved by diffusers in one file, in several, and with a variant in several."""
    variant = "fp16" if request.param == "variant" else None
    size = "10GB" if request.param == "whole" else "40KB"
    small_pixart().half().save_pretrained(tmp_path, max_shard_size=size, variant=variant)
    return tmp_path, variant


def test_every_tensor_is_that_of_the_model_and_nothing_stays_open(saved: tuple[Path, str | None]) -> None:
    folder, variant = saved
    checkpoint = Checkpoint(folder, variant)
    for name, tensor in small_pixart().half().state_dict().items():
        assert name in checkpoint
        assert torch.equal(checkpoint(name), tensor)
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_a_tensor_that_is_not_there_is_named(saved: tuple[Path, str | None]) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"no tensor 'nowhere\.weight'"):
        Checkpoint(*saved)("nowhere.weight")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    small_pixart().save_pretrained(tmp_path, max_shard_size="40KB")
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(Qua2SeDiMoError, match=victim.name):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: float) -> None:
    save_file({"a.weight": torch.ones(64)}, tmp_path / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(Qua2SeDiMoError, match=path.name):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_and_a_damaged_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps([1]))
    with pytest.raises(Qua2SeDiMoError, match="index"):
        Checkpoint(tmp_path)
