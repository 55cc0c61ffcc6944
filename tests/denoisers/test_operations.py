"""Operations of layers: as torch's own counter counts them, and what objectives make of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import call_of, small_dit, small_pipeline, small_pixart, small_settings, small_unet
from tests.denoisers.small import SMALL
from tests.denoisers.test_ties import tied_dit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qua2sedimo.denoisers import trace
from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option, bit_operations
from qua2sedimo.study import Study

OWN = {"pixart": small_pixart, "unet": small_unet, "dit": small_dit, "tied": tied_dit}


def counted(model: nn.Module, call: dict[str, Any]) -> dict[str, int]:
    """Multiply-accumulates of every module that torch's counter sees."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**call)
    root = type(model).__name__
    return {
        name.removeprefix(f"{root}."): sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()
    }


@pytest.mark.parametrize("name", [*OWN, *SMALL])
def test_every_layer_has_the_operations_that_torch_counts(name: str) -> None:
    if name in OWN:
        model = OWN[name]()
        call = call_of(model)
    else:
        model, call = SMALL[name]()
    graph, expected = trace(model, (), call, parts=True, ties=True), counted(model, call)
    found: dict[tuple[str, ...], int] = {}
    for layer in graph.layers.values():
        modules = (layer.module, *layer.copies)
        found[modules] = found.get(modules, 0) + layer.macs
    assert found and all(found.values())
    assert found == {modules: sum(expected[m] for m in modules) for modules in found}


def test_fake_weights_give_the_same_counts_and_a_file_keeps_them(tmp_path: Path) -> None:
    model = small_unet()
    graph = trace(model, (), call_of(model), parts=True)
    fake = trace(model, (), call_of(model), parts=True, compute=False)
    graph.save(tmp_path / "graph.json")
    counts = {name: layer.positions for name, layer in graph.layers.items()}
    for other in (fake, Graph.load(tmp_path / "graph.json")):
        assert {name: layer.positions for name, layer in other.layers.items()} == counts


def test_bit_operations_count_full_precision_where_nothing_is_chosen() -> None:
    macs = {"a": 10, "b": 7}
    assert bit_operations(macs, {"a": Option("uaq", 3)}) == 16 * (10 * 3 + 7 * 16)
    assert bit_operations(macs, {"a": Option("uaq", 3), "b": Option("kmeans_a", 4)}, 8) == 8 * (30 + 28)


def test_an_objective_may_ask_for_few_operations(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", small_settings(objective="psnr - 1e-6*bops"), small_pipeline())
    (record,) = study.measure(1)
    macs = {name: study.workspace.graph.layers[name].macs for name in study.workspace.space.layers}
    expected = record.value("psnr") - 1e-6 * bit_operations(macs, record.configuration)
    assert study.workspace.objective.value(record) == pytest.approx(expected)
    images = study.workspace.objective.per_image(record)
    assert images is not None and images.mean() == pytest.approx(expected)


def without_counts(study: Study) -> Study:
    """The study as an older version left it."""
    path = study.folder / "graph.json"
    study.workspace.graph.save(path)
    text = re.sub(r',\s*"positions":\s*\d+', "", path.read_text())
    path.write_text(re.sub(r',\s*"checksum":\s*"\w+"', "", text))  # which it did not have either
    assert "positions" not in path.read_text()
    return Study(study.folder, small_pipeline())


def test_a_graph_without_counts_is_refused_only_where_they_are_needed(tmp_path: Path) -> None:
    asking = Study.create(tmp_path / "s", small_settings(objective="psnr - 1e-6*bops"), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="were not counted") as caught:
        without_counts(asking).measure(1)
    assert "graph.json" in (caught.value.remedy or "")
    plain = Study.create(tmp_path / "t", small_settings(), small_pipeline())
    assert len(without_counts(plain).measure(1)) == 1
