"""AdaRound (Nagel et al., ICML 2020, arXiv:2004.10568), the rounding of Q-Diffusion and of TFMQ-DM, layer by layer.

Every weight goes to the level below or above it: ŵ = s · (clip(⌊w/s⌋ + h(V), …)), where the rectified sigmoid h(V) =
clip(σ(V)(ζ − γ) + γ, 0, 1), ζ = 1.1, γ = −0.1, is learned (its equations 21 and 23) to make the error of the layer's
output small while the regulariser Σ 1 − |2h − 1|^β drives h to 0 or 1 as β falls (its equation 24). That error is
tr((W − Ŵ)·H·(W − Ŵ)ᵀ) with H of inputs at all time steps, as Q-Diffusion (Li et al., ICCV 2023, arXiv:2302.04304)
calibrates. Q-Diffusion goes on to learn several layers of a block together, which this does not.
"""

from __future__ import annotations

import torch

from rivals.uniform import Grid

ZETA, GAMMA = 1.1, -0.1
_WARM = 0.2  # share of the steps without regulariser
_FIRST, _LAST = 20.0, 2.0  # β
_WEIGHT = 0.01  # of the regulariser, beside an error in units of a squared step's
_RATE = 0.03  # of Adam, more than the paper's, for fewer steps


def adaround(weight: torch.Tensor, moment: torch.Tensor, bits: int, steps: int = 500) -> torch.Tensor:
    """Weights [rows, n] rounded up or down under the moment [n, n] of their inputs; a grid a row."""
    grid = Grid.best(weight.float(), bits)
    below = torch.floor(weight.float() / grid.scale)
    v = start(weight.float() / grid.scale - below).requires_grad_()
    h = moment.float() / moment.diagonal().mean().clamp(min=1e-30)
    adam = torch.optim.Adam([v], lr=_RATE)
    with torch.enable_grad():
        for step in range(steps):
            up = soft(v)
            difference = weight.float() / grid.scale - _clipped(below + up, grid)
            loss = ((difference @ h) * difference).sum()
            after = (step / steps - _WARM) / (1 - _WARM)
            if after >= 0:
                beta = _FIRST + (_LAST - _FIRST) * after
                loss = loss + _WEIGHT * (1 - (2 * up - 1).abs().pow(beta)).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return grid.scale * _clipped(below + (soft(v.detach()) >= 0.5).float(), grid)


def soft(v: torch.Tensor) -> torch.Tensor:
    """h(V), from 0 to 1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(rest: torch.Tensor) -> torch.Tensor:
    """V with h(V) = ``rest``, the part of a step that flooring leaves: learning starts at the weights themselves."""
    return torch.logit(((rest - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4))


def _clipped(steps: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.minimum(torch.maximum(steps, -grid.zero), 2**grid.bits - 1 - grid.zero)
