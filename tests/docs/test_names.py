"""README and docs keep their word: every command in them runs, every option exists, every link leads somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from tests import documented
from tests.documented import (
    check_command,
    check_other,
    every_option,
    in_full,
    options_of,
    without_ellipsis,
)
from tests.pages import PAGES, ROOT, Code, blocks, broken_links, inline

BLOCKS = [block for page in PAGES for block in blocks(page)]
INLINE = [code for page in PAGES for code in inline(page)]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Links -------------------------------------------------------------------------------------------------------------


@by_page
def test_every_relative_link_and_anchor_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nothing_is_found() -> None:
    text = (
        "# One\n[a](#one) [b](#two) [c](docs/method.md#scores-choice) [d](docs/no.md) ![e](docs/x.png) [f](https://x)"
    )
    assert broken_links(ROOT / "README.md", text) == ["#two", "docs/no.md", "docs/x.png"]


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    from tests.pages import links

    while ahead:
        page = ahead.pop()
        reached.add(page)
        near = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link}
        ahead += [p for p in near if p.suffix == ".md" and p.is_file() and p not in reached]
    assert set(PAGES) <= reached


# Names -------------------------------------------------------------------------------------------------------------


@by_page
def test_every_command_target_script_and_option_named_exists(page: Path) -> None:
    for block in (b for b in BLOCKS if b.page == page and b.language in ("bash", "sh")):
        for words in block.lines:
            check_words(words, block.place)
    for code in (c for c in INLINE if c.page == page):
        check_inline(code)


def check_words(words: list[str], place: str) -> None:
    program = words[0].removeprefix(".venv/bin/")
    if program == "qua2sedimo":
        check_command(without_ellipsis(words[1:]), place)
    else:
        check_other(words, place)


def check_inline(code: Code) -> None:
    """A command in full; or options, which some command named in the same row or paragraph has, or any if none is."""
    text = in_full(code.text)
    if re.match(r"(qua2sedimo|python|make) ", text):
        check_words([w.strip("[]") for w in shlex.split(text)], code.place)
    elif match := re.match(r"(?:… )?(--[a-z-]+)", text):
        named = [name for name in re.findall(r"`(?:qua2sedimo )?([a-z]+)\b[^`]*`", code.row) if known(name)]
        scripts = "".join((ROOT / s).read_text() for s in re.findall(r"benchmarks/\w+\.py", code.row))
        there = set().union(*map(options_of, named)) if named else every_option()
        assert match[1] in there or f'"{match[1]}"' in scripts, f"{code.place}: no option '{match[1]}' of {named}"


def known(name: str) -> bool:
    try:
        return bool(options_of(name))
    except KeyError:
        return False


@by_page
def test_every_python_name_and_source_file_named_exists(page: Path) -> None:
    for code in (c for c in INLINE if c.page == page):
        for name in re.findall(r"(?<![\w/.])qua2sedimo((?:\.[A-Za-z_]\w*)+)", code.text):
            if name not in (".json", ".js"):
                resolve(f"qua2sedimo{name}", code.place)
        if re.fullmatch(r"[\w/]+\.(py|mjs)", code.text):
            places = (ROOT, ROOT / "src/qua2sedimo", ROOT / "src/qua2sedimo/zoo/training", ROOT / "src/qua2sedimo/zoo")
            found = any((p / code.text).is_file() for p in places)
            assert found or list(ROOT.glob(f"src/**/{code.text}")), f"{code.place}: {code.text} is not there"


def resolve(name: str, place: str) -> object:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            assert hasattr(found, part), f"{place}: {name} does not exist"
            found = getattr(found, part)
        return found
    raise AssertionError(f"{place}: {name} does not exist")


def test_every_command_is_in_the_tables_of_commands() -> None:
    rows = re.findall(r"^\| `qua2sedimo (\w+)", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(documented.commands())


def test_every_message_in_troubleshooting_is_one_that_the_program_prints() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)  # strings that go on in the next line
    page = ROOT / "docs" / "troubleshooting.md"
    rows = re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 20
    for message in rows:
        parts = [part.strip() for part in message.split("…") if part.strip(" '")]
        assert all(part in source for part in parts), message


BAD = [
    ("`qua2sedimo mesure STUDY`", "no command 'mesure'"),
    ("`qua2sedimo measure STUDY --configurations 100 --worker 2`", "no option '--worker'"),
    ("| `qua2sedimo fit STUDY` | with `--workers N` |", "no option '--workers'"),
    ("`qua2sedimo measure --configurations 100`", "Missing argument"),
    ("`qua2sedimo choose STUDY --bits four`", "valid number"),
    ("`python benchmarks/search.py --fast`", "has no --fast"),
    ("`python benchmarks/none.py`", "is not there"),
    ("`make everything`", "no target"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_page_that_names_what_is_not_there_fails(text: str, message: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        for code in inline(ROOT / "README.md", text):
            check_inline(code)


def test_blocks_and_their_reasons_are_read() -> None:
    text = (
        "a\n\n<!-- not run: two machines -->\n```bash\nx \\\n  --y 'z w'  # note\n```\n`one` <!-- not run: slow -->\n"
    )
    (block,) = blocks(ROOT / "README.md", text)
    assert (block.reason, block.language, block.lines) == ("two machines", "bash", [["x", "--y", "z w"]])
    (code,) = inline(ROOT / "README.md", text)
    assert (code.text, code.reason, code.line) == ("one", "slow", 8)
