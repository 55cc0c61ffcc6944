"""The budgeted choice: the configurations of highest total score within a number of packed bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace


def best_configurations(
    space: SearchSpace, scores: Mapping[str, Mapping[Option, float]], nbytes: int, count: int = 1
) -> Iterator[Configuration]:
    """The ``count`` best distinct configurations of at most ``nbytes``, best first, by integer program.

    Maximise Σ score(layer, option) with exactly one option a layer and Σ bytes ≤ ``nbytes``; each further answer
    excludes those before it. Ends early when no other configuration fits.
    """
    variables = [(i, layer, option) for i, layer in enumerate(space.layers) for option in space.options[layer]]
    value = np.array([scores[layer][option] for _, layer, option in variables])
    value = value / max(float(np.abs(value).max()), 1e-300)  # the solver's tolerances are absolute
    size = np.array([option.nbytes(space.shapes[layer]) for _, layer, option in variables], dtype=float)
    rows = np.array([i for i, _, _ in variables])
    columns = np.arange(len(variables))
    one_each = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(space.layers), len(columns)))
    matrix = vstack([one_each, csr_array(size[None])])
    low = [1.0] * len(space.layers) + [0.0]
    high = [1.0] * len(space.layers) + [float(nbytes)]
    while count:
        answer = milp(
            -value,
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 1e-6, "time_limit": 30},
        )
        if answer.x is None:
            if answer.status == 2:  # infeasible: no (further) configuration fits
                return
            raise Qua2SeDiMoError(f"the integer program was not solved: {answer.message}")
        chosen = np.flatnonzero(answer.x > 0.5)
        if size[chosen].sum() <= nbytes:  # the solver allows a millionth more; we do not
            count -= 1
            yield Configuration((variables[j][1], variables[j][2]) for j in chosen)
        cut = csr_array((np.ones(len(chosen)), (np.zeros(len(chosen), int), chosen)), shape=(1, len(columns)))
        matrix = vstack([matrix, cut])  # not these options all at once again
        low.append(0.0)
        high.append(len(chosen) - 1.0)
