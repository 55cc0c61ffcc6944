"""What the terminal shows at the end of a run."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Configuration
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.terminal import comparison_table


def row(name: str, kind: str, *metrics: str) -> Row:
    estimates = {m: Estimate(20.0 + i, 19.5 + i, 20.5 + i, 16) for i, m in enumerate(metrics)}
    return Row(name, kind, Configuration({}), 4.0, 10**6, estimates, np.zeros((1, 2, 2, 3), np.uint8))


def shown(rows: list[Row], width: int) -> str:
    console = Console(width=width, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(comparison_table(rows, width))
    return captured.get()


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
