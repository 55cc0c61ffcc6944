"""GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323) with a uniform grid, by row or in groups of inputs.

Weights are quantized column after column. The error of a column j, E_j = (w_j − q_j) / U_jj with H⁻¹ = UᵀU and U upper
triangular, is made up for by the columns that follow: w_k ← w_k − E_j · U_jk (its Algorithm 1, with the Cholesky
factor of its Step 3). H = E[x xᵀ] gets 1 % of its mean diagonal added (its damping).
"""

from __future__ import annotations

import torch

from rivals.uniform import Grid

DAMPING = 0.01


def gptq(
    weight: torch.Tensor,
    moment: torch.Tensor,
    bits: int,
    group: int | None = None,
    ordered: bool = False,
    shrunk: bool = False,
) -> torch.Tensor:
    """Weights [rows, n] rounded under the moment [n, n] of their inputs.

    ``ordered``: columns of large diagonal first (`act-order` of its code). ``shrunk``: grids whose ends are shrunk to
    least squared error (its `mse`). Grids are those of the groups in the order in which columns are taken, found when a
    group's turn comes.
    """
    n = weight.shape[1]
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if ordered else torch.arange(n)
    left = weight.double()[:, order].clone()
    upper = factor(moment.double()[order][:, order])
    made = torch.empty_like(left)
    size, found = group or n, Grid.best if shrunk else Grid.of
    for j in range(n):
        if j % size == 0:
            grid = found(left[:, j : j + size].float(), bits)
        made[:, j] = grid.nearest(left[:, j : j + 1].float())[:, 0].double()
        error = (left[:, j] - made[:, j]) / upper[j, j]
        left[:, j:] -= error[:, None] * upper[j, j:]
    back = torch.empty_like(made)
    back[:, order] = made
    return back.float()


def factor(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """U, upper triangular, with (H + damping · mean diagonal)⁻¹ = UᵀU; inputs that were always 0 are independent."""
    h = moment.clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)
