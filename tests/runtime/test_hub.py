"""Exports load by a name on the hub with stock calls: what is needed is downloaded, and checked as in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, DiTTransformer2DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime import QuantizedLayer, save_packed
from qua2sedimo.runtime import checkpoint as checkpoint_module

from .helpers import dit, mixed, output, pipeline, pixart
from .hub import cached, serving
from .test_damage import forged, nothing_allocated

PROGRAM = """
import sys, torch, qua2sedimo
from diffusers import AutoModel, DiffusionPipeline, DiTTransformer2DModel
from tests.runtime.helpers import output
torch.set_num_threads(1)
cache, out, offline = sys.argv[1], sys.argv[2], sys.argv[3:] == ["offline"]
pipe = DiffusionPipeline.from_pretrained("someone/model", torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
made = {"picture": torch.from_numpy(pipe([0], 2.0, torch.Generator().manual_seed(5), 2, output_type="np").images)}
mapped = DiffusionPipeline.from_pretrained("someone/model", torch_dtype=torch.bfloat16, device_map="cpu")
made["pipeline on cpu"] = output(mapped.transformer)
balanced = DiffusionPipeline.from_pretrained("someone/model", torch_dtype=torch.bfloat16, device_map="balanced")
made["balanced pipeline"] = output(balanced.transformer)
for name, given in {"float32": {"dtype": torch.float32}, "cpu": {"device_map": "cpu"}}.items():
    model = DiTTransformer2DModel.from_pretrained("someone/model", subfolder="transformer", cache_dir=cache,
                                                  local_files_only=offline, **given)
    made[name] = output(model)
for place in (None, "balanced", "auto"):
    model = AutoModel.from_pretrained("someone/alone", torch_dtype=torch.float32, device_map=place,
                                      local_files_only=offline)
    made[f"alone, {place}"] = output(model)
torch.save(made, out)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline and a denoiser alone, both in several shards."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "SHARD_BYTES", 50_000)
        for name, model in (("model", pipeline(dit())), ("alone", pixart())):
            save_packed(model, None, mixed(getattr(model, "transformer", model)), folder / name)
            (folder / name / "README.md").write_text("# A card\n")
    assert len(list((folder / "model" / "transformer").glob("*.safetensors"))) > 1
    return {"someone/model": folder / "model", "someone/alone": folder / "alone"}


def run(home: Path, *arguments: str, **environment: str) -> dict[str, torch.Tensor]:
    """What a program that knows the names only computes, with its cache in ``home``."""
    given = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "HF_HOME": str(home), **environment}
    command = [sys.executable, "-c", PROGRAM, str(home / "other"), str(home / "made.pt"), *arguments]
    subprocess.run(command, check=True, env=given)
    return torch.load(home / "made.pt", weights_only=True)


def expected(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """The same from the folders."""
    folder = folders["someone/model"]
    wide, narrow, stored = (
        output(DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16, None)
    )
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.from_numpy(pipe([0], 2.0, torch.Generator().manual_seed(5), 2, output_type="np").images)
    alone = output(AutoModel.from_pretrained(str(folders["someone/alone"]), torch_dtype=torch.float32))
    return {
        "picture": picture,
        "pipeline on cpu": narrow,
        "balanced pipeline": narrow,
        "float32": wide,
        "cpu": stored,
        **{f"alone, {place}": alone for place in (None, "balanced", "auto")},
    }


def test_a_name_is_enough_online_and_then_offline(folders: dict[str, Path], tmp_path: Path) -> None:
    """The client downloads what diffusers asks for: every file of the denoiser is among it, none is missed."""
    wanted = expected(folders)
    with serving(folders) as (address, fetched):
        online = run(tmp_path, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    offline = run(tmp_path, "offline", HF_HUB_OFFLINE="1")
    for made in (online, offline):
        assert made.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(made[name], tensor), name
    for name, component in (("someone/model", "transformer/"), ("someone/alone", "")):
        needed = (folders[name] / component).iterdir()
        files = {f"{name}/{component}{file.name}" for file in needed} - {f"{name}/README.md", f"{name}/qua2sedimo.json"}
        assert any(file.endswith(".index.json") for file in files) and files <= set(fetched)


BY_NAME = {"subfolder": "transformer", "local_files_only": True}


@pytest.fixture
def snapshot(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The model in a cache folder of its own, to be damaged."""
    return cached(folders["someone/model"], "someone/model", tmp_path / "cache")


def load(snapshot: Path) -> DiTTransformer2DModel:
    return DiTTransformer2DModel.from_pretrained("someone/model", cache_dir=snapshot.parents[2], **BY_NAME)


def alter(file: Path, content: bytes) -> None:
    """Replace a link to a blob by a file."""
    file.unlink()
    file.write_bytes(content)


def test_a_cache_folder_is_read_through_its_links(snapshot: Path, folders: dict[str, Path]) -> None:
    assert all(file.is_symlink() for file in (snapshot / "transformer").iterdir())
    loaded = load(snapshot)
    assert any(isinstance(module, QuantizedLayer) for module in loaded.modules())
    plain = DiTTransformer2DModel.from_pretrained(folders["someone/model"], subfolder="transformer")
    assert torch.equal(output(loaded), output(plain))


def test_a_model_that_diffusers_saved_again_has_one_file_and_no_index(snapshot: Path, tmp_path: Path) -> None:
    loaded = load(snapshot)
    loaded.save_pretrained(tmp_path / "again" / "transformer")
    again = cached(tmp_path / "again", "someone/model", tmp_path / "second")
    assert [file.name for file in (again / "transformer").glob("*.safetensors*")] == [SAFETENSORS_WEIGHTS_NAME]
    assert torch.equal(output(load(again)), output(loaded))


def test_every_shard_of_a_model_by_name_is_compared_with_its_checksums(snapshot: Path) -> None:
    for shard in sorted((snapshot / "transformer").glob("*.safetensors")):
        content = bytearray(shard.read_bytes())
        sound, content[-9] = bytes(content), content[-9] ^ 1
        alter(shard, bytes(content))
        with pytest.raises(Qua2SeDiMoError, match="is not what was exported"):
            load(snapshot)
        alter(shard, sound)
    load(snapshot)


def test_an_altered_config_of_a_model_by_name_is_refused(snapshot: Path) -> None:
    config = snapshot / "transformer" / "config.json"
    alter(config, json.dumps(json.loads(config.read_text()) | {"norm_eps": 2e-5}).encode())
    with pytest.raises(Qua2SeDiMoError, match="does not describe the DiTTransformer2DModel"):
        load(snapshot)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 1000, "attention_head_dim": 1000}, "expected shape"),  # 10^12 weights a layer
        ({"num_attention_heads": 10**6, "attention_head_dim": 10**6}, "impossible sizes"),
        ({"num_layers": 10**9}, "modules, far more than"),
        ({"num_layers": 3}, "weight layers"),
        ({"sample_size": 10**5}, "tables of 3.2e"),
        ({"sample_size": 10**12}, "impossible sizes"),
    ],
)
def test_a_forged_config_of_a_model_by_name_allocates_nothing(snapshot: Path, changes: dict, message: str) -> None:
    config = snapshot / "transformer" / "config.json"
    alter(config, config.read_bytes())
    forged(config.parent, **changes)
    with nothing_allocated(), pytest.raises(Qua2SeDiMoError, match=message):
        load(snapshot)
