"""A tiny study in every state, commands run on copies of it in processes that can be killed, and what a study holds."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import small_pipeline  # noqa: E402

from qua2sedimo import cli  # noqa: E402
from qua2sedimo.records import Records  # noqa: E402

BITS, OTHER = "3.6", "3.2"
#: How a case may end.
EXPECTED, REFUSED, WRONG = "as expected", "clear error", "wrong"
#: Seconds after which a command counts as one that does not end.
PATIENCE = 600
ONE_STEP = '{"num_inference_steps": 1, "guidance_scale": 1.0}'
#: The study's commands by name; each begins in a state, and changes it.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "init": ("empty", ("init", "model", "study", "--prompt", "1", "--prompt", "2", "--arguments", ONE_STEP, "--options",
                       "uaq-2,uaq-4,kmeans_a-3", "--images", "2", "--observe", "2", "--batch", "2")),
    "run": ("empty", ("run", "model", "study", "--effort", "quick", "--bits", "3.0", "--prompt", "1", "--prompt", "2",
                      "--arguments", ONE_STEP, "--options", "uaq-2,uaq-4,kmeans_a-3", "--images", "2", "--observe", "2",
                      "--batch", "2")),
    "observe": ("new", ("observe", "study")),
    "quantize": ("observed", ("quantize", "study")),
    "measure": ("bank", ("measure", "study", "--configurations", "20")),
    "fit": ("measured", ("fit", "study")),
    "explain": ("fitted", ("explain", "study")),
    "search": ("bank", ("search", "study", "--bits", BITS, "--images", "110")),
    "choose": ("fitted", ("choose", "study", "--bits", OTHER, "--candidates", "3")),
    "frontier": ("bank", ("frontier", "study", "--images", "2")),
    "quick": ("bank", ("quick", "study", "--bits", "3.0")),
    "polish": ("chosen", ("polish", "study", OTHER)),
    "export": ("chosen", ("export", "study", "out", "--choice", OTHER)),
    "report": ("chosen", ("report", "study", "--bits", BITS, "--images", "8")),
    "figures": ("reported", ("figures", "study")),
    "card": ("reported", ("card", "out", "--study", "study", "--force")),
    "evaluate": ("chosen", ("evaluate", "out", "--base", "model", "--images", "2")),
    "generate": ("chosen", ("generate", "out", "--prompt", "1", "--to", "pictures")),
    "recipe": ("chosen", ("recipe", "study", "recipe.json", "--choice", "uaq")),
    "records": ("measured", ("records", "study", "--out", "records.csv")),
    "plan": ("bank", ("plan", "study", "--configs", "30")),
}  # fmt: skip
#: From each state to the next.
_PATH = {
    "new": ("init",), "observed": ("observe",), "bank": ("quantize",), "measured": ("measure",), "fitted": ("fit",),
    "chosen": ("search", "choose", "frontier", "export-first"), "reported": ("report",),
}  # fmt: skip
_FIRST_EXPORT = ("export", "study", "out", "--choice", BITS)
#: Of what is compared: no seconds, no versions, nothing that only says when.
_PASSING = ("seconds", "peak_memory", "host", "worker", "id", "seal", "attempts")


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
    """A command in a process of its own, forked from this one: nothing is imported or compiled again."""

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
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(place)
            os.environ["COLUMNS"] = "200"
            sys.argv = ["qua2sedimo", *words]
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
        """Wait for its end; one that does not end in time is killed, and has the status −9 and says so."""
        until, late = self._began + self._patience, ""
        while (found := os.wait4(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                late, until = f"\nTraceback: not ended after {self._patience} s", float("inf")
            time.sleep(0.005)
        seconds = time.monotonic() - self._began
        output = self._log.read_text(errors="replace") if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        cpu = found[2].ru_utime + found[2].ru_stime
        return Ended(os.waitstatus_to_exitcode(found[1]), output + late, seconds, cpu)


class Ground:
    """Folders with the tiny study in every state, and copies of them to work on."""

    def __init__(self, work: Path) -> None:
        self.work = work
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        torch.set_num_threads(1)
        empty = work / "empty"
        empty.mkdir()
        small_pipeline(classes=1000).save_pretrained(empty / "model")
        for path in (empty / "model").rglob("*.safetensors"):
            path.chmod(0o644)  # the library makes them private

    def build(self) -> None:
        """Make all states, in this process where kernels are compiled for those forked later."""
        before = "empty"
        for state, commands in _PATH.items():
            place = self.work / state
            shutil.copytree(self.work / before, place)
            for name in commands:
                words = _FIRST_EXPORT if name == "export-first" else COMMANDS[name][1]
                ended = Child(place, words).ended()
                if ended.status != 0:
                    raise SystemExit(f"the tiny study cannot be made: {name}\n{ended.output}")
            if state == "chosen":
                self._with_extras(place)
            before = state

    def _with_extras(self, place: Path) -> None:
        """What a user has added to the export, and a choice that a recipe can hold."""
        (place / "out" / "NOTES.txt").write_text("mine")
        words = ("choose", "study", "--bits", "3.9", "--methods", "uaq", "--candidates", "1")
        ended = Child(place, words).ended()
        if ended.status != 0:
            raise SystemExit(ended.output)
        made = next(p for p in (place / "study" / "choices").glob("3.9-*.json"))
        shutil.copy(made, place / "study" / "choices" / "uaq.json")

    def copy(self, state: str, to: Path | None = None) -> Path:
        """A copy of a state, to be thrown away by :meth:`drop`.

        Its name is used again then: what is measured is told apart by the place of the model.
        """
        parent = to or self.work
        place = next(p for n in itertools.count(1) if not (p := parent / f"case-{n}").exists())
        shutil.copytree(self.work / state, place, symlinks=True)
        return place

    def drop(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)

    def run(self, place: Path, words: Sequence[str], prepare: Callable[[], object] = lambda: None) -> Ended:
        return Child(place, words, prepare).ended()


@dataclass
class Tally:
    """Cases of one kind by command: how often each end was seen, and what was wrong."""

    kind: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, command: str, end: str, note: str = "") -> None:
        row = self.counts.setdefault(command, {EXPECTED: 0, REFUSED: 0, WRONG: 0})
        row[end] += 1
        if end == WRONG:
            self.wrong.append(f"{self.kind}: {command}: {note}")
            print(f"  wrong: {self.wrong[-1][:2000]}", flush=True)


def steps_of(place: Path, at: int, count_to: Path | None = None) -> Callable[[], None]:
    """A preparation: the process counts what it does to files in ``place``, and kills itself at number ``at``.

    With ``count_to`` it writes the number there whenever it has ended, and is never killed.
    """
    events = {"open", "os.rename", "os.mkdir", "os.link", "os.chmod", "os.rmdir", "os.remove", "sqlite3.connect"}

    def prepare() -> None:
        seen = 0
        here = str(place)

        def counted(event: str, details: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in events or not details:
                return
            name = os.fsdecode(details[0]) if isinstance(details[0], (str, bytes, os.PathLike)) else ""
            if not (name.startswith(here) or not name.startswith("/")):
                return
            seen += 1
            if seen == at and count_to is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(counted)
        if count_to is not None:
            whole = os._exit

            def leave(status: int) -> None:
                count_to.write_text(str(seen))
                whole(status)

            os._exit = leave  # type: ignore[assignment]

    return prepare


def noting(log: Path) -> Callable[[], None]:
    """A preparation: every measurement that was recorded is also noted in ``log``."""

    def prepare() -> None:
        add = Records.add

        def added(self: Records, record: Any) -> None:
            add(self, record)
            m = record.measurement
            line = json.dumps([record.role, record.configuration.digest, m.start, m.images])
            with log.open("a") as file:
                file.write(line + "\n")

        Records.add = added  # type: ignore[method-assign]

    return prepare


def rows(place: Path) -> list[dict[str, Any]]:
    """The records of a study without what differs from run to run."""
    path = place / "study" / "records.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        try:
            found = [dict(row) for row in db.execute("SELECT * FROM measurements ORDER BY role, number, first_image")]
        except sqlite3.DatabaseError as error:
            return [{"error": str(error)}]
    return [{k: v for k, v in row.items() if k not in _PASSING} for row in found]


def essence(place: Path, numbers: bool = True) -> dict[str, Any]:
    """All that a place holds, by file, in a form that equal runs have in common.

    Without ``numbers``, records are a set: which came first does not matter.
    """
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_symlink() or not path.is_file() or name.endswith((".db", ".db-wal", ".db-shm")):
            continue
        found[name] = _content(path, name)
    measured = rows(place)
    if not numbers:
        measured = sorted(({**row, "number": 0} for row in measured), key=lambda row: json.dumps(row, default=str))
    found["records"] = measured
    return found


def _content(path: Path, name: str) -> Any:
    if path.suffix == ".json":
        with suppress(ValueError):  # one that was damaged has its bytes compared
            return _lasting(json.loads(path.read_text()))
    if name.endswith("checksums.jsonl"):
        return sorted(set(path.read_bytes().splitlines()))
    if name.endswith("study.yaml"):
        return path.read_text().split("case-")[0]  # all before the model's place
    if path.suffix in (".html", ".md", ".csv", ".svg", ".png", ".pdf", ".lock"):
        return "there" if path.stat().st_size else "empty"
    found = hashlib.sha256()
    if path.suffix == ".safetensors":
        with suppress(SafetensorError):  # the order of entries in its metadata is random
            for key, tensor in sorted(load_file(path).items()):
                found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            return found.hexdigest()
    found.update(path.read_bytes())
    return found.hexdigest()


def _lasting(content: Any) -> Any:
    """JSON without seconds, checksums of files that hold seconds, and times."""
    if isinstance(content, dict):
        left_out = ("checksum", "seconds", "made", "date", "time", "files")
        return {k: _lasting(v) for k, v in content.items() if k not in left_out}
    return [_lasting(v) for v in content] if isinstance(content, list) else repr(content)


def leftovers(place: Path) -> list[str]:
    """What a dead process left."""
    return [
        p.relative_to(place).as_posix()
        for p in place.rglob(".*")
        if p.name.startswith(".qua2sedimo") or "tmp" in p.name
    ]


def unequal(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
