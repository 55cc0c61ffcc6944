"""What the network must beat: predictors without a graph, judged on the same unseen records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qua2sedimo.bank import Bank
from qua2sedimo.damage import DamageModel, Features, fit_gain
from qua2sedimo.options import SearchSpace


def one_hot(space: SearchSpace, choices: np.ndarray) -> np.ndarray:
    """Option indices [records, layers] → indicator features [records, Σ options of each layer]."""
    columns = [choices[:, [i]] == np.arange(len(space.options[layer])) for i, layer in enumerate(space.layers)]
    return np.concatenate(columns, axis=1).astype(np.float64)


def ridge(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Ridge regression with its penalty chosen by leave-one-out error on the training records (GCV's exact form)."""
    mean_x, mean_y = train_x.mean(axis=0), train_y.mean()
    x, y = train_x - mean_x, train_y - mean_y
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    best_error, best_weights = np.inf, np.zeros(x.shape[1])
    for penalty in np.logspace(-2, 4, 25):
        shrink = s**2 / (s**2 + penalty)
        residual = y - u @ (shrink * (u.T @ y))
        leverage = (u**2 @ shrink) + 1 / len(y)
        error = float(((residual / (1 - leverage)) ** 2).mean())
        if error < best_error:
            best_error, best_weights = error, vt.T @ ((s / (s**2 + penalty)) * (u.T @ y))
    return (test_x - mean_x) @ best_weights + mean_y


def additive(
    features: Features, train_choices: np.ndarray, train_gain: np.ndarray, test_choices: np.ndarray
) -> np.ndarray:
    """The damage model of errors, operations, blocks and layers alone: [records], in no particular unit."""
    return -additive_model(features, train_choices, train_gain).predict(test_choices)


def additive_model(features: Features, choices: np.ndarray, gain: np.ndarray) -> DamageModel:
    """Fitted to option indices [records, layers] and an objective [records], higher is better."""
    return fit_gain(features.only("error", "cost", "level", "operation", "block", "layer"), choices, gain)[0]


def out_of_fold(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    inputs: np.ndarray,
    objective: np.ndarray,
    folds: Sequence[Sequence[int]],
) -> np.ndarray:
    """Predicted for each record by ``predict(train inputs, train objective, test inputs)`` of all other folds."""
    predicted = np.empty(len(objective))
    for test in folds:
        train = np.setdiff1d(np.arange(len(objective)), test)
        predicted[list(test)] = predict(inputs[train], objective[train], inputs[list(test)])
    return predicted


def relative_errors(space: SearchSpace, bank: Bank, choices: np.ndarray) -> np.ndarray:
    """Relative MSE of the chosen options: [records, layers]."""
    table = [[bank.errors[layer][o].relative for o in space.options[layer]] for layer in space.layers]
    return np.array([[row[i] for row, i in zip(table, choice)] for choice in choices])
