"""What is asked of each pipeline class beside the walk through a study: files as people have them, 16 bits, LoRA, …"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests.answers import YES, answered
from tests.conftest import choice_of
from tests.sweep.build import Tiny, built
from tests.sweep.check import ODD, ROUNDING
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope
from torch import nn

from qua2sedimo import Study
from qua2sedimo.denoisers import denoiser_checkpoint, denoiser_of, load_pipeline, weight_modules
from qua2sedimo.denoisers.exact import same_bits
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import WEIGHTS
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, dequantize, pack
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages.export import export
from qua2sedimo.study.transfer import transferred

_CLOSE = 1e-3  # pictures of packed and plain layers with an adapter: they add up in another order


@dataclass
class Asked:
    """The tiny instance of a class: its folder, and another one to work in."""

    entry: Tiny
    model: Path
    work: Path

    @cached_property
    def component(self) -> str:
        return denoiser_of(self.load())[0]

    def load(self, folder: Path | None = None, **loading: Any) -> Any:
        return load_pipeline(str(folder or self.model), Loading(**loading), "cpu")

    def pictures(self, pipeline: Any) -> np.ndarray:
        return Generator(pipeline, Generation(self.entry.inputs, dict(self.entry.arguments)))(0, 1)

    @cached_property
    def computes_in_bf16(self) -> bool:
        """Whether the plain pipeline does; raises the program's error if that does not name the remedy."""
        try:
            Generator(
                self.load(dtype="bf16"), Generation(self.entry.inputs, dict(self.entry.arguments))
            ).full_precision(0, 1)
        except Qua2SeDiMoError as error:
            if "--dtype fp32" not in str(error.remedy):
                raise
            return False
        return True

    def settings(self, **changes: Any) -> StudySettings:
        asked: dict[str, Any] = {
            "model": str(self.model), "inputs": list(self.entry.inputs), "arguments": dict(self.entry.arguments),
            "images": 2, "options": "uaq-4", "rounding": "nearest", "metrics": ["psnr"],
        }  # fmt: skip
        return StudySettings(**{**asked, **changes})

    def copy(self) -> Path:
        """A copy of the model's folder, to be changed."""
        return Path(shutil.copytree(self.model, self.work / "copy"))

    def rewrite(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        """A copy whose denoiser's weights are changed."""
        folder = self.copy()
        path = folder / self.component / f"{WEIGHTS}.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        return folder

    def weights(self, pipeline: Any) -> dict[str, torch.Tensor]:
        return dict(getattr(pipeline, self.component).state_dict())

    def packed(self) -> Any:
        """A pipeline in memory whose denoiser is packed layer by layer."""
        pipeline = self.load()
        denoiser = getattr(pipeline, self.component)
        modules = weight_modules(denoiser)
        values = {name: METHODS["uaq"].quantize(module.weight, [4])[0] for name, module in modules.items()}
        pack(denoiser, values)
        return pipeline


def asked_of(name: str, folder: Path) -> dict[str, str]:
    """Question → "yes", "n/a: why" or what does not hold, for one pipeline class; ``folder`` is empty before."""
    entry = ENTRIES[name]
    model = folder / ODD / "model"
    built(in_scope()[name], entry).save_pretrained(model)
    found = {}
    for question, ask in ASKED.items():
        work = folder / question
        work.mkdir()
        found[question] = answered(ask, Asked(entry, model, work))
        shutil.rmtree(work)
    return found


def _other_files(asked: Asked) -> str:
    """A variant in shards, and pickles beside another variant: what is loaded is what the files hold."""
    pipeline, expected = asked.load(), asked.weights(asked.load())
    pipeline.save_pretrained(asked.work / "variant", variant="fp16", max_shard_size="100KB")
    pipeline.save_pretrained(asked.work / "pickled", safe_serialization=False)
    for folder in ("variant", "pickled"):
        found = asked.weights(asked.load(asked.work / folder))
        if found.keys() != expected.keys() or not all(same_bits(t, expected[n]) for n, t in found.items()):
            return f"other weights from '{folder}'"
    return YES


def _eight_bits(asked: Asked) -> str:
    """Matrices stored in 8-bit floats, without scales and with them."""
    expected, scale = asked.weights(asked.load()), 1.5

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 2]:
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
            tensors[f"{name.removesuffix('.weight')}.scale_weight"] = torch.tensor([scale])

    found = asked.weights(asked.load(asked.rewrite(change)))
    far = [n for n, t in found.items() if t.is_floating_point() and _far(t, expected[n]) > 0.06]
    return f"'{far[0]}' is far from what is stored" if far else YES


def _far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-9))


def _missing(asked: Asked) -> str:
    """A weight that is missing, and one of another name, are named before anything is made."""
    gone = list(weight_modules(getattr(asked.load(), asked.component)))[-1] + ".weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["other.weight"] = tensors.pop(gone)

    try:
        asked.load(asked.rewrite(change))
    except Qua2SeDiMoError as error:
        return YES if gone in error.message and "other.weight" in error.message else f"not named: {error.message}"
    return "loaded with weights that nobody stored"


def _single_file(asked: Asked) -> str:
    """The denoiser in one file, with the folder as its configuration."""
    pipeline = asked.load()
    if not hasattr(type(getattr(pipeline, asked.component)), "from_single_file"):
        return "n/a: diffusers has no from_single_file for its denoiser"
    expected = asked.weights(pipeline)
    save_file({n: t.contiguous() for n, t in expected.items()}, asked.work / "one.safetensors")
    found = asked.weights(load_pipeline(str(asked.work / "one.safetensors"), Loading(config=str(asked.model)), "cpu"))
    return YES if all(same_bits(t, expected[n]) for n, t in found.items()) else "other weights"


def _not_numbers(asked: Asked) -> str:
    """A model whose pictures are NaN: nothing is measured."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    study = Study.create(asked.work / "study", asked.settings(model=str(asked.rewrite(change))))
    try:
        study.measure(1)
    except Qua2SeDiMoError as error:
        said = "nan" in error.message.lower() or "not finite" in error.message
        return YES if said and not study.workspace.records.all() else f"refused for another reason: {error.message}"
    return "measured"


def _bf16(asked: Asked) -> str:
    """A study in bf16 measures what its export computes."""
    if not asked.computes_in_bf16:
        return "n/a: diffusers' pipeline computes only in fp32; the message says so"
    study = Study.create(asked.work / "study", asked.settings(dtype="bf16"))
    inside = study.workspace
    loaded, checkpoint = asked.weights(inside.pipeline), denoiser_checkpoint(str(asked.model), None, Loading("bf16"))
    if checkpoint is None or not all(_alike(checkpoint(name), t) for name, t in loaded.items()):
        return "other weights are quantized than measured"
    if len(study.measure(1)) != 1:
        return "nothing is measured"
    choice = choice_of(study, inside.space.uniform(Option.parse("uaq-4")))
    choice.save(study.folder / "choices" / "4.json")
    inside.switch.apply(choice.configuration)
    expected = inside.generator(0, 1)
    study.export(choice, asked.work / "packed")
    if not np.array_equal(asked.pictures(asked.load(asked.work / "packed")), expected):
        return "the export gives other pictures"
    return YES


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and (not other.is_floating_point() or same_bits(one, other))


def _fine_tune(asked: Asked) -> str:
    """A choice made for the model, used on another one of the same architecture in shards and another dtype."""
    dtype = "bf16" if asked.computes_in_bf16 else "fp32"
    study = Study.create(asked.work / "study", asked.settings(dtype=dtype))
    choice = choice_of(study, study.workspace.space.uniform(Option.parse("uaq-4")))
    choice.save(study.folder / "choices" / "4.json")
    tuned = asked.load()
    with torch.no_grad():
        for parameter in getattr(tuned, asked.component).parameters():
            parameter.mul_(0.5)  # exact in 16 bits
    tuned.save_pretrained(asked.work / "tuned", variant="fp16", max_shard_size="100KB")
    inside, made = transferred(study.folder / "choices" / "4.json", str(asked.work / "tuned"), asked.work / "own")
    export(inside, made, asked.work / "packed")
    if made.configuration != choice.configuration or inside.dtype != dtype:
        return "other options, or another dtype"
    inside.switch.apply(made.configuration)
    far = np.abs(asked.pictures(asked.load(asked.work / "packed")) - inside.generator(0, 1)).max()
    return YES if far <= (0 if dtype == "bf16" else ROUNDING) else "the export gives other pictures"


def _saved(asked: Asked) -> str:
    """Packed in memory, `save_pretrained` of the pipeline, and loaded."""
    pipeline = asked.packed()
    expected = asked.pictures(pipeline)
    pipeline.save_pretrained(asked.work / "packed")
    loaded = DiffusionPipeline.from_pretrained(asked.work / "packed")
    loaded.set_progress_bar_config(disable=True)
    layers = [m for m in getattr(loaded, asked.component).modules() if isinstance(m, QuantizedLayer)]
    return YES if layers and np.array_equal(asked.pictures(loaded), expected) else "other pictures"


def _lora(asked: Asked) -> str:
    """A LoRA file as its trainer writes it, loaded beside packed layers, and unloaded."""
    plain = asked.load()
    denoiser = getattr(plain, asked.component)
    if not hasattr(plain, "load_lora_weights") or not hasattr(denoiser, "add_adapter"):
        return "n/a: the pipeline has no load_lora_weights"
    names = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear) and n.endswith(("to_q", "to_v"))]
    torch.manual_seed(2)
    denoiser.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=names, init_lora_weights=False))
    state = get_peft_model_state_dict(denoiser)
    save_file({f"{asked.component}.{n}": t.contiguous() for n, t in state.items()}, asked.work / "lora.safetensors")
    packed, beside = asked.packed(), asked.packed()
    before = asked.pictures(packed)
    dequantize(getattr(beside, asked.component))
    for pipeline in (beside, packed):
        pipeline.load_lora_weights(asked.work, weight_name="lora.safetensors")
    made, expected = asked.pictures(packed), asked.pictures(beside)
    if np.abs(made - expected).max() > _CLOSE or np.array_equal(made, before):
        return "other pictures than beside plain layers"
    packed.unload_lora_weights()
    return YES if np.array_equal(asked.pictures(packed), before) else "not as before once it is unloaded"


def _several(asked: Asked) -> str:
    """All denoisers of the pipeline in one study."""
    pipeline = asked.load()
    names = denoisers_of(pipeline)
    if len(names) < 2:
        return "n/a: one denoiser"
    study = Study.create(asked.work / "study", asked.settings(component=names))
    if len(study.measure(1)) != 1:
        return "nothing is measured"
    choice = choice_of(study, study.workspace.space.uniform(Option.parse("uaq-4")))
    study.export(choice, asked.work / "packed")
    loaded = asked.load(asked.work / "packed")
    packed = [any(isinstance(m, QuantizedLayer) for m in getattr(loaded, name).modules()) for name in names]
    return YES if all(packed) else f"not packed: {names}"


#: What is asked of each pipeline class.
ASKED: dict[str, Callable[[Asked], str]] = {
    "variant, shards, pickles": _other_files,
    "fp8 with scales": _eight_bits,
    "missing weights named": _missing,
    "single file": _single_file,
    "NaN pictures refused": _not_numbers,
    "in bf16": _bf16,
    "fine-tune": _fine_tune,
    "saved again": _saved,
    "LoRA file": _lora,
    "several denoisers": _several,
}
