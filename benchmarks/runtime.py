"""What a packed denoiser costs to keep, to load and to run, beside the same denoiser in bf16.

    python benchmarks/runtime.py [--quick]

A denoiser of PixArt-XL's size with random weights, packed at about 3.4 bits with all three methods and 2 to 6 bits:

1. Decoding a 3072² weight, every method and width, beside writing as many numbers.
2. The file and the resident weights beside the accounting; seconds and peak memory of loading beside the bf16
   checkpoint.
3. One guided forward at 512 px (2 × 1,024 tokens) with 2 of the 28 equal blocks: bf16, packed computing in bf16 and in
   fp32, with 8-bit activations.
4. One block under every method and width, and under the libraries that can be imported (torchao, optimum-quanto,
   bitsandbytes), on the same input; in bf16 only at 4 bits, since processors without bf16 products take minutes.

``--quick`` takes 4 blocks. Writes benchmarks/results/runtime.json. Steps 1 to 3 run in processes of their
own, whose peak resident memory is theirs. The machine may be noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from qua2sedimo.quantizers import METHODS, QuantizedWeight, packed_bytes, packed_length
from qua2sedimo.runtime import QuantizedLayer, quantized_layers, replace_layers, save_packed, set_activation_bits
from qua2sedimo.runtime.integer import multiplies_exactly
from qua2sedimo.runtime.table import layer_modules

RESULTS = Path(__file__).parent / "results"
SIZE = 3072
TOKENS = 1024
MIX = tuple(itertools.product(("uaq", "kmeans_c", "kmeans_a"), (3, 4, 2, 4, 4, 3)))  # and UAQ at 6 for small layers


def pixart(blocks: int) -> Any:
    """PixArt-XL with so many blocks, on the meta device."""
    with init_empty_weights():
        return PixArtTransformer2DModel(
            num_layers=blocks, sample_size=64, caption_channels=4096, cross_attention_dim=1152
        )


def random_value(method: str, bits: int, shape: tuple[int, ...], chance: torch.Generator) -> QuantizedWeight:
    """Random codes with parameters of the usual size: decoding does not depend on what they are."""
    codes = torch.randint(0, 256, (packed_length(math.prod(shape), bits),), dtype=torch.uint8, generator=chance)
    parameters = {}
    for name, size in METHODS[method].parameter_shapes(shape, bits).items():
        if name == "zero":
            parameters[name] = torch.full(size, 2 ** (bits - 1), dtype=torch.int16)
        elif name == "scale":
            parameters[name] = torch.full(size, 0.05 / 2**bits, dtype=torch.bfloat16)
        else:
            parameters[name] = (0.02 * torch.randn(size, generator=chance)).sort(dim=-1).values.bfloat16()
    return QuantizedWeight(method, bits, shape, torch.bfloat16, codes, parameters)


def mixed(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, QuantizedWeight]]:
    """All layers, methods and widths in turn; small layers as UAQ of 6 bits."""
    chance = torch.Generator().manual_seed(0)
    turns = itertools.cycle(MIX)
    for name, shape in shapes.items():
        option = next(turns) if math.prod(shape) > 1_000_000 else ("uaq", 6)
        yield name, random_value(*option, shape, chance)


def best(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of so many calls."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def decoding() -> list[dict[str, Any]]:
    """Milliseconds for a 3072² weight, and over those of copying as many numbers of the type."""
    chance, rows = torch.Generator().manual_seed(0), []
    outputs = {dtype: torch.empty(SIZE, SIZE, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)}
    sources = {dtype: torch.ones(SIZE, SIZE, dtype=dtype) for dtype in outputs}
    for method, bits in itertools.product(METHODS, range(2, 9)):
        value = random_value(method, bits, (SIZE, SIZE), chance)
        row: dict[str, Any] = {"method": method, "bits": bits}
        for dtype, out in outputs.items():
            copying = best(lambda dtype=dtype, out=out: out.copy_(sources[dtype]), 7)
            seconds = best(lambda value=value, out=out: value.dequantize(out), 7)
            name = str(dtype).removeprefix("torch.")
            row |= {f"ms to {name}": 1e3 * seconds, f"over a copy, {name}": seconds / copying}
        rows.append(row)
    return rows


def write(folder: Path, blocks: int) -> dict[str, Any]:
    """The bf16 checkpoint and the packed one; sizes by the accounting."""
    torch.manual_seed(0)
    model = pixart(blocks).to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        for buffer in model.buffers():
            buffer.normal_()
    model.save_pretrained(folder / "bf16")
    shapes = {name: tuple(module.weight.shape) for name, module in layer_modules(model).items()}
    values = dict(mixed(shapes))
    size = save_packed(model, None, values, folder / "packed")
    counted = sum(packed_bytes(value.method, value.shape, value.bits) for value in values.values())
    others = 2 * sum(p.numel() for p in model.parameters()) - 2 * sum(map(math.prod, shapes.values()))
    return {
        "weights": size.weights,
        "average bits": 8 * counted / size.weights,
        "bytes by the accounting": counted + others,
        "bytes of the file": sum(file.stat().st_size for file in (folder / "packed").glob("*.safetensors")),
        "bytes of the bf16 file": sum(file.stat().st_size for file in (folder / "bf16").glob("*.safetensors")),
    }


def peak_resident() -> int:
    """Most bytes that were resident since this process began: Linux's ru_maxrss would be its parent's too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def load(folder: Path) -> dict[str, Any]:
    """Seconds, and peak memory beyond that of the imports; then what the weights themselves hold."""
    before = peak_resident()
    began = time.perf_counter()
    model = PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.view(-1)[:: 2048 // tensor.element_size()].sum()  # every page of a mapped file
    seconds = time.perf_counter() - began
    held = {t.untyped_storage().data_ptr(): t.nbytes for t in model.state_dict().values()}
    return {"seconds": seconds, "peak bytes": peak_resident() - before, "resident bytes": sum(held.values())}


@torch.inference_mode()
def forward(folder: Path, dtype: torch.dtype, act_bits: int | None) -> float:
    """Seconds of one guided forward at 512 px."""
    model = PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=dtype)
    set_activation_bits(model, act_bits)
    torch.manual_seed(0)
    side = 2 * math.isqrt(TOKENS)
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, 4, side, side, dtype=dtype),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 120, 4096, dtype=dtype),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    for layer in model.modules():  # kernels are compiled before anything is timed
        if isinstance(layer, QuantizedLayer):
            _ = layer.weight
    return best(lambda: model(**call), 1)


FORWARDS: tuple[tuple[str, str, torch.dtype, int | None], ...] = (
    ("bf16", "bf16", torch.bfloat16, None),
    ("packed, computing in bf16", "packed", torch.bfloat16, None),
    ("fp32", "bf16", torch.float32, None),
    ("packed, computing in fp32", "packed", torch.float32, None),
    ("packed, fp32, 8-bit activations", "packed", torch.float32, 8),
)


def block() -> nn.Module:
    """One block of PixArt-XL."""
    torch.manual_seed(0)
    return BasicTransformerBlock(
        1152, 16, 72, cross_attention_dim=1152, norm_type="ada_norm_single", activation_fn="gelu-approximate",
        attention_bias=True, norm_elementwise_affine=False, norm_eps=1e-6, num_embeds_ada_norm=1000,
    ).eval().requires_grad_(False)  # fmt: skip


@torch.inference_mode()
def seconds_of(model: nn.Module, dtype: torch.dtype) -> float:
    torch.manual_seed(1)
    x, text = torch.randn(2, TOKENS, 1152, dtype=dtype), torch.randn(2, 120, 1152, dtype=dtype)
    time_ = torch.randn(2, 6 * 1152, dtype=dtype)
    return best(lambda: model(x, encoder_hidden_states=text, timestep=time_), 2 if dtype == torch.float32 else 1)


def blocks_of_ours(dtype: torch.dtype) -> dict[str, float]:
    """Seconds of the block: plain, and under every option."""
    chance, found = torch.Generator().manual_seed(0), {"plain": seconds_of(block().to(dtype), dtype)}
    for method, bits in itertools.product(METHODS, range(2, 9) if dtype == torch.float32 else (4,)):
        model = block().to(dtype)
        shapes = {name: tuple(module.weight.shape) for name, module in layer_modules(model).items()}
        values = {name: random_value(method, bits, shape, chance) for name, shape in shapes.items()}
        replace_layers(model, quantized_layers(model, values))
        found[f"{method}-{bits}"] = seconds_of(model, dtype)
        if method == "uaq" and multiplies_exactly(bits):
            set_activation_bits(model, 8, integer=True)
            found[f"uaq-{bits}, 8-bit activations in integers"] = seconds_of(model, dtype)
            if bits == 4:
                set_activation_bits(model, 8, integer=False)
                found["uaq-4, 8-bit activations simulated"] = seconds_of(model, dtype)
    return found


def torchao_8(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def torchao_dynamic(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def quanto(bits: str) -> Callable[[nn.Module], nn.Module]:
    def convert(model: nn.Module) -> nn.Module:
        from optimum import quanto as library

        library.quantize(model, weights=getattr(library, bits))
        library.freeze(model)
        return model

    return convert


def bitsandbytes_nf4(model: nn.Module) -> nn.Module:
    import bitsandbytes as library

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        packed = library.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, quant_type="nf4"
        )
        packed.load_state_dict(layer.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed.to("cpu"))
    return model


OTHERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torchao, 8-bit weights": torchao_8,
    "torchao, 8-bit weights and activations": torchao_dynamic,
    "optimum-quanto, 8-bit weights": quanto("qint8"),
    "optimum-quanto, 4-bit weights": quanto("qint4"),
    "bitsandbytes, nf4 weights": bitsandbytes_nf4,
}


def blocks_of_others(dtype: torch.dtype) -> dict[str, float | str]:
    """Seconds of the block under other libraries, or why there is no such figure."""
    found: dict[str, float | str] = {}
    for name, convert in OTHERS.items():
        try:
            found[name] = seconds_of(convert(block().to(dtype)), dtype)
        except Exception as error:  # noqa: PERF203  # whatever a library that does not run here says
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    return found


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the call in a new process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, torch.get_num_threads(), work, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        sys.exit(f"{work.__name__} failed")
    finally:
        process.join()


def _answer(send: Any, threads: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    send.send(work(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 blocks instead of 28")
    blocks, run = (4, 1) if parser.parse_args().quick else (28, 2)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "blocks of the forward": run,
        "bf16 instructions": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "vnni": bool(torch.cpu._is_vnni_supported()),
    }
    words = {True: "has", False: "has no"}
    print(
        f"this CPU {words[result['vnni']]} VNNI and {words[result['bf16 instructions']]} bf16 products; "
        f"{result['threads']} threads"
    )
    result["decoding"] = in_process(decoding)
    for row in result["decoding"]:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = result["size"] = in_process(write, folder, blocks)
        loads = {kind: [in_process(load, folder / kind) for _ in range(3)] for kind in ("bf16", "packed")}
        fastest = {kind: min(runs, key=lambda run: run["seconds"]) for kind, runs in loads.items()}
        result["loading"] = fastest
        print(
            f"{size['weights'] / 1e6:.0f} M weights at {size['average bits']:.2f} bits: file "
            f"{size['bytes of the file'] / size['bytes by the accounting']:.4f}, resident "
            f"{fastest['packed']['resident bytes'] / size['bytes by the accounting']:.4f} of the accounting"
        )
        for what in ("seconds", "peak bytes", "resident bytes"):
            ratio = fastest["packed"][what] / fastest["bf16"][what]
            print(f"loading, {what}: {fastest['packed'][what]:.4g}, {ratio:.2f} × bf16's {fastest['bf16'][what]:.4g}")
        result["forward"] = {}
        shorter = folder / "forward"
        in_process(write, shorter, run)
        for name, kind, dtype, act_bits in FORWARDS:
            seconds = result["forward"][name] = in_process(forward, shorter / kind, dtype, act_bits)
            print(f"forward, {name}: {seconds:.1f} s, {seconds / result['forward']['bf16']:.2f} × bf16", flush=True)
    result["block"] = {}
    for dtype in (torch.bfloat16, torch.float32):
        found = blocks_of_ours(dtype) | blocks_of_others(dtype)
        result["block"][str(dtype)] = found
        for name, seconds in found.items():
            said = f"{seconds / found['plain']:.2f} × plain" if isinstance(seconds, float) else f"not here: {seconds}"
            print(f"block in {dtype}, {name}: {said}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "runtime.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
