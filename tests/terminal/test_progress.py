"""Progress: a bar in a terminal, plain lines anywhere else, at least one a minute, none after the end."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from qua2sedimo.errors import Stopped
from qua2sedimo.terminal import progress as module
from qua2sedimo.terminal.progress import Lines, duration, progress


class Clock:
    """Seconds that pass only when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written() -> list[str]:
    return []


@pytest.fixture
def lines(clock: Clock, written: list[str]) -> Lines:
    return Lines(written.append, clock)


def test_a_stage_says_when_it_begins_and_when_it_ends(lines: Lines, clock: Clock, written: list[str]) -> None:
    for done in range(4):
        lines(done, 3, "quantizing layers")
        clock.now += 5
    lines(0, 2, "measuring configurations")
    lines(2, 2, "measuring configurations · best psnr 31.2")
    assert written == [
        "quantizing layers: 0 of 3",
        "quantizing layers: 3 of 3, done in 15.0 s",
        "measuring configurations: 0 of 2",
        "measuring configurations: 2 of 2, done in 0.0 s · best psnr 31.2",
    ]


def test_counts_and_time_left_once_a_minute(lines: Lines, clock: Clock, written: list[str]) -> None:
    for done in range(30, 101):
        lines(done, 100, f"measuring configurations · best psnr {done / 10}")
        clock.now += 6  # the 70 after the first 30, which were there already, take 7 minutes
    assert written[0] == "measuring configurations: 30 of 100 · best psnr 3.0"
    assert written[1] == "measuring configurations: 40 of 100, 6 min 0 s left · best psnr 4.0"
    assert written[-1] == "measuring configurations: 100 of 100, done in 7 min 0 s · best psnr 10.0"
    assert len(written) == 8


def test_a_slow_stage_is_repeated_with_the_time_it_has_taken(lines: Lines, clock: Clock, written: list[str]) -> None:
    lines(0, 3, "measuring")
    clock.now += 59
    lines.remind()
    assert len(written) == 1 and lines.due == pytest.approx(1)
    clock.now += 1
    lines.remind()
    clock.now += 540
    lines(1, 3, "measuring")
    clock.now += 120
    lines.remind()
    assert written[1:] == [
        "measuring: 0 of 3, 1 min 0 s so far",
        "measuring: 1 of 3, 20 min 0 s left",
        "measuring: 1 of 3, 12 min 0 s so far, 18 min 0 s left",
    ]


def test_time_left_is_never_below_what_is_left_after_this_one(lines: Lines, clock: Clock, written: list[str]) -> None:
    lines(0, 3, "measuring")
    clock.now += 100
    lines(1, 3, "measuring")
    clock.now += 1000
    lines.remind()
    assert written[-1].endswith("1 min 40 s left")


def test_work_between_stages_is_not_silent(lines: Lines, clock: Clock, written: list[str]) -> None:
    clock.now += 60
    lines.remind()
    lines(1, 1, "exporting")
    clock.now += 60
    lines.remind()
    assert written == [
        "still working, 1 min 0 s so far",
        "exporting: 1 of 1",
        "still working, 2 min 0 s so far",
    ]


def test_a_stage_that_stops_early_is_closed_and_one_that_begins_again_is_a_new_one(
    lines: Lines, clock: Clock, written: list[str]
) -> None:
    lines(0, 200, "fitting")
    clock.now += 20
    lines(150, 200, "fitting")
    clock.now += 30
    lines(2, 2, "measuring")
    lines(2, 2, "measuring")  # said already
    lines(2, 5, "measuring")  # more are wanted
    lines(5, 5, "measuring")
    lines.close()
    assert written == [
        "fitting: 0 of 200",
        "measuring: 2 of 2",
        "measuring: 2 of 5",
        "measuring: 5 of 5, done in 0.0 s",
        "fitting: ended at 150 of 200, 20.0 s",
    ]


SCRIPT = """
import sys, time
import qua2sedimo.terminal.progress as module
module.SILENCE = 0.2
print("table")
with module.progress() as report:
    report(0, 2, "measuring configurations")
    time.sleep(1.5)
    report(2, 2, "measuring configurations · best psnr 30")
time.sleep(0.6)
print("after", file=sys.stderr, flush=True)
"""


def test_a_process_whose_output_is_a_file_reports_as_it_goes(tmp_path: Path) -> None:
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    with out.open("w") as output, err.open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=output, stderr=log)
        until = time.monotonic() + 120
        while "so far" not in err.read_text() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, err.read_text()  # a line was there before the stage had ended
        assert process.wait(120) == 0
    text = err.read_bytes()
    assert b"\r" not in text and b"\x1b" not in text
    first, *between, last, after = text.decode().splitlines()
    assert first == "measuring configurations: 0 of 2" and len(between) >= 2
    assert all("0 of 2, " in line and line.endswith(" s so far") for line in between)
    assert "2 of 2, done in " in last and last.endswith(" · best psnr 30") and after == "after"
    assert out.read_text() == "table\n"


@pytest.mark.parametrize(("raised", "expected"), [(ValueError, ValueError), (KeyboardInterrupt, Stopped)])
def test_an_exception_ends_the_reminders_with_the_last_counts(
    raised: type[BaseException], expected: type[BaseException], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "SILENCE", 0.05)
    with pytest.raises(expected), progress() as report:
        report(1, 2, "measuring")
        raise raised
    assert not any(thread.name == "progress" for thread in threading.enumerate())
    before = capsys.readouterr()
    time.sleep(0.2)
    said = before.err.splitlines()
    assert said[0] == "measuring: 1 of 2" and said[-1] == "measuring: ended at 1 of 2, 0.0 s" and before.out == ""
    assert capsys.readouterr().err == ""


def test_in_a_terminal_there_is_a_bar_and_no_thread_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(module, "errors", Console(file=screen, force_terminal=True, force_interactive=True, width=120))
    with progress() as report:
        report(1, 4, "measuring [odd] · best psnr 30")
        assert not any(thread.name == "progress" for thread in threading.enumerate())
        report(4, 4, "measuring [odd] · best psnr 31")
    assert "measuring [odd] · best psnr 31" in screen.getvalue() and "4/4" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (95, "1 min 35 s"), (3661, "1 h 1 min"), (3600 * 47.5, "47 h 30 min"), (3600 * 75, "3 d 3 h")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
