"""Dynamic activation quantization: the inputs of weight layers and of attention are rounded to a grid per row.

There is no calibration: each row's grid follows from its own minimum and maximum. Linear inputs have one grid per
token, convolution inputs one per sample, queries, keys and values one per token and head, softmax probabilities one per
query, always with 8 bits. Quantization is simulated in the model's dtype on any device;
:mod:`qua2sedimo.runtime.integer` computes with integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import LEVEL_METHODS
from qua2sedimo.runtime.integer import MOST_CODEBOOK_BITS, codebook_bits, multiplies_exactly
from qua2sedimo.runtime.modules import QuantizedLayer, QuantizedLinear
from qua2sedimo.runtime.table import layer_modules

#: Supported bit widths of activations.
ACTIVATION_BITS = (4, 5, 6, 7, 8)
#: Bit width of softmax probabilities, independent of the other activations.
PROBABILITY_BITS = 8
_MOST_SCORES = 1 << 19  # attention scores per chunk: 2 MB, to stay in the processor's cache over some ten passes
#: diffusers attention processors that do not call scaled_dot_product_attention and so cannot be intercepted.
_UNSUPPORTED = ("AttnProcessor", "AttnAddedKVProcessor", "SlicedAttnProcessor", "SlicedAttnAddedKVProcessor")


def grid(x: torch.Tensor, bits: int, axes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(minimum, step) of each row in fp32 or fp64; a row extends along ``axes``, which are kept with size 1.

    l = min x, Δ = (max x − l)/(2^b − 1), so minimum and maximum are on the grid; Δ = 1 for a constant row.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    least = wide.amin(axes, keepdim=True)
    step = (wide.amax(axes, keepdim=True) - least) / (2**bits - 1)
    return least, torch.where(step > 0, step, 1.0)


def rounded(x: torch.Tensor, bits: int, axes: tuple[int, ...] = (-1,)) -> torch.Tensor:
    """x̂ = l + Δ·round((x − l)/Δ) with one grid (l, Δ) per row, in the dtype of ``x``; constant rows are exact.

    Gradients pass straight through.
    """
    if not x.numel():
        return x
    with torch.no_grad():
        least, step = grid(x, bits, axes)
        near = torch.round((x - least).div_(step)).mul_(step).add_(least).to(x.dtype)
    return x + (near - x).detach() if torch.is_grad_enabled() and x.requires_grad else near


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bits: int,
) -> torch.Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention` with rounded queries, keys, values and probabilities.

    Computed in chunks of heads and queries, so that memory does not grow with the square of the number of tokens.
    Without any token there is nothing to round, and PyTorch's function gives the result.
    """
    if not (query.numel() and key.numel() and value.numel()):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    query, key, value = (rounded(x, bits) for x in (query, key, value))
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads, queries, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    if is_causal:
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    mask = None if attn_mask is None else _flat_mask(attn_mask, heads)
    query, key, value = (x.expand(*heads, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (query, key, value))
    some, rows = max(1, _MOST_SCORES // max(1, queries * keys)), max(1, _MOST_SCORES // max(1, keys))
    outputs = []
    for head in range(0, query.shape[0], some):
        of, parts = slice(head, head + some), []
        for row in range(0, queries, rows):
            part = slice(row, row + rows)
            scores = torch.bmm(query[of, part], key[of].transpose(1, 2)).float().mul_(scale)
            if mask is not None:
                scores = _masked(scores, mask[of if mask.shape[0] > 1 else slice(None)], part)
            probabilities = _rounded_probabilities(torch.softmax(scores, dim=-1), mask is not None).to(value.dtype)
            parts.append(torch.bmm(functional.dropout(probabilities, dropout_p), value[of]))
        outputs.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    return torch.cat(outputs).view(*heads, queries, value.shape[-1])


def _flat_mask(mask: torch.Tensor, heads: Sequence[int]) -> torch.Tensor:
    """A mask as [heads, queries or 1, keys], with 1 for heads if it is the same for all."""
    if mask.numel() == math.prod(mask.shape[-2:]):
        return mask.reshape(1, *mask.shape[-2:])
    return mask.expand(*heads, *mask.shape[-2:]).reshape(-1, *mask.shape[-2:])


def _masked(scores: torch.Tensor, mask: torch.Tensor, part: slice) -> torch.Tensor:
    mask = mask[:, part] if mask.shape[1] > 1 else mask
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def _rounded_probabilities(probabilities: torch.Tensor, masked: bool) -> torch.Tensor:
    """Round softmax probabilities; in place if no gradient is needed."""
    if masked:
        probabilities = torch.nan_to_num(probabilities)  # queries whose keys are all masked
    if probabilities.requires_grad or not probabilities.numel():
        return rounded(probabilities, PROBABILITY_BITS)
    least, step = grid(probabilities, PROBABILITY_BITS, (-1,))
    return probabilities.sub_(least).div_(step).round_().mul_(step).add_(least)


class _Intercept(TorchFunctionMode):
    """Replaces PyTorch's attention with :func:`attention`."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}), bits=self.bits)
        return func(*args, **(kwargs or {}))


class _Input:
    """A forward pre-hook that rounds the input of a layer, given by position or as ``input=``."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else named["input"]
        near = rounded(x, self.bits, (-1,) if isinstance(layer, nn.Linear) else tuple(range(1, x.ndim)))
        return ((near, *args[1:]), named) if args else (args, {**named, "input": near})


class _Attention:
    """Hooks that activate :class:`_Intercept` during the forward pass of a denoiser.

    They are on its blocks too, because gradient checkpointing runs a block again on its own in the backward pass.
    """

    def __init__(self, bits: int) -> None:
        self.mode = _Intercept(bits)
        self.depth = 0

    def enter(self, module: nn.Module, args: Any) -> None:
        if self.depth == 0:
            self.mode.__enter__()
        self.depth += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.depth == 1:
            self.mode.__exit__(None, None, None)
        self.depth = max(0, self.depth - 1)  # also called after an error, even in an earlier hook


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Entries of module lists that have submodules: gradient checkpointing may run them again."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    found = {id(block): block for blocks in lists for block in blocks if next(block.children(), None) is not None}
    yield from found.values()


def set_activation_bits(
    model: nn.Module, bits: int | None, layers: Iterable[str] | None = None, integer: bool | None = None
) -> nn.Module:
    """Quantize the activations of ``model`` to ``bits``, or stop doing so (None); modifies and returns ``model``.

    ``layers`` names the layers whose inputs are rounded; default: all packed layers, or all Linear and Conv layers if
    none is packed. Attention is always rounded. ``integer`` controls integer arithmetic in packed Linear layers: by
    default UAQ layers use it if this processor is exact; True adds layers with other levels (``row`` and K-Means) of up
    to 4 bits, with levels rounded to 8 bits (7 without VNNI); False simulates all layers.

    Raises :class:`Qua2SeDiMoError` on an unsupported bit width, an unknown layer, an attention processor that cannot be
    intercepted, or ``integer=True`` if no layer can use integers.
    """
    if bits is not None and (isinstance(bits, bool) or bits not in ACTIVATION_BITS):
        raise Qua2SeDiMoError(f"activations must have 4 to 8 bits, got {bits!r}", "Choose 8 or 6.")
    modules = layer_modules(model)
    chosen = _chosen(modules, layers)
    if bits is not None:
        _refuse_unsupported_attention(model)
    if integer and not any(_can_be_integer(module, True) for module in chosen):
        raise Qua2SeDiMoError(
            "no layer can compute in integers here; only packed Linear layers on a CPU can: uaq at bit widths whose "
            f"products are exact on this processor, row and K-Means up to {MOST_CODEBOOK_BITS} bits",
            "Omit `integer`: activation quantization is then simulated.",
        )
    _remove(model)
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is not None and hasattr(config, "act_bits"):
        config.act_bits = bits
    if bits is None:
        return model
    for module in chosen:
        if integer is not False and _can_be_integer(module, bool(integer)):
            module.integer_bits = bits
        else:
            module.register_forward_pre_hook(_Input(bits), with_kwargs=True)
    hooks = _Attention(bits)
    for around in (model, *_blocks(model)):
        around.register_forward_pre_hook(hooks.enter)
        around.register_forward_hook(hooks.leave, always_call=True)
    return model


def activation_bits(model: nn.Module) -> int | None:
    """The bit width set by :func:`set_activation_bits`, None if activations are not quantized."""
    found = [hooks.mode.bits for hooks in _own(model._forward_pre_hooks, _Attention)]
    return found[0] if found else None


def _chosen(modules: Mapping[str, nn.Module], names: Iterable[str] | None) -> list[nn.Module]:
    if names is None:
        packed: list[nn.Module] = [module for module in modules.values() if isinstance(module, QuantizedLayer)]
        return packed or list(modules.values())
    chosen: dict[int, nn.Module] = {}
    for name in names:
        if name not in modules:
            raise Qua2SeDiMoError(f"the denoiser has no Linear or Conv layer '{name}'")
        chosen[id(modules[name])] = modules[name]
    return list(chosen.values())


def _can_be_integer(module: nn.Module, rounding: bool) -> TypeGuard[QuantizedLinear]:
    """Whether a layer can compute in integers; with ``rounding``, also by rounding its levels to an even grid."""
    if not isinstance(module, QuantizedLinear) or len(module.parts) > 1:
        return False
    option, codes = module.parts[0].storage.option, getattr(module, f"{module.parts[0].prefix}codes")
    if codes.device.type != "cpu" or option.method not in LEVEL_METHODS:
        return False
    if option.method == "uaq":
        return multiplies_exactly(option.bits)
    return rounding and option.bits <= MOST_CODEBOOK_BITS and codebook_bits() is not None


def _refuse_unsupported_attention(model: nn.Module) -> None:
    for name, module in model.named_modules():
        processor = type(getattr(module, "processor", None)).__name__
        if processor in _UNSUPPORTED:
            raise Qua2SeDiMoError(
                f"'{name}' computes attention with {processor}, whose inputs cannot be quantized",
                "Use diffusers' default processors: model.set_default_attn_processor().",
            )


def _own(hooks: Mapping[int, Any], kind: type[Any]) -> Iterator[Any]:
    """The hooks that are instances of ``kind``, or whose bound methods they are."""
    for hook in hooks.values():
        owner = getattr(hook, "__self__", hook)
        if isinstance(owner, kind):
            yield owner


def _remove(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            ours = [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", hook), _Attention | _Input)]
            for key in ours:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(module, QuantizedLinear):
            module.integer_bits = None
