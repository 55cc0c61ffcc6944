"""A tiny study in every state, and commands run on copies of it in processes that can be killed."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tests.conftest import small_pipeline
from tests.study.test_text_encoders import tiny

from qua2sedimo import cli
from qua2sedimo.commands import start
from qua2sedimo.measuring import replay
from safety_study import TEMPORARY

BITS, OTHER = "3.6", "3.2"
start._everything.__defaults__ = (8, *(start._everything.__defaults__ or ())[1:])  # images that `run` compares, not 96
#: Seconds after which a command counts as one that does not end, on a machine that is not busy otherwise.
PATIENCE = 240.0
_PDEATHSIG, _NEW_MOUNTS = 1, 0x20000  # of prctl and unshare
ONE_STEP = '{"num_inference_steps": 1, "guidance_scale": 1.0}'
_SIZES = ("--images", "2", "--observe", "2", "--batch", "2")
_LABELS = ("--prompt", "1", "--prompt", "2", "--arguments", ONE_STEP, "--options", "uaq-2,uaq-4,kmeans_a-3", *_SIZES)
_TEXTS = ("--prompt", "a red fox", "--component", "transformer", "--component", "text_encoder", *_SIZES, "--options",
          "row-2,row-4", "--keep", "transformer.transformer_blocks*", "--keep", "*layers.1*", "--keep", "*embed*",
          "--arguments", '{"num_inference_steps": 1, "height": 16, "width": 16}')  # fmt: skip
_FOREIGN = ("--choice", "uaq", "--any-size", "--format")
_FINE = ("export", "model", "out-fine", "--choice")
#: The study's commands by name; each begins in a state, and changes it.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "init": ("empty", ("init", "model", "study", *_LABELS)),
    "run": ("empty", ("run", "model", "study", "--effort", "quick", "--bits", "3.0", *_LABELS)),
    "observe": ("new", ("observe", "study")),
    "quantize": ("observed", ("quantize", "study")),
    "measure": ("bank", ("measure", "study", "--configurations", "20")),
    "fit": ("measured", ("fit", "study")),
    "explain": ("fitted", ("explain", "study")),
    "search": ("bank", ("search", "study", "--bits", BITS, "--image-budget", "110")),
    "choose": ("fitted", ("choose", "study", "--bits", OTHER, "--candidates", "3")),
    "frontier": ("bank", ("frontier", "study", "--fresh-images", "2")),
    "quick": ("bank", ("quick", "study", "--bits", "3.0")),
    "polish": ("chosen", ("polish", "study", OTHER)),
    "export": ("chosen", ("export", "study", "out", "--choice", OTHER)),
    "export --format sdnq": ("chosen", ("export", "study", "out-sdnq", *_FOREIGN, "sdnq")),
    "export --format diffusers": ("chosen", ("export", "study", "out-plain", *_FOREIGN, "diffusers")),
    "export --format gguf": ("chosen", ("export", "study", "out.gguf", *_FOREIGN, "gguf")),
    "export MODEL --choice FILE": ("chosen", (*_FINE, f"study/choices/{OTHER}.json")),
    "report": ("chosen", ("report", "study", "--bits", BITS, "--fresh-images", "8")),
    "figures": ("reported", ("figures", "study")),
    "card": ("reported", ("card", "out", "--study", "study", "--force")),
    "evaluate": ("chosen", ("evaluate", "out", "--base", "model", "--fresh-images", "2")),
    "generate": ("chosen", ("generate", "out", "--prompt", "1", "--out", "pictures")),
    "recipe": ("chosen", ("recipe", "study", "recipe.json", "--choice", "uaq")),
    "records": ("measured", ("records", "study", "--out", "records.csv")),
    "plan": ("bank", ("plan", "study", "--configurations", "30")),
    "inspect": ("empty", ("inspect", "model", "--graph", "graph.svg")),
    "quick, with text encoders": ("texts new", ("quick", "study", "--bits", "3.0")),
    "export, with text encoders": ("texts", ("export", "study", "out", "--choice", "3.0")),
}  # fmt: skip
#: Those that take long are tried less often.
SLOW = ("quick, with text encoders", "run")
#: Commands that only make a state complete.
_MORE: dict[str, tuple[str, ...]] = {
    "first export": ("export", "study", "out", "--choice", BITS),
    "a choice for recipes": ("choose", "study", "--bits", "3.9", "--methods", "uaq", "--candidates", "1"),
    "init with text encoders": ("init", "model", "study", *_TEXTS),
}
#: Each state: the one before, and the commands that lead from there.
_PATH: dict[str, tuple[str, tuple[str, ...]]] = {
    "new": ("empty", ("init",)), "observed": ("new", ("observe",)), "bank": ("observed", ("quantize",)),
    "measured": ("bank", ("measure",)), "fitted": ("measured", ("fit",)),
    "chosen": ("fitted", ("search", "choose", "frontier", "first export", "a choice for recipes")),
    "reported": ("chosen", ("report", "export --format sdnq", "export --format diffusers", "evaluate")),
    "texts new": ("texts empty", ("init with text encoders",)),
    "texts": ("texts new", ("quick, with text encoders", "export, with text encoders")),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: killed by that signal), its output, its seconds on the clock, and
    those of the processor."""

    status: int
    output: str
    seconds: float
    cpu: float

    @property
    def refused(self) -> bool:
        """Whether it ended with an error of the program's own."""
        return self.status == 1 and "error: " in self.output and "Traceback" not in self.output

    @property
    def usage(self) -> bool:
        """Whether it was refused as a command line."""
        return self.status == 2 and "Traceback" not in self.output


class Child:
    """A command in a process of its own, forked from this one: nothing is imported again. It dies with this one."""

    def __init__(
        self,
        place: Path,
        words: Sequence[str],
        prepare: Callable[[], object] = lambda: None,
        patience: float = PATIENCE,
    ) -> None:
        self._log = place.parent / f"{place.name}.{time.monotonic_ns()}.log"
        self._began, self._patience = time.monotonic(), patience
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(place, words, prepare)

    def _become(self, place: Path, words: Sequence[str], prepare: Callable[[], object]) -> None:
        status = 99
        try:
            os.setsid()
            die_with_parent()
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(place)
            (place / TEMPORARY).mkdir(exist_ok=True)
            os.environ["COLUMNS"] = "200"
            sys.argv = ["qua2sedimo", *words]
            if "--workers" in words:
                os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own is 15
            else:  # Ray's processes are others, and its paths must be short
                os.environ["TMPDIR"] = str(place / TEMPORARY)
                replay.subprocess = _Forking  # type: ignore[assignment]
            prepare()
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def kill_after(self, seconds: float) -> Ended:
        """Let it run so long, then kill it if it has not ended."""
        until = self._began + seconds
        while time.monotonic() < until and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(min(0.002, max(0.0, until - time.monotonic())))
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def ended(self) -> Ended:
        """Wait for its end; one that does not end in time is killed with its own processes, and said to have not
        ended."""
        late = ""
        while (found := os.wait4(self.pid, os.WNOHANG))[0] == 0:
            waited = time.monotonic() - self._began
            if not late and waited > self._patience and waited > self._patience * _busy():
                os.killpg(self.pid, signal.SIGKILL)
                late = f"\nTraceback: not ended after {waited:.0f} s"
            time.sleep(0.005)
        seconds = time.monotonic() - self._began
        output = self._log.read_text(errors="replace") if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        cpu = found[2].ru_utime + found[2].ru_stime
        return Ended(os.waitstatus_to_exitcode(found[1]), output + late, seconds, cpu)


class _Forking:
    """In place of the module subprocess where images are generated anew: Python is forked, not started again."""

    @staticmethod
    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_with_parent()
                os.dup2(writing, 2)
                sys.argv = list(command[2:])
                replay.main()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as said:
            errors = said.read()
        return subprocess.CompletedProcess(list(command), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "", errors)


def _busy() -> float:
    """How many processes want each core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def die_with_parent() -> None:
    """On Linux, this process is killed when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def own_mounts() -> bool:
    """Whether what this process and its children mount from now on is seen by them alone: the system takes it away when
    they end, however they end."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        return False
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        return False
    return mounted("--make-rprivate", "/")


def mounted(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@dataclass
class Ground:
    """Folders with the tiny study in every state, and copies of them to work on.

    ``at``: who works here, since several may at the same time. ``mounts``: whether disks may be mounted.
    """

    work: Path
    mounts: bool = False
    at: int = 0

    def build(self) -> None:
        """Make all states, in this process where kernels are compiled for those forked later."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        torch.set_num_threads(1)
        for name, pipeline in (("empty", small_pipeline(classes=1000)), ("texts empty", tiny("FluxPipeline"))):
            pipeline.save_pretrained(self.work / name / "model")
            for path in (self.work / name / "model").rglob("*.safetensors"):
                path.chmod(0o644)  # the library makes them private
        for state, (before, commands) in _PATH.items():
            place = self.work / state
            shutil.copytree(self.work / before, place)
            for name in commands:
                ended = Child(place, _MORE.get(name) or COMMANDS[name][1]).ended()
                if ended.status != 0:
                    raise SystemExit(f"the tiny study cannot be made: {name}\n{ended.output}")
            if state == "texts new":  # else 64 prompts are encoded
                settings = place / "study" / "study.yaml"
                settings.write_text(settings.read_text().replace("observe_inputs: auto", "observe_inputs: [a dog]"))
            if state == "chosen":  # what a user has added to the export, and a choice that a recipe can hold
                (place / "out" / "NOTES.txt").write_text("mine")
                made = next(p for p in (place / "study" / "choices").glob("3.9-*.json"))
                shutil.copy(made, place / "study" / "choices" / "uaq.json")

    @cached_property
    def own(self) -> Path:
        """The folder for copies of this worker."""
        folder = self.work / f"at {self.at}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        return folder

    def copy(self, state: str, disk: bool = False) -> Path:
        """A copy of a state, to be thrown away by :meth:`drop`; with ``disk`` on a disk of its own.

        Its name is used again then: what is measured is told apart by the place of the model.
        """
        place = next(p for n in itertools.count(1) if not (p := self.own / f"case-{n}").exists())
        place.mkdir()
        if disk and not mounted("-t", "tmpfs", "-o", "size=1G", "none", str(place)):
            raise SystemExit(f"cannot mount a disk at {place}")
        shutil.copytree(self.work / state, place, symlinks=True, dirs_exist_ok=True)
        (place / TEMPORARY).mkdir(exist_ok=True)
        (place / TEMPORARY).chmod(0o777)
        return place

    def drop(self, place: Path) -> None:
        if os.path.ismount(place):
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(place, ignore_errors=True)

    def whole(self, place: Path, words: Sequence[str], prepare: Callable[[], object] = lambda: None) -> Ended:
        """A command that nothing happens to: what others are compared with."""
        ended = Child(place, words, prepare).ended()
        if ended.status != 0:
            raise RuntimeError(f"{words} fails by itself: {ended.output}")
        return ended

    def run(self, place: Path, words: Sequence[str], prepare: Callable[[], object] = lambda: None) -> Ended:
        return Child(place, words, prepare).ended()
