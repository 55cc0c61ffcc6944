"""The options of one layer: quantized, pruned, and with what each gets wrong, in a file of their own.

With calibration statistics, options are rounded with compensation, and their errors are those of the layer's output.
Options that another one dominates (no more bytes, no more error) can be left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_via
from qua2sedimo.options import Option
from qua2sedimo.quantizers import (
    METHODS,
    Moment,
    QuantizedWeight,
    check_half,
    dequantize_weight,
    quantization_error,
    telling_rows,
)

_LARGE = 1_000_000  # weights from which methods are compared on some rows
_SAMPLED = 16  # of these rows, one in so many, and as many of the heaviest
_FEW_DIRECTIONS = 32.0  # :attr:`Moment.dimension` below which low-rank options are tried


@dataclass(frozen=True)
class OptionError:
    """Error of one option of one layer: the mean of ``|e|^2.4`` over weights, and relative MSE ‖e‖²/‖W‖².

    ``output``: the relative error of the layer's output, Σ_c e_c / tr(W·H·Wᵀ); ``cost``: Σ_c G_c·e_c, the expected
    squared change of the denoiser's guided output. Both are None without calibration statistics, ``cost`` also without
    gradients.
    """

    loss: float
    relative_mse: float
    output: float | None = None
    cost: float | None = None

    @property
    def relative(self) -> float:
        """The relative error of the output, or of the weight where there are no statistics."""
        return self.relative_mse if self.output is None else self.output


@dataclass(frozen=True)
class Observed:
    """Statistics of one layer: the moment of its inputs, and squared gradients fp64 [channels] at its output."""

    moment: Moment | None = None
    gradient: torch.Tensor | None = None

    def stake(self, weight: torch.Tensor) -> float:
        """Σ_c G_c·w_c·H·w_cᵀ: what the outputs of a layer with this weight add to the squared guided output, to first
        order; 0 without statistics."""
        if self.moment is None or self.gradient is None or not self.moment.usable or weight.numel() == 0:
            return 0.0
        return float(self.gradient.cpu() @ self.moment.errors(weight.float().reshape(len(weight), -1)))


def stored_weight(weight: torch.Tensor) -> torch.Tensor:
    """The 16-bit tensor, of the same shape, that is quantized: bf16 unchanged, any other dtype as fp16.

    Raises :class:`Qua2SeDiMoError` if a finite weight is beyond the range of fp16.
    """
    if weight.dtype in (torch.bfloat16, torch.float16):
        return weight
    check_half(weight)
    return weight.to(torch.float16)


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Prefix errors of a quantizer with the layer's name."""
    try:
        yield
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"layer '{layer}': {error.message}", error.remedy) from error


def write_layer(
    path: Path, layer: str, weight: torch.Tensor, options: tuple[Option, ...], observed: Observed, prune: bool
) -> None:
    if prune:
        options = _worth_trying(weight, options, observed)
    made = _quantized(weight, options, observed.moment)
    errors = _errors(weight, made, observed)
    if prune:
        made = {o: made[o] for o in _not_dominated(errors, {o: value.nbytes for o, value in made.items()})}
    tensors: dict[str, torch.Tensor] = {}
    for option, value in made.items():
        tensors[f"{option}.codes"] = value.codes.cpu()
        tensors |= {f"{option}.{name}": t.cpu().contiguous() for name, t in value.parameters.items()}
    about = {
        "layer": layer,
        "errors": {str(o): [e.loss, e.relative_mse, e.output, e.cost] for o, e in errors.items() if o in made},
        "dtype": str(weight.dtype).removeprefix("torch."),
    }
    nbytes = sum(value.nbytes for value in made.values())
    write_via(path, lambda temporary: save_file(tensors, temporary, metadata={"about": json.dumps(about)}), nbytes)


def _quantized(weight: torch.Tensor, options: Sequence[Option], moment: Moment | None) -> dict[Option, QuantizedWeight]:
    """The weight under these options, rounded to nearest levels without a moment."""
    found: dict[Option, QuantizedWeight] = {}
    for method in dict.fromkeys(o.method for o in options):
        numbers = [o.number for o in options if o.method == method]
        found |= dict(zip((Option(method, n) for n in numbers), METHODS[method].quantize(weight, numbers, moment)))
    return found


def _worth_trying(weight: torch.Tensor, options: Sequence[Option], observed: Observed) -> tuple[Option, ...]:
    """Options without those that are known to lose before their rounding is compensated, which takes most of the time.

    Low-rank options are tried only where inputs lie in few directions: elsewhere they lose, and cost an SVD. Of methods
    with codes of the same width and about the same size, the one that errs least when rounded to nearest levels is
    tried.
    """
    low_rank = [o for o in options if o.method == "lowrank"]
    if observed.moment is None or observed.moment.dimension >= _FEW_DIRECTIONS:
        low_rank = []
    codes = [o for o in options if o.method != "lowrank"]
    sizes = {o: (o.number, METHODS[o.method].overhead(o.number)) for o in codes}
    rivals = [o for o in codes if sum(sizes[o] == other for other in sizes.values()) > 1]
    weight, observed = _some_rows(weight, observed)
    errors = {o: _rank(e) for o, e in _errors(weight, _quantized(weight, rivals, None), observed).items()}
    best = {
        min((o for o in rivals if sizes[o] == size), key=lambda o: (errors[o], o))
        for size in {sizes[o] for o in rivals}
    }
    return tuple(sorted([*(o for o in codes if o not in rivals or o in best), *low_rank]))


def _some_rows(weight: torch.Tensor, observed: Observed) -> tuple[torch.Tensor, Observed]:
    """Rows of a large weight that tell which method errs less on it, and what was observed of them; all of a small
    one."""
    if weight.numel() < _LARGE:
        return weight, observed
    heavy = weight.reshape(len(weight), -1).float().square().sum(dim=1).cpu()
    if observed.gradient is not None:
        heavy *= observed.gradient.cpu().float()
    rows = telling_rows(heavy, _SAMPLED)
    gradient = None if observed.gradient is None else observed.gradient[rows.to(observed.gradient.device)]
    return weight[rows.to(weight.device)], replace(observed, gradient=gradient)


def _errors(
    weight: torch.Tensor, made: Mapping[Option, QuantizedWeight], observed: Observed
) -> dict[Option, OptionError]:
    """What each option gets wrong of a weight."""
    moment, found = observed.moment, {}
    power = None if moment is None or weight.numel() == 0 else moment.power(weight)
    for option, value in made.items():
        quantized = dequantize_weight(value)
        loss, relative = quantization_error(weight, quantized)
        if moment is None or power is None:
            found[option] = OptionError(loss, relative)
            continue
        errors, output = moment.output_errors(weight, quantized, power)
        cost = None if observed.gradient is None else float(observed.gradient.cpu() @ errors)
        found[option] = OptionError(loss, relative, output, cost)
    return found


def _not_dominated(errors: Mapping[Option, OptionError], nbytes: Mapping[Option, int]) -> list[Option]:
    """Options that no other one beats, in order of size: each has less error than all that are no larger."""
    kept: list[Option] = []
    least = math.inf
    for option in sorted(errors, key=lambda o: (nbytes[o], _rank(errors[o]), o)):
        if _rank(errors[option]) < least or not kept:
            kept.append(option)
            least = _rank(errors[option])
    return sorted(kept)


def _rank(error: OptionError) -> float:
    """What options of one layer are compared by."""
    return error.relative if error.cost is None else error.cost
