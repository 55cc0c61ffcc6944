"""Objectives: read as Python would read the same arithmetic, and refused with a finger on the character."""

from __future__ import annotations

import ast
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import small_pipeline, small_settings

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration
from qua2sedimo.records import Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.study import Study
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages.fit import training_data

METRIC_VALUES = {"psnr": 23.5, "features": 0.25, "kernel_full": 3.0}
BITS = 3.5
WEIGHTS = 800
NAMES = {**METRIC_VALUES, "bits": BITS, "bytes": 350.0}

_numbers = st.one_of(
    st.integers(0, 999).map(str),
    st.floats(0, 1e6, allow_nan=False).map(repr).filter(lambda t: "inf" not in t),
    st.sampled_from([".5", "2.", "1e-3", "3E2"]),
)
_leaves = st.one_of(_numbers, st.sampled_from(sorted(NAMES)))
_expressions = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
        inner.map(lambda t: f"({t})"),
        inner.map(lambda t: f"-{t}"),
        inner.map(lambda t: f"+{t}"),
    ),
    max_leaves=12,
)


def by_python(text: str) -> float:
    """The same arithmetic by Python's own parser."""
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return signs[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        if isinstance(node, ast.Name):
            return NAMES[node.id]
        assert isinstance(node, ast.Constant)
        return float(node.value)  # type: ignore[arg-type]

    return value(ast.parse(text.strip(), mode="eval").body)


@given(_expressions, st.booleans())
def test_an_expression_has_the_value_that_python_gives_it(text: str, typeset: bool) -> None:
    written = text.replace("*", "×").replace("/", "÷").replace("- ", "− ") if typeset else text
    found = Objective.parse(f"psnr*0 + ({written})", WEIGHTS)
    try:
        expected = by_python(f"psnr*0 + ({text})")
    except (ZeroDivisionError, OverflowError):
        expected = np.nan
    if np.isfinite(expected):
        assert found.of(METRIC_VALUES, BITS) == expected
    else:
        with pytest.raises(Qua2SeDiMoError, match="no finite value"):
            found.of(METRIC_VALUES, BITS)


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("psnr - 2*", 9, "found the end"),
        ("psnr + * bits", 7, r"found '\*'"),
        ("(psnr - bits", 12, r"expected '\)'"),
        ("psnr bits", 5, "expected an operator, found 'bits'"),
        ("psnr - 2bits", 8, "expected an operator, found 'bits'"),
        ("psnr ** 2", 6, r"found '\*'"),
        ("psnr.__class__", 4, r"expected an operator, found '\.'"),
        ("2 * pnsr", 4, "unknown name 'pnsr'. Did you mean 'psnr'?"),
        ("-frechet_ful - 150*bits", 1, "Did you mean 'frechet_full'?"),
        ("psnr - flops", 7, "unknown name 'flops'"),
        ("", 0, "found the end"),
        ("psnr; bits", 4, "found ';'"),
        ("(psnr bits)", 6, "found 'bits'"),
        ("psnr × × bits", 7, "found '×'"),
        ("psnr)", 4, r"found '\)'"),
        ("()", 1, r"found '\)'"),
        ("psnr, bits", 4, "found ','"),
        ("psnr - 'bits'", 7, "expected a number"),
        ("psnr - é", 7, "found 'é'"),
        ("psnr − lambda", 7, "unknown name 'lambda'"),
        ("psnr if bits else 2", 5, "found 'if'"),
        ("psnr # bits", 5, "found '#'"),
        ("psnr - 1_000", 8, "found '_000'"),
        ("psnr - 0x10", 8, "found 'x10'"),
        ("bits(psnr)", 4, r"found '\('"),
    ],
)
def test_an_error_points_at_the_character(text: str, at: int, says: str) -> None:
    with pytest.raises(Qua2SeDiMoError, match=says.replace("?", r"\?")) as caught:
        Objective.parse(text)
    lines = caught.value.message.split("\n")
    assert lines[1] == f"  {text}" and lines[2].index("^") == at + 2
    assert caught.value.remedy


def test_numbers_may_begin_with_zeros_and_brackets_may_not_be_endless() -> None:
    assert Objective.parse("psnr - 007.50").of({"psnr": 10.0}, 3.0) == 2.5
    with pytest.raises(Qua2SeDiMoError, match="is too long"):
        Objective.parse("(" * 5000 + "psnr" + ")" * 5000)


def test_names_come_in_the_order_they_are_written() -> None:
    assert Objective.parse("(bits - ssim)*2 + psnr/bits").names == ("bits", "ssim", "psnr")


def test_a_size_alone_is_no_objective() -> None:
    with pytest.raises(Qua2SeDiMoError, match="names no metric"):
        Objective.parse("-bits")


def test_a_bare_metric_is_meant_in_its_better_direction_and_an_expression_as_written() -> None:
    better, worse, written = (Objective.parse(t) for t in ("psnr", "features", "-features"))
    assert (better.sign, worse.sign, written.sign) == (1, -1, 1)
    assert (better.title, better.unit) == ("PSNR", "dB") and worse.title == "Feature distance"
    assert (written.title, Objective.parse("psnr - 2*bits").unit) == ("-features", "dB")
    assert Objective.parse("psnr*features").unit == "" and Objective.parse("features - psnr*bits").metrics == [
        "features",
        "psnr",
    ]
    record = Record("sample", 0, Configuration({}), BITS, Measurement(0, {"features": [0.2, 0.4]}, 1.0))
    assert worse.value(record) == pytest.approx(0.3) and worse.gain(record) == written.gain(record)


def test_values_of_images_average_to_that_of_the_record_where_the_objective_is_linear() -> None:
    measured = Measurement(0, {"psnr": [20.0, 30.0, 25.0]}, 1.0, {"kernel_full": Estimate(0.5, 0.4, 0.6, 3)})
    record = Record("sample", 0, Configuration({}), BITS, measured)
    linear = Objective.parse("psnr/2 - bytes", WEIGHTS)
    images = linear.per_image(record)
    assert images is not None and images.shape == (3,) and images.mean() == pytest.approx(linear.value(record))
    assert Objective.parse("psnr - kernel_full").per_image(record) is None
    assert Objective.parse("psnr - kernel_full").value(record) == 24.5


def test_a_study_learns_and_maximises_the_expression(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", small_settings(objective="-features - bits/2"), small_pipeline())
    records = study.measure(3)
    assert set(records[0].measurement.values) == {"features", "psnr"}  # the expression's metrics, and those asked for
    _, gain = training_data(study.workspace, records)
    expected = [-np.mean(r.measurement.values["features"]) - r.average_bits / 2 for r in records]
    np.testing.assert_allclose(gain, expected)
    bytes_of = Study.create(
        tmp_path / "t", small_settings(objective="psnr - bytes/1000"), small_pipeline()
    ).workspace.objective
    record = records[0]
    assert bytes_of.value(record) == pytest.approx(
        record.value("psnr") - study.workspace.space.nbytes(record.configuration) / 1000
    )


def test_study_settings_refuse_an_objective_that_cannot_be_read() -> None:
    with pytest.raises(Qua2SeDiMoError, match="unknown name 'psrn'"):
        StudySettings(model="m", objective="psrn - bits")


@pytest.mark.parametrize(
    ("text", "decibels"),
    [
        ("psnr", True), ("features_db", True), ("0.5*psnr + 0.5*features_db", True), ("(psnr + features_db)/2", True),
        ("psnr + features_db", False), ("features", False), ("psnr - 3*bits", False), ("-psnr", False),
    ],
)  # fmt: skip
def test_decibels_may_be_shared_out_among_metrics_in_decibels(text: str, decibels: bool) -> None:
    assert Objective.parse(text).in_decibels is decibels
