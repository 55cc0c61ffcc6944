"""Options by their earlier names still work, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from qua2sedimo import cli
from qua2sedimo.commands.spellings import EARLIER, current

RENAMED = [(command, old, new) for command, names in EARLIER.items() for old, new in names.items()]


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_an_earlier_name_is_replaced_with_a_notice(command: str, old: str, new: str) -> None:
    words, notices = current([command, "x", old, "7", f"{old}=8", "--other"])
    assert words == [command, "x", new, "7", f"{new}=8", "--other"]
    assert len(notices) == 1 and old in notices[0] and new in notices[0]
    made = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    names = {name for parameter in made.params for name in parameter.opts}
    assert new in names and old not in names


@pytest.mark.parametrize("text", ["", "--version", "generate out --prompt --top", "records s --out f", "--to"])
def test_other_words_stay_as_they_are(text: str) -> None:
    assert current(text.split()) == (text.split(), [])


def test_a_command_with_earlier_names_does_the_same(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("generate", model, "--prompt", 1, "--to", tmp_path / "a.png")
    assert ended.status == 0 and (tmp_path / "a.png").is_file() and "is now called --out" in ended.err
    layer = "transformer_blocks.0.attn1.to_q"
    old, new = (run("inspect", model, option, layer) for option in ("--options", "--details"))
    assert old.status == new.status == 0 and old.out == new.out and "--details LAYER" in old.err and not new.err
    old = run("inspect", model, "--options", layer, "--set", "uaq-4")
    new = run("inspect", model, "--details", layer, "--options", "uaq-4")
    assert old.status == new.status == 0 and old.out == new.out and "uaq-4" in new.out and "row-4" not in new.out


def test_an_option_has_one_default_in_all_commands() -> None:
    """But where it names what is written, no size stands for several, or no number of configurations for none."""
    found: dict[str, set[str]] = {}
    for command in typer.main.get_command(cli.app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                for name in parameter.opts if parameter.param_type_name == "option" else ():
                    found.setdefault(name, set()).add(str(parameter.default))
    several = {name for name, defaults in found.items() if len(defaults) > 1}
    assert several == {"--out", "--format", "--bits", "--configurations"}
