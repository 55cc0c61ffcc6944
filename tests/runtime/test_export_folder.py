"""An export over what is there already: nothing of the user's is lost, and a kill leaves the old or the new one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.helpers import dit, packed, pipeline

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats import temporary
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.runtime import save_packed
from qua2sedimo.runtime.contents import check_contents, read_info


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return packed(dit(), tmp_path)


def test_what_the_user_added_to_an_export_is_carried_over(out: Path) -> None:
    (out / "README.md").write_text("mine")
    (out / ".git" / "objects").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("ref")
    (out / "lora").mkdir()
    (out / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"lora")
    (out / "link").symlink_to("README.md")
    (out / "broken").symlink_to("nowhere")
    packed(dit(), out.parent)
    assert (out / "README.md").read_text() == "mine" and (out / ".git" / "HEAD").read_text() == "ref"
    assert (out / ".git" / "objects").is_dir()
    assert (out / "lora" / "pytorch_lora_weights.safetensors").read_bytes() == b"lora"
    assert (out / "link").readlink() == Path("README.md") and (out / "broken").readlink() == Path("nowhere")
    check_contents(out)
    assert names(out.parent) == ["out"]


def test_what_the_user_changed_in_an_export_is_not_overwritten(out: Path) -> None:
    config = out / "config.json"
    config.write_text(config.read_text() + "\n")
    before = contents(out)
    with pytest.raises(Qua2SeDiMoError, match=r"config\.json was changed since it was exported"):
        packed(dit(), out.parent)
    assert contents(out) == before


def test_a_file_in_the_place_of_one_of_the_export_is_not_overwritten(tmp_path: Path) -> None:
    out = packed(dit(), tmp_path)  # a denoiser alone
    (out / "model_index.json").write_text("mine")
    with pytest.raises(Qua2SeDiMoError, match=r"model_index\.json was not written by an export"):
        save_packed(pipeline(dit()), None, {}, out)
    assert (out / "model_index.json").read_text() == "mine"
    check_contents(out)


def test_an_export_of_an_earlier_version_is_not_overwritten(out: Path) -> None:
    info = json.loads((out / "qua2sedimo.json").read_text())
    (out / "qua2sedimo.json").write_text(json.dumps({k: v for k, v in info.items() if k not in ("files", "checksum")}))
    check_contents(out)  # but it can be used
    with pytest.raises(Qua2SeDiMoError, match="by an earlier version"):
        packed(dit(), out.parent)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_change_in_any_component_is_noticed(tmp_path: Path, name: str) -> None:
    save_packed(pipeline(dit()), None, {}, tmp_path / "out")
    check_contents(tmp_path / "out")
    path = tmp_path / "out" / name
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Qua2SeDiMoError, match=name):
        check_contents(tmp_path / "out")
    path.unlink()
    with pytest.raises(Qua2SeDiMoError, match=name):
        check_contents(tmp_path / "out")


def test_a_change_in_the_list_itself_is_noticed(out: Path) -> None:
    text = (out / "qua2sedimo.json").read_text()
    (out / "qua2sedimo.json").write_text(re.sub(r'("weights": \d)', r"\g<1>0", text))
    with pytest.raises(Qua2SeDiMoError, match="checksum differs"):
        read_info(out)


_KILLED = """
import os, sys
from pathlib import Path
from tests.runtime.helpers import dit, packed
from qua2sedimo.formats import temporary
from qua2sedimo.runtime import checkpoint

step, exchange = int(sys.argv[2]), sys.argv[3] == "exchange"
if not exchange:
    temporary._exchanged = lambda a, b: False
at = 0

def counted(event, args):
    global at
    if event in ("open", "os.rename", "os.mkdir", "os.link", "os.chmod", "os.rmdir", "os.remove"):
        if "/out" in str(args[0]) or ".qua2sedimo-" in str(args[0]):
            at += 1
            if at == step:
                os._exit(9)

model = dit()
sys.addaudithook(counted)
packed(model, Path(sys.argv[1]))
print(at)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "rename"])
def test_a_kill_at_any_step_leaves_the_old_export_or_the_new_one(tmp_path: Path, how: str) -> None:
    def go(step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(tmp_path), str(step), how]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out = packed(dit(), tmp_path)
    (out / "README.md").write_text("mine")
    done = go(0)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    for step in range(1, steps + 1, max(1, steps // 6)):
        assert go(step).returncode == 9
        if not out.exists():  # only where names cannot be exchanged; the next command puts it back
            assert how == "rename"
            clear_leftovers(tmp_path)
        check_contents(out)
        assert (out / "README.md").read_text() == "mine"
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["out"]


def test_without_exchange_an_export_moved_aside_goes_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill between the two renames leaves it, on systems that cannot exchange names."""
    whole = contents(out)
    left = out.parent / ".qua2sedimo-0123456789abcdef.tmp"
    (left / "displaced").mkdir(parents=True)
    out.rename(left / "displaced" / "out")
    clear_leftovers(out.parent)
    assert contents(out) == whole and names(out.parent) == ["out"]
    monkeypatch.setattr(temporary, "_exchanged", lambda a, b: False)
    packed(dit(), out.parent)
    check_contents(out)
    assert names(out.parent) == ["out"]


def test_an_export_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_packed(pipeline(dit()), None, {}, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert modes == {"0o640"}
