"""What commands read: files that were damaged or replaced by anything, and arguments that are rubbish."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.commands.test_rubbish import COMMANDS as LINES
from tests.commands.test_rubbish import RUBBISH, line_with
from tests.formats.test_rubbish import BOMB, TEXTS

from safety_ground import BITS, EXPECTED, OTHER, REFUSED, WRONG, Ended, Ground, Tally, essence, unequal

# Damage -------------------------------------------------------------------------------------------------------------

#: By the beginning of a file's name: the commands that read it.
_READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "study/study.yaml": (("explain", "study"), ("export", "study", "new", "--choice", OTHER)),
    "study/graph.json": (("explain", "study"), ("export", "study", "new", "--choice", OTHER)),
    "study/batch.json": (("measure", "study", "--configurations", "22"),),
    "study/bank/": (("export", "study", "new", "--choice", OTHER), ("measure", "study", "--configurations", "22")),
    "study/statistics/": (("observe", "study"), ("quick", "study", "--bits", "3.0")),
    "study/records.db": (("records", "study", "--format", "json"), ("fit", "study"),
                         ("frontier", "study", "--images", "2")),
    "study/predictor/": (("explain", "study"), ("choose", "study", "--bits", "3.4", "--candidates", "1")),
    "study/choices/": (("export", "study", "new", "--choice", OTHER), ("export", "study", "new", "--choice", BITS),
                       ("diff", f"study/choices/{BITS}.json", f"study/choices/{OTHER}.json")),
    "study/search/": (("search", "study", "--bits", BITS, "--images", "110"),),
    "study/reference/": (("measure", "study", "--configurations", "22"),),
    "study/sensitivity": (("explain", "study"), ("report", "study", "--bits", BITS, "--images", "8")),
    "study/frontier.json": (("export", "study", "new", "--point", "4"),),
    "study/comparison/": (("report", "study", "--bits", BITS, "--images", "8"),),
    "out/": (("generate", "out", "--prompt", "1", "--to", "new"),
             ("evaluate", "out", "--base", "model", "--images", "2")),
}  # fmt: skip
_DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit": lambda raw, chance: _changed(raw, chance.randrange(len(raw)), lambda b: b ^ (1 << chance.randrange(8))),
    "a byte": lambda raw, chance: _changed(
        raw, chance.randrange(len(raw)), lambda b: (b + chance.randint(1, 255)) % 256
    ),
    "cut": lambda raw, chance: raw[: chance.randrange(len(raw))],
    "zeros": lambda raw, chance: _zeroed(raw, chance.randrange(len(raw))),
    "longer": lambda raw, chance: raw + chance.randbytes(chance.randint(1, 40)),
    "empty": lambda raw, chance: b"",
}


def _changed(raw: bytes, at: int, change: Callable[[int], int]) -> bytes:
    return raw[:at] + bytes([change(raw[at])]) + raw[at + 1 :]


def _zeroed(raw: bytes, at: int) -> bytes:
    end = min(len(raw), at + 64)
    return raw[:at] + bytes(end - at) + raw[end:]


def damage(ground: Ground, tally: Tally, each: int, share: float, chance: random.Random) -> None:
    """Change a share of the files of a finished study at random places: commands that read them give the same, or name
    the file.

    A setting that was changed into another one in study.yaml, which people write, is no damage.
    """
    place = ground.copy("reported")
    files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    same = {
        words: _answers(ground, words, "reported", None, b"") for words in {w for of in _READERS.values() for w in of}
    }
    for name in files:
        start = next((s for s in _READERS if name.startswith(s)), None)
        if start is None or chance.random() > share:
            continue
        raw = (place / name).read_bytes()
        for kind in chance.sample(sorted(_DAMAGES), min(each, len(_DAMAGES))):
            bad = _DAMAGES[kind](raw, chance)
            if bad != raw:
                _tell(ground, tally, start, name, f"{name}: {kind}", bad, same)
    ground.drop(place)


def _tell(
    ground: Ground, tally: Tally, start: str, name: str, note: str, bad: bytes, same: dict[tuple[str, ...], Any]
) -> None:
    """Run the readers of a damaged file one after the other, until one of them names it."""
    for words in _READERS[start]:
        ended, found = _answers(ground, words, "reported", name, bad)
        parts = Path(name).parts
        if ended.refused:
            named = parts[-1].removesuffix("-wal") in ended.output or (len(parts) > 2 and parts[1] in ended.output)
            tally.add(start, REFUSED if named else WRONG, f"{note}: {words[0]} does not name it: {ended.output[-600:]}")
            return
        if ended.status != 0:
            tally.add(start, WRONG, f"{note}: {words[0]}: {ended.output[-1500:]}")
            return
        if differs := set(unequal(found, same[words][1])) - {name}:
            if start == "study/study.yaml":
                continue
            tally.add(start, WRONG, f"{note}: {words[0]} gave something else: {sorted(differs)[:6]}")
            return
    tally.add(start, EXPECTED)


def _answers(ground: Ground, words: tuple[str, ...], state: str, name: str | None, bad: bytes) -> tuple[Ended, Any]:
    """How a command ends where a file holds ``bad``, what it prints, and what it writes that is new or measured."""
    place = ground.copy(state)
    if name is not None:
        (place / name).write_bytes(bad)
    _forget(place, words)
    ended = ground.run(place, words)
    held = essence(place) if ended.status == 0 else {}
    wanted = (
        "new/",
        "records",
        f"study/choices/{BITS}.json",
        "study/choices/3.0",
        "study/choices/3.4",
        "study/table.json",
    )
    found = {key: value for key, value in held.items() if key.startswith(wanted)}
    if words[0] in ("records", "explain", "diff"):
        found["printed"] = ended.output
    ground.drop(place)
    return ended, found


# Rubbish ------------------------------------------------------------------------------------------------------------

#: Seconds of the processor, and on the clock, in which rubbish is refused; a port where nobody answers has 20 s alone.
_CPU, _CLOCK = 1.5, 60.0


def arguments(ground: Ground, tally: Tally, each: int, chance: random.Random) -> None:
    """Rubbish for every parameter of every command: accepted where it makes sense, or refused at once."""
    places = {"model": "model", "study": "study", "out": "out", "folder": "folder", "a": "file", "b": "file",
              "name": "3.2", "choice": OTHER, "FIFO": "fifo", "FOLDER": "folder", "FILE": "file"}  # fmt: skip
    texts = [text for text in RUBBISH if not any("\ud800" <= c <= "\udfff" for c in text)]
    for name, command in sorted(LINES.items()):
        if name == "demo":
            continue
        for parameter in command.params:
            for value in chance.sample(texts, each):
                words = (name, *line_with(command, parameter, places.get(value, value), places))
                place = ground.copy("reported")
                os.mkfifo(place / "fifo")
                (place / "folder").mkdir()
                (place / "file").write_text("mine")
                _refused(tally, name, ground.run(place, words), f"{parameter.name}={value[:50]!r}")
                if (place / "file").read_text() != "mine":
                    tally.add(name, WRONG, f"{parameter.name}={value[:50]!r} changed a file that is not its own")
                ground.drop(place)


def _refused(tally: Tally, name: str, ended: Ended, note: str) -> None:
    """A command that was fed rubbish, and must have ended well, or with an error at once."""
    bad = ended.status and not (ended.refused or ended.usage)
    late = ended.status and (ended.cpu > _CPU or ended.seconds > _CLOCK)
    note = f"{note}: {ended.status} after {ended.cpu:.1f} s of {ended.seconds:.1f} s {ended.output[-900:]}"
    tally.add(name, WRONG if bad or late else REFUSED if ended.status else EXPECTED, note)


def documents(ground: Ground, tally: Tally, count: int, chance: random.Random) -> None:
    """Documents of a study replaced by rubbish, a pipe, a device or a folder: refused at once, or made anew."""
    texts = [*TEXTS, BOMB, '"a string"', "- a\n- b\n", "{}"]
    for start, readers in _READERS.items():
        names = [name for name in _documents(ground) if name.startswith(start)]
        for name in chance.sample(names, min(count, len(names))):
            for what in [*chance.sample(texts, 4), "PIPE", "DEVICE", "FOLDER"]:
                for words in readers:
                    place = ground.copy("reported")
                    _replace(place / name, what)
                    _forget(place, words)
                    ended = ground.run(place, words)
                    ground.drop(place)
                    if ended.status:
                        break
                _refused(tally, start, ended, f"{name} {what[:30]!r}: {words}")


def _replace(path: Path, what: str) -> None:
    path.unlink()
    if what == "PIPE":
        os.mkfifo(path)
    elif what == "DEVICE":
        path.symlink_to("/dev/zero")
    elif what == "FOLDER":
        path.mkdir()
    else:
        path.write_text(what)


def _forget(place: Path, words: Sequence[str]) -> None:
    """Take away what a search has written last: it is then made from the decisions it wrote down."""
    if words[0] == "search":
        (place / "study" / "choices" / f"{BITS}.json").unlink(missing_ok=True)


def _documents(ground: Ground) -> Iterator[str]:
    place = ground.work / "reported"
    for path in sorted(place.rglob("*")):
        if path.suffix in (".json", ".yaml", ".jsonl") and "model" not in path.relative_to(place).parts:
            yield path.relative_to(place).as_posix()
