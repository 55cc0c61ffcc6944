"""study.yaml is strict, and survives its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.study.settings import StudySettings

printable = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def load(folder: Path, text: str) -> StudySettings:
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return StudySettings.load(folder / "study.yaml")


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        StudySettings,
        model=printable,
        component=st.none() | printable,
        inputs=st.lists(printable | st.integers(0, 999), max_size=4),
        arguments=st.dictionaries(printable, st.integers() | st.booleans() | printable | st.none(), max_size=3),
        images=st.integers(2, 99),
        batch=st.integers(1, 99) | st.just("auto"),
        seed=st.integers(0, 2**31),
        keep=st.lists(printable, max_size=2),
        sampler=st.sampled_from(["spread", "stratified", "paper", "singles"]),
        bits_range=st.tuples(st.floats(2, 4), st.floats(4, 8)),
        loss=st.sampled_from(["srcc", "lambdarank", "hybrid", "mse"]),
    )
)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, saved: StudySettings) -> None:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    saved.save(path)
    loaded = StudySettings.load(path)
    assert loaded == saved
    assert loaded.protocol == saved.protocol


def test_numbers_written_as_text_stay_text(tmp_path: Path) -> None:
    saved = StudySettings(model="m", inputs=["7", 7, "true", "null", "1e3", ""])
    saved.save(tmp_path / "study.yaml")
    loaded = StudySettings.load(tmp_path / "study.yaml")
    assert [(type(i), i) for i in loaded.inputs] == [(type(i), i) for i in saved.inputs]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("colour: red", "colour"),
        ("images: many", "images"),
        ("images: 1", "images"),
        ("batch: 0", "batch"),
        ("seed: -1", "seed"),
        ("version: 4", "version"),
        ("sampler: random", "sampler"),
        ("sampler: stratifed", "sampler: unknown sampler 'stratifed'; did you mean 'stratified'?"),
        ("sampler: list", "the file: 'sampler: list' and 'configurations: FILE' belong together"),
        ("configurations: a.yaml", "the file: 'sampler: list'"),
        ("batch: some", "batch"),
        ("metrics: [psnr, featurs]", "unknown metric 'featurs'"),
        ("objective: beauty", "objective: unknown name 'beauty'"),
        ("bits_range: [6, 2]", "bits_range: expected 0 < lowest"),
        ("bits_range: [0, 2]", "bits_range: expected 0 < lowest"),
        ("bits_range: [2, .inf]", "bits_range: expected 0 < lowest"),
        ("image: 4", "image: unknown entry 'image'; did you mean 'images'?"),
        ("loss: l1", "loss"),
        ("inputs: red hair", "inputs"),
        ("inputs: [[1]]", r"inputs\.0"),
        ("arguments: [1]", "arguments"),
        ("bits_range: [2]", r"bits_range"),
        ("bits_range: [two, 6]", r"bits_range\.0"),
        ("model: [a]", "model"),
    ],
)
def test_an_unknown_or_wrong_entry_is_named(tmp_path: Path, line: str, named: str) -> None:
    text = line if line.startswith("model") else f"model: m\n{line}"
    with pytest.raises(Qua2SeDiMoError, match=f"study.yaml: {named}"):
        load(tmp_path, text)


def test_a_study_of_version_1_is_read_with_its_batch_and_its_protocol(tmp_path: Path) -> None:
    old = "version: 1\nmodel: m\nimages: 8\nsampler: paper\n"
    before = {"options": "wide", "rounding": "nearest", "dtype": "fp32", "metrics": ["psnr", "features"]}
    assert load(tmp_path, old) == StudySettings(model="m", images=8, sampler="paper", batch=16, **before)
    assert load(tmp_path, old + "batch: 4").batch == 4
    assert load(tmp_path, old).protocol == "4ba8ae591d02c628"  # as version 1 computed it: its records stay readable


def test_the_batch_makes_no_other_study() -> None:
    one = StudySettings(model="m", batch=4)
    assert one.asks_the_same_as(StudySettings(model="m")) and one != StudySettings(model="m")
    assert not one.asks_the_same_as(StudySettings(model="m", batch=4, seed=1))


def test_another_list_is_another_protocol() -> None:
    listed = [StudySettings(model="m", sampler="list", configurations=name).protocol for name in ("a.yaml", "b.yaml")]
    assert listed[0] != listed[1]


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"study\.yaml: model"):
        load(tmp_path, "images: 4")


@pytest.mark.parametrize("text", ["", "- model", "just words", "3"])
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"study\.yaml: the file"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["model: [", "model: 'a", "\tmodel: a", "a: b: c", "!!python/object:os.system {}"])
def test_bad_yaml_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"study\.yaml is neither JSON nor YAML"):
        load(tmp_path, text)


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(Qua2SeDiMoError, match=r"study\.yaml"):
        StudySettings.load(tmp_path / "study.yaml")


def test_a_folder_without_the_file_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="is no study folder") as caught:
        StudySettings.load(tmp_path / "study.yaml")
    assert tmp_path.name in caught.value.message
    assert "qua2sedimo init" in str(caught.value.remedy)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        StudySettings(model="m").images = 4


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"component": "unet"}, {"inputs": ["b"]}, {"arguments": {"steps": 3}}, {"images": 5},
     {"seed": 1}, {"keep": ["out"]}, {"metrics": ["features"]}, {"objective": "features"}, {"sampler": "paper"},
     {"bits_range": (3, 4)}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_the_protocol_changes_with_what_makes_measurements_differ(change: dict) -> None:
    assert StudySettings(**{"model": "m", **change}).protocol != StudySettings(model="m").protocol


@pytest.mark.parametrize(
    "change",
    [{"batch": 2}, {"options": "paper"}, {"loss": "mse"}],
    ids=lambda c: next(iter(c)),
)
def test_the_protocol_does_not_change_with_how_measurements_are_used(change: dict) -> None:
    assert StudySettings(**{"model": "m", **change}).protocol == StudySettings(model="m").protocol


def test_the_protocol_does_not_depend_on_the_order_of_arguments() -> None:
    one, other = {"steps": 3, "scale": 1.5}, {"scale": 1.5, "steps": 3}
    assert StudySettings(model="m", arguments=one).protocol == StudySettings(model="m", arguments=other).protocol
