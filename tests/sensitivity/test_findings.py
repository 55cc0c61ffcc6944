"""Sentences are said where there is a difference, and in at most one study of twenty where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom
from tests.sensitivity.test_tables import made

from qua2sedimo.sensitivity import LayerStep, findings
from qua2sedimo.sensitivity.findings import shared_error

CALM = (1.0, 1.01, 0.99, 1.0, 1.005)
DEAR = (2.0, 2.02, 2.01, 2.03, 1.99)


def test_a_sentence_is_said_only_where_the_folds_agree_far_beyond_their_spread() -> None:
    calm = [made(f"{o} {i}", o, CALM) for o in ("SA-Q", "SA-K") for i in range(2)]
    sure = findings([*calm, made("t", "t-Embed", DEAR)], "dB")
    pattern = (
        r"t-Embed: 4 → 3 bits costs the most, 2\.010 ± 0\.0\d+ dB a layer: "
        r"more than any other operation beyond chance \(5 folds, p (=|<) 0\.\d+\)\."
    )
    assert any(re.fullmatch(pattern, s) for s in sure), sure
    torn = findings([*calm, made("t", "t-Embed", (9.0, 0.1, 0.1, 0.2, 1.0))], "dB")
    assert not any(s.startswith("t") for s in torn)
    assert findings([made("t", "t-Embed", (2.0,)), *[made(o, o, (1.0,)) for o in ("SA-Q", "SA-K")]]) == []
    assert findings([made(o, o, DEAR) for o in ("SA-Q", "SA-K", "t-Embed")]) == []  # all the same
    assert findings([]) == []


def test_a_stage_that_is_one_block_is_named_once() -> None:
    calm = [made(o, o, CALM, place, place) for o, place in (("SA-Q", "mid"), ("SA-K", "output"))]
    dear = [made(f"{o} in", o, DEAR, "input", "input") for o in ("SA-Q", "t-Embed")]
    said = findings([*calm, *dear], "dB")
    assert len([s for s in said if s.startswith("input: 4 → 3 bits costs the most")]) == 1
    assert len(said) == len(set(said))


def test_the_error_of_folds_is_that_of_the_mean_of_all_records() -> None:
    """Each fold is the mean of all parts but one: the jackknife gives back the error of the mean of the parts."""
    parts = np.random.default_rng(0).normal(size=(7, 5))
    folds = (parts.sum(axis=1, keepdims=True) - parts) / 4
    np.testing.assert_allclose(shared_error(folds), parts.std(axis=1, ddof=1) / np.sqrt(5))
    some = np.array([shared_error(folds[i : i + 1, :4], 5)[0] ** 2 for i in range(7)])  # a fold that was left out
    assert some.mean() == pytest.approx((shared_error(folds) ** 2).mean(), rel=0.5)


def independent(parts: np.ndarray) -> np.ndarray:
    return parts


def four_of_five(parts: np.ndarray) -> np.ndarray:
    """As the predictor's damages: each fold is fitted to all parts of the records but one."""
    return (parts.sum(axis=-1, keepdims=True) - parts) / (parts.shape[-1] - 1)


def three_of_five(parts: np.ndarray) -> np.ndarray:
    """As the predictor's network: one part to judge it, one to stop it."""
    return (parts.sum(axis=-1, keepdims=True) - parts - np.roll(parts, 1, axis=-1)) / (parts.shape[-1] - 2)


def study(folds: np.ndarray, offsets: np.ndarray | None = None) -> list[LayerStep]:
    """24 layers of 6 operations in 8 blocks of 3 stages, with these costs [layers, folds]."""
    costs = folds + (0.0 if offsets is None else offsets[:, None])
    return [
        made(f"layer {i}", f"operation {i % 6}", tuple(map(float, row)), f"stage {i % 3}", f"block {i // 3}")
        for i, row in enumerate(costs)
    ]


def spread_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    parts = rng.standard_t(3, size=(24, 5)) if kind == "heavy tails" else rng.normal(size=(24, 5))
    if kind == "unequal":
        parts *= 10.0 ** rng.uniform(-1, 1, size=(24, 1))
    return parts


@pytest.mark.parametrize("kind", ["equal", "unequal", "heavy tails"])
@pytest.mark.parametrize("shared", [independent, four_of_five, three_of_five])
def test_where_nothing_differs_anything_is_said_in_at_most_one_study_of_twenty(
    shared: Callable[[np.ndarray], np.ndarray], kind: str
) -> None:
    rng = np.random.default_rng(1)
    studies = 200
    false = sum(bool(findings(study(shared(spread_of(kind, rng))))) for _ in range(studies))
    assert false <= binom.ppf(0.999, studies, 0.05)  # 20 of 200


@pytest.mark.parametrize("shared", [four_of_five, three_of_five])
def test_of_two_equal_operations_far_above_the_others_none_is_said_to_cost_most(
    shared: Callable[[np.ndarray], np.ndarray],
) -> None:
    rng = np.random.default_rng(2)
    offsets = np.array([100.0 if i % 6 in (1, 4) else 0.0 for i in range(24)])
    studies, false = 200, 0
    for _ in range(studies):
        said = findings(study(shared(rng.normal(size=(24, 5))), offsets))
        false += any(re.match(r"operation \d: .* costs the most", s) is not None for s in said)
    assert false <= binom.ppf(0.999, studies, 0.05)


def test_an_operation_that_costs_much_more_is_found() -> None:
    rng = np.random.default_rng(3)
    offsets = np.array([10.0 if i % 6 == 2 else 0.0 for i in range(24)])
    said = [findings(study(four_of_five(rng.normal(size=(24, 5))), offsets)) for _ in range(50)]
    found = [any(s.startswith("operation 2: 4 → 3 bits costs the most") for s in of) for of in said]
    assert np.mean(found) > 0.9
