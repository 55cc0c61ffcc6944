"""A denoiser that is no diffusers model, with a function that makes images: a whole study, exported and loaded."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import choice_of, randomized, small_settings, small_unet
from torch import nn

import qua2sedimo
from qua2sedimo import CallablePipeline, Qua2SeDiMoError, Study, cli
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Option
from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.study.stages.export import save_configuration


class Painter(nn.Module):
    """Predicts noise from a noisy picture, a time, and a label; goes down and up again by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(10, 8)
        self.time = nn.Linear(1, 8)
        self.enter = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.leave = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        about = self.time(t[:, None]) + self.labels(label)
        hidden = torch.tanh(self.enter(x) + about[:, :, None, None])
        return self.leave(hidden + torch.tanh(self.mix(hidden)))


def painter(seed: int = 0) -> Painter:
    return randomized(Painter(), seed)  # type: ignore[return-value]


def generating(denoiser: nn.Module) -> Any:
    def generate(labels: list[int], noise: list[torch.Generator], steps: int = 3) -> torch.Tensor:
        x = torch.stack([torch.randn(3, 8, 8, generator=g) for g in noise])
        for i in range(steps):
            t = torch.full((len(noise),), 1 - i / steps)
            x = x - denoiser(x, t, torch.tensor(labels)) / steps
        return x.permute(0, 2, 3, 1).sigmoid()

    return generate


def pipeline(denoiser: nn.Module) -> CallablePipeline:
    return CallablePipeline(denoiser, generating(denoiser), "class_labels")


def settings(**changes: Any) -> Any:
    return small_settings(**{"arguments": {"steps": 2}, "options": "row-3,row-4,uaq-4", **changes})


def test_a_study_of_any_module_is_exported_and_loaded_into_a_new_one(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", settings(), pipeline(painter()))
    assert sorted(study.workspace.graph.layers) == ["enter", "mix", "time"]
    study.plan(2, repeats=1)
    assert len(study.measure(2)) == 2
    choice = study.quick(3.6)
    packed = study.export(choice, tmp_path / "out")
    assert packed.average_bits <= 3.6
    inside = study.workspace
    assert inside.graph.left_alone == ("labels", "leave")
    loaded = qua2sedimo.load_packed(painter(seed=5), tmp_path / "out")
    assert sum(isinstance(m, QuantizedLayer) for m in loaded.modules()) == len(choice.configuration)
    noise = [torch.Generator().manual_seed(i) for i in (1, 2)]
    made = pipeline(loaded)(noise, class_labels=[1, 2]).images
    inside.switch.apply(choice.configuration)
    for unit, value in inside.polished_values(choice).items():
        inside.switch.write(unit, value)
    noise = [torch.Generator().manual_seed(i) for i in (1, 2)]
    assert np.abs(made - inside.pipeline(noise, class_labels=[1, 2]).images).max() < 1e-3  # others are in 16 bits


def test_what_needs_another_process_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    asked = settings(rounding="nearest", options="uaq-4")
    study = Study.create(tmp_path / "study", asked, pipeline(painter()))
    choice = choice_of(study, study.workspace.space.uniform(Option.parse("uaq-4")))
    before = sorted(path.name for path in study.folder.iterdir())
    with pytest.raises(Qua2SeDiMoError, match="passed in memory"):
        study.measure(2, workers=Workers(2))
    with pytest.raises(Qua2SeDiMoError, match="your own code"):
        study.compare(choice, tmp_path / "out", images=2)
    assert sorted(path.name for path in study.folder.iterdir()) == before
    with pytest.raises(Qua2SeDiMoError, match="unknown model") as caught:  # as the command line opens it
        _ = Study(tmp_path / "study").workspace.pipeline
    assert "Study(FOLDER, pipeline)" in str(caught.value.remedy)


@pytest.mark.parametrize("command", ["generate OUT --prompt 1", "evaluate OUT --fresh-images 2", "card OUT"])
def test_a_command_that_would_have_to_build_the_denoiser_says_how_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    study = Study.create(tmp_path / "study", settings(rounding="nearest", options="uaq-4"), pipeline(painter()))
    out = tmp_path / "out"
    study.export(choice_of(study, study.workspace.space.uniform(Option.parse("uaq-4"))), out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["qua2sedimo", *command.replace("OUT", str(out)).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "a denoiser of your own code" in said and "load_packed(" in said
    assert before == {path: path.read_bytes() for path in out.iterdir()} and not (tmp_path / "pictures").exists()


def test_quantize_replaces_the_layers_of_any_module() -> None:
    denoiser = painter()
    made = qua2sedimo.quantize(pipeline(denoiser), 4.5, [1, 2], arguments={"steps": 2}, effort="quick")
    assert made.denoiser is denoiser and isinstance(denoiser.mix, QuantizedLayer)
    assert isinstance(denoiser.leave, nn.ConvTranspose2d)


def test_a_diffusers_model_keeps_its_own_format(tmp_path: Path) -> None:
    unet = small_unet()

    def generate(prompts: list[str], noise: list[torch.Generator]) -> np.ndarray:
        x = torch.stack([torch.randn(3, 8, 8, generator=g) for g in noise])
        words = torch.ones(len(noise), 5, 24) * torch.tensor([len(p) for p in prompts])[:, None, None] / 9
        with torch.no_grad():
            return unet(x, 500, words).sample.permute(0, 2, 3, 1).sigmoid().numpy()

    own = CallablePipeline(unet, generate)
    study = Study.create(
        tmp_path / "study", settings(arguments={}, inputs=["a cat"], options="uaq-4", rounding="nearest"), own
    )
    space = study.workspace.space
    save_configuration(study.workspace, space.uniform(Option.parse("uaq-4")), tmp_path / "out", {})
    assert isinstance(type(unet).from_pretrained(tmp_path / "out").conv_in, QuantizedLayer)


def test_what_is_not_right_is_said(tmp_path: Path) -> None:
    denoiser = painter()
    with pytest.raises(Qua2SeDiMoError, match=r"takes no argument 'step'"):
        Study.create(tmp_path / "a", settings(arguments={"step": 2}), pipeline(denoiser))
    with pytest.raises(Qua2SeDiMoError, match="input 'cat': class_labels must be int"):
        Study.create(tmp_path / "b", settings(inputs=["cat"]), pipeline(denoiser))
    flat = CallablePipeline(denoiser, lambda labels, noise, steps=1: np.zeros((len(noise), 8, 8)), "class_labels")
    with pytest.raises(Qua2SeDiMoError, match=r"array of shape \[1, 8, 8\] for 1 generators"):
        _ = Study.create(tmp_path / "c", settings(), flat).workspace.graph
    save = tmp_path / "out"
    study = Study.create(tmp_path / "d", settings(rounding="nearest", options="uaq-4"), pipeline(denoiser)).workspace
    save_configuration(study, study.space.uniform(Option.parse("uaq-4")), save, {})
    other = copy.deepcopy(denoiser)
    other.mix = nn.Conv2d(8, 8, 1)
    with pytest.raises(Qua2SeDiMoError, match=r"'mix\.codes': expected shape"):
        qua2sedimo.load_packed(other, save)
    assert isinstance(other.mix, nn.Conv2d) and not isinstance(other.enter, QuantizedLayer)
    with pytest.raises(Qua2SeDiMoError, match="is not a packed denoiser"):
        qua2sedimo.load_packed(denoiser, tmp_path / "d")
