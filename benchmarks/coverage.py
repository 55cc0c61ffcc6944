"""Every transformer and U-Net class of diffusers from a small configuration: what was traced, and whether it holds.

    python benchmarks/coverage.py [--docs]

Builds each class of tests/denoisers/coverage with random weights, traces it, quantizes and packs every layer and part,
loads the file with stock diffusers, and compares the outputs. Prints a table, writes
benchmarks/results/coverage.json, and with --docs the page docs/coverage.md.
"""

from __future__ import annotations

import argparse
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

_HEAD = """# Coverage

Transformer and U-Net classes of diffusers {version}. Each is built from a small configuration with random weights and
traced; every layer and part is quantized and packed; the checkpoint is loaded with `from_pretrained`, and its output is
compared. *Same output* means bit-identical to the model with the same quantized weights written into its layers.
*Units* are layers or parts with their own option; *bypassed* layers are never called as modules in this call, or do not
reach its output, and are not quantized.

Made by `python benchmarks/coverage.py --docs`. The configurations are in `tests/denoisers/coverage/`.
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


def page(families: dict[str, list[dict[str, Any]]]) -> str:
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
    lines += ["## Without an entry\n", *(f"- `{name}`: {why}." for name, why in EXCLUDED.items())]
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
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "coverage.json").write_text(json.dumps(families, indent=1))
    if arguments.docs:
        (ROOT / "docs" / "coverage.md").write_text(page(families))


if __name__ == "__main__":
    main()
