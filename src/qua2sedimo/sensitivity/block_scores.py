"""Block-level scores: the standardised, weighted norm of a block's root, for every setting of the block's layers.

What is computed: h_root^k of the configuration that has the setting in the block and the *reference option* in every
other layer, k the block's hops. It is computed on the root's k-hop ancestors alone, and equals the embedding inside the
whole graph, since nothing else reaches the root in k hops. The reference option of a layer is the one of median error.
Mostly no other layer is among the ancestors; a ResNet's shortcut, for one, reads a layer of the block before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.subgraphs import Subgraph, subgraphs
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble, HopNetwork
from qua2sedimo.predictor.network import norms
from qua2sedimo.search.pareto import pareto_front
from qua2sedimo.sensitivity.block_settings import BlockScores, BlockSettings

#: Blocks with more settings than this are searched by a beam of :data:`BEAM` settings.
LIMIT, BEAM = 100_000, 1_000
_CHUNK = 2_048  # settings embedded at once: what fits the processor's cache is faster
_SAMPLE = 2_048  # settings that stand for a block of too many when a hop's moments are taken


@torch.no_grad()
def block_scores(
    graph: Graph, space: SearchSpace, encoding: Encoding, ensemble: Ensemble, limit: int = LIMIT, beam: int = BEAM
) -> BlockScores:
    """(‖h_root^k‖₁ − μ_k)/σ_k · w_k of every setting of every block, per fold.

    μ_k and σ_k are over the roots scored at hop k and their settings, each root counting alike; at hop 0 over all
    options of all layers, as at op level. w_k is the hop's weight. Layers that are kept in 16 bits take no part. Of a
    block with more than ``limit`` settings the best for their size are scored, found by a beam of ``beam``. Raises
    :class:`Qua2SeDiMoError` if no fold ranks at some hop that is needed.
    """
    fields, embedded = _fields(graph, space, ensemble), [Embedded.of(encoding, f.network) for f in ensemble.folds]
    few = [_few(embedded, field, limit) for field in fields]
    standards = _standards(fields, [value for _, value in few], embedded, encoding, ensemble)
    result = {}
    for field, (settings, value) in zip(fields, few):
        mean, scale = standards[field.block.hops]
        if field.possible > limit:
            settings = _beam(field, embedded, scale, beam)
            value = _norms(embedded, field, settings)
        layers = tuple(space.layers[i] for i in field.layers)
        result[field.block.name] = BlockSettings(
            field.block, layers, tuple(space.options[name] for name in layers),
            settings, field.nbytes(settings), (value - mean) * scale, field.possible,
        )  # fmt: skip
    return BlockScores(result, limit)


@torch.no_grad()
def block_level(
    graph: Graph, space: SearchSpace, encoding: Encoding, ensemble: Ensemble, choices: np.ndarray, limit: int = _SAMPLE
) -> np.ndarray:
    """Whole configurations at block level: the sum over blocks of the score of the block's setting.

    Scores are those of :func:`block_scores`, except that a block of more than ``limit`` settings is standardised over
    a sample of them.

    Shapes:
        choices: option indices [configurations, layers] → [configurations, folds].
    """
    fields, embedded = _fields(graph, space, ensemble), [Embedded.of(encoding, f.network) for f in ensemble.folds]
    few = [_few(embedded, field, limit)[1] for field in fields]
    standards = _standards(fields, few, embedded, encoding, ensemble)
    total = np.zeros((len(choices), len(embedded)))
    for field in fields:
        mean, scale = standards[field.block.hops]
        total += (_norms(embedded, field, choices[:, field.layers]) - mean) * scale
    return total


@dataclass(frozen=True, eq=False)
class Field:
    """A block with the part of the graph that its root sees within its hops.

    ``nodes``: the root's ancestors, in the graph's numbering; ``edges``: int64 [2, edges] between them, numbered
    within; ``root``: within; ``layers``: space positions of the block's layers, ``places`` their nodes, within;
    ``sizes``: packed bytes of each option of each layer.
    """

    block: Subgraph
    nodes: torch.Tensor
    edges: torch.Tensor
    root: int
    layers: np.ndarray
    places: torch.Tensor
    sizes: tuple[np.ndarray, ...]

    @property
    def possible(self) -> int:
        return math.prod(len(sizes) for sizes in self.sizes)

    def every(self) -> np.ndarray:
        """All settings: [settings, layers]."""
        return np.indices([len(sizes) for sizes in self.sizes]).reshape(len(self.sizes), -1).T

    def sample(self, count: int) -> np.ndarray:
        """Settings drawn at random, the same each time: [count, layers]."""
        chance = np.random.default_rng(0)
        return np.stack([chance.integers(len(sizes), size=count) for sizes in self.sizes], axis=1)

    def nbytes(self, settings: np.ndarray) -> np.ndarray:
        """Packed bytes of settings [settings, layers]: [settings]."""
        return np.sum([sizes[column] for sizes, column in zip(self.sizes, settings.T)], axis=0)


def _fields(graph: Graph, space: SearchSpace, ensemble: Ensemble) -> list[Field]:
    """Every block that has a layer in the space; raises if no fold ranks at some hop that is needed."""
    hops = min(len(fold.network.hops) for fold in ensemble.folds)
    fields = [field for block in subgraphs(graph, hops) if (field := _field(graph, space, block)).layers.size]
    _refuse_idle_hops(ensemble, {field.block.hops for field in fields})
    return fields


def _field(graph: Graph, space: SearchSpace, block: Subgraph) -> Field:
    nodes = sorted(graph.reaching([block.root], block.hops))
    place = {node: i for i, node in enumerate(nodes)}
    edges = [(place[s], place[v]) for v in nodes for s in graph.nodes[v].inputs if s in place]
    members = [name for name in block.layers if name in space.shapes]
    return Field(
        block,
        torch.tensor(nodes),
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        place[block.root],
        np.array([space.layers.index(name) for name in members], dtype=int),
        torch.tensor([place[graph.index[name]] for name in members], dtype=torch.int64),
        tuple(np.array([o.nbytes(space.shapes[name]) for o in space.options[name]]) for name in members),
    )


@dataclass(frozen=True, eq=False)
class Embedded:
    """h⁰ of every option [layers, options, channels], and of all nodes under the reference [nodes, channels]."""

    network: HopNetwork
    options: torch.Tensor
    nodes: torch.Tensor

    @classmethod
    def of(cls, encoding: Encoding, network: HopNetwork) -> Embedded:
        at_reference = encoding(torch.as_tensor(reference(encoding))[None])
        return cls(network, network.embed(encoding.options()), network.embed(at_reference)[0])

    def norms(self, field: Field, settings: np.ndarray) -> np.ndarray:
        """‖h_root^k‖₁ for settings [settings, layers] of a block: [settings]."""
        return np.concatenate([self._norms(field, settings[i : i + _CHUNK]) for i in range(0, len(settings), _CHUNK)])

    def _norms(self, field: Field, settings: np.ndarray) -> np.ndarray:
        h = self.nodes[field.nodes].expand(len(settings), -1, -1).clone()
        h[:, field.places] = self.options[torch.as_tensor(field.layers), torch.as_tensor(settings)]
        root = self.network.propagate(h, field.edges, field.block.hops)[-1][:, field.root]
        return norms(root).double().numpy()


def reference(encoding: Encoding) -> np.ndarray:
    """The option of median error of each layer: int [layers]."""
    error, offered = encoding.options()[..., 0].numpy(), encoding.offered.numpy()
    order = np.argsort(np.where(offered, error, np.inf), axis=1, kind="stable")
    return order[np.arange(len(order)), (offered.sum(axis=1) - 1) // 2]


def _few(embedded: Sequence[Embedded], field: Field, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(settings [settings, layers], norms [settings, folds]): all, or a sample where there are more than ``limit``."""
    settings = field.every() if field.possible <= limit else field.sample(_SAMPLE)
    return settings, _norms(embedded, field, settings)


def _norms(embedded: Sequence[Embedded], field: Field, settings: np.ndarray) -> np.ndarray:
    """‖h_root^k‖₁ of settings of a block: [settings, folds]."""
    return np.stack([e.norms(field, settings) for e in embedded], axis=1)


def _standards(
    fields: Sequence[Field], values: Sequence[np.ndarray], embedded: Sequence[Embedded], encoding: Encoding,
    ensemble: Ensemble,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """(μ, w/σ) of each hop that blocks are scored at, from the norms [settings, folds] of each block's root."""
    found = {
        k: _standard([v for f, v in zip(fields, values) if f.block.hops == k], ensemble, k)
        for k in {f.block.hops for f in fields}
    }
    if 0 in found:
        offered = encoding.offered.numpy()
        found[0] = _standard([np.stack([norms(e.options).numpy()[offered] for e in embedded], axis=1)], ensemble, 0)
    return found


def _standard(values: Sequence[np.ndarray], ensemble: Ensemble, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """(μ, w/σ) of each fold, from norms [settings, folds] of each root."""
    mean = np.mean([v.mean(axis=0) for v in values], axis=0)
    variance = np.mean([((v - mean) ** 2).mean(axis=0) for v in values], axis=0)
    weight = np.array([fold.hop_weights[hop] for fold in ensemble.folds])
    return mean, weight / np.maximum(np.sqrt(variance), 1e-9)


def _beam(field: Field, embedded: Sequence[Embedded], scale: np.ndarray, width: int) -> np.ndarray:
    """The best settings for their size, found one layer after the other: [≤ width, layers].

    Layers not yet set stand at their middle option in size. After each layer what is kept is, front after front, the
    settings that no other one beats in bytes and score.
    """
    settings = np.array([[np.argsort(sizes)[len(sizes) // 2] for sizes in field.sizes]])
    for column, sizes in enumerate(field.sizes):
        options = np.arange(len(sizes))
        settings = np.repeat(settings, len(options), axis=0)
        settings[:, column] = np.tile(options, len(settings) // len(options))
        value = sum(e.norms(field, settings) * s for e, s in zip(embedded, scale))
        settings = settings[_fronts(field.nbytes(settings), np.asarray(value), width)]
    return settings


def _fronts(nbytes: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` positions: the Pareto frontier, then the frontier of the others, and so on."""
    kept: list[int] = []
    left = np.arange(len(value))
    while len(kept) < count and len(left):
        front = left[pareto_front(nbytes[left], value[left])]
        kept += [int(i) for i in front]
        left = np.setdiff1d(left, front)
    return np.array(kept[: max(count, 1)])


def _refuse_idle_hops(ensemble: Ensemble, hops: set[int]) -> None:
    idle = [k for k in sorted(hops) if all(fold.hop_weights[k] == 0 for fold in ensemble.folds)]
    if idle:
        raise Qua2SeDiMoError(
            f"no fold of the predictor ranks configurations better than chance at hop {idle[0]}",
            "Measure more configurations or more images each, then fit again.",
        )
