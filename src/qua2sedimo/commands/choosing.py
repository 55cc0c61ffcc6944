"""From a size to a packed model: choose, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import Bits, StudyFolder, app


@app.command()
def choose(
    study: StudyFolder,
    bits: Bits = 3.5,
    candidates: Annotated[int | None, typer.Option(help="How many to measure (8).", min=1)] = None,
) -> None:
    """Find the best configurations within the budget, measure them, and keep the best measured one."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import candidates_table, console, progress

    opened = Study(study)
    with progress() as report:
        choice = opened.choose(bits, candidates, report)
    console.print(candidates_table(choice, opened.settings.objective))
    console.print(f"Next: qua2sedimo export {study} OUT --bits {bits:g}")


@app.command()
def export(
    study: StudyFolder,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    bits: Bits = 3.5,
    act_bits: Annotated[
        int | None, typer.Option(help="Quantize activations too when the model is loaded: 8 or 6 bits.", min=4, max=8)
    ] = None,
) -> None:
    """Write the choice as a packed pipeline that `DiffusionPipeline.from_pretrained` loads."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, size

    packed = Study(study).export(bits, out, act_bits)
    console.print(
        f"{out}: {packed.weights / 1e6:.2f} M weights in {size(packed.quantized_bytes)}, {packed.average_bits:.4f} bits"
    )
