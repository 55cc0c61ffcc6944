"""How often sentences and dropped candidates are wrong where nothing differs, and what differences they find.

    python benchmarks/findings.py [--studies 2000] [--out benchmarks/results/findings.json]

First table: the share of studies with at least one false sentence, by :func:`qua2sedimo.sensitivity.findings`, where no
group differs from another, for several ways in which folds depend on each other; by the rule used before (the mean
difference to the next group above 2.5 standard errors over folds); and where two operations cost equally much, far more
than the others, of naming either, or one of their layers. Second: the share of studies in which an operation
that costs more is named, by how much more it costs. Third and fourth: the same for the candidates that
:func:`qua2sedimo.search.halving.survivors` drops, and for the rule used before (below 0 with the upper 95 % bootstrap
quantile of the difference to the best). A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.formats.files import write_json
from qua2sedimo.search.halving import survivors
from qua2sedimo.sensitivity import LayerStep, findings
from qua2sedimo.sensitivity.steps import Step, standard_error

LAYERS, OPERATIONS, BLOCKS, STAGES, FOLDS = 48, 8, 12, 3, 5
CANDIDATES = 8
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def heavy_tails(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(3, size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.exponential(size=shape) - 1


def unequal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Spreads of layers, or candidates, differ up to a hundredfold."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-1, 1, size=(shape[0], 1))


def alike(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Chance moves most of them together."""
    return rng.normal(size=(1, shape[1])) + 0.3 * rng.normal(size=shape)


DRAWS: Sequence[Draw] = (normal, heavy_tails, skewed, unequal, alike)


def independent(parts: np.ndarray) -> np.ndarray:
    return parts


def all_but_one(parts: np.ndarray) -> np.ndarray:
    """As the damages: each fold is fitted to all parts of the records but one."""
    return (parts.sum(axis=-1, keepdims=True) - parts) / (parts.shape[-1] - 1)


def all_but_two(parts: np.ndarray) -> np.ndarray:
    """As the network: one more part stops the training."""
    return (parts.sum(axis=-1, keepdims=True) - parts - np.roll(parts, 1, axis=-1)) / (parts.shape[-1] - 2)


def and_training(parts: np.ndarray) -> np.ndarray:
    """All but one, with as much chance in the training of each fold."""
    return all_but_one(parts) + np.random.default_rng(zlib.crc32(parts.tobytes())).normal(size=parts.shape) / 4


FOLDINGS = (independent, all_but_one, all_but_two, and_training)


def study(folds: np.ndarray, more: float = 0.0, dear: int = 1) -> list[LayerStep]:
    """Layers with these costs [layers, folds]; those of the first ``dear`` operations cost ``more``."""
    steps = []
    for i, row in enumerate(folds):
        operation, block, stage = i % OPERATIONS, i * BLOCKS // LAYERS, i * STAGES // LAYERS
        layer = WeightLayer(f"{i}", f"{i}", None, (4, 4), "Linear", f"{operation}", f"{block}", None, f"{stage}")
        costs = tuple(float(v) + more * (operation < dear) for v in row)
        steps.append(LayerStep(layer, Step("uaq-4", "uaq-3", costs, True)))
    return steps


def sentences_before(steps: Sequence[LayerStep]) -> Iterator[str]:
    """The rule used before, as the groups it named."""
    for by in ("operation", "stage", "block", "name"):
        groups: dict[str, list[tuple[float, ...]]] = {}
        for item in steps:
            groups.setdefault(str(getattr(item.layer, by)), []).append(item.step.folds)
        costs = {name: np.mean(members, axis=0) for name, members in groups.items()}
        order = sorted(costs, key=lambda name: -float(costs[name].mean()))
        for extreme, rival in ((order[0], order[1]), *([] if by == "name" else [(order[-1], order[-2])])):
            difference = costs[extreme] - costs[rival]
            if abs(difference.mean()) > 2.5 * standard_error(difference.tolist()):
                yield f"{by} {extreme}"


def survivors_before(values: np.ndarray, seed: int) -> int:
    """How many the rule used before left."""
    difference = values - values[np.argmax(values.mean(axis=1))]
    draws = np.random.default_rng(seed).integers(values.shape[1], size=(1000, values.shape[1]))
    upper = np.quantile(difference[:, draws].mean(axis=2), 0.95, axis=1)
    return 1 + int((upper > 0).sum())


def false_sentences(studies: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for folding in FOLDINGS:
        for draw in DRAWS:
            rng = np.random.default_rng(1)
            chance = [folding(draw(rng, (LAYERS, FOLDS))) for _ in range(studies)]
            made = [study(folds) for folds in chance]
            now = float(np.mean([bool(findings(steps)) for steps in made]))
            before = float(np.mean([any(True for _ in sentences_before(steps)) for steps in made]))
            tied = [findings(study(folds, 1e4, 2)) for folds in chance]
            wrong = [any(f"any other {by}" in s for s in of for by in ("operation", "layer")) for of in tied]
            rows.append({
                "folds": folding.__name__, "chance": draw.__name__, "false": now, "false_before": before,
                "two_equal": float(np.mean(wrong)),
            })  # fmt: skip
    return rows


def found_sentences(studies: int) -> list[dict[str, object]]:
    """By how much more operation 0 costs, in standard errors of an operation's cost."""
    rows: list[dict[str, object]] = []
    error = np.sqrt(1 / FOLDS / (LAYERS / OPERATIONS))
    for gap in (0, 2, 4, 6, 8, 12, 16, 24):
        rng = np.random.default_rng(2)
        made = [study(all_but_one(normal(rng, (LAYERS, FOLDS))), gap * error) for _ in range(studies)]
        named = [any(s.startswith("0: 4 → 3 bits costs the most") for s in findings(steps)) for steps in made]
        before = ["operation 0" in sentences_before(steps) for steps in made]
        rows.append({"gap": gap, "named": float(np.mean(named)), "named_before": float(np.mean(before))})
    return rows


def false_drops(stages: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for images in (4, 16, 48):
        for draw in DRAWS:
            rng = np.random.default_rng(3)
            made = [draw(rng, (CANDIDATES, images)) for _ in range(stages)]
            left = [len(survivors(values, CANDIDATES, seed=i)) for i, values in enumerate(made)]
            before = [survivors_before(values, i) for i, values in enumerate(made)]
            rows.append({
                "images": images, "chance": draw.__name__, "any": float(np.mean(np.less(left, CANDIDATES))),
                "any_before": float(np.mean(np.less(before, CANDIDATES))),
                "dropped": CANDIDATES - float(np.mean(left)), "dropped_before": CANDIDATES - float(np.mean(before)),
            })  # fmt: skip
    return rows


def found_drops(stages: int) -> list[dict[str, object]]:
    """How many of four worse candidates are dropped, by how much worse they are, in spreads of a difference."""
    rows: list[dict[str, object]] = []
    for images in (16, 48):
        for gap in (0.5, 1.0, 1.5, 2.0):
            rng = np.random.default_rng(4)
            worse = np.repeat([0.0, gap * np.sqrt(2)], CANDIDATES // 2)[:, None]
            made = [normal(rng, (CANDIDATES, images)) - worse for _ in range(stages)]
            left = [survivors(values, CANDIDATES, seed=i) for i, values in enumerate(made)]
            dropped = 1 - np.mean([sum(c >= CANDIDATES // 2 for c in of) / (CANDIDATES // 2) for of in left])
            wrong = np.mean([sum(c < CANDIDATES // 2 for c in of) < CANDIDATES // 2 for of in left])
            rows.append({"images": images, "gap": gap, "dropped": float(dropped), "wrong": float(wrong)})
    return rows


def shown(title: str, rows: Sequence[dict[str, object]]) -> None:
    print(f"\n{title}\n" + " | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies, or stages, a row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/findings.json"))
    given = parser.parse_args()
    tables = {
        "false_sentences": false_sentences(given.studies),
        "found_sentences": found_sentences(given.studies),
        "false_drops": false_drops(given.studies),
        "found_drops": found_drops(given.studies),
    }
    for title, rows in tables.items():
        shown(title.replace("_", " "), rows)
    write_json(given.out, {"studies": given.studies, **tables})
    print(json.dumps(str(given.out)))


if __name__ == "__main__":
    main()
