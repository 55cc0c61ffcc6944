"""What the network must beat: predictors without a graph, judged on the same unseen records."""

from __future__ import annotations

import numpy as np

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


def ridge_out_of_fold(
    space: SearchSpace, choices: np.ndarray, objective: np.ndarray, folds: list[list[int]]
) -> np.ndarray:
    """Ridge on one-hot options, predicted for each record by a fit to all other folds' records."""
    x = one_hot(space, choices)
    predicted = np.empty(len(objective))
    for test in folds:
        train = np.setdiff1d(np.arange(len(objective)), test)
        predicted[test] = ridge(x[train], objective[train], x[test])
    return predicted
