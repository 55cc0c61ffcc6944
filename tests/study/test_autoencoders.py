"""Autoencoders quantized beside the denoiser, or in its place: of convolutions, and of Sana's linear attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.study.tiny import packed, settings_of, tiny
from tests.sweep.entries import ENTRIES

from qua2sedimo import Qua2SeDiMoError, Study, StudySettings
from qua2sedimo.denoisers import load_pipeline, trace
from qua2sedimo.denoisers.components import as_called, is_decoder
from qua2sedimo.denoisers.layers import weight_layers
from qua2sedimo.formats.files import read_json
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.options import Option
from qua2sedimo.statistics.gain import picture_gain

KINDS = {"StableDiffusionPipeline": "unet", "SanaPipeline": "transformer"}


def settings(kind: str, model: Path, component: str | list[str] = "") -> StudySettings:
    return settings_of(kind, model, component or [KINDS[kind], "vae"], observe=4, options="row-2,row-4,row-8")


@pytest.fixture(scope="module", params=sorted(KINDS))
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp(request.param)
    tiny(request.param).save_pretrained(folder / "model")
    return Study.create(folder / "study", settings(request.param, folder / "model"))


def test_it_shares_the_budget_and_is_packed_in_the_export(study: Study, tmp_path: Path) -> None:
    choice, inside = study.quick(4.0), study.workspace
    assert choice.average_bits <= 4.0 and inside.statistics.has_gradients
    decoded = [unit for unit in choice.configuration if unit.startswith("vae.")]
    assert decoded and not any(unit.startswith("vae.encoder") for unit in decoded), "nothing is encoded"
    study.export(choice, tmp_path / "out")
    study.export(choice, tmp_path / "plain", form="diffusers")
    inside.switch.apply(choice.configuration)
    for unit, value in inside.polished_values(choice).items():
        inside.switch.write(unit, value)
    expected = inside.generator(0, 2)
    inside.switch.restore()
    assert np.abs(inside.generator(0, 2) - expected).max() > 1e-3
    for loaded in (load_pipeline(str(tmp_path / "out")), DiffusionPipeline.from_pretrained(tmp_path / "plain")):
        loaded.set_progress_bar_config(disable=True)
        assert np.abs(Generator(loaded, inside.generation)(0, 2) - expected).max() < 1e-3
    assert packed(load_pipeline(str(tmp_path / "out")).vae) == len(decoded)
    with pytest.raises(Qua2SeDiMoError, match=r"'vae' is an autoencoder .* the format gguf"):
        study.export(choice, tmp_path / "out.gguf", form="gguf", any_size=True)


def test_its_errors_are_weighed_in_the_denoisers_unit(study: Study) -> None:
    """Σ of what layers are expected to change, times the gain, is what the decoded picture changes: to first order, at
    8 bits, for the calls that were weighed."""
    inside = study.workspace
    bank, vae = inside.bank, inside.denoisers["vae"]
    gain = float(read_json(inside.statistics_folder / "vae" / "calls" / "gain.json"))
    calls = inside.statistics.part("vae").calls
    units = [unit for unit in inside.space.layers if unit.startswith("vae.")]
    option = Option.parse("row-8")
    total = sum(bank.changes.mean_squares(unit)[option] for unit in units)
    with torch.no_grad():
        before = [call.run(vae)[0].double() for call in calls]
        for unit in units:
            inside.switch.write(unit, bank.get(unit, option))
        after = [call.run(vae)[0].double() for call in calls]
    inside.switch.restore()
    changed = np.mean([float((a - b).square().sum()) for a, b in zip(after, before)])
    assert changed / 3 < total * gain < changed * 3  # by random signs of few calls
    assert gain != 1.0
    for call in calls:
        assert torch.allclose(call.cotangents[0].abs() * gain**0.5, torch.ones(()), rtol=1e-5)


def test_the_gain_is_that_of_the_picture() -> None:
    """A decoder whose picture is twice as bright has four times the gain."""
    pipeline = tiny("StableDiffusionPipeline")
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(ENTRIES["StableDiffusionPipeline"].arguments)
    generator = Generator(pipeline, Generation(["a red fox"], arguments, seed=0))
    once = picture_gain(generator, pipeline.vae, [3])
    for p in pipeline.vae.decoder.conv_out.parameters():
        p.data *= 2
    assert picture_gain(generator, pipeline.vae, [3]) == pytest.approx(4 * once, rel=1e-3)
    vars(pipeline)["scheduler"] = object()  # whose steps cannot be observed
    assert picture_gain(generator, pipeline.vae, [3]) == 1.0


def test_it_is_quantized_by_itself(tmp_path: Path) -> None:
    kind = "StableDiffusionPipeline"
    tiny(kind).save_pretrained(tmp_path / "model")
    study = Study.create(tmp_path / "study", settings(kind, tmp_path / "model", component="vae"))
    assert study.search(4.0, 64).choice.average_bits <= 4.0
    choice = study.quick(4.0)
    study.export(choice, tmp_path / "out")
    loaded = load_pipeline(str(tmp_path / "out"))
    assert packed(loaded.vae) == len(choice.configuration) and packed(loaded.unet) == 0


def test_a_pipeline_is_as_before(study: Study) -> None:
    vae = study.workspace.denoisers["vae"]
    own = dict(vars(vae))
    with as_called(vae), as_called(vae):
        assert vae.decode is not type(vae).decode
    assert vars(vae) == own and "decode" not in own and "forward" not in own


def test_calling_within_decodes_and_hooks_see_it() -> None:
    vae = tiny("StableDiffusionPipeline").vae
    z, seen = torch.randn(1, vae.config.latent_channels, 4, 4), list[str]()
    vae.register_forward_hook(lambda *_: seen.append("called"))
    with torch.no_grad():
        expected = vae.decode(z)[0]
        assert not seen
        with as_called(vae):
            assert torch.equal(vae(z)[0], expected) and torch.equal(vae.decode(z)[0], expected)
    assert seen == ["called", "called"]


def test_layers_with_a_forward_pass_of_their_own_stay_as_they_are() -> None:
    """Causal convolutions of video pad what they are given: they would be observed, and replaced, wrongly."""
    pipeline = tiny("CogVideoXPipeline")
    vae = pipeline.vae
    assert is_decoder(vae) and any(type(m).__name__ == "CogVideoXSafeConv3d" for m in vae.modules())
    assert all(layer.kind != "CogVideoXSafeConv3d" for layer in weight_layers(vae).values())
    z = torch.randn(1, vae.config.latent_channels, 1, 4, 4)
    graph = trace(vae, (z,))
    assert any(name.endswith("conv_in.conv") for name in graph.left_alone)
