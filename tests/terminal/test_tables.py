"""What tables show, and that they show no more than is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.study.stages.frontier import Point
from qua2sedimo.terminal.candidates import candidates_table, frontier_table
from qua2sedimo.terminal.choices import difference_table
from qua2sedimo.terminal.comparison import comparison_table

NAN = float("nan")
ONE_IMAGE = Estimate(20.0, NAN, NAN, 1)


def row(name: str, kind: str, *metrics: str) -> Row:
    estimates = {m: Estimate(20.0 + i, 19.5 + i, 20.5 + i, 16) for i, m in enumerate(metrics)}
    return Row(name, kind, Configuration({}), 4.0, 10**6, estimates, np.zeros((1, 2, 2, 3), np.uint8))


def printed(table: Table, width: int = 120) -> str:
    console = Console(width=width, file=None, force_terminal=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def shown(rows: list[Row], width: int) -> str:
    return printed(comparison_table(rows, width), width)


@pytest.mark.parametrize("name", ["clip_score:some/model", "fid_inception:some/file.pth", "ssim"])
def test_every_metric_has_a_column_also_one_of_other_weights(name: str) -> None:
    asked = ("psnr", name)
    text = shown([row("full precision", "full", *asked), row("ours", "ours", *asked)], 120)
    ours = next(line for line in text.splitlines() if line.strip().startswith("ours"))
    assert "20.00 ±0.50" in ours and "21.00 ±0.50" in ours
    assert text.count("same") == (2 if name == "ssim" else 1)


def test_a_narrow_terminal_keeps_the_best_known_metrics_and_no_line_is_cut() -> None:
    asked = ("clip_score:some/model", "ssim", "kernel_full", "accuracy", "psnr")
    text = shown([row("full precision", "full", *asked), row("ours", "ours", *asked)], 60)
    assert "PSNR" in text and "CLIP" not in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 60


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(60, 140), half=st.floats(1e-5, 50), value=st.floats(-1000, 1000), bits=st.floats(1, 32),
    nbytes=st.integers(1, 10**11),
)  # fmt: skip
def test_no_cell_is_cut_whatever_its_digits(width: int, half: float, value: float, bits: float, nbytes: int) -> None:
    asked = ("psnr", "accuracy", "features", "kernel_full", "clip_score:some/model")
    rows = [
        replace(
            r,
            average_bits=bits,
            nbytes=nbytes,
            metrics={m: Estimate(value, value - half, value + half, 9) for m in asked},
        )
        for r in (row("full precision", "full", *asked), row("uniform kmeans_a-4", "uniform", *asked))
    ]
    text = shown(rows, width)
    assert "…" not in text and f"{nbytes / 1e6:.2f}" in text
    assert max(map(len, text.splitlines())) <= width


def test_one_image_has_no_interval_in_any_table() -> None:
    rows = [row(name, name, "psnr") for name in ("ours", "uniform")]
    rows = [replace(r, metrics={"psnr": ONE_IMAGE}) for r in rows]
    assert shown(rows, 80).splitlines()[-2].split()[-1] == "20.00"
    assert "±" not in shown(rows, 80).split("bits")[1] and "nan" not in shown(rows, 80)
    points = [point("3.5", quality) for quality in (ONE_IMAGE, INTERVAL)]
    one, many = printed(frontier_table(points, "psnr")).splitlines()[-3:-1]
    assert "nan" not in one and "to" not in one and "20.00" in one
    assert "19.50 to 20.50" in many


INTERVAL = Estimate(20.0, 19.5, 20.5, 16)


def choice(predicted: float) -> Choice:
    configuration = Configuration({"a[0:4]": Option("uaq", 4)})
    candidate = Candidate(
        origin="each block's best", configuration=configuration, average_bits=4.0, predicted=predicted,
        measured={"psnr": 30.0},
    )  # fmt: skip
    space = SearchSpace({"a[0:4]": (4, 4)}, {"a[0:4]": (Option("uaq", 4),)})
    return Choice.of(candidate, space, "a fit")


def point(name: str, quality: Estimate) -> Point:
    return Point(
        name=name, configuration=Configuration({}), average_bits=3.5, nbytes=10**6, quality=quality, efficient=True
    )


def test_candidates_are_predicted_and_measured_in_the_objective_they_were_chosen_by() -> None:
    text = printed(candidates_table(choice(17.5), Objective.parse("psnr - 3*bits")))
    assert "psnr - 3*bits predicted" in text and "psnr - 3*bits measured" in text
    assert "17.50" in text and "18.00" in text and "30" not in text


def test_what_was_not_predicted_is_a_dash() -> None:
    text = printed(candidates_table(choice(NAN), Objective.parse("psnr")))
    assert "–" in text and "nan" not in text and "30.00" in text


def test_names_with_brackets_are_shown_as_they_are() -> None:
    other = choice(1.0)
    changed = other.model_copy(update={"configuration": Configuration({"a[0:4]": Option("uaq", 3)})})
    assert "a[0:4]" in printed(difference_table(other, changed, ("[bold]one", "two")))
    assert "[bold]one" in printed(difference_table(other, changed, ("[bold]one", "two")))
