"""Commands as pages print them: are they known, and what do their placeholders stand for in a test."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
import typer
from tests.pages import ROOT

from qua2sedimo import cli

#: Numbers that make a command long, and what a test takes instead.
QUICK = {"--configurations": "20", "--configs": "20", "--images": "8", "--candidates": "2", "--count": "2"}
#: The same for pipeline arguments, in commands and in Python.
QUICK_ARGUMENTS = {"num_inference_steps": "2", "height": "8", "width": "8"}
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9]*(?:\.\w+)?")


def command_line() -> click.Group:
    """The application as click sees it."""
    found = typer.main.get_command(cli.app)
    assert isinstance(found, click.Group)
    return found


def options_of(command: str) -> set[str]:
    """The long options of a command; KeyError if there is no such command."""
    return {o for p in command_line().commands[command].params for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}


def every_option() -> set[str]:
    """Every long option of any command."""
    return {option for name in command_line().commands for option in options_of(name)} | {"--help"}


def check_command(words: Sequence[str], place: str) -> None:
    """Fail unless the words after ``qua2sedimo`` name a command with options that it has.

    A command's bare name passes; words after it are parsed as the command itself would, placeholders as they are.
    """
    name, *rest = words
    commands = command_line().commands
    if name not in commands:
        pytest.fail(f"{place}: no command '{name}'; near: {difflib.get_close_matches(name, commands, 1)}")
    for word in rest:
        option = word.split("=")[0]
        if option.startswith("--") and option not in options_of(name) | {"--help"}:
            near = difflib.get_close_matches(option, options_of(name), 1)
            pytest.fail(f"{place}: `qua2sedimo {name}` has no option '{option}'; near: {near}")
    if not rest or "--help" in rest:
        return
    try:
        commands[name].make_context(name, [_number(word) for word in rest])
    except (click.ClickException, ValueError) as error:
        pytest.fail(f"{place}: `qua2sedimo {' '.join(words)}`: {error}")


def _number(word: str) -> str:
    return "20" if word in ("N", "BITS", "SEED") else word


def check_other(words: Sequence[str], place: str) -> None:
    """The same for other programs: targets of make, scripts and modules of this project with their options."""
    match words:
        case ["make", *targets]:
            known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
            assert set(targets) <= known, f"{place}: make has no target {set(targets) - known}"
        case ["python" | ".venv/bin/python", "-m", module, *rest] if module.startswith("qua2sedimo"):
            _check_script(ROOT / "src" / Path(*module.split(".")).with_suffix(".py"), rest, place)
        case ["python" | ".venv/bin/python" | "node", script, *rest] if not script.startswith("-"):
            _check_script(ROOT / script, rest, place)


def _check_script(script: Path, rest: Sequence[str], place: str) -> None:
    assert script.is_file(), f"{place}: {script.relative_to(ROOT)} is not there"
    source = "".join(p.read_text(encoding="utf-8") for p in script.parent.glob(f"*{script.suffix}"))
    for word in rest:
        if word.startswith("--"):
            name = word.removeprefix("--")
            assert re.search(rf"[\"'{{,\s](--)?{re.escape(name)}\b", source), f"{place}: {script.name} has no {word}"


def quick(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The command for a test: placeholders replaced, optional brackets taken, long numbers and arguments made small."""
    made: list[str] = []
    for word in words:
        word = word.strip("[]") if word.startswith("[") and word.endswith("]") else word
        if word == "…":
            continue
        before = made[-1] if made else ""
        if before in QUICK:
            word = QUICK[before]
        elif before == "--arguments":
            word = quick_arguments(word)
        elif _PLACEHOLDER.fullmatch(word) or word == "HOST:PORT":
            word = places.get(word, word)
        else:
            word = re.sub(r"\b(MODEL|STUDY|OUT|PATTERN)\b", lambda m: places.get(m[0], m[0]), word)
        made.append(word)
    return made


def quick_arguments(text: str) -> str:
    """JSON or Python source with few steps and small pictures."""
    for name, value in QUICK_ARGUMENTS.items():
        text = re.sub(rf"(\"{name}\":\s*)\d+", rf"\g<1>{value}", text)
    return text


def with_few_steps(words: list[str]) -> list[str]:
    """``init`` and ``run`` as given; what a page leaves out for brevity is added: a prompt, few steps, few images."""
    added = [] if "--prompt" in words else ["--prompt", "red hair"]
    arguments = json.loads(words[words.index("--arguments") + 1]) if "--arguments" in words else {}
    if "num_inference_steps" not in arguments:
        added += ["--arguments", json.dumps({**arguments, "num_inference_steps": 2})]
    if "--images" not in words:
        added += ["--images", "2"]
    if words[0] == "run" and not {"--configurations", "--configs"} & set(words):
        added += ["--configurations", "20"]
    return [*words, *added]


def call(words: Sequence[str], patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run the command line in this process: its status, and what it printed."""
    patch.setattr("sys.argv", ["qua2sedimo", *words])
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()
