"""Every transformer, U-Net and pipeline class of diffusers from a small configuration: does it get through?

    python benchmarks/coverage.py [--docs]

Builds each class of tests/denoisers/coverage with random weights, traces it, quantizes and packs every layer and part,
loads the file with stock diffusers, and compares the outputs. Then takes each pipeline class of tests/sweep through a
study. Prints a table, writes benchmarks/results/coverage.json, and with --docs the page docs/coverage.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.denoisers.coverage.check import check  # noqa: E402
from tests.denoisers.coverage.registry import EXCLUDED, FAMILIES, exported  # noqa: E402
from tests.denoisers.coverage.use import QUESTIONS, YES, answers  # noqa: E402
from tests.sweep import registry as pipelines  # noqa: E402
from tests.sweep.check import STAGES, walk  # noqa: E402
from tests.sweep.entries import ENTRIES  # noqa: E402

_HEAD = """# Coverage

Transformer and U-Net classes of diffusers {version}. Each is built from a small configuration with random weights and
traced; every layer and part is quantized and packed; the checkpoint is loaded with `from_pretrained`, and its output is
compared. *Same output* means bit-identical to the model with the same quantized weights written into its layers.
*Units* are layers or parts with their own option; *bypassed* layers are never called as modules in this call, or do not
reach its output, and are not quantized.

Made by `python benchmarks/coverage.py --docs`. The configurations are in `tests/denoisers/coverage/`.
The last section has [the pipeline classes](#pipelines).
"""

_PIPELINES = """## Pipelines

Pipeline classes that take a generator and need only prompts, class labels or noise: text to image, text to video,
class-conditional and unconditional. Each is built tiny with random weights (`tests/sweep/`) and taken through a study
with `init`, `plan`, two measurements and `export`; the export is *loaded*, and its pictures are compared with those of
the same quantized weights in the original. Pipelines that need an input picture, film or sound are not in the table:
`init` says what they need.
"""


def seen(name: str) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        checked = check(name, Path(folder) / "packed")
        used = answers(name, Path(folder) / "used")
    graph = checked.graph
    units = graph.layers.values()
    return {
        "class": name,
        "layers": len(checked.modules),
        "units": len(graph.layers),
        "parts": sum(unit.span is not None for unit in units),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "bypassed": len(graph.bypassed),
        "operations": dict(sorted(Counter(unit.operation for unit in units).items())),
        "wrong": checked.wrong,
        "use": used,
        "seconds": round(time.perf_counter() - began, 2),
    }


def walked(name: str) -> dict[str, Any]:
    """One row of the table of pipelines."""
    began = time.perf_counter()
    cls = pipelines.in_scope()[name]
    taken = [input_ for input_ in ("prompt", "class_labels", "batch_size") if input_ in _parameters(cls)]
    with tempfile.TemporaryDirectory() as folder:
        found = walk(name, Path(folder))
    seconds = round(time.perf_counter() - began, 2)
    return {"class": name, "takes": taken, "passed": found.passed, "wrong": found.wrong, "remark": found.remark,
            "seconds": seconds}  # fmt: skip


def _parameters(cls: type[Any]) -> dict[str, Any]:
    return dict(inspect.signature(cls.__call__).parameters)


def pipelines_section(rows: list[dict[str, Any]]) -> list[str]:
    """The section with the table of pipelines."""
    passed = sum(not row["wrong"] for row in rows)
    lines = [_PIPELINES, f"{passed} of {len(rows)} classes get through.\n"]
    lines += [f"| class | takes | {' | '.join(STAGES)} | |", f"|---|---|{'---|' * (len(STAGES) + 1)}"]
    for row in rows:
        marks = " | ".join("yes" if stage in row["passed"] else "no" for stage in STAGES)
        takes = ", ".join(f"`{name}`" for name in row["takes"]) or "nothing"
        lines.append(f"| `{row['class']}` | {takes} | {marks} | {row['wrong'] or row['remark']} |")
    lines += ["\n### Not tried\n", *(f"- `{name}`: {why}." for name, why in sorted(pipelines.EXCLUDED.items()))]
    return lines


def page(families: dict[str, list[dict[str, Any]]], walks: list[dict[str, Any]]) -> str:
    """docs/coverage.md: the same for the same versions."""
    lines = [_HEAD.format(version=diffusers.__version__)]
    rows = [row for family in families.values() for row in family]
    lines.append(f"{sum(not row['wrong'] for row in rows)} of {len(rows)} classes: same output.\n")
    for family, members in families.items():
        lines += [f"## {family}\n", "| class | layers | units | parts | nodes | edges | bypassed | operations | |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|---|---|")
        for row in members:
            numbers = " | ".join(str(row[key]) for key in ("layers", "units", "parts", "nodes", "edges", "bypassed"))
            verdict = row["wrong"] or "same output"
            lines.append(f"| `{row['class']}` | {numbers} | {', '.join(row['operations'])} | {verdict} |")
        lines.append("")
    lines += in_use(rows)
    lines += ["## Without an entry\n", *(f"- `{name}`: {why}." for name, why in EXCLUDED.items()), ""]
    lines += pipelines_section(walks)
    return "\n".join(lines) + "\n"


_USE = """## In use

What is done with a packed model of each class, as [packed models](runtime.md#in-use) says: *saved again* with
`save_pretrained` and loaded; *copied* by `copy.deepcopy`; *cast* to float64 and back; *offloaded* layer by layer, with
no packed weight left on the device; a LoRA *adapter* that computes as beside plain layers and is unloaded; *8-bit
activations* on and off. *Yes* means that the output is bit-identical before and after, and with an adapter close to
that of plain layers of the same weights.
"""


def in_use(rows: list[dict[str, Any]]) -> list[str]:
    """The section on what is done with packed models; classes with the same answers share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(row["use"][question] for question in QUESTIONS), []).append(f"`{row['class']}`")
    lines = [_USE, f"| {' | '.join(QUESTIONS)} | classes |", f"|{'---|' * (len(QUESTIONS) + 1)}"]
    ordered = sorted(groups.items(), key=lambda group: (sum(answer != YES for answer in group[0]), group[0]))
    lines += [f"| {' | '.join(found)} | {len(names)}: {', '.join(names)} |" for found, names in ordered]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md too")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    there = exported()
    families = {}
    for family, entries in FAMILIES.items():
        families[family] = [seen(name) for name in entries if name in there]
        for row in families[family]:
            print(f"{row['class']:<44} {row['units']:4} units {row['seconds']:6.2f} s  {row['wrong'] or 'same output'}")
    walks = []
    for row in map(walked, (name for name in ENTRIES if name in pipelines.in_scope())):
        walks.append(row)
        print(f"{row['class']:<44} {row['seconds']:6.2f} s  {row['wrong'] or row['remark']}")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "coverage.json").write_text(json.dumps({"denoisers": families, "pipelines": walks}, indent=1))
    if arguments.docs:
        (ROOT / "docs" / "coverage.md").write_text(page(families, walks))


if __name__ == "__main__":
    main()
