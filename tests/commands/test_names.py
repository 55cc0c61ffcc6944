"""Names with brackets, spaces and quotes are printed as they are; commands can be copied into a shell."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from tests.commands.conftest import FEW_STEPS

ODD = "it's [red] my [/red] :smile: model"


@pytest.fixture
def odd(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model, tmp_path / ODD / "model")
    return tmp_path / ODD


def next_command(text: str) -> list[str]:
    found = re.search(r"Next: (.*)$", text, re.MULTILINE)
    assert found is not None, text
    return shlex.split(found[1].partition(", or ")[0])  # the first of several


def test_odd_names_are_printed_as_they_are_and_commands_can_be_repeated(run, refused, odd: Path) -> None:  # type: ignore[no-untyped-def]
    little = ("--arguments", FEW_STEPS, "--images", 2, "--observe", 2, "--options", "row-2,row-4", "--dtype", "bf16")
    made = run("init", odd / "model", odd / "s", "--prompt", 1, *little)
    assert made.status == 0 and str(odd / "s" / "study.yaml") in made.out
    assert yaml.safe_load((odd / "s" / "study.yaml").read_text())["dtype"] == "bf16"
    assert next_command(made.out) == ["qua2sedimo", "quick", str(odd / "s"), "--bits", "3.5"]
    chosen = run("quick", odd / "s", "--bits", 3)
    assert chosen.status == 0, chosen.err
    program, *words = next_command(chosen.out)
    assert program == "qua2sedimo" and words[:3] == ["export", str(odd / "s"), "OUT"]
    out = odd / "out [1]"
    written = run(*words[:2], out, *words[3:])
    assert written.status == 0 and str(out) in written.out
    assert str(odd / "none") in refused("inspect", odd / "none")
    message = refused("fit", odd / "s")
    assert f"`{shlex.join(['qua2sedimo', 'measure', str(odd / 's')])}`" in message


def test_a_file_in_the_place_of_a_folder_is_never_called_damaged(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("big [v1].safetensors", "model.ckpt", "notes.txt", "weights.gguf"):
        (tmp_path / name).write_bytes(b"\x93\x00\xff")
        for command in (("inspect", tmp_path / name), ("init", tmp_path / name, tmp_path / "s", "--prompt", 1)):
            message = refused(*command)
            assert name in message and "elete" not in message and "ove it away" not in message
    (weights,) = (model / "transformer").glob("*.safetensors")
    assert "belongs to the pipeline folder" in refused("inspect", weights)


def test_device_and_offloading_are_refused_by_commands_before_work_begins(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = tmp_path / "s"
    assert "needs an accelerator" in refused(
        "init", model, study, "--prompt", 1, "--offload", "model", "--device", "cpu"
    )
    assert "device: 'gpu' cannot be used" in refused("inspect", model, "--device", "gpu")
    assert "dtype: 'int3' is unknown" in refused("run", model, study, "--prompt", 1, "--dtype", "int3")
    assert not study.exists()
