"""Scores of the settings of blocks: what the whole graph says, for every setting, and which are worth having."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.denoisers.test_subgraphs import full_graph, small_graph, zoo_graph
from tests.sensitivity.untrained import Untrained, untrained

from qua2sedimo import zoo
from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.subgraphs import subgraphs
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor.network import norms
from qua2sedimo.sensitivity import BlockScores, BlockSettings, block_level, block_scores
from qua2sedimo.sensitivity.block_scores import reference


def scores_of(made: Untrained, **changes: int) -> BlockScores:
    return block_scores(made.graph, made.space, made.encoding, made.ensemble, **changes)


def in_the_whole_graph(made: Untrained, entry: BlockSettings, rows: np.ndarray) -> np.ndarray:
    """‖h_root^k‖₁ inside the whole graph, all other layers at their reference option: [rows, folds]."""
    choices = np.repeat(reference(made.encoding)[None], len(rows), axis=0)
    choices[:, [made.space.layers.index(name) for name in entry.layers]] = entry.settings[rows]
    x = made.encoding(torch.as_tensor(choices))
    with torch.no_grad():
        whole = [fold.network(x, made.encoding.edges)[1][entry.block.hops] for fold in made.ensemble.folds]
    return np.stack([norms(h[:, entry.block.root]).numpy() for h in whole], axis=1)


def check_equal_to_the_whole_graph(graph: Graph, each: int) -> None:
    """Some settings of every block of a graph: scores are an affine map of the norms in the whole graph."""
    made = untrained(graph)
    scores = scores_of(made, limit=1300, beam=30)
    chance = np.random.default_rng(1)
    by_hop: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for entry in scores.blocks.values():
        rows = chance.choice(len(entry.settings), size=min(each, len(entry.settings)), replace=False)
        pair = (in_the_whole_graph(made, entry, rows), entry.scores[rows])
        by_hop.setdefault(entry.block.hops, []).append(pair)
    assert len(by_hop) > 2
    for pairs in by_hop.values():
        whole, scored = (np.concatenate(side) for side in zip(*pairs))
        for k in range(whole.shape[1]):
            slope, offset = np.polyfit(scored[:, k], whole[:, k], 1)
            np.testing.assert_allclose(slope * scored[:, k] + offset, whole[:, k], atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("name", [*zoo.ENTRIES, "pixart", "unet", "sd3"])
def test_a_block_scored_alone_is_what_the_whole_graph_says(name: str) -> None:
    graph = zoo_graph(name) if name in zoo.ENTRIES else small_graph(name)
    check_equal_to_the_whole_graph(graph, each=4)


def test_blocks_of_pixart_xl_scored_alone_are_what_the_whole_graph_says() -> None:
    check_equal_to_the_whole_graph(full_graph("pixart-alpha-512"), each=3)


def test_every_setting_of_every_block_is_scored_with_its_bytes() -> None:
    made = untrained(small_graph("pixart"))
    scores = scores_of(made)
    assert list(scores.blocks) == [block.name for block in subgraphs(made.graph)]
    assert scores.scored == sum(6 ** len(block.layers) for block in subgraphs(made.graph)) and scores.notes == []
    for entry in scores.blocks.values():
        assert entry.complete and len({tuple(row) for row in entry.settings}) == entry.possible
        for i in (0, len(entry.settings) // 2, len(entry.settings) - 1):
            chosen = [options[j] for options, j in zip(entry.options, entry.settings[i])]
            expected = sum(o.nbytes(made.space.shapes[n]) for n, o in zip(entry.layers, chosen))
            assert entry.nbytes[i] == expected


def test_roots_of_a_hop_have_mean_zero_and_the_hops_weight_as_deviation_each_counting_alike() -> None:
    made = untrained(small_graph("pixart"))
    scores = scores_of(made)
    for hop in (1, 2, 3):
        entries = [entry.scores for entry in scores.blocks.values() if entry.block.hops == hop]
        np.testing.assert_allclose(np.mean([s.mean(axis=0) for s in entries], axis=0), 0, atol=1e-6)
        spread = np.sqrt(np.mean([(s**2).mean(axis=0) for s in entries], axis=0))
        np.testing.assert_allclose(spread, [fold.hop_weights[hop] for fold in made.ensemble.folds], rtol=1e-5)


def test_a_configuration_at_block_level_is_the_sum_of_its_blocks_scores() -> None:
    made = untrained(small_graph("pixart"))
    chance = np.random.default_rng(2)
    choices = chance.integers(6, size=(5, len(made.space.layers)))
    expected = np.zeros((5, 2))
    for entry in scores_of(made).blocks.values():
        key = {tuple(row): score for row, score in zip(entry.settings, entry.scores)}
        columns = [made.space.layers.index(name) for name in entry.layers]
        expected += [key[tuple(choice)] for choice in choices[:, columns]]
    found = block_level(made.graph, made.space, made.encoding, made.ensemble, choices, limit=6**4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layers_kept_in_16_bits_take_no_part() -> None:
    made = untrained(small_graph("pixart"), leave_out="to_k")
    scores = scores_of(made)
    assert [len(e.layers) for e in scores.blocks.values() if e.block.kind == "self-attention"] == [3, 3]
    (alone,) = {len(e.layers) for e in scores.blocks.values() if e.block.kind == "cross-attention q, k"}
    assert alone == 1


def test_a_beam_finds_nearly_the_frontier_of_all_settings_and_the_output_says_that_it_was_one() -> None:
    made = untrained(small_graph("pixart"))
    every, beam = scores_of(made), scores_of(made, limit=1000, beam=200)
    partial = [name for name, entry in beam.blocks.items() if not entry.complete]
    assert {every.blocks[name].possible for name in partial} == {6**4}
    (note,) = beam.notes
    assert f"{len(partial)} of {len(beam.blocks)} blocks have more than 1,000 settings" in note and "beam" in note
    for name in partial:
        assert len(beam.blocks[name].settings) <= 200
        best = every.blocks[name]
        exact, value = best.nbytes, best.scores.sum(axis=1)
        spread = value.max() - value.min()
        key = {tuple(row): v for row, v in zip(best.settings, value)}
        losses = []
        for setting in beam.pareto(name):
            row = tuple(o.index(setting.options[n]) for n, o in zip(best.layers, best.options))
            losses.append(value[exact <= setting.nbytes].max() - key[row])
        assert np.mean(losses) < 0.05 * spread


def test_a_predictor_that_ranks_nothing_at_a_hop_that_is_needed_is_refused() -> None:
    made = untrained(small_graph("pixart"))
    idle = [replace(f, hop_weights=[0.9, 0.9, 0.0, 0.9, 0.9]) for f in made.ensemble.folds]
    made.ensemble.folds[:] = idle
    with pytest.raises(Qua2SeDiMoError, match="better than chance at hop 2") as caught:
        scores_of(made)
    assert "Measure more" in str(caught.value.remedy)


def test_the_frontier_of_a_fold_is_by_that_folds_score() -> None:
    made = untrained(small_graph("pixart"))
    scores = scores_of(made)
    name = next(n for n, e in scores.blocks.items() if e.block.kind == "self-attention")
    entry = scores.blocks[name]
    for fold in (None, 0, 1):
        front = scores.pareto(name, fold)
        value = entry.scores.sum(axis=1) if fold is None else entry.scores[:, fold]
        assert front[0].nbytes == entry.nbytes.min() and front[-1].score == pytest.approx(value.max())
        assert all(set(s.options) == set(entry.layers) for s in front)
    assert all(s.spread > 0 for s in scores.pareto(name))
