"""What is recorded of a text encoder: its calls before the steps, and what its outputs mean for the guided output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.pipelines import PIPELINES, PROMPTS, arguments

from qua2sedimo.denoisers import capture_call, trace
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.images.latents import observed
from qua2sedimo.statistics import output_changes, record_calls, squared_gradients
from qua2sedimo.statistics.moments import text_mask

IMAGES = range(50_000, 50_002)


def generator_of(name: str, steps: int) -> Generator:
    return Generator(PIPELINES[name](), Generation(PROMPTS, arguments(name, steps=steps), batch=2))


def guided(generator: Generator, forced: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
    """The guided output of every step, without gradients; with ``forced``, samples are those that these lead to."""
    found: list[torch.Tensor] = []

    def seen(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(model_output.clone())
        return (forced[len(found) - 1] if forced else model_output, *args), kwargs

    with torch.no_grad(), observed(generator.pipeline.scheduler, "step", before=seen):
        torch.manual_seed(generator.generation.number(IMAGES.start, 1))
        generator.run(list(IMAGES))
    return found


@pytest.mark.parametrize(("name", "unit"), [("pixart", "encoder.block.0.layer.0.SelfAttention.v"),
                                            ("unet", "encoder.layers.0.mlp.fc1")])  # fmt: skip
def test_cotangents_tell_how_the_guided_output_changes_with_a_weight(name: str, unit: str, tmp_path: Path) -> None:
    generator = generator_of(name, steps=3)
    encoder = generator.pipeline.text_encoder
    call = capture_call(generator.pipeline, encoder, run=lambda: generator.run([0]))
    layer = trace(encoder, call.args, call.kwargs).layers[unit]
    calls = record_calls(generator, encoder, IMAGES, tmp_path)
    assert len(calls) == 2  # of the prompts, and of no prompt
    weight = encoder.get_submodule(unit).weight
    error = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    changes = output_changes(encoder, {unit: layer}, calls, lambda _, gradient: (gradient * error).sum()[None])
    assert changes is not None
    before = guided(generator)
    predicted = float(changes[unit].sum()) * (len(before) / len(calls)) ** 0.5
    after = []
    for factor in (1, -2):
        with torch.no_grad():
            weight += factor * error
        after.append(guided(generator, before))
    with torch.no_grad():
        weight += error
    chance = torch.Generator().manual_seed(generator.generation.number(IMAGES.start, 2))
    signs = [torch.randint(0, 2, output.shape, generator=chance) * 2.0 - 1.0 for output in before]
    changed = sum(float(((more - less) * sign).sum()) / 2 for more, less, sign in zip(*after, signs))
    assert len(before) == 3 and predicted == pytest.approx(changed, rel=0.05)
    squares = squared_gradients(encoder, {unit: layer}, calls)
    assert squares is not None and float(squares[unit].min()) > 0


def test_all_calls_are_kept_at_the_first_step_and_padding_is_known(tmp_path: Path) -> None:
    generator = generator_of("pixart", steps=4)
    calls = record_calls(generator, generator.pipeline.text_encoder, IMAGES, tmp_path)
    assert len(calls) == 2 and calls.places == [0.0, 0.0]
    mask = text_mask(calls[0], "")
    assert mask is not None and not bool(mask.all()) and bool(mask[:, 0].all())
    assert text_mask(calls[0], "hidden_states") is None


def test_where_no_gradients_pass_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of("pixart", steps=2)
    pipeline = generator.pipeline
    monkeypatch.setattr(type(pipeline), "encode_prompt", torch.no_grad()(type(pipeline).encode_prompt))
    calls = record_calls(generator, pipeline.text_encoder, IMAGES, tmp_path)
    assert len(calls) == 2 and all(call.cotangents == () for call in calls)
    call = calls[0]
    layers = trace(pipeline.text_encoder, call.args, call.kwargs).layers
    assert squared_gradients(pipeline.text_encoder, layers, calls) is None
