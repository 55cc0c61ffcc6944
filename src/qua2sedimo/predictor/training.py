"""Training of one fold: damages in closed form, then hops and readout by gradient on what those leave over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from qua2sedimo.damage import fit_gain
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor.encoding import Encoding
from qua2sedimo.predictor.losses import LOSSES, ranking_loss
from qua2sedimo.predictor.network import HopNetwork, norms, pooled

_LARGEST = 0.5  # the damage of the worst option after scaling: no norm at hop 0 reaches zero
_STEP, _READOUT_STEP, _READOUT_DECAY = 1e-2, 1e-3, 0.1
_LOOK = 2  # epochs between two looks at the selection part


@dataclass(frozen=True)
class FitSettings:
    """How the predictor is trained.

    ``loss``: srcc, lambdarank, hybrid or mse; ``weight``: λ of the ranking part; ``patience``: epochs without a
    better validation loss before a fold stops; ``batch``: records a step at most.
    """

    loss: str = "srcc"
    weight: float = 1.0
    folds: int = 5
    epochs: int = 40
    patience: int = 10
    batch: int = 64
    channels: int = 16
    hops: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise Qua2SeDiMoError(f"unknown loss '{self.loss}'; known: {', '.join(LOSSES)}")


@dataclass(frozen=True)
class Data:
    """Records of one encoding: option indices [records, layers], objective [records], roots of each hop.

    ``alone``: (option indices [n, layers], −1 where a layer is in 16 bits; objective [n]) of layers measured alone.
    """

    encoding: Encoding
    choices: np.ndarray
    objective: np.ndarray
    roots: Sequence[torch.Tensor]
    alone: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Scale:
    """r = (max(objective, low) − low)/(high − low)."""

    low: float
    high: float

    @classmethod
    def of(cls, objective: np.ndarray) -> Scale:
        low, high = float(np.quantile(objective, 0.2)), float(objective.max())
        return cls(low, max(high, low + 1e-6))

    def relevance(self, objective: np.ndarray) -> torch.Tensor:
        return torch.tensor((np.maximum(objective, self.low) - self.low) / (self.high - self.low)).float()


def train(
    data: Data, training: np.ndarray, selection: np.ndarray, settings: FitSettings, number: int,
    progress: Callable[[int, int], object],
) -> tuple[HopNetwork, Scale, list[float]]:  # fmt: skip
    """(network, scale of ŷ, hop weights) of one fold.

    The hops and the readout learn from ``training`` alone; ``selection`` stops them and weights the hops. Then the
    closed-form part, of which nothing was selected, is fitted again to both.
    """
    scale = Scale.of(data.objective[training])
    relevance = scale.relevance(data.objective)
    generator = torch.random.get_rng_state()
    torch.manual_seed(settings.seed * 1000 + number)
    try:
        network = HopNetwork(data.encoding.features, data.encoding.places, settings.channels, settings.hops)
        apart = start(network, data, training, scale)
        _descend(network, data, relevance, (training, selection), apart, settings, lambda e: progress(number, e))
    finally:
        torch.random.set_rng_state(generator)
    _trust(network, data, selection, relevance[selection])
    _, hops = predict(network, data, selection)
    weights = [_correlation(norms(h), relevance[selection]) for h in hops]
    start(network, data, np.concatenate([training, selection]), scale)
    progress(number, settings.epochs)
    return network, scale, weights


def _trust(network: HopNetwork, data: Data, selection: np.ndarray, relevance: torch.Tensor) -> None:
    """Leave out what the readout adds to the sum of damages, unless it predicts records that taught neither clearly
    better: by more than the standard error of what their squared errors fall by."""
    last = network.regress[-1]
    assert isinstance(last, nn.Linear)
    with_it, kept = predict(network, data, selection)[0], _copy(network)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    without = predict(network, data, selection)[0]
    gain = ((without.clamp(min=0) - relevance) ** 2 - (with_it.clamp(min=0) - relevance) ** 2).double()
    if float(gain.mean()) > float(gain.std(correction=1)) / math.sqrt(len(gain)):
        network.load_state_dict(kept)


def start(network: HopNetwork, data: Data, records: np.ndarray, scale: Scale) -> torch.Tensor:
    """Set the network's damages to those fitted to ``records``; returns ŷ of each as if it had not been fitted."""
    encoding = data.encoding
    fitted, unit = fit_gain(encoding.damage, data.choices[records], data.objective[records], data.alone)
    shift = math.log(_LARGEST) - float(fitted.log_damage[encoding.damage.offered].max())
    slope = 1 / (unit * (scale.high - scale.low))
    with torch.no_grad():
        network.embed.log_damage.weight.zero_()
        network.embed.log_damage.weight[0, : len(fitted.weights)] = torch.tensor(fitted.weights).float()
        network.embed.log_damage.weight[0, 1] += shift
        network.embed.own.copy_(torch.tensor(fitted.own).flatten())
        network.limit.fill_(fitted.limit + shift)
        network.slope.fill_(slope)
        network.offset.fill_(slope * shift - scale.low / (scale.high - scale.low))
    left_out = fitted.left_out[: len(records)]
    return torch.tensor((-left_out / unit - scale.low) / (scale.high - scale.low)).float()


def forward(
    network: HopNetwork, data: Data, records: np.ndarray, apart: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(ŷ [records], pooled embeddings of each hop); ``apart`` replaces the additive part of ŷ."""
    encoding, width = data.encoding, network.embed.kind.out_features
    options = torch.cat(network.embed.parts(encoding.options()), dim=-1)
    others = torch.cat(network.embed.parts(encoding.combines()), dim=-1)
    damage, kind = encoding.place(options, others, torch.as_tensor(data.choices[records])).split([1, width], dim=-1)
    means = pooled(network.propagate(functional.relu(1 - damage) * kind, encoding.edges), data.roots)
    additive = network.additive(damage) if apart is None else apart
    return additive + network.left_over(damage, kind, means), means


@torch.no_grad()
def predict(
    network: HopNetwork, data: Data, records: np.ndarray, most: int = 256
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same in evaluation mode, ``most`` records at once."""
    network.eval()
    parts = [forward(network, data, records[i : i + most]) for i in range(0, len(records), most)]
    hops = [torch.cat(levels) for levels in zip(*(means for _, means in parts), strict=True)]
    return torch.cat([y for y, _ in parts]), hops


def _descend(
    network: HopNetwork, data: Data, relevance: torch.Tensor, split: tuple[np.ndarray, np.ndarray],
    apart: torch.Tensor, settings: FitSettings, progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Train kinds, hops and readout; the state of the least selection loss stays, the one at the start included."""
    training, selection = split
    graph = [*network.embed.kind.parameters(), *network.hops.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": graph, "lr": _STEP, "weight_decay": 1e-3},
            {"params": network.regress.parameters(), "lr": _READOUT_STEP, "weight_decay": _READOUT_DECAY},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: _rate(epoch, settings.epochs))
    best, best_state, since = math.inf, _copy(network), 0
    for epoch in range(settings.epochs + 1):
        if epoch % _LOOK == 0 or epoch == settings.epochs:
            found = float(_loss(*predict(network, data, selection), relevance[selection], settings))
            if found < best:
                best, best_state, since = found, _copy(network), 0
            progress(epoch)
            if since >= settings.patience or epoch == settings.epochs:
                break
        network.train()
        for rows in _batches(len(training), settings.batch):
            optimizer.zero_grad()
            predicted, means = forward(network, data, training[rows], apart[rows])
            _loss(predicted, means, relevance[training[rows]], settings).backward()
            optimizer.step()
        schedule.step()
        since += 1
    network.load_state_dict(best_state)
    network.eval()


def _batches(count: int, most: int) -> Iterator[np.ndarray]:
    order = torch.randperm(count).numpy()
    yield from np.array_split(order, math.ceil(count / most))


def _loss(
    predicted: torch.Tensor, means: Sequence[torch.Tensor], relevance: torch.Tensor, settings: FitSettings
) -> torch.Tensor:
    """MSE(max(ŷ, 0), r) + λ · mean over hops of L_rank(‖h_G^m‖₁, r); r is clipped, so ŷ may fall below."""
    ranking = torch.stack([ranking_loss(settings.loss, norms(h), relevance) for h in means])
    return functional.mse_loss(predicted.clamp(min=0), relevance) + settings.weight * ranking.mean()


def _rate(epoch: int, epochs: int) -> float:
    """A tenth of the epochs warming up, then a cosine to 0."""
    warm = min(1.0, (epoch + 1) / (0.1 * epochs))
    return warm * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _copy(network: HopNetwork) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items()}


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    if float(a.std()) == 0 or float(b.std()) == 0:
        return 0.0
    found = float(spearmanr(a.numpy(), b.numpy()).statistic)
    return max(0.0, found) if math.isfinite(found) else 0.0
