"""What `inspect --options LAYER` draws."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from tests.conftest import small_unet

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option, options_for
from qua2sedimo.quantizers import METHODS, dequantize_weight, quantization_error
from qua2sedimo.terminal.layer_options import layer_options_table, weight_table


def drawn(table) -> list[str]:  # type: ignore[no-untyped-def]
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_row_an_option_with_its_error_and_bytes() -> None:
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)).half()
    options = (*options_for("paper", (12, 40)), Option("row", 1), Option("row", 5))
    rows = {line.split()[0]: line for line in drawn(weight_table("a layer", weight, options, 40)) if line.split()}
    for option in options:
        (value,) = METHODS[option.method].quantize(weight, [option.number])
        loss, relative = quantization_error(weight, dequantize_weight(value))
        assert f"{relative:.3g}" in rows[str(option)] and f"{loss:.3g}" in rows[str(option)]
        assert f"{option.nbytes((12, 40)):,}" in rows[str(option)]


def test_levels_stand_below_the_weights_they_are_for() -> None:
    weight = torch.tensor([[-1.0, -1.0, 0.0, 1.0]]).half()
    (line,) = [x for x in drawn(weight_table("", weight, [Option("kmeans_a", 2)], 41)) if x.startswith("kmeans_a")]
    strip = line[len("kmeans_a-2 ") + 1 :][:41]
    assert [i for i, mark in enumerate(strip) if mark != " "] == [0, 20, 40]
    assert "exact" in line


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_constant_weight_is_drawn_and_exact(constant: float) -> None:
    lines = drawn(weight_table("", torch.full((3, 5), constant).half(), [Option("uaq", 3)], 30))
    assert any("exact" in line for line in lines)


def test_an_unknown_layer_is_refused_with_those_like_it() -> None:
    with pytest.raises(Qua2SeDiMoError, match="no weight layer 'conv_inn'") as refused:
        layer_options_table(small_unet(), "conv_inn", "paper")
    assert "conv_in" in str(refused.value.remedy)
