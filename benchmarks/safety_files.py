"""What commands read: files that were damaged or replaced by anything, and arguments that are rubbish."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.commands.test_rubbish import COMMANDS as LINES
from tests.commands.test_rubbish import RUBBISH, line_with
from tests.formats.test_rubbish import BOMB, TEXTS

from safety_book import EXPECTED, REFUSED, WRONG, Page
from safety_ground import BITS, COMMANDS, OTHER, Ended, Ground
from safety_study import essence, unequal

# Damage -------------------------------------------------------------------------------------------------------------

_NEW = ("export", "study", "new", "--choice")
_MEASURE = ("measure", "study", "--configurations", "22")
_REPORT = ("report", "study", "--bits", BITS, "--fresh-images", "8")
#: By state and the beginning of a file's name: the commands that read it.
_READERS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "reported": {
        "study/study.yaml": (("explain", "study"), (*_NEW, OTHER)),
        "study/graph.json": (("explain", "study"), (*_NEW, OTHER)),
        "study/batch.json": (_MEASURE,),
        "study/bank/": ((*_NEW, OTHER), _MEASURE, ("quantize", "study"), ("quick", "study", "--bits", "3.0")),
        "study/statistics/": (("observe", "study"), ("quick", "study", "--bits", "3.0")),
        "study/records.db": (("records", "study", "--format", "json"), ("fit", "study"),
                             ("frontier", "study", "--fresh-images", "2")),
        "study/predictor/": (("explain", "study"), ("choose", "study", "--bits", "3.4", "--candidates", "1")),
        "study/choices/": ((*_NEW, OTHER), (*_NEW, BITS), (*_NEW, "uaq"),
                           ("diff", f"study/choices/{BITS}.json", f"study/choices/{OTHER}.json")),
        "study/search/": (("search", "study", "--bits", BITS, "--image-budget", "110"),),
        "study/reference/": (_MEASURE,),
        "study/reference/10": (_REPORT,),
        "study/sensitivity": (("explain", "study"),),
        "study/frontier.json": (("export", "study", "new", "--point", "4"),),
        "study/comparison/": (_REPORT,),
        "study/packed": (_REPORT,),
        "out/": (("generate", "out", "--prompt", "1", "--out", "new"), ("card", "out", "--force"),
                 ("evaluate", "out", "--base", "model", "--fresh-images", "2")),
        "out-sdnq/": (("card", "out-sdnq", "--force"),),
        "out-plain/": (("generate", "out-plain", "--prompt", "1", "--out", "new"), ("card", "out-plain", "--force")),
    },
    "texts": {
        "study/bank/": ((*_NEW, "3.0"), ("quick", "study", "--bits", "3.5")),
        "study/statistics/": (("observe", "study"), ("quick", "study", "--bits", "3.5")),
        "study/choices/": ((*_NEW, "3.0"),),
        "out/": (("generate", "out", "--prompt", "a fox", "--out", "new"), ("card", "out", "--force")),
    },
}  # fmt: skip
_FEW = 1  # files of a folder whose damage is tried where there are many of the same kind
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


def damaged_places() -> list[str]:
    """State and beginning of file names, as units of work."""
    return [f"{state}: {start}" for state, readers in _READERS.items() for start in readers]


def damage(ground: Ground, page: Page) -> None:
    """Change files of a study or an export at random places: commands that read them give the same, or name the file.

    A setting that was changed into another one in study.yaml, which people write, is no damage.
    """
    state, _, start = page.name.partition(": ")
    names = _files(ground, state, start)
    for name in names:
        raw = (ground.work / state / name).read_bytes()
        for kind in _kinds(page, name, alone=len(names) == 1):
            case = f"{name}: {kind}"
            if not page.lacking([case]):
                continue
            bad = _DAMAGES[kind.partition(",")[0]](raw, page.chance(case))
            if bad != raw:
                page.add(case, *_told(ground, state, start, name, bad), of=[_shown(state, start)])


def _kinds(page: Page, name: str, alone: bool) -> list[str]:
    """Kinds of damage that are tried on a file: more where it is the only one of its kind."""
    every = sorted(_DAMAGES)
    if alone and not page.book.quick:
        return [*every, *(f"{kind}, {i}" for kind in ("a bit", "a byte", "zeros") for i in (2, 3, 4))]
    count = 1 if page.book.quick else 2 if Path(name).stem.isdecimal() else 3
    return random.Random(f"{page.book.way['seed']} {name}").sample(every, count)


def _files(ground: Ground, state: str, start: str) -> list[str]:
    place = ground.work / state
    found = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    named = [p for p in found if p.relative_to(place).as_posix().startswith(start)]
    if state == "texts":
        kinds = sorted({(p.parent, p.suffix, p.stem.isdecimal()) for p in named})
        named = [
            p for kind in kinds for p in [q for q in named if (q.parent, q.suffix, q.stem.isdecimal()) == kind][-_FEW:]
        ]
    return [p.relative_to(place).as_posix() for p in named]


def _shown(state: str, start: str) -> str:
    return start if state == "reported" else f"{start} (with text encoders)"


def _told(ground: Ground, state: str, start: str, name: str, bad: bytes) -> tuple[str, str]:
    """Run the readers of a damaged file one after the other, until one of them names it: (end, note)."""
    for words in _READERS[state][start]:
        ended, found = _answers(ground, words, state, name, bad)
        parts = Path(name).parts
        if ended.refused:
            named = parts[-1] in ended.output or (len(parts) > 2 and parts[1] in ended.output)
            named |= name == "study/study.yaml" and "settings" in ended.output
            return (REFUSED, "") if named else (WRONG, f"{words[0]} does not name it: {ended.output[-600:]}")
        if ended.status != 0:
            return WRONG, f"{words[0]}: {ended.output[-1500:]}"
        differs = set(unequal(found, _sound(ground, state, words))) - {name}
        if differs and start != "study/study.yaml":
            return WRONG, f"{words[0]} gave something else: {sorted(differs)[:6]}"
    return EXPECTED, ""


_known: dict[tuple[str, tuple[str, ...]], Any] = {}


def _sound(ground: Ground, state: str, words: tuple[str, ...]) -> Any:
    """What a command gives where nothing is damaged."""
    if (state, words) not in _known:
        _known[state, words] = _answers(ground, words, state, None, b"")[1]
    return _known[state, words]


def _answers(ground: Ground, words: tuple[str, ...], state: str, name: str | None, bad: bytes) -> tuple[Ended, Any]:
    """How a command ends where a file holds ``bad``, what it prints, and what it writes that is new or measured."""
    place = ground.copy(state)
    if name is not None:
        (place / name).write_bytes(bad)
    _forget(place, words)
    ended = ground.run(place, words)
    held = essence(place) if ended.status == 0 else {}
    choices = tuple(f"study/choices/{bits}" for bits in (BITS, "3.0", "3.4", "3.5"))
    wanted = ("new/", "records", "study/table.json", "study/statistics/0", "study/bank/0", *choices)
    found = {key: value for key, value in held.items() if key.startswith(wanted)}
    if words[0] in ("records", "explain", "diff"):
        found["printed"] = ended.output
    ground.drop(place)
    return ended, found


# Rubbish ------------------------------------------------------------------------------------------------------------

#: Seconds of the processor, and on the clock, in which rubbish is refused; a port where nobody answers has 20 s alone.
_CPU, _CLOCK = 1.5, 60.0


def arguments(ground: Ground, page: Page) -> None:
    """Rubbish for every parameter of a command: accepted where it makes sense, or refused at once."""
    places = {"model": "model", "study": "study", "out": "out", "folder": "folder", "a": "file", "b": "file",
              "name": "3.2", "choice": OTHER, "FIFO": "fifo", "FOLDER": "folder", "FILE": "file"}  # fmt: skip
    texts = [text for text in RUBBISH if not any("\ud800" <= c <= "\udfff" for c in text)]
    command = LINES[page.name]
    for parameter in command.params:
        flag = getattr(parameter, "is_flag", False)
        values = page.chance(parameter.name).sample(texts, 1 if page.book.quick or flag else 3)
        for number, value in enumerate(values):
            case = f"{parameter.name} {number}: {value[:50]}"
            if not page.lacking([case]):
                continue
            words = (page.name, *line_with(command, parameter, places.get(value, value), places))
            if flag and page.name in COMMANDS:  # it takes no value
                words = (*COMMANDS[page.name][1], parameter.opts[0])
            place = ground.copy("reported")
            os.mkfifo(place / "fifo")
            (place / "folder").mkdir()
            (place / "file").write_text("mine")
            end, note = _refused(ground.run(place, words))
            if (place / "file").read_text() != "mine":
                end, note = WRONG, "it changed a file that is not its own"
            page.add(case, end, note)
            ground.drop(place)


def _refused(ended: Ended) -> tuple[str, str]:
    """A command that was fed rubbish, and must have ended well, or with an error at once: (end, note)."""
    bad = ended.status and not (ended.refused or ended.usage)
    late = ended.status and (ended.cpu > _CPU or ended.seconds > _CLOCK)
    note = f"{ended.status} after {ended.cpu:.1f} s of {ended.seconds:.1f} s {ended.output[-900:]}"
    return WRONG if bad or late else REFUSED if ended.status else EXPECTED, note


def document_places(ground: Ground) -> list[str]:
    """State and beginning of names of documents and folders of files, as units of work."""
    return [unit for unit in damaged_places() if _documents(ground, *unit.split(": ", 1))]


@cache
def _texts() -> tuple[str, ...]:
    return (*TEXTS, BOMB, '"a string"', "- a\n- b\n", "{}")


def documents(ground: Ground, page: Page) -> None:
    """Files of a study replaced by rubbish, a pipe, a device, a folder or a broken link: refused at once, or made
    anew."""
    state, _, start = page.name.partition(": ")
    names, readers = _documents(ground, state, start), _READERS[state][start]
    for name in names[:1] if page.book.quick else names:
        chance = page.chance(name)
        for what in [*chance.sample(_texts(), 3)[:2], "PIPE", "DEVICE", "FOLDER", "LINK"]:
            case = f"{name} {what[:30]!r}"
            if not page.lacking([case]):
                continue
            for words in readers:
                place = ground.copy(state)
                _replace(place / name, what)
                _forget(place, words)
                ended = ground.run(place, words)
                ground.drop(place)
                if ended.status:
                    break
            page.add(case, *_refused(ended), of=[_shown(state, start)])


def _documents(ground: Ground, state: str, start: str) -> list[str]:
    """Documents, and one file of tensors of each folder."""
    names = _files(ground, state, start)
    tensors = {Path(name).parent: name for name in names if name.endswith((".safetensors", ".db"))}
    return [name for name in names if name.endswith((".json", ".yaml", ".jsonl"))][:3] + sorted(tensors.values())


def _replace(path: Path, what: str) -> None:
    path.unlink()
    if what == "PIPE":
        os.mkfifo(path)
    elif what == "DEVICE":
        path.symlink_to("/dev/zero")
    elif what == "FOLDER":
        path.mkdir()
    elif what == "LINK":
        path.symlink_to("nowhere")
    else:
        path.write_text(what)


def _forget(place: Path, words: Sequence[str]) -> None:
    """Take away what was made from what is read: it is then read again."""
    if words[0] == "search":
        (place / "study" / "choices" / f"{BITS}.json").unlink(missing_ok=True)
