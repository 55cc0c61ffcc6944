"""README and docs keep their word: every command in them runs, every option exists, every link leads somewhere."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from diffusers import UNet2DConditionModel
from tests import documented
from tests.conftest import choice_of, randomized, small_pipeline
from tests.documented import (
    call,
    check_command,
    check_other,
    every_option,
    options_of,
    quick,
    quick_arguments,
    with_few_steps,
    without_ellipsis,
)
from tests.pages import PAGES, ROOT, Block, Code, blocks, broken_links, inline

import qua2sedimo
from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.options import Option
from qua2sedimo.predictor import FitSettings

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


def in_full(text: str) -> str:
    """Tables may leave out the program's name, as in `choose STUDY --bits 3.5`."""
    return f"qua2sedimo {text}" if re.match(r"[a-z]+ (STUDY|MODEL|OUT|A)\b", text) else text


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


def test_the_readme_has_every_command_in_its_table() -> None:
    rows = re.findall(r"^\| `qua2sedimo (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
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
    ("`qua2sedimo measure STUDY --configs 100 --worker 2`", "no option '--worker'"),
    ("| `qua2sedimo fit STUDY` | with `--workers N` |", "no option '--workers'"),
    ("`qua2sedimo measure --configs 100`", "Missing argument"),
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


# Running -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Few epochs for every fit of this file, and a width that does not wrap what is printed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "200")
        for place in ("qua2sedimo.predictor.FitSettings", "qua2sedimo.study.stages.fit.FitSettings"):
            patched.setattr(place, partial(FitSettings, epochs=40, channels=8, hops=1))
        few = partial(qua2sedimo.quantize, configurations=20)
        patched.setattr(qua2sedimo, "quantize", few)
        yield patched


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """What placeholders stand for: a tiny text-to-image pipeline, a finished study of it, an export, files."""
    here = tmp_path_factory.mktemp("docs")
    pipeline = zoo.load("avatars-unet")
    pipeline.unet = tiny_unet(pipeline.text_encoder.config.hidden_size)
    pipeline.save_pretrained(here / "model")
    names = ("MODEL", "STUDY", "OUT", "PLAIN")
    places = {name: str(here / name.lower()) for name in names}
    study = Path(places["STUDY"])
    for words in (
        ["init", places["MODEL"], places["STUDY"]],
        ["measure", places["STUDY"], "--configurations", "20"],
        ["fit", places["STUDY"]],
        ["choose", places["STUDY"], "--bits", "3.5", "--bits", "4.5", "--candidates", "2"],
        ["export", places["STUDY"], places["OUT"], "--bits", "3.5"],
    ):
        must(with_few_steps(words), patch, "the tests' own study")
    plain(Path(places["PLAIN"]))
    first, second = sorted((study / "choices").glob("*.json"))
    layer = next(iter(Study(study).workspace.space.layers))
    more = {"A": first, "B": second, "LAYER": layer, "PATTERN": "conv_in*", "NAME": "psnr", "N": "20", "JSON": "{}"}
    return {**places, **{name: str(value) for name, value in more.items()}}


def tiny_unet(width: int) -> UNet2DConditionModel:
    """One stage of 8×8 pixels that reads texts of this width: few layers, so that a whole study takes seconds."""
    model = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=width, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    return randomized(model, 0)


def plain(folder: Path) -> None:
    """A study without convolutions to quantize, with a choice of uniform options: what recipes are for."""
    small_pipeline().save_pretrained(folder / "model")
    model = str(folder / "model")
    settings = StudySettings(model=model, inputs=[1], arguments={"guidance_scale": 1.0}, keep=["pos_embed*"])
    study = Study.create(folder, settings)
    configuration = study.workspace.space.uniform(Option.parse("uaq-4"))
    choice_of(study, configuration).save(folder / "choices" / "NAME.json")


def must(words: list[str], patch: pytest.MonkeyPatch, place: str) -> str:
    status, said = call(words, patch)
    assert status == 0, f"{place}: qua2sedimo {shlex.join(words)}\n{said}"
    return said


def commands(page_codes: list[Code]) -> list[Code]:
    """The runnable ones: a command with its arguments, each text once in all pages."""
    seen: dict[str, Code] = {}
    for code in page_codes:
        text = in_full(code.text)
        if text.startswith("qua2sedimo ") and not code.reason and len(text.split()) > 2:
            seen.setdefault(text, code)
    return list(seen.values())


#: What takes the longest goes with the slow tests; every other command of these pages runs in the quick ones too.
_LONG = ("qua2sedimo run ", "qua2sedimo search ", "README.md", "first-result.md", "own-pipeline.md")


def marked(value: Code | Path, name: str) -> object:
    return pytest.param(value, id=name, marks=[pytest.mark.slow] if name.startswith(_LONG) else [])


@pytest.mark.parametrize("code", [marked(code, in_full(code.text)) for code in commands(INLINE)])
def test_every_command_of_tables_and_sentences_runs(
    code: Code, world: dict[str, str], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, *words = shlex.split(in_full(code.text))[1:]
    places = {**world, "FILE": str(tmp_path / "file"), "STUDY2": world["STUDY"]}
    if name in ("init", "run"):
        places["STUDY"] = str(tmp_path / "study")
    if name in (
        "choose",
        "export",
        "search",
        "frontier",
        "report",
        "explain",
        "quantize",
        "observe",
        "quick",
        "polish",
    ):
        places["STUDY"] = str(shutil.copytree(world["STUDY"], tmp_path / "study"))
    if name in ("export", "polish"):
        places |= {"OUT": str(tmp_path / "out"), "NAME": "3.5"}
    if name == "recipe":
        places |= {"STUDY": world["PLAIN"], "NAME": "NAME"}
        words += [] if "--choice" in words else ["--choice", "NAME"]
    made = quick([name, *words], places)
    patch.chdir(tmp_path)
    must(with_few_steps(made, places["MODEL"]), patch, code.place)


RUNNABLE = [p for p in PAGES if any(b.page == p and b.language in ("bash", "sh", "python") for b in BLOCKS)]


@pytest.mark.parametrize("page", [marked(page, page.name) for page in RUNNABLE])
def test_the_blocks_of_a_page_run_in_order(
    page: Path, world: dict[str, str], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runnable = [b for b in BLOCKS if b.page == page and not b.reason]
    made_here = any(re.search(r"qua2sedimo (init|run) \S+ STUDY", b.text) for b in runnable)
    places = {**world, "STUDY": str(tmp_path / "STUDY"), "OUT": str(tmp_path / "OUT"), "FILE": str(tmp_path / "FILE")}
    places["STUDY2"] = str(shutil.copytree(world["STUDY"], tmp_path / "STUDY2"))
    for name in ("STUDY", "OUT"):
        if not (name == "STUDY" and made_here):
            shutil.copytree(world[name], places[name])
    patch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in runnable:
        if block.language in ("bash", "sh"):
            run_shell(block, places, patch)
        elif block.language == "python":
            source = quick_arguments(block.text.replace("my/pipeline", places["MODEL"]))
            exec(compile(source, block.place, "exec"), names)


def run_shell(block: Block, places: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    for words in block.lines:
        made = quick(words[1:], places)
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            patch.setattr("sys.argv", made)
            runpy.run_path(str(ROOT / made[0]), run_name="__main__")
            continue
        assert words[0] == "qua2sedimo", f"{block.place}: '{words[0]}' cannot be run here: say why above the block"
        if made[0] == "export" and Path(made[2]).exists():
            shutil.rmtree(made[2])
        must(with_few_steps(made, places["MODEL"]), patch, block.place)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.place)
def test_settings_in_yaml_are_understood(block: Block) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict):
        StudySettings.model_validate({"model": "m", **content})
    for entry in content if isinstance(content, list) else ():
        assert all(Option.parse(option) for option in entry.values())
