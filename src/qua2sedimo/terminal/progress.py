"""Progress of the stages: bars in a terminal; plain lines in a file, a pipe, or the log of a job.

Both go to stderr, so that tables and JSON on stdout can be piped.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qua2sedimo.errors import Stopped
from qua2sedimo.system.progress import Progress as Report
from qua2sedimo.system.progress import without_note
from qua2sedimo.terminal.console import errors

#: Longest silence, in seconds, where there is no terminal.
SILENCE = 60.0


@contextmanager
def progress() -> Iterator[Report]:
    """A function (done, total, what) that shows how far each stage is; Ctrl-C is raised as :class:`Stopped`."""
    with _bars() if errors.is_interactive else _lines() as report:
        try:
            yield report
        except KeyboardInterrupt:  # typer would turn it into "Aborted!"
            raise Stopped from None


@contextmanager
def _bars() -> Iterator[Report]:
    """One bar a stage."""
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # One configuration can take minutes: the time left is estimated from the last hour, not from 30 seconds.
    with Progress(*columns, console=errors, speed_estimate_period=3600) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            kind, description = without_note(what), f"{what:<36}"
            if kind not in tasks:
                tasks[kind] = bars.add_task(description, total=total)
            bars.update(tasks[kind], completed=done, total=total, description=description)

        yield report


@contextmanager
def _lines() -> Iterator[Report]:
    """Lines on stderr, also while a stage reports nothing."""
    lines = Lines(lambda line: print(line, file=sys.stderr, flush=True))
    ended = threading.Event()

    def keep_talking() -> None:
        while not ended.wait(lines.due):
            lines.remind()

    thread = threading.Thread(target=keep_talking, name="progress", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()
        lines.close()


@dataclass
class _Stage:
    """How far a stage is: ``first`` was done when it ``began``, ``done`` when it last ``changed``."""

    kind: str
    note: str
    began: float
    first: int
    done: int
    total: int
    changed: float

    @property
    def complete(self) -> bool:
        return self.done >= self.total

    def left(self, now: float) -> float | None:
        """Seconds until it is complete, at the mean speed so far; None if nothing was done yet."""
        if self.done == self.first:
            return None
        each = (self.changed - self.began) / (self.done - self.first)
        rest = self.total - self.done
        return max(each * rest - (now - self.changed), each * (rest - 1))  # what is being done may end at any moment


class Lines:
    """Progress as plain lines: one as a stage begins, one as it ends, and one a minute in between.

    ``remind`` is called by a thread: it repeats the last counts where a stage reports less than once a minute.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._began = self._wrote = clock()
        self._stages: dict[str, _Stage] = {}
        self._latest: _Stage | None = None
        self._shown: tuple[str, int] | None = None  # stage and count of the last line
        self._lock = threading.Lock()

    @property
    def due(self) -> float:
        """Seconds until the silence would be too long."""
        return max(0.0, self._wrote + SILENCE - self._clock())

    def __call__(self, done: int, total: int, what: str) -> None:
        with self._lock:
            now, kind = self._clock(), without_note(what)
            note = what[len(kind) :]
            stage = self._stages.get(kind)
            if stage is not None and stage.complete and done >= total:
                return
            begins = stage is None or stage.complete or done < stage.done
            if stage is None or begins:
                stage = self._stages[kind] = _Stage(kind, note, now, done, done, total, now)
            elif done != stage.done:
                stage.done, stage.changed = done, now
            stage.total, stage.note, self._latest = total, note, stage
            if begins or stage.complete or now >= self._wrote + SILENCE:
                self._say(stage, now)

    def remind(self) -> None:
        """Say where things stand if nothing was said for a minute."""
        with self._lock:
            now = self._clock()
            if now < self._wrote + SILENCE:
                return
            if self._latest is not None and not self._latest.complete:
                self._say(self._latest, now)
            else:
                self._put(f"still working, {duration(now - self._began)} so far", now)

    def close(self) -> None:
        """Say where stages ended that did not reach their last count: stopped early, interrupted, or failed."""
        with self._lock:
            for stage in (stage for stage in self._stages.values() if not stage.complete):
                spent = duration(stage.changed - stage.began)
                words = f"{stage.kind}: ended at {stage.done} of {stage.total}, {spent}"
                self._put(f"{words}{stage.note}", self._clock())

    def _say(self, stage: _Stage, now: float) -> None:
        spent, left = now - stage.began, stage.left(now)
        words = f"{stage.kind}: {stage.done} of {stage.total}"
        if stage.complete:
            words += f", done in {duration(spent)}" if stage.done > stage.first else ""
        else:
            waiting = spent > 0 and (left is None or self._shown == (stage.kind, stage.done))
            words += f", {duration(spent)} so far" if waiting else ""
            words += f", {duration(left)} left" if left is not None else ""
        self._shown = stage.kind, stage.done
        self._put(words + stage.note, now)

    def _put(self, line: str, now: float) -> None:
        self._wrote = now
        self._write(line)


def duration(seconds: float) -> str:
    """``95`` → ``1 min 35 s``; the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s"
