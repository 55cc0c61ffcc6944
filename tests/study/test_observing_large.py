"""What a large denoiser is observed with: fewer images, in fewer steps, one in each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.images.generate import in_steps, steps_of
from qua2sedimo.study import workspace

STEPS = 12


class Listing:
    """Takes a list of time steps in place of a number."""

    def __call__(self, prompt: str, num_inference_steps: int = 50, timesteps: list[int] | None = None) -> None: ...


class Steps:
    """Has no number of steps."""

    def __call__(self, prompt: str, steps: int = 50) -> None: ...


@pytest.mark.parametrize(
    ("pipeline", "arguments", "steps", "expected"),
    [
        (Listing(), {}, 50, {"num_inference_steps": 8}),
        (Listing(), {"num_inference_steps": 20}, 20, {"num_inference_steps": 8}),
        (Listing(), {"num_inference_steps": 4}, 4, {"num_inference_steps": 4}),
        (Listing(), {"timesteps": [9, 5]}, None, {"timesteps": [9, 5]}),
        (Steps(), {"steps": 30}, None, {"steps": 30}),
    ],
)
def test_only_a_number_of_steps_is_lowered(pipeline: Any, arguments: Any, steps: int | None, expected: Any) -> None:
    assert steps_of(pipeline, arguments) == steps
    assert in_steps(pipeline, arguments, 8) == expected


def observed(folder: Path, pipeline: Any, **changes: Any) -> tuple[Study, list[int]]:
    """A study that was observed, and the samples of each call of its denoiser while images were made."""
    arguments = {**small_settings().arguments, "num_inference_steps": STEPS}
    study = Study.create(folder, small_settings(**{"arguments": arguments, "observe": 3, **changes}), pipeline)
    assert study.workspace.batch > 1 and study.workspace.graph  # traced by calls of its own
    samples: list[int] = []
    made: list[int] = []
    handle = pipeline.transformer.register_forward_pre_hook(lambda module, args: samples.append(len(args[0])))
    study.observe(lambda done, total, what: made.append(len(samples)) if what == "observing: images" else None)
    handle.remove()
    return study, samples[: made[-1]]


def test_a_large_denoiser_is_observed_one_image_at_a_time_in_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = small_pipeline()
    _, of_small = observed(tmp_path / "small", pipeline)
    monkeypatch.setattr(workspace, "LARGE", 1)
    study, of_large = observed(tmp_path / "large", pipeline)
    assert len(of_small) == 2 * STEPS and len(of_large) == 3 * 6  # two calls of at most two images; three of one
    assert max(of_small) == 2 * max(of_large)
    calls = study.workspace.statistics.calls
    assert len(calls) == 3 * 6 / 2 and set(calls.places) == {n / 5 for n in range(6)}  # every step, from other images


def test_the_steps_to_observe_can_be_set_and_belong_to_the_statistics(tmp_path: Path) -> None:
    study, calls = observed(tmp_path / "study", small_pipeline(), observe_steps=2)
    assert len(calls) == 2 * 2
    before = study.workspace.settings
    assert before.protocol == before.model_copy(update={"observe_steps": "auto"}).protocol  # measurements stay
    before.model_copy(update={"observe_steps": 3}).save(study.folder / "study.yaml")
    with pytest.raises(Qua2SeDiMoError, match="other weights, prompts, arguments or settings"):
        Study(study.folder, small_pipeline()).observe()


def test_a_plan_counts_the_steps_that_are_observed(tmp_path: Path) -> None:
    arguments = {**small_settings().arguments, "num_inference_steps": STEPS}
    made = {}
    for steps in ("auto", 2):
        settings = small_settings(arguments=arguments, observe=64, observe_steps=steps, options="uaq-3,uaq-4")
        made[steps] = Study.create(tmp_path / str(steps), settings, small_pipeline()).plan(3, repeats=1)
    shares = {steps: plan.observe / plan.trial.generate for steps, plan in made.items()}
    assert 0 < shares[2] < shares["auto"] / 2
