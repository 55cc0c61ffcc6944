"""The additive model: images' squared error as a sum of sensitivity × relative weight error, without any graph.

ln(image error) = ln Σ_l exp(s_l + γ·ln e_l),   s_l = s + s_operation + s_block + s_layer

fitted by penalised least squares. It is a baseline of the predictor, and one of the proposers of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph
from qua2sedimo.options import Option, SearchSpace

_FLOOR = 1e-9
_STEPS, _RATE = 300, 0.05
#: Weights of the penalties on the deviations of operations, blocks and layers.
_PENALTIES = (0.02, 0.02, 0.06)


@dataclass(frozen=True)
class AdditiveModel:
    """Log sensitivity of each layer [layers], and the exponent γ of the relative errors."""

    log_sensitivity: np.ndarray
    exponent: float

    def quality(self, errors: np.ndarray) -> np.ndarray:
        """−ln of the predicted image error for relative errors [records, layers]: [records]."""
        terms = self.log_sensitivity + self.exponent * np.log(errors + _FLOOR)
        return -np.asarray(np.logaddexp.reduce(terms, axis=1))

    def scores(self, space: SearchSpace, bank: Bank) -> dict[str, dict[Option, float]]:
        """Minus the predicted damage of each option: what an integer program adds up."""
        sensitivity = np.exp(self.log_sensitivity - self.log_sensitivity.mean())
        return {
            layer: {
                option: -float(s * (error.relative_mse + _FLOOR) ** self.exponent)
                for option, error in bank.errors[layer].items()
            }
            for layer, s in zip(space.layers, sensitivity)
        }


def relative_errors(space: SearchSpace, bank: Bank, choices: np.ndarray) -> np.ndarray:
    """Relative MSE of the chosen options: [records, layers]."""
    table = [[bank.errors[layer][o].relative_mse for o in space.options[layer]] for layer in space.layers]
    return np.array([[row[i] for row, i in zip(table, choice)] for choice in choices])


def fit_additive(graph: Graph, space: SearchSpace, errors: np.ndarray, quality: np.ndarray) -> AdditiveModel:
    """Fit to relative errors [records, layers] and a quality [records] that falls with the log of image error.

    ``quality`` is in decibels, as PSNR is; other objectives only need to order configurations as their error does.
    """
    layers = [graph.layers[name] for name in space.layers]
    groups = [_group([layer.operation for layer in layers]), _group([layer.block for layer in layers])]
    target = torch.tensor(-quality * np.log(10) / 10).double()
    log_errors = torch.tensor(np.log(errors + _FLOOR))
    level, exponent = torch.zeros(1).double(), torch.ones(1).double()
    deviations = [torch.zeros(int(group.max()) + 1).double() for group in groups] + [torch.zeros(len(layers)).double()]
    parameters = [level, exponent, *deviations]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, _RATE)

    def log_sensitivity() -> torch.Tensor:
        operation, block, own = deviations
        return level + operation[groups[0]] + block[groups[1]] + own

    for _ in range(_STEPS):
        predicted = torch.logsumexp(log_sensitivity() + exponent * log_errors, dim=1)
        penalty = sum(weight * d.square().mean() for weight, d in zip(_PENALTIES, deviations))
        loss = (predicted - target).square().mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return AdditiveModel(log_sensitivity().detach().numpy(), float(exponent.detach()))


def additive_out_of_fold(
    graph: Graph, space: SearchSpace, errors: np.ndarray, quality: np.ndarray, folds: Sequence[Sequence[int]]
) -> np.ndarray:
    """Predicted for each record by a fit to all other folds' records."""
    predicted = np.empty(len(quality))
    for test in folds:
        train = np.setdiff1d(np.arange(len(quality)), test)
        predicted[list(test)] = fit_additive(graph, space, errors[train], quality[train]).quality(errors[list(test)])
    return predicted


def _group(names: Sequence[str]) -> torch.Tensor:
    distinct = list(dict.fromkeys(names))
    return torch.tensor([distinct.index(name) for name in names])
