"""What a packed denoiser costs to keep, to load and to run, beside the same denoiser in bf16.

    python benchmarks/runtime.py [--quick] [--again] [--only decoding|loading|forward]

A denoiser of PixArt-XL's size with random weights, packed at about 3.4 bits with the paper's methods and 2 to 6 bits:

1. Decoding a 3072² weight, every method and width and some ranks, beside copying as many numbers.
2. The file and the resident weights beside the accounting; seconds and peak memory of loading beside the bf16
   checkpoint, from disk and from the system's cache.
3. One guided forward at 512 px (2 × 1,024 tokens): bf16 and fp32, packed computing in each, and each of these with
   8-bit activations, in integers where the layer is UAQ, in integers everywhere, and simulated. The same of a model
   packed as UAQ of 4 bits throughout, whose Linear layers all multiply integers.

``--quick`` takes 4 blocks instead of 28, ``--only`` one of the three. Figures are kept in
benchmarks/results/runtime.json as they come, and a run that was stopped goes on there; ``--again`` measures anew. Every
step runs in a process of its own, whose peak resident memory is its own. The machine may be noisy: all is measured in
turns, the fastest counts; quote ratios. With OMP_NUM_THREADS=1 the forwards' are those of the processor's time, which
others on the machine hardly change. One block under each option, beside other libraries, is measured by
runtime_block.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import PixArtTransformer2DModel

from kept import Kept
from qua2sedimo.quantizers import LEVEL_METHODS, METHODS, QuantizedWeight, dequantize_weight, packed_bytes
from qua2sedimo.runtime import save_packed, set_activation_bits
from qua2sedimo.runtime.table import layer_modules

LOADS, FORWARD_TURNS = 3, 2
PARTS = ("decoding", "loading", "forward")
STATES = ("from disk", "from the cache")
SIZE = 3072
RANKS = (16, 64, 256)
TOKENS = 1024
MIX = tuple(itertools.product(("uaq", "kmeans_c", "kmeans_a"), (3, 4, 2, 4, 4, 3)))  # and UAQ at 6 for small layers


def pixart(blocks: int) -> Any:
    """PixArt-XL with so many blocks, on the meta device."""
    with init_empty_weights():
        return PixArtTransformer2DModel(
            num_layers=blocks, sample_size=64, caption_channels=4096, cross_attention_dim=1152
        )


def random_value(method: str, number: int, shape: tuple[int, ...], chance: torch.Generator) -> QuantizedWeight:
    """Random codes with parameters of the usual size: decoding does not depend on what they are."""
    own = METHODS[method]
    codes = torch.randint(0, 256, (own.code_bytes(shape, number),), dtype=torch.uint8, generator=chance)
    parameters = {}
    for name, size in own.parameter_shapes(shape, number).items():
        if name == "zero":
            parameters[name] = torch.full(size, 2 ** (number - 1), dtype=torch.int16)
        elif name.startswith("scale"):
            of_levels = {"uaq": 0.05 / 2**number, "row": 0.02}
            parameters[name] = torch.full(size, of_levels.get(method, 1e-3), dtype=torch.bfloat16)
        else:
            parameters[name] = (0.02 * torch.randn(size, generator=chance)).sort(dim=-1).values.bfloat16()
    return QuantizedWeight(method, number, shape, torch.bfloat16, codes, parameters)


def mixed(
    shapes: dict[str, tuple[int, ...]], mix: tuple[tuple[str, int], ...] = MIX
) -> Iterator[tuple[str, QuantizedWeight]]:
    """All layers, methods and widths in turn; small layers as UAQ of 6 bits."""
    chance = torch.Generator().manual_seed(0)
    turns = itertools.cycle(mix)
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
    for method, number in [*itertools.product(LEVEL_METHODS, range(1, 9)), *(("lowrank", rank) for rank in RANKS)]:
        value = random_value(method, number, (SIZE, SIZE), chance)
        row: dict[str, Any] = {"option": value.option}
        for dtype, out in outputs.items():
            copying = best(lambda dtype=dtype, out=out: out.copy_(sources[dtype]), 7)
            seconds = best(lambda value=value, out=out: dequantize_weight(value, out), 7)
            name = str(dtype).removeprefix("torch.")
            row |= {f"ms to {name}": 1e3 * seconds, f"over a copy, {name}": seconds / copying}
        rows.append(row)
    return rows


def write(folder: Path, blocks: int) -> dict[str, Any]:
    """The bf16 checkpoint, the packed one and one of UAQ only; sizes of the packed one by the accounting."""
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
    save_packed(model, None, mixed(shapes, (("uaq", 4),)), folder / "uaq")
    counted = sum(packed_bytes(value.method, value.shape, value.number) for value in values.values())
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


def forget(folder: Path) -> None:
    """Drop a folder's files from the system's cache, as after a restart (where the system offers that)."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def load(folder: Path, cold: bool) -> dict[str, Any]:
    """Seconds, and peak memory beyond that of the imports; then what the weights themselves hold.

    Not ``cold``: the files are in the system's cache, where those of bf16 are mapped and not read.
    """
    if cold:
        forget(folder)
    before = peak_resident()
    began, computing = time.perf_counter(), time.process_time()
    model = PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.view(-1)[:: 2048 // tensor.element_size()].sum()  # every page of a mapped file
    seconds, computing = time.perf_counter() - began, time.process_time() - computing
    held = {t.untyped_storage().data_ptr(): t.nbytes for t in model.state_dict().values()}
    return {
        "seconds": seconds,
        "seconds of the processor": computing,
        "peak bytes": peak_resident() - before,
        "resident bytes": sum(held.values()),
    }


@torch.inference_mode()
def forward(folder: Path, dtype: torch.dtype, act_bits: int | None, integer: bool | None) -> dict[str, float]:
    """Seconds of one guided forward at 512 px, and of the processor, which others on the machine disturb less."""
    model = PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=dtype)
    set_activation_bits(model, act_bits, integer=integer)
    torch.manual_seed(0)
    side = 2 * math.isqrt(TOKENS)
    call: dict[str, Any] = {
        "hidden_states": torch.randn(2, 4, side, side, dtype=dtype),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 120, 4096, dtype=dtype),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    few = {
        "hidden_states": call["hidden_states"][..., :8, :8],
        "encoder_hidden_states": torch.randn(2, 4, 4096, dtype=dtype),
    }
    model(**{**call, **few})  # kernels are compiled, and mapped weights read, before anything is timed
    began, computing = time.perf_counter(), time.process_time()
    model(**call)
    return {"seconds": time.perf_counter() - began, "processor": time.process_time() - computing}


FORWARDS: tuple[tuple[str, str, torch.dtype, int | None, bool | None], ...] = (
    ("bf16", "bf16", torch.bfloat16, None, None),
    ("fp32", "bf16", torch.float32, None, None),
    ("packed, computing in bf16", "packed", torch.bfloat16, None, None),
    ("packed, computing in fp32", "packed", torch.float32, None, None),
    ("packed, bf16, 8-bit activations", "packed", torch.bfloat16, 8, None),
    ("packed, fp32, 8-bit activations", "packed", torch.float32, 8, None),
    ("packed, bf16, 8-bit activations, K-Means in integers too", "packed", torch.bfloat16, 8, True),
    ("packed, fp32, 8-bit activations, K-Means in integers too", "packed", torch.float32, 8, True),
    ("packed, bf16, 8-bit activations simulated", "packed", torch.bfloat16, 8, False),
    ("packed, fp32, 8-bit activations simulated", "packed", torch.float32, 8, False),
    ("uaq-4, computing in bf16", "uaq", torch.bfloat16, None, None),
    ("uaq-4, computing in fp32", "uaq", torch.float32, None, None),
    ("uaq-4, bf16, 8-bit activations", "uaq", torch.bfloat16, 8, None),
    ("uaq-4, fp32, 8-bit activations", "uaq", torch.float32, 8, None),
)


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


def about(blocks: int) -> dict[str, Any]:
    """What the figures of one run depend on."""
    return {
        "blocks": blocks,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16 instructions": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "vnni": bool(torch.cpu._is_vnni_supported()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 blocks instead of 28")
    parser.add_argument("--again", action="store_true", help="measure what has been measured too")
    parser.add_argument("--only", choices=PARTS, help="one part of the benchmark")
    arguments = parser.parse_args()
    parts = (arguments.only,) if arguments.only else PARTS
    machine = about(4 if arguments.quick else 28)
    kept = Kept("runtime", machine, arguments.again)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    if "decoding" in parts:
        show_decoding(kept("decoding", lambda: in_process(decoding)))
    if parts == ("decoding",):
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = in_process(write, folder, machine["blocks"])
        kept("size", lambda: size)
        if "loading" in parts:
            loading(folder, kept)
        if "forward" in parts:
            forwards(folder, kept)


def loading(folder: Path, kept: Kept) -> None:
    for state, turn, kind in itertools.product(STATES, range(LOADS), ("bf16", "packed")):
        kept(
            f"loading {state}, {kind}, {turn}",
            lambda kind=kind, cold=state == "from disk": in_process(load, folder / kind, cold),
        )
    show_loading(kept)


def forwards(folder: Path, kept: Kept) -> None:
    for turn, (name, kind, dtype, act_bits, integer) in itertools.product(range(FORWARD_TURNS), FORWARDS):
        seconds = kept(
            f"forward, {name}, {turn}",
            lambda kind=kind, dtype=dtype, bits=act_bits, integer=integer: in_process(
                forward, folder / kind, dtype, bits, integer
            ),
        )
        print(f"forward, {name}: {seconds['seconds']:.1f} s, {seconds['processor']:.1f} of the processor", flush=True)
    show_forwards(kept)


def show_decoding(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()))


def show_loading(kept: Kept) -> None:
    size = kept.figures["size"]
    resident = kept.figures[f"loading {STATES[0]}, packed, 0"]["resident bytes"]
    print(
        f"{size['weights'] / 1e6:.0f} M weights at {size['average bits']:.3f} bits: file "
        f"{size['bytes of the file'] / size['bytes by the accounting']:.4f}, resident "
        f"{resident / size['bytes by the accounting']:.4f} of the accounting"
    )
    for state, what in itertools.product(
        STATES, ("seconds", "seconds of the processor", "peak bytes", "resident bytes")
    ):
        bf16, packed = (
            min(kept.figures[f"loading {state}, {kind}, {turn}"][what] for turn in range(LOADS))
            for kind in ("bf16", "packed")
        )
        print(f"loading {state}, {what}: {packed:.4g}, {packed / bf16:.2f} × bf16's {bf16:.4g}")


def show_forwards(kept: Kept) -> None:
    """In seconds of the processor if there is one thread; of several, some wait for the others and count."""
    what = "processor" if kept.figures["about"]["threads"] == 1 else "seconds"
    fastest = {
        name: min(kept.figures[f"forward, {name}, {turn}"][what] for turn in range(FORWARD_TURNS))
        for name, *_ in FORWARDS
    }
    for name, seconds in fastest.items():
        over = f"{seconds / fastest['bf16']:.2f} × bf16, {seconds / fastest['fp32']:.2f} × fp32"
        print(f"forward, {name}: {seconds:.1f} s, {over}")


if __name__ == "__main__":
    main()
