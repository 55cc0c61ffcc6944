"""Parts and copies through a whole study, its weights read from the checkpoint's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from tests.conftest import randomized, small_pipeline, small_settings

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.predictor import FitSettings
from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.search import Constraints, allow
from qua2sedimo.study.stages.export import save_configuration

FIT = FitSettings(epochs=20, channels=8, hops=2)
OPTIONS = "uaq-2,uaq-3,uaq-4,uaq-6,kmeans_a-4"
STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional pipeline around a U-Net with skips."""
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("units") / "unet"
    DDIMPipeline(randomized(unet, 3), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def study(unet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    settings = small_settings(model=str(unet_folder), inputs=[], arguments=STEPS, options=OPTIONS)
    made = Study.create(tmp_path_factory.mktemp("units") / "study", settings)
    made.quantize()
    made.measure(24)
    made.fit(FIT)
    return made


def test_layers_behind_skips_are_cut_where_the_skip_begins(study: Study) -> None:
    parts = {name for name, layer in study.workspace.graph.layers.items() if layer.span is not None}
    assert {"up_blocks.0.resnets.0.conv1[0:16]", "up_blocks.0.resnets.0.conv1[16:32]"} <= parts
    assert {"up_blocks.0.resnets.0.conv_shortcut[0:16]", "up_blocks.0.resnets.0.conv_shortcut[16:32]"} <= parts
    for name in parts:
        layer = study.workspace.graph.layers[name]
        whole = study.workspace.modules[layer.module].weight.detach()
        assert torch.equal(study.workspace.weight(name), whole[:, slice(*layer.span)].half())


def test_a_model_of_parts_is_chosen_packed_and_paints_what_was_measured(study: Study, tmp_path: Path) -> None:
    choice = study.choose(4.6, candidates=2)
    packed = study.export(4.6, tmp_path / "out")
    assert packed.quantized_bytes == choice.nbytes
    study.workspace.switch.apply(choice.configuration)
    expected = study.workspace.generator(0, 4)
    study.workspace.switch.restore()
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    cut = [m for m in loaded.unet.modules() if isinstance(m, QuantizedLayer) and len(m.parts) > 1]
    assert len(cut) == len({layer.module for layer in study.workspace.graph.layers.values() if layer.span is not None})
    made = type(study.workspace.generator)(loaded, study.workspace.generator.generation)(0, 4)
    np.testing.assert_allclose(made, expected, atol=1e-2)  # biases and norms are stored in 16 bits


def test_layers_are_kept_whole_also_by_the_name_of_a_part(unet_folder: Path, study: Study, tmp_path: Path) -> None:
    def keeping(pattern: str) -> Study:
        settings = small_settings(model=str(unet_folder), inputs=[], arguments=STEPS, keep=[pattern])
        return Study.create(tmp_path / pattern.replace("*", "_"), settings)

    every = study.workspace.candidates
    part = next(name for name in every.layers if name.startswith("up_blocks.0.resnets.0.conv1["))
    for pattern in ("up_blocks.0.resnets.0.conv1", part, part.replace("resnets", "*")):
        layers = keeping(pattern).workspace.candidates.layers
        assert [n for n in every.layers if n not in layers] == [
            n for n in every.layers if "up_blocks.0.resnets.0.conv1[" in n
        ]
        allowed = allow(every, Constraints(keep=(pattern,)), study.workspace.names_of)
        assert [n for n in every.layers if not allowed.options[n]] == [n for n in every.layers if n not in layers]
    with pytest.raises(Qua2SeDiMoError, match="no layer matches"):
        _ = keeping("up_blocks.0.resnets.0.conv1[0:3]").workspace.space
    with pytest.raises(Qua2SeDiMoError, match="no layer is left"):
        _ = keeping("*").workspace.space


def test_equal_layers_of_the_blocks_are_one_unit_stored_once(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    first, second = (block.norm1.emb.timestep_embedder for block in pipeline.transformer.transformer_blocks)
    second.load_state_dict(first.state_dict())
    study = Study.create(tmp_path / "study", small_settings(options=OPTIONS), pipeline)
    place = "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_{}"
    assert study.workspace.copies == {place.format(0, i): (place.format(1, i),) for i in (1, 2)}
    assert not any(name.startswith("transformer_blocks.1.norm1.emb") for name in study.workspace.space.layers)
    configuration = study.workspace.space.uniform(study.workspace.space.union[0])
    packed = save_configuration(study.workspace, configuration, tmp_path / "out", {})
    assert packed.quantized_bytes == study.workspace.space.nbytes(configuration)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out").transformer
    a, b = (block.norm1.emb.timestep_embedder.linear_1 for block in loaded.transformer_blocks)
    assert a is b
    study.workspace.switch.apply(configuration)
    assert torch.equal(second.linear_1.weight, first.linear_1.weight)
    assert torch.equal(a.weight, first.linear_1.weight)
