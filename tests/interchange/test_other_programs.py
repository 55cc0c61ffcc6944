"""What other programs compute from our files, in an environment of their own without this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.conftest import choice_of, small_settings
from tests.interchange.test_sdnq import every_option
from tests.runtime.helpers import dit, pipeline
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope
from torch import nn

from qua2sedimo import Study, zoo
from qua2sedimo.interchange.sdnq import save_sdnq
from qua2sedimo.interchange.sdnq.checkpoint import SDNQ_VERSION
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.zoo import pixels

pytestmark = pytest.mark.slow

PINNED = [f"sdnq=={SDNQ_VERSION}", "torch", "diffusers", "transformers", "accelerate"]
ROOT = Path(__file__).parents[2]
READER = """
import importlib, sys
folder, component, given, answer, *needed = sys.argv[1:]
import diffusers, torch
from safetensors.torch import load_file, save_file
for name in needed:
    importlib.import_module(name)
assert "qua2sedimo.runtime" not in sys.modules and "sdnq" not in sys.modules
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
assert "sdnq" in sys.modules, "diffusers imported it by itself"
denoiser = getattr(pipeline, component)
kinds = {type(m).__name__ for m in denoiser.modules()}
assert any("SDNQ" in kind for kind in kinds), kinds
inputs = load_file(given)
if type(denoiser).__name__ == "PixArtTransformer2DModel":
    inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
with torch.no_grad():
    save_file({"sample": denoiser(**inputs).sample}, answer)
"""


#: Quantizes the denoiser and the text encoder of a pipeline as SDNQ does, loads it as a model to quantize, and
#: compares both outputs.
QUANTIZED_THERE = """
import json, sys
folder, settings = sys.argv[1], json.loads(sys.argv[2])
import diffusers, torch, transformers
from sdnq import SDNQConfig
from qua2sedimo import Study
from qua2sedimo.denoisers.pipelines import load_pipeline
settings = SDNQConfig(minimum_allowed_numel=0, minimum_allowed_channel_size=0, quant_conv=True, **settings)
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
made = {}
for name in ("transformer", "text_encoder"):
    kind = type(getattr(pipeline, name))
    made[name] = kind.from_pretrained(f"{folder}/{name}", torch_dtype=torch.float16, quantization_config=settings)
    made[name].save_pretrained(f"{folder}/{name}")
found = load_pipeline(folder)
torch.manual_seed(0)
x = {"hidden_states": torch.randn(1, 3, 16, 16), "timestep": torch.tensor([7]),
     "encoder_hidden_states": torch.randn(1, 5, 128)}
x = {k: v.half() if v.is_floating_point() else v for k, v in x.items()}
config = made["transformer"].config
x["hidden_states"] = torch.randn(1, config.in_channels, config.sample_size, config.sample_size).half()
size = {"resolution": None, "aspect_ratio": None}
with torch.no_grad():
    pairs = [(made["transformer"](**x, added_cond_kwargs=size).sample,
              found.transformer.half()(**x, added_cond_kwargs=size).sample)]
    ids = torch.tensor([[3, 4, 5]])
    pairs.append((made["text_encoder"](ids).last_hidden_state, found.text_encoder.half()(ids).last_hidden_state))
for theirs, ours in pairs:
    assert (theirs.float() - ours.float()).norm() < 2e-3 * theirs.float().norm(), (theirs, ours)
for model in (found.transformer, found.text_encoder):
    assert not any("SDNQ" in type(m).__name__ for m in model.modules()), "plain layers"
    assert "quantization_config" not in model.config.to_dict() if hasattr(model.config, "to_dict") else model.config
"""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process of this Python that finds SDNQ too."""
    folder = tmp_path_factory.mktemp("beside")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), PINNED[0]]
    ended = subprocess.run(install, capture_output=True, text=True)
    if ended.returncode and any(sign in ended.stderr for sign in ("NewConnectionError", "name resolution")):
        pytest.skip(f"the package index is unreachable: {ended.stderr[-300:]}")
    assert ended.returncode == 0, ended.stderr
    return {**os.environ, "PYTHONPATH": str(folder), "SDNQ_USE_TORCH_COMPILE": "0"}


@pytest.mark.parametrize(
    "settings",
    [
        {"weights_dtype": "uint4"},
        {"weights_dtype": "int8", "group_size": -1},
        {"weights_dtype": "int5", "group_size": 32, "use_svd": True, "svd_rank": 4},
        {"weights_dtype": "uint3", "use_hadamard": True},
        {"weights_dtype": "uint2", "use_codebook": True},
        {"weights_dtype": "float8_e4m3fn"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_checkpoint_of_sdnq_is_decoded_and_can_be_quantized(
    beside: dict[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(zoo.ENTRIES["avatars-pixart"].folder, tmp_path / "model")
    script = tmp_path / "quantized.py"
    script.write_text(QUANTIZED_THERE)
    words = [sys.executable, str(script), str(tmp_path / "model"), json.dumps(settings)]
    ended = subprocess.run(words, env=beside, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("was quantized already, by sdnq") == 2
    if settings == {"weights_dtype": "uint4"}:
        arguments = json.dumps({**zoo.ENTRIES["avatars-pixart"].arguments, "num_inference_steps": 2})
        asked = ["--bits", "3.5", "--observe", "2", "--options", "uaq-3,uaq-4", "--prompt", "red"]
        folders = [str(tmp_path / "model"), str(tmp_path / "study")]
        words = [sys.executable, "-m", "qua2sedimo", "run", *folders, *asked, "--arguments", arguments]
        ended = subprocess.run(words, env=beside, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]


#: Makes a picture from a folder as stock diffusers does, with SDNQ's package imported for the text encoders.
PAINTED_THERE = """
import sys
import diffusers, sdnq, torch
from safetensors.torch import save_file
folder, given, answer = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
for name in given.split(","):
    assert any("SDNQ" in type(m).__name__ for m in getattr(pipeline, name).modules()), name
made = pipeline("a red fox", num_inference_steps=2, height=32, width=32, max_sequence_length=8, output_type="pt",
                generator=torch.Generator().manual_seed(5)).images
save_file({"made": made.contiguous()}, answer)
"""


def test_text_encoders_and_an_autoencoder_are_computed_there(beside: dict[str, str], tmp_path: Path) -> None:
    """T5, CLIP and decoder of Flux."""
    built(in_scope()["FluxPipeline"], ENTRIES["FluxPipeline"]).save_pretrained(tmp_path / "model")
    components = ["transformer", "text_encoder", "text_encoder_2", "vae"]
    settings = small_settings(
        model=str(tmp_path / "model"), inputs=["a red fox"], arguments=dict(ENTRIES["FluxPipeline"].arguments),
        component=components, target="sdnq", options="uaq-2,kmeans_a-3,uaq-4", rounding="nearest",
    )  # fmt: skip
    study = Study.create(tmp_path / "study", settings)
    inside = study.workspace
    options = inside.space.options.items()
    chosen = choice_of(study, Configuration({n: held[i % len(held)] for i, (n, held) in enumerate(options)}))
    study.export(chosen, tmp_path / "sdnq", form="sdnq", any_size=True)
    (tmp_path / "reader.py").write_text(PAINTED_THERE)
    words = [sys.executable, "reader.py", str(tmp_path / "sdnq"), ",".join(components), "answer.safetensors"]
    ended = subprocess.run(words, cwd=tmp_path, env=beside, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    there = load_file(tmp_path / "answer.safetensors")["made"]

    def painted() -> torch.Tensor:
        chance = torch.Generator().manual_seed(5)
        sizes = {"num_inference_steps": 2, "height": 32, "width": 32, "max_sequence_length": 8}
        return inside.pipeline("a red fox", **sizes, generator=chance, output_type="pt").images

    full = painted()
    for unit, value in inside.values(chosen).items():
        inside.switch.write(unit, value)
    ours = painted()
    assert (there - ours).norm() < 0.1 * (full - ours).norm()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with diffusers and SDNQ alone; QUA2SEDIMO_SDNQ_PYTHON names one that is there already."""
    if "QUA2SEDIMO_SDNQ_PYTHON" in os.environ:
        return os.environ["QUA2SEDIMO_SDNQ_PYTHON"]
    folder = tmp_path_factory.mktemp("sdnq")
    venv.create(folder, with_pip=True)
    interpreter = str(folder / "bin" / "python")
    install = [interpreter, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *PINNED]
    ended = subprocess.run(install, capture_output=True, text=True)
    if ended.returncode and any(sign in ended.stderr for sign in ("NewConnectionError", "name resolution")):
        pytest.skip(f"the package index is unreachable: {ended.stderr[-300:]}")
    assert ended.returncode == 0, ended.stderr
    return interpreter


def read_there(python: str, folder: Path, component: str, model: nn.Module, work: Path, *needed: str) -> None:
    """Fail unless the other environment computes what ``model`` does, to the rounding of 16-bit weights.

    ``needed`` are modules in ``work`` / "stub" that the pipeline has components from.
    """
    inputs = _inputs(model)
    save_file(inputs, work / "given.safetensors")
    (work / "reader.py").write_text(READER)
    words = [python, "reader.py", str(folder), component, "given.safetensors", "answer.safetensors", *needed]
    environment = {**os.environ, "PYTHONPATH": str(work / "stub"), "SDNQ_USE_TORCH_COMPILE": "0"}
    ended = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    answer = load_file(work / "answer.safetensors")["sample"]
    with torch.no_grad():
        more = {} if "class_labels" in inputs or "sample" in inputs else {"added_cond_kwargs": _NO_SIZE}
        expected = model(**inputs, **more).sample
    assert (answer - expected).norm() < 2e-3 * expected.norm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
        assert (answer - model(**inputs, **more).sample).norm() > 5e-3 * expected.norm(), "the comparison sees 1 %"


_NO_SIZE = {"resolution": None, "aspect_ratio": None}


def _inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    config = model.config
    sample = torch.randn(2, config.in_channels, config.sample_size, config.sample_size)
    timestep = torch.tensor([7, 500])
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": sample, "timestep": timestep, "class_labels": torch.tensor([1, 2])}
    if isinstance(model, UNet2DConditionModel):
        return {"sample": sample, "timestep": timestep, "encoder_hidden_states": torch.randn(2, 5, 128)}
    return {"hidden_states": sample, "timestep": timestep, "encoder_hidden_states": torch.randn(2, 5, 128)}


@pytest.mark.parametrize("trained_in", [torch.float16, torch.bfloat16], ids=str)
def test_every_option_of_a_stock_pipeline_is_computed_there(
    python: str, trained_in: torch.dtype, tmp_path: Path
) -> None:
    model = dit().to(trained_in)
    values = every_option(model)
    save_sdnq(pipeline(model), None, values, tmp_path / "out", any_size=True)
    for name, value in values.items():
        model.get_submodule(name).weight.data = dequantize_weight(value)
    read_there(python, tmp_path / "out", "transformer", model.float(), tmp_path)


@pytest.mark.parametrize("name", ["avatars-pixart", "avatars-unet"])
def test_a_shipped_model_is_computed_there_at_our_size(python: str, name: str, tmp_path: Path) -> None:
    entry = zoo.ENTRIES[name]
    settings = small_settings(
        model=name, inputs=["short red hair"], arguments={**entry.arguments, "num_inference_steps": 1},
        target="sdnq", options="uaq-3,kmeans_a-4,kmeans_a-2,uaq-8", rounding="nearest",
    )  # fmt: skip
    study = Study.create(tmp_path / "study", settings)
    inside = study.workspace
    options = inside.space.options.items()
    chosen = choice_of(study, Configuration({n: held[i % len(held)] for i, (n, held) in enumerate(options)}))
    for form in ("packed", "sdnq"):
        study.export(chosen, tmp_path / form, form=form)
    (component,) = inside.denoisers
    ours, there = (
        sum(f.stat().st_size for f in (tmp_path / form / component).iterdir()) for form in ("packed", "sdnq")
    )
    assert abs(there - ours) < 0.01 * ours
    for layer, value in inside.values(chosen).items():
        inside.denoiser.get_submodule(layer).weight.data = dequantize_weight(value).float()
    # The shipped pipelines have a codec of this package: its file alone is given to the other environment.
    stub = tmp_path / "stub" / "qua2sedimo" / "zoo"
    stub.mkdir(parents=True)
    (stub.parent / "__init__.py").touch()
    (stub / "__init__.py").touch()
    shutil.copy(pixels.__file__, stub / "pixels.py")
    read_there(python, tmp_path / "sdnq", component, inside.denoiser, tmp_path, "qua2sedimo.zoo.pixels")
