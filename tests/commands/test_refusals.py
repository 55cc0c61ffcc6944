"""What a command can refuse it refuses before any work, and workers reach every stage that measures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import choice_of

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Option
from qua2sedimo.search import Budget
from qua2sedimo.study.stages.choose import search_owner


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes long is a failure."""
    for place in ("workspace.Bank.build", "workspace.Workspace.measurer", "stages.export.save_packed"):
        monkeypatch.setattr(f"qua2sedimo.study.{place}", lambda *_, **__: pytest.fail("work began"))
    for place in ("qua2sedimo.inspection.trace", "qua2sedimo.measuring.exported.load_pipeline"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("work began"))


def with_choice(study: Path, name: str = "plain", budget: float | None = None) -> None:
    """A choice of 4-bit options in the study, found by a search for this budget or just its size."""
    opened = Study(study)
    configuration = opened.workspace.space.uniform(Option.parse("uaq-4"))
    choice = choice_of(opened, configuration, owner=search_owner(opened.workspace))
    if budget is not None:
        nbytes = Budget(budget).nbytes(opened.workspace.candidates.weights)
        choice = choice.model_copy(update={"budget": Budget(budget), "budget_bytes": nbytes})
    choice.save(study / "choices" / f"{name}.json")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("search", "--image-budget", 32), "32 images are too few to search"),
        (("search", "--bits", 4, "--bits", 1.5), "as small as 1.5 average bits"),
        (("search", "--keep", "nothing*"), "no layer matches 'nothing*'"),
        (("search", "--min-bits", "*attn*"), "not of the form PATTERN=BITS"),
        (("search", "--methods", "magic"), "unknown method 'magic'"),
        (("search", "--bytes", "2.4parsecs"), "is no size"),
        (("choose", "--bits", 4, "--bits", 1.5), "as small as 1.5 average bits"),
        (("choose", "--objective", "psnr - bits", "--bits", 3), "--objective has no size"),
        (("choose", "--objective", "psnr -"), "found the end"),
        (("report", "--bits", 1.5), "as small as 1.5 average bits"),
        (("measure", "--ray", "127.0.0.1:1"), "cannot reach a Ray cluster at '127.0.0.1:1'"),
        (("search", "--ray", "127.0.0.1:1"), "cannot reach a Ray cluster at '127.0.0.1:1'"),
        (("frontier", "--ray", "127.0.0.1:1"), "cannot reach a Ray cluster at '127.0.0.1:1'"),
        (("fit", "--loss", "l1"), "unknown loss 'l1'"),
        (("figures", "--format", "gif"), "figure format 'gif'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(  # type: ignore[no-untyped-def]
    refused, study: Path, no_work: None, command: tuple[object, ...], message: str
) -> None:
    pytest.importorskip("ray")
    name, *rest = command
    assert message in refused(name, study, *rest)
    assert not (study / "bank").exists() and not (study / "records.db").exists()


@pytest.mark.parametrize("command", ["measure", "search", "choose", "frontier", "report"])
def test_workers_without_ray_are_refused_before_any_work(  # type: ignore[no-untyped-def]
    refused, study: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "workers need Ray" in refused(command, study, "--workers", 2)


def test_an_objective_without_decibels_is_refused_before_any_work(refused, study: Path, no_work: None) -> None:  # type: ignore[no-untyped-def]
    path = study / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "objective": "features"}))
    for command in ("search", "frontier"):
        assert "needs one in decibels" in refused(command, study)


def test_more_configurations_than_there_are_is_refused_before_any_work(refused, study: Path, no_work: None) -> None:  # type: ignore[no-untyped-def]
    path = study / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "sampler": "singles"}))
    assert "'singles' has" in refused("measure", study, "--configurations", 1000)


def test_places_that_cannot_be_written_are_refused_before_any_work(  # type: ignore[no-untyped-def]
    refused, study: Path, model: Path, tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    below = tmp_path / "file" / "out"
    with_choice(study)
    for command in (
        ("export", study, below, "--choice", "plain"),
        ("recipe", study, below, "--choice", "plain"),
        ("figures", study, below),
        ("inspect", model, "--graph", below.with_suffix(".svg")),
    ):
        assert "file is a file, not a folder" in refused(*command)
    assert "was not written by this program" in refused("export", study, tmp_path / "mine", "--choice", "plain")
    shutil.copytree(tmp_path / "mine", tmp_path / "s" / "packed-3.5")
    assert "was not written by this program" in refused("run", model, tmp_path / "s", "--prompt", 1)
    monkeypatch.setattr("qua2sedimo.denoisers.load_pipeline", lambda *_: pytest.fail("work began"))
    assert "file is a file, not a folder" in refused("generate", model, "--prompt", 1, "--out", below)


def test_a_report_without_a_fit_is_refused_before_any_work(refused, study: Path, no_work: None) -> None:  # type: ignore[no-untyped-def]
    with_choice(study, "5.5", 5.5)
    assert "has no predictor" in refused("report", study, "--bits", 5.5)


def test_a_report_of_a_size_without_a_choice_is_refused_and_says_how_to_make_one(  # type: ignore[no-untyped-def]
    refused, study: Path, no_work: None
) -> None:
    said = refused("report", study, "--bits", 4.5)
    assert "has no choice of 4.5 bits\n" in said and f"qua2sedimo choose {study} --bits 4.5" in said
    with_choice(study, "5.5", 5.5)
    assert "has no choice of 4.5 bits, but 5.5" in refused("report", study, "--bits", 4.5)


def test_inspect_refuses_unknown_options_inputs_and_endings_before_it_traces(  # type: ignore[no-untyped-def]
    refused, model: Path, tmp_path: Path, no_work: None
) -> None:
    assert "uaq-9" in refused("inspect", model, "--options", "uaq-9")
    assert ".json or .svg" in refused("inspect", "no-such", "--graph", tmp_path / "graph.png")
    assert "does not exist" in refused("inspect", model, "--inputs", tmp_path / "none.json")


def test_evaluate_and_card_refuse_before_they_read_the_model(refused, tmp_path: Path, no_work: None) -> None:  # type: ignore[no-untyped-def]
    assert "is not an exported model" in refused("card", tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert "is not an exported model" in refused("card", tmp_path)
    (tmp_path / "qua2sedimo.json").write_text(json.dumps({"extra": {"model": "owner/base"}}))
    assert "README.md exists" in refused("card", tmp_path)
    for metric in ("latent_mse", "kernel_real", "accuracy"):
        assert f"metric '{metric}' cannot be computed" in refused("evaluate", tmp_path, "--metric", metric)


def test_parquet_without_pyarrow_is_refused_before_anything_is_scored(  # type: ignore[no-untyped-def]
    refused, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "Parquet needs pyarrow" in refused("explain", study, "--tables", "parquet")


def test_a_list_that_is_not_there_is_a_usage_error(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("init", model, tmp_path / "s", "--prompt", 1, "--sampler", "list", "--list", tmp_path / "none.json")
    assert ended.status == 2 and "none.json" in ended.err and not (tmp_path / "s").exists()


# Workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("measure",), "qua2sedimo.study.Study.measure"),
        (("search", "--bits", 4), "qua2sedimo.study.Study.search"),
        (("choose", "--bits", 4), "qua2sedimo.study.Study.choose"),
        (("choose", "--objective", "psnr - bits"), "qua2sedimo.study.stages.tradeoff.choose_by_objective"),
        (("frontier",), "qua2sedimo.study.Study.frontier"),
        (("report", "--bits", 4), "qua2sedimo.study.Study.compare"),
        (("run", "--bits", 4), "qua2sedimo.study.Study.run"),
        (("run", "--bits", 4), "qua2sedimo.study.Study.compare"),
    ],
)
def test_workers_reach_every_stage_that_measures(  # type: ignore[no-untyped-def]
    refused, study: Path, model: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...], place: str
) -> None:
    pytest.importorskip("ray")
    for method in ("quantize", "choose", "run", "export"):
        monkeypatch.setattr(Study, method, lambda *_, **__: None)

    monkeypatch.setattr("qua2sedimo.study.stages.fit.fitted_records", lambda *_: [])
    with_choice(study, "4.0", 4)

    def measured(*_: object, workers: Workers, **__: object) -> None:
        raise Qua2SeDiMoError(f"reached with {workers}")

    monkeypatch.setattr(place, measured)
    name, *more = command
    words = (name, model, study.parent / "s", "--prompt", 1) if name == "run" else (name, study)
    assert f"reached with {Workers(2)}" in refused(*words, *more, "--workers", 2)
