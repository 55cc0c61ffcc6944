"""The ranking losses, each against a slow and plain computation, and each by its effect alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from tests.conftest import Task

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor import FitSettings, HopNetwork
from qua2sedimo.predictor.losses import (
    lambdarank_loss,
    mean_ranks,
    ndcg_swap_weights,
    ranking_loss,
    soft_rank,
    srcc_loss,
)
from qua2sedimo.predictor.network import norms


def draw(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_soft_ranks_are_the_sum_of_pairwise_sigmoids(seed: int) -> None:
    scores, temperature = draw(9, seed), 0.3
    scale = temperature * float(scores.std())
    plain = [0.5 + sum(1 / (1 + math.exp(-float(a - b) / scale)) for b in scores) for a in scores]
    np.testing.assert_allclose(soft_rank(scores, temperature), plain, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_soft_ranks_tend_to_the_true_ranks_as_the_temperature_falls(seed: int) -> None:
    scores = draw(30, seed)
    ranks = rankdata(scores.numpy())
    distances = [np.abs(soft_rank(scores, t).numpy() - ranks).max() for t in (1.0, 0.1, 0.01, 1e-6)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6


def test_soft_ranks_keep_their_sum_and_do_not_depend_on_the_scale_of_scores() -> None:
    scores = draw(12, 0)
    ranks = soft_rank(scores)
    assert float(ranks.sum()) == pytest.approx(12 * 13 / 2)
    torch.testing.assert_close(soft_rank(100 * scores + 7), ranks)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 1.0, 2.0, 0.0, 1.0, 2.0]])
def test_tied_values_share_their_mean_rank(values: list[float]) -> None:
    assert mean_ranks(torch.tensor(values)).tolist() == rankdata(values).tolist()


def ndcg(order: list[int], relevance: np.ndarray) -> float:
    scaled = 3 * (relevance - relevance.min()) / (relevance.max() - relevance.min())
    gain = 2**scaled - 1

    def dcg(places: list[int]) -> float:
        return sum(gain[i] / math.log2(2 + at) for at, i in enumerate(places))

    return dcg(order) / dcg(list(np.argsort(-relevance)))


@pytest.mark.parametrize("seed", range(4))
def test_swap_weights_are_what_swapping_two_in_the_current_order_changes(seed: int) -> None:
    scores, relevance = draw(8, seed), draw(8, seed + 50)
    order = list(np.argsort(-scores.numpy()))
    expected = np.zeros((8, 8))
    for i in range(8):
        for j in range(8):
            swapped = [j if k == i else i if k == j else k for k in order]
            expected[i, j] = abs(ndcg(swapped, relevance.numpy()) - ndcg(order, relevance.numpy()))
    np.testing.assert_allclose(ndcg_swap_weights(scores, relevance), expected, atol=1e-9)


def test_lambdarank_is_the_weighted_mean_of_the_logistic_loss_over_ordered_pairs() -> None:
    scores, relevance = draw(7, 3), draw(7, 4)
    weights = ndcg_swap_weights(scores, relevance).numpy()
    s, r, spread = scores.numpy(), relevance.numpy(), float(scores.std())
    pairs = [(i, j) for i in range(7) for j in range(7) if r[i] > r[j]]
    total = sum(weights[i, j] * math.log(1 + math.exp(-(s[i] - s[j]) / spread)) for i, j in pairs)
    assert float(lambdarank_loss(scores, relevance)) == pytest.approx(total / sum(weights[i, j] for i, j in pairs))


@pytest.mark.parametrize("loss", ["srcc", "lambdarank", "hybrid"])
def test_a_loss_is_least_for_the_right_order_and_most_for_the_reverse(loss: str) -> None:
    relevance = draw(20, 0)
    shuffled = relevance[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    right, wrong, between = (float(ranking_loss(loss, s, relevance)) for s in (relevance, -relevance, shuffled))
    assert right < between < wrong


def test_srcc_is_zero_for_the_right_order_and_two_for_the_reverse() -> None:
    relevance = torch.linspace(0, 1, 40)
    assert float(srcc_loss(relevance, relevance)) == pytest.approx(0, abs=0.01)
    assert float(srcc_loss(-relevance, relevance)) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("loss", ["srcc", "lambdarank", "hybrid", "mse"])
@pytest.mark.parametrize("case", ["equal scores", "equal relevance"])
def test_losses_and_gradients_stay_finite_without_any_order(loss: str, case: str) -> None:
    scores = (torch.zeros(6) if case == "equal scores" else torch.arange(6.0)).requires_grad_()
    relevance = torch.ones(6) if case == "equal relevance" else torch.arange(6.0)
    value = ranking_loss(loss, scores, relevance)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("loss", ["srcc", "lambdarank", "hybrid"])
def test_gradient_descent_on_the_scores_alone_finds_the_order(loss: str) -> None:
    relevance, scores = draw(15, 1), draw(15, 2).requires_grad_()
    optimizer = torch.optim.Adam([scores], 0.05)
    assert abs(spearmanr(scores.detach(), relevance).statistic) < 0.5
    for _ in range(300):
        optimizer.zero_grad()
        ranking_loss(loss, scores, relevance).backward()
        optimizer.step()
    assert spearmanr(scores.detach(), relevance).statistic > 0.8  # LambdaRank cares little for the order at the end


def test_the_mse_setting_has_no_ranking_part() -> None:
    scores = draw(5, 0).requires_grad_()
    loss = ranking_loss("mse", scores, draw(5, 1))
    loss.backward()
    assert float(loss) == 0 and not scores.grad.any()


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(Qua2SeDiMoError, match="unknown loss 'hinge'; known: srcc, lambdarank"):
        FitSettings(loss="hinge")


@pytest.mark.parametrize("loss", ["srcc", "lambdarank", "hybrid"])
def test_a_ranking_loss_alone_makes_the_norms_of_every_hop_rank_unseen_configurations(task: Task, loss: str) -> None:
    choices = task.choices(140)
    weights = {name: 30.0 for name in task.space.layers if name.endswith(("to_v", "ff.net.2"))}
    quality = torch.tensor(task.quality(choices, weights)).float()
    relevance = (quality - quality.min()) / (quality.max() - quality.min())
    x, edges, nodes = task.encoding(torch.tensor(choices)), task.encoding.edges, task.encoding.layer_nodes
    train, unseen = slice(0, 80), slice(80, None)
    torch.manual_seed(0)
    network = HopNetwork(task.encoding.features, task.encoding.places, channels=16, hops=2)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(120):
        optimizer.zero_grad()
        _, hops = network(x[train], edges)
        torch.stack(
            [ranking_loss(loss, norms(h[:, nodes].mean(dim=1)), relevance[train]) for h in hops]
        ).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        _, hops = network(x[unseen], edges)
    for m, h in enumerate(hops):
        assert spearmanr(norms(h[:, nodes].mean(dim=1)), relevance[unseen]).statistic > 0.8, m
