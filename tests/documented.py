"""Commands as pages print them: are they known, and what do their placeholders stand for in a test."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.pages import ROOT, Code

from qua2sedimo import cli, zoo

#: Numbers that make a command long, and the most a test takes.
AT_MOST = {
    "--configurations": 20, "--images": 8, "--fresh-images": 8, "--image-budget": 8, "--candidates": 2, "--count": 2,
}  # fmt: skip
#: Names in pages that the tests' pipeline lacks, and what it has instead.
INSTEAD = {
    "pos_embed*": "conv_in*",
    "transformer_blocks.3.attn1": "mid_block.attentions.0.transformer_blocks.0.attn2 q, k",
}
#: The same for pipeline arguments, in commands and in Python.
QUICK_ARGUMENTS = {"num_inference_steps": "2", "height": "8", "width": "8"}
_SEARCHED = 900  # images: what a study has measured before counts too
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9]*(?:\.\w+)?")


@cache
def commands() -> dict[str, Any]:
    """The commands by name, as they parse their words."""
    return typer.main.get_command(cli.app).commands  # type: ignore[attr-defined, no-any-return]


def options_of(command: str) -> set[str]:
    """The long options of a command; KeyError if there is no such command."""
    return {o for p in commands()[command].params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}


def every_option() -> set[str]:
    """Every long option of any command."""
    return {option for name in commands() for option in options_of(name)} | {"--help"}


def check_command(words: Sequence[str], place: str) -> None:
    """Fail unless the words after ``qua2sedimo`` name a command with options that it has.

    A command's bare name passes; words after it are parsed as the command itself would, placeholders as they are.
    """
    name, *rest = words
    if name == "--help":
        return
    if name not in commands():
        pytest.fail(f"{place}: no command '{name}'; near: {difflib.get_close_matches(name, commands(), 1)}")
    for word in rest:
        option = word.split("=")[0]
        if option.startswith("--") and option not in options_of(name) | {"--help"}:
            near = difflib.get_close_matches(option, options_of(name), 1)
            pytest.fail(f"{place}: `qua2sedimo {name}` has no option '{option}'; near: {near}")
    if not rest or "--help" in rest:
        return
    try:
        commands()[name].make_context(name, [_number(word) for word in rest])
    except Exception as error:  # typer brings its own click, whose exceptions have no public name
        pytest.fail(f"{place}: `qua2sedimo {' '.join(words)}`: {_said(error)}")


def _said(error: Exception) -> str:
    return str(getattr(error, "format_message", lambda: error)())


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
        name = f'"{word}"' if script.suffix == ".py" else word.removeprefix("--")
        assert not word.startswith("--") or name in source, f"{place}: {script.name} has no {word}"


def quick(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The command for a test: placeholders replaced, optional brackets taken, long numbers and arguments made small."""
    made: list[str] = []
    for word in without_ellipsis(words):
        word = word.strip("[]") if word.startswith("[") and word.endswith("]") else word
        before = made[-1] if made else ""
        if before in AT_MOST:
            most = _SEARCHED if words[0] == "search" and before == "--image-budget" else AT_MOST[before]
            word = str(min(most, int(word))) if word.isdecimal() else str(most)
        elif before == "--arguments":
            word = quick_arguments(word)
        elif before == "--prompt" and word.isdecimal():
            word = "red hair"
        elif word in zoo.ENTRIES:
            word = places["MODEL"]
        elif word in INSTEAD:
            word = INSTEAD[word]
        elif _PLACEHOLDER.fullmatch(word) or word == "HOST:PORT":
            word = places.get(word, word)
        else:
            word = re.sub(r"\b(MODEL|STUDY|OUT|PATTERN)\b", lambda m: places.get(m[0], m[0]), word)
        made.append(word)
    return made


def without_ellipsis(words: Sequence[str]) -> list[str]:
    """The words without a last `…`, which says that more of the kind may follow; as an option's value it stays."""
    cut = len(words) > 1 and words[-1] == "…" and not words[-2].startswith("--")
    return list(words[:-1] if cut else words)


def quick_arguments(text: str) -> str:
    """JSON or Python source with few steps and small pictures."""
    for name, instead in INSTEAD.items():
        text = text.replace(name, instead)
    for name, value in QUICK_ARGUMENTS.items():
        text = re.sub(rf"(\b{name}\"?\s*[:=]\s*)\d+", rf"\g<1>{value}", text)
    return text


#: Images that a test takes where a page leaves the default.
_FEW_IMAGES = {
    "init": ("--images", "2"), "run": ("--images", "2"),
    "report": ("--fresh-images", "8"), "frontier": ("--fresh-images", "2"), "evaluate": ("--fresh-images", "2"),
}  # fmt: skip


def with_few_steps(words: list[str], model: str = "") -> list[str]:
    """The command as given, with what a page leaves out: few images; for a new study a prompt and few steps.

    To evaluate an export of ``model``, a folder where pages have a shipped one, it has to be told where that is.
    """
    few = list(_FEW_IMAGES.get(words[0], ()))
    few = [] if few and few[0] in words else few
    if words[0] == "evaluate" and model and "--base" not in words:
        few += ["--base", model]
    if words[0] not in ("init", "run"):
        return [*words, *few]
    added = few if "--prompt" in words else [*few, "--prompt", "red hair"]
    added += [] if "--observe" in words else ["--observe", "2"]
    arguments = json.loads(words[words.index("--arguments") + 1]) if "--arguments" in words else {}
    if "num_inference_steps" not in arguments:
        added += ["--arguments", json.dumps({**arguments, "num_inference_steps": 2})]
    if words[0] == "run" and "--configurations" not in words:
        added += ["--configurations", "20"]
    return [*words, *added]


def call(words: Sequence[str], patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run the command line in this process: its status, and what it printed."""
    patch.setattr("sys.argv", ["qua2sedimo", *words])
    said = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)  # some commands write bytes
    with redirect_stdout(said), redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), _text(said)
    return 0, _text(said)


def _text(stream: TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def must(words: list[str], patch: pytest.MonkeyPatch, place: str) -> str:
    status, said = call(words, patch)
    assert status == 0, f"{place}: qua2sedimo {shlex.join(words)}\n{said}"
    return said


def in_full(text: str) -> str:
    """Tables may leave out the program's name, as in `choose STUDY --bits 3.5`."""
    return f"qua2sedimo {text}" if re.match(r"[a-z]+ (STUDY|MODEL|OUT|A)\b", text) else text


#: What takes the longest goes with the slow tests; every other command of these pages runs in the quick ones too.
_LONG = ("qua2sedimo run ", "qua2sedimo search ", "README.md", "first-result.md", "own-pipeline.md")


def marked(value: Code | Path, name: str) -> object:
    return pytest.param(value, id=name, marks=[pytest.mark.slow] if name.startswith(_LONG) else [])
