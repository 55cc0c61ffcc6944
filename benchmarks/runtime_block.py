"""One transformer block under every method and bit width, and under other libraries, beside the plain block.

    python benchmarks/runtime_block.py [--again]

A block of PixArt-XL (1,152 channels, self-attention, cross-attention, feed-forward) with random weights on 2 × 1,024
tokens. Ours in fp32 at 1 to 8 bits and at some ranks, without and with 8-bit activations; in bf16 at 4 bits and these
ranks only, since processors without bf16 products take minutes. Beside it torchao, optimum-quanto and bitsandbytes,
where they can be imported and run, or what they say where they do not.

Every option is measured in turns with the plain block, and the ratio of the fastest of each is kept in
benchmarks/results/runtime_block.json: a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from kept import Kept
from qua2sedimo.quantizers import LEVEL_METHODS
from qua2sedimo.runtime import quantized_layers, replace_layers, set_activation_bits
from qua2sedimo.runtime.integer import codebook_bits, multiplies_exactly
from qua2sedimo.runtime.table import layer_modules
from runtime import RANKS, TOKENS, about, random_value

Conversion = Callable[[nn.Module], nn.Module]
LIBRARIES = ("torchao", "optimum-quanto", "bitsandbytes")


def block(dtype: torch.dtype) -> nn.Module:
    """One block of PixArt-XL."""
    torch.manual_seed(0)
    return BasicTransformerBlock(
        1152, 16, 72, cross_attention_dim=1152, norm_type="ada_norm_single", activation_fn="gelu-approximate",
        attention_bias=True, norm_elementwise_affine=False, norm_eps=1e-6, num_embeds_ada_norm=1000,
    ).to(dtype).eval().requires_grad_(False)  # fmt: skip


def ours(method: str, number: int) -> Conversion:
    def convert(model: nn.Module) -> nn.Module:
        chance = torch.Generator().manual_seed(0)
        shapes = {name: tuple(module.weight.shape) for name, module in layer_modules(model).items()}
        values = {name: random_value(method, number, shape, chance) for name, shape in shapes.items()}
        return replace_layers(model, quantized_layers(model, values))

    return convert


def with_activations(convert: Conversion, integer: bool) -> Conversion:
    return lambda model: set_activation_bits(convert(model), 8, integer=integer)


def torchao(config: str, **given: Any) -> Conversion:
    def convert(model: nn.Module) -> nn.Module:
        from torchao import quantization as library

        library.quantize_(model, getattr(library, config)(**given))
        return model

    return convert


def quanto(weights: str, activations: str | None = None) -> Conversion:
    def convert(model: nn.Module) -> nn.Module:
        from optimum import quanto as library

        given = {} if activations is None else {"activations": getattr(library, activations)}
        library.quantize(model, weights=getattr(library, weights), **given)
        library.freeze(model)
        return model

    return convert


def bitsandbytes(model: nn.Module) -> nn.Module:
    """nf4 in groups of 64, packed as `to("cpu")` does it."""
    import bitsandbytes as library

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        packed = library.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, quant_type="nf4"
        )
        packed.load_state_dict(layer.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed.to("cpu"))
    return model


OTHERS: dict[str, Conversion] = {
    "torchao, int8 weights": torchao("Int8WeightOnlyConfig"),
    "torchao, int4 weights": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "torchao, int3 weights": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int3),
    "torchao, int8 weights and activations": torchao("Int8DynamicActivationInt8WeightConfig"),
    "optimum-quanto, int8 weights": quanto("qint8"),
    "optimum-quanto, int4 weights": quanto("qint4"),
    "optimum-quanto, int2 weights": quanto("qint2"),
    "bitsandbytes, nf4 weights": bitsandbytes,
}


def options(dtype: torch.dtype) -> Iterator[tuple[str, Conversion]]:
    for method, bits in itertools.product(LEVEL_METHODS, range(1, 9) if dtype == torch.float32 else (4,)):
        yield f"{method}-{bits}", ours(method, bits)
        if method == "uaq" and multiplies_exactly(bits):
            yield f"uaq-{bits}, 8-bit activations in integers", with_activations(ours(method, bits), True)
    for rank in RANKS:
        yield f"lowrank-{rank}", ours("lowrank", rank)
    yield "uaq-4, 8-bit activations simulated", with_activations(ours("uaq", 4), False)
    yield "kmeans_c-4, 8-bit activations simulated", with_activations(ours("kmeans_c", 4), False)
    if codebook_bits() is not None:
        for method in ("kmeans_c", "row"):
            yield f"{method}-4, 8-bit activations in integers", with_activations(ours(method, 4), True)
    yield from OTHERS.items()


@torch.inference_mode()
def compared(convert: Conversion, dtype: torch.dtype) -> dict[str, float] | str:
    """Seconds of the converted block and of the plain one, in turns; or what a library says that does not run here."""
    torch.manual_seed(1)
    x, text = torch.randn(2, TOKENS, 1152, dtype=dtype), torch.randn(2, 120, 1152, dtype=dtype)
    time_ = torch.randn(2, 6 * 1152, dtype=dtype)
    plain = block(dtype)
    try:
        other = convert(block(dtype))
        other(x[:, :8], encoder_hidden_states=text, timestep=time_)  # kernels are compiled here
        seconds: dict[str, list[float]] = {"plain": [], "seconds": []}
        for _ in range(3 if dtype == torch.float32 else 1):
            for name, model in (("plain", plain), ("seconds", other)):
                began = time.perf_counter()
                model(x, encoder_hidden_states=text, timestep=time_)
                seconds[name].append(time.perf_counter() - began)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:160]}"
    fastest = {name: min(turns) for name, turns in seconds.items()}
    return {**fastest, "over plain": fastest["seconds"] / fastest["plain"]}


def library_versions() -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {name: installed.get(name, "not installed") for name in LIBRARIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure what has been measured too")
    machine = about(1) | library_versions()
    kept = Kept("runtime_block", machine, parser.parse_args().again)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    for dtype in (torch.float32, torch.bfloat16):
        for name, convert in options(dtype):
            found = kept(f"{dtype}, {name}", lambda dtype=dtype, convert=convert: compared(convert, dtype))
            said = f"not here: {found}" if isinstance(found, str) else f"{found['over plain']:.2f} × plain"
            print(f"{dtype}, {name}: {said}", flush=True)


if __name__ == "__main__":
    main()
