"""`qua2sedimo metrics` says of every metric what it is, and of measured ones what was measured."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from qua2sedimo.commands.inspecting import metrics
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.catalogue import BUILT_IN, METRICS, metric
from qua2sedimo.terminal.metrics import document, measured, metric_panel, metrics_notes, metrics_table


def shown(*things: object) -> str:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        for thing in things:
            console.print(thing)
    return captured.get()


def test_the_table_has_every_metric_whole_in_80_columns() -> None:
    text = shown(metrics_table(list(METRICS.values())))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for m in METRICS.values():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [m.name])
        assert ("higher" in line) == m.higher_is_better
    assert "rank correlation" in " ".join(shown(*metrics_notes()).split())


@pytest.mark.parametrize("name", [*METRICS, "clip_score:some/model"])
def test_a_metric_alone_is_explained_with_its_needs(name: str) -> None:
    text = shown(metric_panel(metric(name)))
    said = " ".join(text.replace("│", " ").split())
    assert name in said and metric(name).explanation in said
    assert (metric(name).needs or "nothing but this package") in said
    assert max(map(len, text.splitlines())) <= 80


def test_what_comes_with_the_package_was_measured() -> None:
    assert all({"images", "cost"} <= set(measured(name)) for name in BUILT_IN)
    assert 0 < measured("psnr")["cost"] < measured("features")["cost"]
    assert measured("clip_score:some/model") == {}
    # A mean over images of an error of each ranks with fewer images than a distance of sets.
    few, many = measured("latent_mse")["images"], measured("kernel_full")["images"]
    assert few is not None and (many is None or few <= many)


def test_json_is_for_one_and_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    metrics(None, as_json=True)
    every = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in every] == list(METRICS)
    metrics("kernel_real", as_json=True)
    one = json.loads(capsys.readouterr().out)
    assert one == document(METRICS["kernel_real"]) == next(m for m in every if m["name"] == "kernel_real")
    assert (one["kind"], one["against"], one["better"]) == ("set", "real", "lower")


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Qua2SeDiMoError, match="Did you mean 'kernel_real'"):
        metrics("kernel_rael", as_json=False)
