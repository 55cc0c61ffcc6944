"""docs/coverage.md, from the rows of benchmarks/coverage.py: the same for the same versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
from tests.denoisers.coverage.registry import EXCLUDED
from tests.sweep import registry as pipelines
from tests.sweep.check import STAGES

Row = dict[str, Any]
_YES = "yes"

_HEAD = """# Coverage

What was tried with the classes of diffusers {version}: each of [its denoisers](#u-nets), what people do with [a model
in memory](#in-use), and each of [its pipelines](#pipelines) with [files as people have them](#files-and-use).

Transformer and U-Net classes are built from a small configuration with random weights and traced; every layer and part
is quantized and packed; the checkpoint is loaded with `from_pretrained`, and its output is compared. *Same output*
means equal to that of the model with the same quantized weights written into its layers, but for the order of sums
(10⁻⁶). *Units* are layers or parts with their own option; *bypassed* layers are never called as modules in this call,
or do not reach its output, and are not quantized.

Made by `python benchmarks/coverage.py --docs`. The small instances and the questions are in
`tests/denoisers/coverage/` and `tests/sweep/`.
"""

_USE = """## In use

Of a plain model in memory, two questions and two dtypes: *in bf16* and *in fp16*, what a study measures and what its
export gives when it is loaded are the same bits in the same dtypes, also where the class keeps tensors in fp32; *your
own function* takes the place of a pipeline in a study, which is measured, exported and loaded; *refused if changed*, a
model that is cast layer by layer, has an adapter, is offloaded (by accelerate, or in groups), is stored in 8 bits or
packed already is refused with the remedy.

Of a packed model, as [packed models](runtime.md#in-use) says: *saved again* with `save_pretrained` in shards, and
loaded; *copied* by `copy.deepcopy`; *cast* to float64 and back; *offloaded* layer by layer, with no packed weight left
on the device, and by groups; a LoRA *adapter* that computes as beside plain layers and is unloaded; *merging refused*:
merging it, starting it by PiSSA, and saving the model with it are refused, and nothing is left behind; *fused*:
`fuse_qkv_projections` unpacks nothing; *averaged* by diffusers' `EMAModel`; *8-bit activations* on and off. *Yes*
means that the output is bit-identical before and after, and with an adapter close to that of plain layers of the same
weights.
"""

_PIPELINES = """## Pipelines

Pipeline classes that take a generator and need only prompts, class labels or noise: text to image, text to video,
class-conditional and unconditional. Each is built tiny with random weights (`tests/sweep/`) and taken through a study
with `init`, `plan`, two measurements and `export`; the export is *loaded*, and its pictures are compared with those of
the same quantized weights in the original. The folders' names have spaces, quotes and brackets. Pipelines that need an
input picture, film or sound are not in the table: `init` says what they need.
"""

_FILES = """## Files and use

What is asked of the same pipelines beside that. *Variant, shards, pickles*: a folder that has only a variant, in
shards, and one of `.bin` files give the weights that they hold. *fp8 with scales*: so do matrices in 8-bit floats.
*Missing weights named*: one that is missing, and one of another name, are named before anything is made. *Single file*:
the denoiser in one file, with `--config`. *NaN pictures refused*: of a model whose pictures are no numbers, nothing is
measured. *In bf16*: a study in bf16 gives the pictures of its export, bit for bit. *Fine-tune*: its choice is used on
another model of the architecture, stored as a variant in shards. *Saved again*: the denoiser is packed in memory,
`pipe.save_pretrained` writes it, and what is loaded gives the same pictures. *LoRA file*: it is loaded beside packed
layers, gives the pictures that it gives beside plain ones, and is unloaded. *Several denoisers*: all of the pipeline
share a study, and are packed.
"""


def page(families: dict[str, list[Row]], walks: list[Row], waiting: Sequence[str] = ()) -> str:
    """The text of docs/coverage.md; ``waiting`` are classes that have no row yet."""
    lines = [_HEAD.format(version=diffusers.__version__)]
    if waiting:
        lines.append(f"Still to be run for this page: {', '.join(f'`{name}`' for name in waiting)}.\n")
    rows = [row for family in families.values() for row in family]
    lines.append(f"{sum('layers' in row and not row['wrong'] for row in rows)} of {len(rows)} classes: same output.\n")
    for family, members in families.items():
        lines += [f"## {family}\n", "| class | layers | units | parts | nodes | edges | bypassed | operations | |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|---|---|")
        lines += [_denoiser(row) for row in members]
        lines.append("")
    lines += [_USE, *answers_table(rows)]
    lines += ["\n## Without an entry\n", *(f"- `{name}`: {why}." for name, why in EXCLUDED.items()), ""]
    lines += [*_pipelines(walks), "", _FILES, *answers_table(walks)]
    lines += ["\n## Pipelines not tried\n", *(f"- `{n}`: {why}." for n, why in sorted(pipelines.EXCLUDED.items()))]
    return "\n".join(lines) + "\n"


def _denoiser(row: Row) -> str:
    if "failed" in row:
        return f"| `{row['class']}` | | | | | | | | {cell(row['failed'])} |"
    numbers = " | ".join(str(row[key]) for key in ("layers", "units", "parts", "nodes", "edges", "bypassed"))
    return f"| `{row['class']}` | {numbers} | {', '.join(row['operations'])} | {cell(row['wrong'] or 'same output')} |"


def _pipelines(rows: list[Row]) -> list[str]:
    passed = sum(row.get("wrong") == "" for row in rows)
    lines = [_PIPELINES, f"{passed} of {len(rows)} classes get through.\n"]
    lines += [f"| class | takes | {' | '.join(STAGES)} | |", f"|---|---|{'---|' * (len(STAGES) + 1)}"]
    for row in rows:
        marks = " | ".join(_YES if stage in row.get("passed", ()) else "no" for stage in STAGES)
        takes = ", ".join(f"`{name}`" for name in row.get("takes", ())) or "nothing"
        said = row.get("failed") or row["wrong"] or row["remark"]
        lines.append(f"| `{row['class']}` | {takes} | {marks} | {cell(said)} |")
    return lines


def answers_table(rows: Sequence[Row]) -> list[str]:
    """A row for each group of classes with the same answers, the largest groups of *yes* first.

    The table has "yes", "–" for what does not apply, and a number for every other answer, which stands below.
    """
    questions = next(list(row["answers"]) for row in rows if "answers" in row)
    notes: dict[str, int] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        given = row.get("answers") or dict.fromkeys(questions, f"not answered: {row['failed']}")
        shown = tuple(_short(given[question], notes) for question in questions)
        groups.setdefault(shown, []).append(f"`{row['class']}`")
    ordered = sorted(groups.items(), key=lambda group: (sum(answer != _YES for answer in group[0]), group[0]))
    lines = [f"| {' | '.join(questions)} | classes |", f"|{'---|' * (len(questions) + 1)}"]
    lines += [f"| {' | '.join(shown)} | {len(names)}: {', '.join(names)} |" for shown, names in ordered]
    return [*lines, "", *(f"{number}. {cell(text)}" for text, number in notes.items())]


def _short(answer: str, notes: dict[str, int]) -> str:
    if answer == _YES:
        return answer
    number = notes.setdefault(answer.removeprefix("n/a: "), len(notes) + 1)
    return f"{'n/a' if answer.startswith('n/a') else 'no'} ({number})"


def cell(text: str) -> str:
    """A text as it can stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
