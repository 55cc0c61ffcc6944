"""What a graphics processor does with packed models: decoding, whole forwards, integers, rounding, a quick choice.

    sh benchmarks/gpu.sh [OUT.json] [WHEELS]
    python benchmarks/gpu.py [--out FILE] [--seconds 480] [--small] [--only decoding forward integers rounding quick]

1. Each decode kernel, every method and width, beside copies on the device: of the numbers it writes, and of as many
   bytes as it reads and writes.
2. A forward of PixArt-XL at 512 px and of SDXL's U-Net at 1,024 px, random weights: bf16, packed, and both compiled;
   seconds and peak memory.
3. Integer products beside bf16's.
4. Compensated rounding of PixArt-XL's shapes: seconds a bit width, for all its layers.
5. A quick choice of avatars-unet: size and PSNR, which must be those of a CPU up to rounding.

Parts that no time is left for are named as such, and no part begins after --seconds. Each figure is written to FILE as
it comes; a part that fails is there with its error, and the others are measured. Without a graphics processor, all runs
on the CPU, with ``--small`` in minutes; Triton is then interpreted, if it is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from compensation_cost import random_moment
from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.inspection import inspected
from qua2sedimo.quantizers import LEVEL_METHODS, METHODS, Moment, QuantizedWeight, dequantize_weight
from qua2sedimo.quantizers.operator import device_kernel
from qua2sedimo.runtime import quantized_layers, replace_layers, set_activation_bits
from qua2sedimo.runtime.table import layer_modules
from qua2sedimo.statistics import Source
from runtime import RANKS, mixed, pixart, random_value

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "tests" / "denoisers" / "configs"
KNOWN = ROOT / "docs" / "figures" / "compensation.json"  # quick choices on a CPU
QUICK_MODEL, QUICK_BITS = "avatars-unet", 3.0
WIDTHS = (2, 3, 4, 6)
TURNS = 20


class Bench:
    """Figures by name, written as they come, until no time is left; what is measured where."""

    def __init__(self, out: Path, seconds: float, small: bool) -> None:
        self.out, self.small, self.ends = out, small, time.monotonic() + seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.figures: dict[str, Any] = {"about": self._about()}
        self._save()

    def part(self, name: str, measure: Callable[[Bench], Iterator[tuple[str, Any]]]) -> None:
        """Measure a part, figure by figure."""
        found: dict[str, Any] = {}
        self.figures[name] = found
        began = time.monotonic()
        try:
            for key, value in measure(self):
                found[key] = value
                print(name, key, json.dumps(value), flush=True)
                self._save()
                if time.monotonic() > self.ends:
                    found["left out"] = "the rest: no time was left"
                    break
        except Exception as error:  # of a part, which the others do not depend on; it is in the file
            found["failed"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        found["took_s"] = round(time.monotonic() - began, 1)
        self._save()

    def seconds(self, work: Callable[[], object], turns: int = TURNS) -> float:
        """Median seconds of a call, after two that do not count."""
        for _ in range(2):
            work()
        times = []
        for _ in range(3 if self.small else turns):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes that were allocated on the device at once during a call, with what was there; None on a CPU."""
        if self.device.type != "cuda":
            work()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return int(torch.cuda.max_memory_allocated())

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _save(self) -> None:
        write_json(self.out, self.figures)

    def _about(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if cuda else None,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "kernel": "triton" if device_kernel(self.device.type) is not None else "tensor operations",
            "small": self.small,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--seconds", type=float, default=480 - 30, help="No part begins later.")
    parser.add_argument("--small", action="store_true", help="Small shapes, for a machine without such a device.")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.out, asked.seconds, asked.small)
    print(json.dumps(bench.figures["about"]))
    for name in asked.only:
        if time.monotonic() < bench.ends:
            bench.part(name, PARTS[name])
        else:
            bench.figures[name] = {"left out": "no time was left"}
    write_json(asked.out, bench.figures)
    print(f"written: {asked.out}")


def decoding(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Milliseconds for one weight in bf16, over those of copying what is written, and over those of copying as many
    bytes as are read and written."""
    side, chance = 256 if bench.small else 8192, torch.Generator().manual_seed(0)
    out, source = (torch.empty(side, side, dtype=torch.bfloat16, device=bench.device) for _ in range(2))
    copying = bench.seconds(lambda: out.copy_(source))
    for method, number in [*itertools.product(LEVEL_METHODS, range(1, 9)), *(("lowrank", rank) for rank in RANKS)]:
        on_cpu = random_value(method, number, (side, side), chance)
        value = _moved(on_cpu, bench.device)
        seconds = bench.seconds(lambda value=value: dequantize_weight(value, out))  # type: ignore[misc]
        read = value.codes.nbytes + sum(p.nbytes for p in value.parameters.values())
        fair = copying * (read + out.nbytes) / (2 * out.nbytes)  # a copy reads as much as it writes
        same = torch.equal(dequantize_weight(value).cpu(), dequantize_weight(on_cpu))
        yield value.option, {
            "ms": round(1e3 * seconds, 4), "over_copy_of_output": round(seconds / copying, 3),
            "over_copy_of_bytes": round(seconds / fair, 3), "same_as_cpu": same,
        }  # fmt: skip
    if bench.device.type == "cpu":
        yield "triton, interpreted", _interpreted(chance)


def _moved(value: QuantizedWeight, device: torch.device) -> QuantizedWeight:
    parameters = {name: parameter.to(device) for name, parameter in value.parameters.items()}
    return replace(value, codes=value.codes.to(device), parameters=parameters)


def _interpreted(chance: torch.Generator) -> Any:
    """Whether the kernel for graphics processors gives the same on the CPU, at every width."""
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when the kernel is defined
    try:
        from qua2sedimo.quantizers.triton_kernel import decode_rows_into
    except ImportError as error:
        return f"not tried: {error}"
    from qua2sedimo.quantizers.decoding import levels_of

    same = {}
    for method, bits in itertools.product(LEVEL_METHODS, range(1, 9)):
        value = random_value(method, bits, (32, 1056), chance)
        found = torch.empty(32, 1056, dtype=torch.bfloat16)
        decode_rows_into(value.codes, levels_of(value, torch.bfloat16), bits, found)
        same[value.option] = torch.equal(found, dequantize_weight(value))
    return {"options": len(same), "same_as_cpu": all(same.values())}


def forward(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Seconds and peak memory of one guided forward of each denoiser: in bf16, packed, and both compiled."""
    for name, make, call in _denoisers(bench):
        plain, memory = {}, {}
        for kind, compiled in itertools.product(("bf16", "packed"), (False, True)):
            torch.manual_seed(0)
            model = _filled(make(), bench.device)
            if kind == "packed":
                shapes = {layer: tuple(module.weight.shape) for layer, module in layer_modules(model).items()}
                values = {layer: _moved(value, bench.device) for layer, value in mixed(shapes)}
                model = replace_layers(model, quantized_layers(model, values))
            began = time.perf_counter()
            if compiled:  # block by block: each kind is compiled once
                for block in (m for m in model.modules() if isinstance(m, (BasicTransformerBlock, ResnetBlock2D))):
                    block.compile()
            with torch.inference_mode():
                given = call()
                model(**given)
                ready = time.perf_counter() - began
                seconds = bench.seconds(lambda model=model, given=given: model(**given), 7)  # type: ignore[misc]
                most = bench.peak(lambda model=model, given=given: model(**given))  # type: ignore[misc]
            plain.setdefault(compiled, seconds)
            memory.setdefault(compiled, most)
            row = {"ms": round(1e3 * seconds, 2), "first_s": round(ready, 1), "over_bf16": seconds / plain[compiled]}
            if most is not None:
                row |= {"peak_gb": most / 1e9, "peak_over_bf16": most / memory[compiled]}
            yield f"{name}, {kind}{', compiled' if compiled else ''}", {k: round(v, 3) for k, v in row.items()}
            del model
            torch.compiler.reset()


def _denoisers(bench: Bench) -> Iterator[tuple[str, Callable[[], Any], Callable[[], dict[str, Any]]]]:
    """(name, denoiser on the meta device, arguments of a guided call)."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=bench.device)

    times = torch.tensor([500, 500], device=bench.device)
    side = 8 if bench.small else 64  # of the latent: 2 × 1,024 tokens
    yield "pixart-xl", lambda: pixart(2 if bench.small else 28), lambda: {
        "hidden_states": random(2, 4, side, side), "timestep": times, "encoder_hidden_states": random(2, 120, 4096),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    config = json.loads((CONFIGS / "sdxl-base-1.0.json").read_text())
    if bench.small:
        few = {"block_out_channels": [64, 64, 64], "attention_head_dim": [4, 4, 4], "transformer_layers_per_block": 1}
        config |= few
    wide = 8 if bench.small else 128

    def sdxl() -> Any:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(config)

    yield "sdxl", sdxl, lambda: {
        "sample": random(2, 4, wide, wide), "timestep": times, "encoder_hidden_states": random(2, 77, 2048),
        "added_cond_kwargs": {"text_embeds": random(2, 1280), "time_ids": random(2, 6)},
    }  # fmt: skip


def _filled(model: Any, device: torch.device) -> Any:
    """A denoiser of the meta device with random weights in bf16."""
    model = model.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    for buffer in model.buffers():
        buffer.normal_()
    return model


def integers(bench: Bench) -> Iterator[tuple[str, Any]]:
    """A Linear layer of uaq-4 whose inputs are rounded to 8 bits, in integers and simulated, beside bf16."""
    rows, width = (64, 256) if bench.small else (4096, 4096)
    chance = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device=bench.device)
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=bench.device)
    with torch.inference_mode():
        usual = bench.seconds(lambda: plain(x))
        yield "bf16", {"ms": round(1e3 * usual, 3)}
        for name, integer in (("integers", True), ("simulated", False)):
            model = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16))
            value = random_value("uaq", 4, (width, width), chance)
            packed = replace_layers(model, quantized_layers(model, {"0": value})).to(bench.device)
            set_activation_bits(packed, 8, integer=integer)
            seconds = bench.seconds(lambda packed=packed: packed(x))  # type: ignore[misc]
            row = {"ms": round(1e3 * seconds, 3), "over_bf16": round(seconds / usual, 3)}
            yield f"uaq-4, 8-bit inputs, {name}", row


def rounding(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Seconds of compensated rounding of ``row`` for all layers of PixArt-XL, one of each shape really done."""
    space = inspected(str(CONFIGS / "pixart-alpha-512.json")).space
    shapes = Counter((shape[0], math.prod(shape[1:])) for shape in space.shapes.values())
    if bench.small:
        shapes = Counter({(64, 96): 3, (96, 64): 2})
    chance = torch.Generator().manual_seed(0)
    totals, factors = dict.fromkeys(WIDTHS, 0.0), 0.0
    for (channels, inputs), count in sorted(shapes.items(), key=lambda of: -of[0][0] * of[0][1]):
        weight = (0.02 * torch.randn(channels, inputs, generator=chance)).half().to(bench.device)
        moment = Moment(tuple(random_moment(size, chance) for size in Source(("layer",), inputs, ()).blocks))
        began = time.perf_counter()
        assert moment.factors
        factors += count * (time.perf_counter() - began)
        row = {}
        for bits in WIDTHS:
            began = time.perf_counter()
            METHODS["row"].quantize(weight, [bits], moment)
            bench.wait()
            row[f"{bits} bits_s"] = round(time.perf_counter() - began, 3)
            totals[bits] += count * (time.perf_counter() - began)
        yield f"{channels} x {inputs}, {count} layers", row
    yield "all layers", {"factors_s": round(factors, 1), **{f"{b} bits_s": round(s, 1) for b, s in totals.items()}}


def quick(bench: Bench) -> Iterator[tuple[str, Any]]:
    """The quick choice of a shipped model, made on the device; and what a CPU's had."""
    entry = zoo.ENTRIES[QUICK_MODEL]
    fewer = {"observe": 4, "arguments": {**entry.arguments, "num_inference_steps": 2}}
    settings = {
        "model": QUICK_MODEL, "inputs": list(entry.inputs), "arguments": dict(entry.arguments), "images": 4,
        "device": bench.device.type,
    }  # fmt: skip
    known = json.loads(KNOWN.read_text())[f"{QUICK_MODEL} 0 {QUICK_BITS:g} quick"]
    yield "on a CPU, 64 images", {"bits": known["average_bits"], "psnr": known["psnr"]}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        study = Study.create(Path(folder) / "study", StudySettings(**{**settings, **(fewer if bench.small else {})}))
        choice = study.quick(QUICK_BITS)
        yield "here, 16 images", {
            "bits": choice.average_bits, "psnr": choice.measured["psnr"], "seconds": time.perf_counter() - began,
            "polished": choice.polished is not None,
        }  # fmt: skip


PARTS = {"decoding": decoding, "integers": integers, "quick": quick, "forward": forward, "rounding": rounding}


if __name__ == "__main__":
    main()
