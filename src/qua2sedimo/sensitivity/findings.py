"""Plain sentences about sensitivity, few enough to be wrong in at most one study of twenty.

What the folds of a predictor say is not independent: each is fitted to all records but one part of them, so chance in
the records moves all folds alike, and the spread between folds shows only a part of it. The delete-a-group jackknife
(Shao and Tu, "The Jackknife and Bootstrap", 1995) gives the variance of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from qua2sedimo.sensitivity.tables import LayerStep

#: The chance that any sentence of a study is false, at most.
LEVEL = 0.05
_GROUPINGS = (("operation", ("most", "least")), ("stage", ("most", "least")), ("block", ("most", "least")),
              ("layer", ("most",)))  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Claim:
    """That one group of a grouping ``by`` costs more, or less, than every other: its costs in each fold, its layers,
    and a p-value that allows for having picked it."""

    group: str
    by: str
    word: str
    costs: np.ndarray
    layers: tuple[str, ...]
    p: float


def findings(steps: Sequence[LayerStep], unit: str = "", folds: int | None = None) -> list[str]:
    """What 4 → 3 bits costs most and least, by operation, stage, block and layer.

    A group is said to cost most if it costs more than each of the others, in the mean over folds and over layers, by
    more than chance explains; least likewise. The chance that any sentence is false is at most :data:`LEVEL`, all
    sentences of a study together (Holm). It is about chance in the records of random configurations and in training;
    what all folds have in common, such as measurements of layers alone, is not covered. Groups of the same layers, as a
    stage of one block, are named once.

    Args:
        folds: into how many parts the records were split; as many as each step has values by default.
    """
    claims = [claim for by, words in _GROUPINGS for claim in _claims(steps, by, words, folds)]
    said: list[str] = []
    named: set[tuple[str, ...]] = set()
    for claim, p in zip(claims, _holm([claim.p for claim in claims])):
        key = claim.word, *claim.layers
        if p <= LEVEL and key not in named:
            named.add(key)
            said.append(_sentence(claim, p, unit, folds))
    return said


def _claims(steps: Sequence[LayerStep], by: str, words: Sequence[str], folds: int | None) -> Iterator[_Claim]:
    """The claims that the means of a grouping of at least three groups suggest."""
    groups: dict[str, list[LayerStep]] = {}
    for item in steps:
        groups.setdefault(str(getattr(item.layer, "name" if by == "layer" else by)), []).append(item)
    if len(groups) < 3:
        return
    names = list(groups)
    costs = np.array([np.mean([s.step.folds for s in members], axis=0) for members in groups.values()])
    for word in words:
        signed = costs if word == "most" else -costs
        first = int(np.argmax(signed.mean(axis=1)))
        p = _p_of_first(signed[first] - np.delete(signed, first, axis=0), folds)
        yield _Claim(names[first], by, word, costs[first], tuple(sorted(s.layer.name for s in groups[names[first]])), p)


def _p_of_first(leads: np.ndarray, folds: int | None) -> float:
    """p-value of the claim that the group picked for its mean exceeds every other.

    The least of the one-sided tests, twice: picking costs no more than that, however many groups there are (Gutmann and
    Maymin, "Is the selected population the best?", Annals of Statistics 15, 1987).

    Shapes:
        leads: differences to each other group [groups, folds].
    """
    if leads.shape[1] < 2:
        return 1.0
    lead, error = leads.mean(axis=1), shared_error(leads, folds)
    t = np.divide(lead, error, out=np.where(lead > 0, np.inf, 0.0), where=error > 0)
    return float(min(1.0, 2 * student.sf(t.min(), leads.shape[1] - 1)))


def shared_error(values: np.ndarray, folds: int | None = None) -> np.ndarray:
    """Standard error of the mean over folds that are each fitted to all but one of ``folds`` parts of the records.

    By the jackknife, for k of K folds: s·√(1/k + K − 2), with s the standard deviation between folds; for all folds
    s·(K − 1)/√K. It is too large if chance in training outweighs that in the records.

    Shapes:
        values: […, folds] → […].
    """
    k = values.shape[-1]
    return np.asarray(values.std(axis=-1, ddof=1) * math.sqrt(1 / k + max(folds or k, k) - 2))


def _holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the order of ``p``."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    found = np.empty(len(p))
    found[order] = np.minimum(adjusted, 1.0)
    return found


def _sentence(claim: _Claim, p: float, unit: str, folds: int | None) -> str:
    mean, error = float(claim.costs.mean()), float(shared_error(claim.costs, folds))
    digits = max(0, min(4, 1 - math.floor(math.log10(error)))) if error > 0 else 2
    amount = f"{mean:.{digits}f} ± {error:.{digits}f}" + (f" {unit}" if unit else "")
    each = "" if claim.by == "layer" else " a layer"
    shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    beyond = "more" if claim.word == "most" else "less"
    return (
        f"{claim.group}: 4 → 3 bits costs the {claim.word}, {amount}{each}: "
        f"{beyond} than any other {claim.by} beyond chance ({len(claim.costs)} folds, {shown})."
    )
