"""What the paper says of sensitivity, held against a study: the numbers of docs/gallery.md.

    python benchmarks/gallery.py STUDY [STUDY ...]

Needs studies that were measured, fitted and explained. Costs are what 4 → 3 bits costs a layer, in dB; a comparison of
two groups is of their means over layers, taken within each fold, ± the standard error over folds.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from qua2sedimo import Configuration, Study
from qua2sedimo.sensitivity import LayerStep, Sensitivity
from qua2sedimo.study.choices import Choice


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("studies", nargs="+", type=Path)
    for folder in asked.parse_args().studies:
        study = Study(folder)
        found = study.sensitivity()
        records = len(study.workspace.records.all("sample"))
        print(f"\n## {folder.name}: {len(found.space.layers)} layers and parts, {records} records")
        for line in (*embeddings(found.steps), *last_layer(found.steps), *attention(found.steps), *blocks(found.steps)):
            print(line)
        for line in methods(found, sorted((folder / "choices").glob("*.json"))):
            print(line)


def spread(folds: Sequence[float] | np.ndarray) -> str:
    """Mean and standard error over folds."""
    return f"{np.mean(folds):+.3f} ± {np.std(folds, ddof=1) / np.sqrt(len(folds)):.3f}"


def mean_of(steps: Iterable[LayerStep]) -> np.ndarray:
    """Mean cost over layers, [folds]."""
    return np.mean([one.step.folds for one in steps], axis=0)


def compared(name: str, first: list[LayerStep], other: str, second: list[LayerStep]) -> list[str]:
    if not first or not second:
        return [f"{name} against {other}: no layers of {'the first' if not first else 'the second'} kind"]
    a, b = mean_of(first), mean_of(second)
    groups = f"{name} ({len(first)}) {spread(a)}, {other} ({len(second)}) {spread(b)}"
    return [f"{groups}; difference {spread(a - b)} dB"]


def of(steps: Iterable[LayerStep], *operations: str) -> list[LayerStep]:
    return [one for one in steps if one.layer.operation in operations]


def embeddings(steps: Sequence[LayerStep]) -> list[str]:
    """Time embedding against caption embedding, and against all other layers."""
    time, caption = of(steps, "t-Embed"), of(steps, "c-Embed")
    rest = [one for one in steps if one.layer.operation != "t-Embed"]
    captions = caption or of(steps, "CA-K", "CA-V")
    other = "caption embedding" if caption else "caption's keys and values"
    return compared("time embedding", time, other, captions) + compared("time embedding", time, "all others", rest)


def last_layer(steps: Sequence[LayerStep]) -> list[str]:
    """Where the last layer stands among all, by cost."""
    lines = []
    for one in (s for s in steps if s.layer.operation in ("Out", "Conv Out") and s.layer.stage == "output"):
        rank = 1 + sum(s.step.cost > one.step.cost for s in steps)
        middle = float(np.median([s.step.cost for s in steps]))
        lines.append(f"{one.layer.name}: {spread(one.step.folds)} dB, rank {rank} of {len(steps)}, median {middle:.3f}")
    return lines


def attention(steps: Sequence[LayerStep]) -> list[str]:
    """Self-attention against cross-attention; in a U-Net at the higher resolution against the middle block."""
    own = [s for s in steps if s.layer.operation.startswith("SA-")]
    cross = [s for s in steps if s.layer.operation.startswith("CA-")]
    middle = [s for s in own if s.layer.stage == "mid"]
    lines = compared("self-attention", own, "cross-attention", cross)
    if middle:
        outer = [s for s in own if s.layer.stage != "mid"]
        lines += compared("self-attention at the higher resolution", outer, "in the middle block", middle)
    return lines


def blocks(steps: Sequence[LayerStep]) -> list[str]:
    """Mean costs by operation and by stage, dearest first, and the five dearest layers."""
    lines = []
    for by in ("operation", "block"):
        groups: dict[str, list[LayerStep]] = defaultdict(list)
        for one in steps:
            groups[getattr(one.layer, by)].append(one)
        order = sorted(groups, key=lambda name: -float(mean_of(groups[name]).mean()))
        lines.append(f"by {by}: " + ", ".join(f"{n} ({len(groups[n])}) {spread(mean_of(groups[n]))}" for n in order))
    return [*lines, "dearest: " + ", ".join(f"{s.layer.name} {spread(s.step.folds)}" for s in steps[:5])]


def methods(found: Sensitivity, paths: Iterable[Path]) -> list[str]:
    """Of every candidate for a size: what it measured on the same fresh images, and its weights' share by method."""
    lines = []
    for path in paths:
        choice = Choice.load(path)
        for one in sorted(choice.candidates, key=lambda c: -next(iter(c.measured.values()))):
            measured = ", ".join(f"{name} {value:.2f}" for name, value in one.measured.items())
            about = f"choice {path.stem}, {one.origin} ({one.average_bits:.3f} bits): {measured}"
            lines.append(f"{about}; {shares(found, one.configuration)}")
    return lines


def shares(found: Sensitivity, configuration: Configuration) -> str:
    """Share of the weights under each method."""
    counted: Counter[str] = Counter()
    for layer, option in configuration.items():
        counted[option.method] += found.layers[layer].weights
    return ", ".join(f"{method} {count / sum(counted.values()):.0%}" for method, count in counted.most_common())


if __name__ == "__main__":
    main()
