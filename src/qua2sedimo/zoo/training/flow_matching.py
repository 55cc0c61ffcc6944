"""Rectified-flow loss, and a resumable training loop for a time budget, with annealed rate and averaged weights.

x_σ = (1 − σ)·x₀ + σ·ε,   target = ε − x₀,   timestep = 1000·σ

as DPMSolverMultistepScheduler expects for ``prediction_type="flow_prediction"`` with flow sigmas.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Budget:
    """Duration and hyperparameters of a training; ``minutes`` is training time, summed over resumed runs.

    A step counts for at most ``pause`` times the average step, so that time while the process is suspended is not
    charged.
    """

    minutes: float
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    average: float = 0.999
    save_every: float = 150.0
    optimizer: str = "adamw"
    pause: float = 4.0


def noise_levels(count: int, chance: torch.Generator) -> Tensor:
    """σ of each picture, [count]: 90 % logit-normal, shifted to high noise as small pictures need, 10 % uniform."""
    sigma = torch.sigmoid(0.2 + 1.1 * torch.randn(count, generator=chance))
    uniform = torch.rand(count, generator=chance)
    return torch.where(torch.rand(count, generator=chance) < 0.1, uniform, sigma)


def flow_loss(predict: Predict, clean: Tensor, chance: torch.Generator) -> Tensor:
    """Mean squared error of the predicted flow: ``predict(noisy, timestep)`` against ε − x₀."""
    sigma = noise_levels(len(clean), chance)
    noise = torch.randn(clean.shape, generator=chance)
    level = sigma.view(-1, 1, 1, 1)
    predicted = predict((1 - level) * clean + level * noise, 1000 * sigma)
    return (predicted.float() - (noise - clean)).square().mean()


def train(
    model: nn.Module, loss: Callable[[], Tensor], chance: torch.Generator, folder: Path, budget: Budget
) -> nn.Module:
    """Train ``model`` in place until the budget is spent and return its exponential moving average.

    ``loss`` draws its own batch. ``folder`` gets log.jsonl and, every ``save_every`` seconds and at the end,
    checkpoint.pt, from which an interrupted run resumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    averaged = deepcopy(model).eval().requires_grad_(False)
    optimizers = _optimizers(model, budget)
    spent, step, recent, usual = 0.0, 0, 0.0, math.inf
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        chance.set_state(state["chance"])
        spent, step = state["seconds"], state["step"]

    def save() -> None:
        state = {
            "model": model.state_dict(), "averaged": averaged.state_dict(), "seconds": spent, "step": step,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers], "chance": chance.get_state(),
        }  # fmt: skip
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    saved = spent
    while (progress := spent / (60 * budget.minutes)) < 1:
        began = time.perf_counter()
        rate = min(1.0, (step + 1) / budget.warmup) * min(1.0, 0.01 + 1.4 * (1 - progress))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(budget.average, (1 + step) / (10 + step))
        _average(averaged, model, decay)
        took = min(time.perf_counter() - began, budget.pause * usual)
        usual = took if usual == math.inf else 0.95 * usual + 0.05 * took
        spent += took
        smooth = min(0.98, step / (step + 1))
        recent = value.item() if recent == 0 else smooth * recent + (1 - smooth) * value.item()
        if not math.isfinite(recent):
            raise FloatingPointError(f"{folder}: the loss is not finite at step {step}")
        if step % 50 == 0:
            line = {
                "step": step,
                "images": step * budget.batch,
                "seconds": round(spent, 1),
                "loss": round(recent, 5),
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if spent - saved > budget.save_every:
            save()
            saved = spent
    save()
    return averaged


def _optimizers(model: nn.Module, budget: Budget) -> list[torch.optim.Optimizer]:
    weights = list(model.named_parameters())
    matrices = [
        weight for name, weight in weights if weight.ndim == 2 and "block" in name and "emb" not in name
    ] if budget.optimizer == "muon" else []  # fmt: skip
    chosen = {id(weight) for weight in matrices}
    rest = [weight for _, weight in weights if id(weight) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=budget.learning_rate, betas=(0.9, 0.98), weight_decay=budget.weight_decay)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=budget.learning_rate,
                weight_decay=budget.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    old: list[Tensor] = list(averaged.parameters())
    torch._foreach_lerp_(old, [weight.detach() for weight in model.parameters()], 1 - decay)


def shuffled(start: int, stop: int, batch: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Infinite batches of indices from [start, stop), in a new order each epoch."""
    while True:
        order = start + torch.randperm(stop - start, generator=chance)
        yield from (part for part in order.split(batch) if len(part) == batch)
