"""Every command, fed with rubbish for each of its parameters: a clear refusal, and nothing else."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import typer.main

from qua2sedimo import Study, cli
from qua2sedimo.errors import Qua2SeDiMoError

#: What people and programs may type. Numbers, texts and places alike go to every parameter.
RUBBISH = [
    "", " ", "-1", "0", "nan", "inf", "-1e400", "1e308", "9" * 5000, "100000000000", "0x10", "²", "٣", "x" * 300,
    "a/" * 3000, "(" * 5000 + "psnr" + ")" * 5000, "psnr+" * 5000 + "psnr", "psnr/0", "-" * 4000 + "psnr", "{" * 3000,
    "[]", '"name"', '{"a": ' + "9" * 5000 + "}", '{"num_inference_steps": 1e999}', "[" * 100_000, "\x1b[31mred",
    "\u202eevil", "*", "[a-", "=4", "*=" + "9" * 5000, "uaq-" + "9" * 5000, "uaq-4," * 500, "../../..", "/dev/zero",
    "/dev/null/x", "/proc/self/mem", "owner/name/more", "127.0.0.1:1", "127.0.0.1:" + "9" * 400, "--help", "-",
    "\udcff", "FIFO", "FOLDER", "FILE",
]  # fmt: skip
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def places(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for a parameter that is not the one that is tried, and for words of the rubbish."""
    from qua2sedimo.commands.app import settings_for

    folder = tmp_path_factory.mktemp("rubbish")
    study = Study.create(folder / "study", settings_for(str(model), ["1"], "{}", "uaq-3,uaq-4", 2, None, 0))
    study.workspace.graph  # noqa: B018 - traced now, so that commands come further
    os.mkfifo(folder / "fifo")
    (folder / "file").write_text("mine")
    (folder / "folder").mkdir()
    return {
        "model": str(model), "study": str(folder / "study"), "out": str(folder / "out"), "folder": str(folder / "none"),
        "a": str(folder / "file"), "b": str(folder / "file"), "name": "3.5", "FIFO": str(folder / "fifo"),
        "FOLDER": str(folder / "folder"), "FILE": str(folder / "file"),
    }  # fmt: skip


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that pass all checks are good: no work is done with them."""

    def began(*_: object, **__: object) -> None:
        raise Qua2SeDiMoError("work began", "This is as far as a test goes.")

    for place in (
        "denoisers.load_pipeline", "study.facade.load_pipeline", "study.model.load_pipeline",
        "inspection.load_pipeline", "inspection.load_denoiser", "measuring.exported.load_pipeline",
        "study.workspace.observe", "study.workspace.Bank.build", "study.stages.plan.plan", "zoo.load",
    ):  # fmt: skip
        monkeypatch.setattr(f"qua2sedimo.{place}", began)


def line_with(command: Any, tried: Any, value: str, places: dict[str, str]) -> list[str]:
    """A command line in which ``tried`` is ``value``, and what else must be given is reasonable."""
    line: list[str] = []
    for parameter in command.params:  # classes differ: typer may bring its own copy of click
        is_argument = parameter.param_type_name == "argument"
        own = value if parameter is tried else places.get(str(parameter.name), "")
        if is_argument and (parameter is tried or parameter.required):
            line.append(own)
        elif parameter is tried and not is_argument:
            line += [parameter.opts[0]] if parameter.is_flag else [f"{parameter.opts[0]}={own}"]
    assert any(value in word for word in line) or getattr(tried, "is_flag", False)
    return line


def tried_values(name: str, count: int) -> list[tuple[str, str]]:
    """(parameter, rubbish) of a command, ``count`` for each parameter."""
    chance = random.Random(name)
    names = [str(p.name) for p in COMMANDS[name].params]
    return [(parameter, value) for parameter in names for value in chance.sample(RUBBISH, count)]


def feed(run, name: str, places: dict[str, str], count: int) -> None:  # type: ignore[no-untyped-def]
    command, mine = COMMANDS[name], Path(places["FILE"])
    for parameter, value in tried_values(name, count):
        tried = next(p for p in command.params if p.name == parameter)
        ended = run(name, *line_with(command, tried, places.get(value, value), places))
        where = f"{name} {parameter}={value[:60]!r}: {ended.err[-300:]}"
        assert ended.status in (0, 1, 2), where
        assert ended.status != 1 or ended.err.startswith("error: "), where
        assert len(ended.err) < (10_000 if ended.status == 1 else 10_000 + 2 * len(value)), where
        assert "\x1b[31m" not in ended.err, where
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_rubbish_is_refused(run, places: dict[str, str], no_work: None, name: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    feed(run, name, places, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_more_rubbish(run, places: dict[str, str], no_work: None, name: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    feed(run, name, places, 8)
