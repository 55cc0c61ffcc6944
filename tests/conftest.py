"""Small denoisers and pipelines: random non-zero weights, so that no gate is shut and every layer matters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph, trace, weight_modules, weight_of
from qua2sedimo.options import Configuration, SearchSpace
from qua2sedimo.predictor import Encoding
from qua2sedimo.sampling import sample
from qua2sedimo.study import Study
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.zoo.pixels import PixelAutoencoder
from qua2sedimo.zoo.training.export import scheduler

os.environ.pop("COLUMNS", None)  # parallel runs set it: what is printed must not depend on how tests are run


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_shared_fixtures() -> None:
    """What fixtures of a module or session compute is compared bit for bit with what tests compute."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray workers that find the tests' modules, and yield to other programs no more than the tests themselves do."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own is 15: minutes, on a machine that is busy


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew: no bias, gate or modulation is zero."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=chance) * scale)
    return model.eval().requires_grad_(False)


def small_dit(seed: int = 0, classes: int = 10) -> DiTTransformer2DModel:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, patch_size=2, sample_size=8,
        in_channels=1, out_channels=1, num_embeds_ada_norm=classes,
    )  # fmt: skip
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return randomized(model, seed)


def small_pixart(seed: int = 0, captions: int = 24) -> PixArtTransformer2DModel:
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, cross_attention_dim=32, caption_channels=captions,
        sample_size=8, patch_size=2, in_channels=3, out_channels=3, use_additional_conditions=False,
    )  # fmt: skip
    return randomized(model, seed)


def small_unet(seed: int = 0, captions: int = 24) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=captions, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    return randomized(model, seed)


def call_of(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments of one forward pass of a small denoiser."""
    chance = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance)

    timestep = torch.tensor([7, 500])
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": draw(2, 1, 8, 8), "timestep": timestep, "class_labels": torch.tensor([1, 2])}
    if isinstance(model, UNet2DConditionModel):
        return {"sample": draw(2, 3, 8, 8), "timestep": timestep, "encoder_hidden_states": draw(2, 5, 24)}
    return {
        "hidden_states": draw(2, 3, 8, 8),
        "timestep": timestep,
        "encoder_hidden_states": draw(2, 5, 24),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


MAKERS: dict[str, Callable[[], nn.Module]] = {"dit": small_dit, "pixart": small_pixart, "unet": small_unet}


def small_pipeline(seed: int = 0, classes: int = 10) -> DiTPipeline:
    """Class-conditional 8×8 one-channel pictures; with 1000 classes it can be guided."""
    pipeline = DiTPipeline(transformer=small_dit(seed, classes), vae=PixelAutoencoder(1), scheduler=scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_settings(**changes: Any) -> StudySettings:
    """A study of :func:`small_pipeline` that takes seconds."""
    asked: dict[str, Any] = {
        "model": "small-dit",
        "inputs": [0, 1, 2],
        "arguments": {"num_inference_steps": 2, "guidance_scale": 1.0},
        "images": 2,
        "metrics": ["psnr"],
        "observe": 2,
    }
    return StudySettings(**{**asked, **changes})


def choice_of(study: Study, configuration: Configuration, owner: str = "") -> Choice:
    """A choice of just this configuration, as if it had been measured."""
    bits = study.workspace.space.average_bits(configuration)
    best = Candidate(
        origin="test", configuration=configuration, average_bits=bits, predicted=0.0, measured={"psnr": 0.0}
    )
    return Choice.of(best, study.workspace.space, owner or study.workspace.identity)


@pytest.fixture(params=sorted(MAKERS))
def denoiser(request: pytest.FixtureRequest) -> nn.Module:
    return MAKERS[request.param]()


@pytest.fixture
def pipeline() -> DiTPipeline:
    return small_pipeline()


@dataclass(frozen=True)
class Task:
    """A search space of the small DiT with its graph, bank and encoding, and records made without images."""

    graph: Graph
    space: SearchSpace
    bank: Bank
    encoding: Encoding

    def choices(self, count: int, seed: int = 0) -> np.ndarray:
        """Option indices [count, layers] of sampled configurations."""
        drawn = [sample(self.space, "spread", seed, number, (2.0, 6.0)) for number in range(count)]
        return np.stack([self.space.encode(configuration) for configuration in drawn])

    def quality(self, choices: np.ndarray, weights: dict[str, float] | None = None) -> np.ndarray:
        """An additive objective, like a PSNR: −10·log₁₀ Σ weight(layer)·relative MSE; weight 1 if not given."""
        layers = self.space.layers
        errors = [[self.bank.errors[n][o].relative_mse for o in self.space.options[n]] for n in layers]
        weight = np.array([(weights or {}).get(n, 1.0) for n in layers])
        damage = np.array([[errors[i][j] for i, j in enumerate(row)] for row in choices]) @ weight
        return -10 * np.log10(damage)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    model = small_dit()
    graph = trace(model, (), call_of(model))
    shapes = {name: layer.shape for name, layer in graph.layers.items()}
    space = SearchSpace.of(shapes, "uaq-4,uaq-3,kmeans_a-4,kmeans_a-3,kmeans_a-2")
    modules = weight_modules(model)
    bank = Bank.build(tmp_path_factory.mktemp("task") / "bank", space, "task", lambda n: weight_of(modules[n]).half())
    return Task(graph, space, bank, Encoding(graph, space, bank))
