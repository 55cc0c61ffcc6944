"""observe, quick, polish, and run --effort: what they print, and that a mistake leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.commands.conftest import FEW_STEPS
from tests.conftest import choice_of

from qua2sedimo import Choice, Study
from qua2sedimo.commands.app import settings_for
from qua2sedimo.commands.start import _everything

LITTLE = ("--images", 2, "--observe", 3)


@pytest.fixture(scope="module")
def observed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the default options, observed and quantized."""
    folder = tmp_path_factory.mktemp("observed") / "study"
    settings = settings_for(str(model), ["1", "2"], FEW_STEPS, "default", 2, None, 0, observe=3)
    Study.create(folder, settings).quantize()
    return folder


@pytest.fixture
def copy(observed: Path, tmp_path: Path) -> Path:
    shutil.copytree(observed, tmp_path / "study")
    return tmp_path / "study"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_observe_says_what_it_kept_and_does_it_once(run, model: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "study"
    assert run("init", model, folder, "--prompt", 1, "--arguments", FEW_STEPS, *LITTLE).status == 0
    assert yaml.safe_load((folder / "study.yaml").read_text())["observe"] == 3
    first = run("observe", folder)
    assert first.status == 0, first.err
    assert re.search(r"3 images, 15 inputs of 21 layers, with gradients: .*B in", first.out)
    assert f"Next: qua2sedimo quantize {folder}" in first.out
    assert "fewer than its 256 inputs: observe more images" in " ".join(first.out.split())
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    again = run("observe", folder)
    assert (again.status, again.out) == (0, first.out)
    monkeypatch.undo()
    assert run("quantize", folder).status == 0


def test_quick_prints_the_choice_and_what_comes_next(run, copy: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("quick", copy, "--bits", 2.5, "--bits", 3)
    assert ended.status == 0, ended.err
    for name, bits in (("2.5", 2.5), ("3.0", 3.0)):
        choice = Choice.load(copy / "choices" / f"{name}.json")
        assert choice.average_bits <= bits
        assert f"{name}.json: {choice.nbytes:,} bytes, {choice.average_bits:.3f} bits" in ended.out
        assert f"{choice.measured['psnr']:.2f}" in ended.out
    assert ended.out.rstrip().endswith(f"Next: qua2sedimo export {copy} OUT --choice 3.0")
    assert run("quick", copy, "--bits", 3).out.split("Candidates")[-1] == ended.out.split("Candidates")[-1]
    done = run("export", copy, tmp_path / "out", "--choice", "3.0")
    assert done.status == 0, done.err
    assert Study(copy).workspace.choice_for(3.0) == Choice.load(copy / "choices" / "3.0.json")


def test_choices_are_printed_as_json_and_nothing_beside_it(run, copy: Path, tmp_path: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("quick", copy, "--bits", 2.5, "--bits", 3, "--why", "--json")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    for entry, name in zip(found, ("2.5", "3.0"), strict=True):
        choice = Choice.load(copy / "choices" / f"{name}.json")
        assert entry["path"] == str(copy / "choices" / f"{name}.json") and entry["measured"] == choice.measured
        assert (entry["bytes"], entry["average_bits"]) == (choice.nbytes, choice.average_bits)
        assert entry["configuration"] == {layer: str(option) for layer, option in choice.configuration.items()}
    assert json.loads(run("polish", copy, "3.0", "--json").out) == found[1:]
    out = tmp_path / "out"
    assert run("export", copy, out, "--choice", "3.0").status == 0
    measured = run("evaluate", out, "--fresh-images", 2, "--base", model, "--json")
    assert json.loads(measured.out)["metrics"]["psnr"]["images"] == 2


def test_quick_takes_sizes_and_constraints_and_says_why(run, copy: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("quick", copy, "--bytes", "20kB", "--methods-at-most", "2", "--keep", "proj_out_2", "--why")
    assert ended.status == 0, ended.err
    assert "the budget" in " ".join(ended.out.split())
    (path,) = (copy / "choices").glob("*.json")
    choice = Choice.load(path)
    assert choice.nbytes <= 20_000
    assert len({o.method for o in choice.configuration.values()}) <= 2
    assert "proj_out_2" not in choice.configuration


def test_quick_without_a_size_is_for_3_5_bits(run, copy: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("quick", copy).status == 0
    assert Choice.load(copy / "choices" / "3.5.json").average_bits <= 3.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bits", 1.0, "--methods", "row"), "can be reached"),
        (("--bits", 3, "--methods", "gptq"), "unknown method 'gptq'"),
        (("--bits", 3, "--keep", "nothing"), "no layer matches 'nothing'"),
        (("--bits", 3, "--methods", "uaq"), "leaves it no option"),
        (("--bits", 4, "--bits", 1.0, "--min-bits", "*=3"), "as small as 1 average bits"),
        (("--bytes", "3 elephants"), "elephants"),
    ],
)
def test_a_quick_choice_that_is_impossible_is_refused_before_anything_is_observed(  # type: ignore[no-untyped-def]
    run, refused, model: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    folder = tmp_path / "study"
    assert run("init", model, folder, "--prompt", 1, "--arguments", FEW_STEPS, *LITTLE).status == 0
    assert said in refused("quick", folder, *arguments)
    assert files(folder) <= {"study.yaml", "graph.json"}


def test_polish_rounds_a_named_choice_again(run, refused, copy: Path) -> None:  # type: ignore[no-untyped-def]
    study = Study(copy)
    choice = choice_of(study, study.workspace.space.decode([0] * len(study.workspace.space.layers)))
    choice.save(study.workspace.choice_path(choice.budget))
    ended = run("polish", copy, choice.name)
    assert ended.status == 0, ended.err
    found = Choice.load(study.workspace.choice_path(choice.budget))
    assert (found.polished is None) == ("Not polished" in ended.out)
    assert found.configuration == choice.configuration and f"{found.nbytes:,} bytes" in ended.out
    assert "no-such" in refused("polish", copy, "no-such")


def test_polish_says_that_a_study_of_nearest_rounding_is_not_polished(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "study"
    nearest = ("--rounding", "nearest", "--images", 2)
    assert run("init", model, folder, "--prompt", 1, "--arguments", FEW_STEPS, *nearest).status == 0
    assert run("quick", folder, "--bits", 3).status == 0
    ended = run("polish", folder, "3.0")
    assert ended.status == 0 and "Not polished" in ended.out
    assert not (folder / "statistics").exists() and files(folder / "choices") == {"3.0.json"}


@pytest.mark.slow
def test_run_with_little_effort_does_everything_but_measure(  # type: ignore[no-untyped-def]
    run, model: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "study"
    monkeypatch.setattr("qua2sedimo.study.stages.search.measure", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr("qua2sedimo.commands.start._everything", with_few_pictures)
    monkeypatch.setattr("qua2sedimo.study.stages.compare.UNIFORM", ())
    ended = run(
        "run", model, folder, "--prompt", 1, "--arguments", FEW_STEPS, "--bits", 2.5, "--effort", "quick", *LITTLE
    )
    assert ended.status == 0, ended.err
    choice = Choice.load(folder / "choices" / "2.5.json")
    assert choice.origin == "quick" and choice.average_bits <= 2.5
    assert "(found by quick)" in ended.out
    assert {"report.html", "table.json", "packed-2.5/model_index.json"} <= files(folder)


def with_few_pictures(*arguments: Any, **more: Any) -> None:
    _everything(*arguments, **{**more, "compared": 4})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "quick"),
        (("--configurations", 20), "search"),
        (("--rounding", "nearest"), "search"),
        (("--options", "paper"), "search"),
        (("--effort", "paper"), "paper"),
        (("--effort", "search"), "search"),
    ],
)
def test_a_run_takes_as_little_effort_as_chooses_well(  # type: ignore[no-untyped-def]
    run, model: Path, tmp_path: Path, monkeypatch, words: tuple[Any, ...], expected: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("qua2sedimo.commands.start._everything", lambda *of, **more: seen.append((of, more)))
    ended = run("run", model, tmp_path / "study", "--prompt", 1, "--arguments", FEW_STEPS, *words)
    assert ended.status == 0, ended.err
    ((arguments, _),) = seen
    assert arguments[5] == expected


def test_quick_measures_no_configurations_and_says_so(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("--prompt", 1, "--arguments", FEW_STEPS, "--effort", "quick", "--configurations", 30)
    message = refused("run", model, tmp_path / "study", *words)
    assert "asks for 30" in message and "Leave one of them out" in message


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [("--effort", "much", "quick, search, paper"), ("--rounding", "up", "nearest, compensated")],
)
def test_an_unknown_effort_or_rounding_is_refused_and_nothing_is_written(  # type: ignore[no-untyped-def]
    refused, model: Path, tmp_path: Path, option: str, value: str, known: str
) -> None:
    common = (model, tmp_path / "study", "--prompt", 1, "--arguments", FEW_STEPS, option, value)
    message = refused("run", *common)
    assert f"{option}: '{value}' is unknown" in message and known in message
    if option == "--rounding":
        assert known in refused("init", *common)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("option", [("--observe", 0), ("--observe", 60_000), ("--images", 1), ("--images", 20_000)])
def test_fewer_or_more_images_than_there_can_be_are_refused(  # type: ignore[no-untyped-def]
    run, model: Path, tmp_path: Path, option: tuple[str, int]
) -> None:
    for command in ("init", "run"):
        ended = run(command, model, tmp_path / "study", "--prompt", 1, *option)
        assert ended.status in (1, 2) and option[0] in ended.err and "Traceback" not in ended.err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("command", ["observe", "quick", "polish"])
def test_a_folder_that_is_no_study_is_refused(refused, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    more = ["3.5"] if command == "polish" else []
    assert "is no study folder" in refused(command, tmp_path, *more)
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_other_prompts_are_refused_by_every_command(run, refused, copy: Path) -> None:  # type: ignore[no-untyped-def]
    path = copy / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "inputs": [7]}))
    before = files(copy)
    for command in ("observe", "quantize", "quick", "measure"):
        message = refused(command, copy)
        assert "was observed with other weights, prompts, arguments or settings" in message, command
        assert "qua2sedimo observe" in message
    assert files(copy) == before
