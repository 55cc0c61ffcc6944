"""Five folds of the predictor: trained, selected and judged on different records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch.nn import functional

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import read_document, write_json, write_via
from qua2sedimo.predictor.encoding import Encoding
from qua2sedimo.predictor.losses import LOSSES, ranking_loss
from qua2sedimo.predictor.network import HopNetwork, norms

FORMAT = 1
_REFIT = "Delete the predictor folder and run `qua2sedimo fit` again."


@dataclass(frozen=True)
class FitSettings:
    """How the predictor is trained.

    ``loss``: srcc, lambdarank, hybrid or mse; ``weight``: λ of the ranking part; ``patience``: epochs without a
    better validation loss before a fold stops.
    """

    loss: str = "srcc"
    weight: float = 1.0
    folds: int = 5
    epochs: int = 300
    patience: int = 60
    learning_rate: float = 4e-3
    decay: float = 1e-3
    channels: int = 32
    hops: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise Qua2SeDiMoError(f"unknown loss '{self.loss}'; known: {', '.join(LOSSES)}")


@dataclass(frozen=True)
class Fold:
    """A trained network, the range its target was scaled by, and what its validation part says of each hop.

    ``hop_weights``: validation rank correlation of each hop's norm with the objective, never negative.
    ``test``/``predicted``: positions of the records that neither trained nor selected it, and ŷ for them.
    """

    network: HopNetwork
    low: float
    high: float
    hop_weights: list[float]
    test: list[int]
    predicted: list[float]


@dataclass(frozen=True)
class Ensemble:
    """The folds of a study's predictor."""

    folds: list[Fold]

    def out_of_fold(self) -> tuple[np.ndarray, np.ndarray]:
        """(record positions, predictions in units of the objective), each by a fold that never saw the record."""
        pairs = sorted((p, y) for fold in self.folds for p, y in zip(fold.test, fold.predicted))
        return np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])

    @torch.no_grad()
    def predict(self, encoding: Encoding, choices: np.ndarray) -> np.ndarray:
        """Objective predicted for option indices [configurations, layers]: [folds, configurations]."""
        x = encoding(torch.as_tensor(choices))
        rows = [f.network(x, encoding.edges)[0].numpy() * (f.high - f.low) + f.low for f in self.folds]
        return np.stack(rows)

    def save(self, folder: Path, owner: str) -> None:
        """Write one safetensors file a fold and predictor.json; ``owner`` names the study's space and records."""
        (folder / "predictor.json").unlink(missing_ok=True)  # an old summary never stands beside new folds
        summary = []
        for i, fold in enumerate(self.folds):
            state = {name: t.contiguous() for name, t in fold.network.state_dict().items()}
            write_via(folder / f"fold{i}.safetensors", lambda path, state=state: save_file(state, path))  # type: ignore[misc]
            content = {k: v for k, v in vars(fold).items() if k != "network"}
            summary.append({**content, "shape": _shape(fold.network)})
        write_json(folder / "predictor.json", {"format": FORMAT, "owner": owner, "folds": summary})

    @classmethod
    def load(cls, folder: Path, owner: str) -> Ensemble:
        content = read_document(folder / "predictor.json", FORMAT, _REFIT)
        if content.get("owner") != owner:
            raise Qua2SeDiMoError(f"{folder} was fitted to other records or another space", _REFIT)
        folds = []
        try:
            for i, entry in enumerate(content["folds"]):
                network = HopNetwork(*entry.pop("shape"))
                network.load_state_dict(load_file(folder / f"fold{i}.safetensors"))
                folds.append(Fold(network=network.eval(), **entry))
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise Qua2SeDiMoError(f"{folder}: fold {len(folds)} cannot be read: {error!r}", _REFIT) from error
        return cls(folds)


def fit_ensemble(
    encoding: Encoding,
    choices: np.ndarray,
    objective: np.ndarray,
    settings: FitSettings,
    progress: Callable[[int, int], object] = lambda fold, epoch: None,
) -> Ensemble:
    """Fit the folds to option indices [records, layers] and objective values [records] (higher is better).

    The records are split in ``settings.folds`` parts; fold k is judged on part k, selected on part k + 1 and trained on
    the rest. Raises if there are too few records to split so.
    """
    if len(objective) < 4 * settings.folds:
        raise Qua2SeDiMoError(
            f"{len(objective)} records are too few to fit {settings.folds} folds, {4 * settings.folds} are needed",
            "Run `qua2sedimo measure` for more.",
        )
    order = np.random.default_rng(settings.seed).permutation(len(objective))
    parts = np.array_split(order, settings.folds)
    folds = []
    for k in range(settings.folds):
        test, selection = parts[k], parts[(k + 1) % settings.folds]
        training = np.concatenate([p for i, p in enumerate(parts) if i not in (k, (k + 1) % settings.folds)])
        folds.append(_fit_fold(encoding, choices, objective, (training, selection, test), settings, k, progress))
    return Ensemble(folds)


def _fit_fold(
    encoding: Encoding,
    choices: np.ndarray,
    objective: np.ndarray,
    split: tuple[np.ndarray, np.ndarray, np.ndarray],
    settings: FitSettings,
    number: int,
    progress: Callable[[int, int], object],
) -> Fold:
    training, selection, test = split
    low, high = float(np.quantile(objective[training], 0.2)), float(objective[training].max())
    high = max(high, low + 1e-6)
    relevance = torch.tensor((np.maximum(objective, low) - low) / (high - low)).float()
    x = encoding(torch.as_tensor(choices))
    generator = torch.random.get_rng_state()
    torch.manual_seed(settings.seed * 1000 + number)
    network = HopNetwork(encoding.features, settings.channels, settings.hops)
    torch.random.set_rng_state(generator)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, epochs=settings.epochs))

    best, best_state, since = float("inf"), network.state_dict(), 0
    for epoch in range(settings.epochs):
        network.train()
        optimizer.zero_grad()
        _loss(network, encoding, x[training], relevance[training], settings).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if epoch % 5 == 4:
            network.eval()
            with torch.no_grad():
                loss = float(_loss(network, encoding, x[selection], relevance[selection], settings))
            since += 5
            if loss < best:
                best, since = loss, 0
                best_state = {name: t.clone() for name, t in network.state_dict().items()}
            progress(number, epoch + 1)
            if since >= settings.patience:
                break
    network.load_state_dict(best_state)
    network.eval()
    with torch.no_grad():
        _, hops = network(x[selection], encoding.edges)
        weights = [_correlation(norms(_pooled(h, encoding)), relevance[selection]) for h in hops]
        predicted = network(x[test], encoding.edges)[0].numpy() * (high - low) + low
    progress(number, settings.epochs)
    return Fold(network, low, high, weights, [int(i) for i in test], [float(y) for y in predicted])


def _rate(epoch: int, epochs: int) -> float:
    """A tenth of the epochs warming up, then a cosine to 0."""
    warm = min(1.0, (epoch + 1) / (0.1 * epochs))
    return warm * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _loss(
    network: HopNetwork, encoding: Encoding, x: torch.Tensor, relevance: torch.Tensor, settings: FitSettings
) -> torch.Tensor:
    """MSE(ŷ, r) + λ · mean over hops of L_rank(‖h_G^m‖₁, r)."""
    predicted, hops = network(x, encoding.edges)
    ranking = torch.stack([ranking_loss(settings.loss, norms(_pooled(h, encoding)), relevance) for h in hops])
    return functional.mse_loss(predicted, relevance) + settings.weight * ranking.mean()


def _pooled(embeddings: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """h_G^m: mean embedding of the weight layers, the roots scored at op level."""
    return embeddings[:, encoding.layer_nodes].mean(dim=1)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    if float(a.std()) == 0 or float(b.std()) == 0:
        return 0.0
    return max(0.0, float(spearmanr(a.numpy(), b.numpy()).statistic))


def _shape(network: HopNetwork) -> list[int]:
    linear = network.embed.level
    return [linear.in_features + 1, linear.out_features, len(network.hops)]


def settings_dict(settings: FitSettings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)
