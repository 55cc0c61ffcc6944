"""Every option of every weight layer at full size: seconds, memory, throughput, error beside an oracle.

    python benchmarks/quantizers.py [--quick]

1. The option bank (the paper's six options) of a PixArt-XL denoiser of random fp16 weights, 610 M of them, from its
   sharded safetensors files and without making the model; then of the shipped models. Seconds, peak resident memory,
   bytes, beside the seconds of a plain sort and a plain copy of the same data.
2. Switching that denoiser, live, between random configurations.
3. Sample layers: K-Means per channel beside scikit-learn's, and squared errors beside those of kmeans1d.
4. Sample layers under a random second moment of their inputs: seconds of ``row`` and ``lowrank``, and the error of the
   output over that of rounding to nearest, or of the least of the rank.

``--quick`` takes 4 of the 28 blocks. Writes benchmarks/results/quantizers.json. Each big step runs in a process of its
own, whose peak resident memory (ru_maxrss) is its own. The machine may be noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kmeans1d
import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import PixArtTransformer2DModel
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from qua2sedimo import zoo
from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import weight_layers, weight_modules
from qua2sedimo.formats.tensorfiles import Checkpoint
from qua2sedimo.measuring.switch import Switch
from qua2sedimo.options import SearchSpace
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight
from qua2sedimo.sampling import sample

RESULTS = Path(__file__).parent / "results"
SHARD = 400_000_000  # bytes
_CHANNELS = 16  # of a sample layer, for scikit-learn
_REPEATED = 64  # times these channels, for ours: as many as a layer has


def pixart(blocks: int) -> Any:
    """PixArt-XL with so many blocks, on the meta device."""
    with init_empty_weights():
        return PixArtTransformer2DModel(
            num_layers=blocks, sample_size=64, caption_channels=4096, cross_attention_dim=1152
        )


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(module.weight.shape) for name, module in weight_modules(pixart(blocks)).items()}


def write_checkpoint(folder: Path, blocks: int) -> None:
    """Random fp16 weights, N(0, 0.02²) with a scale per channel and a few outliers, in shards with an index."""
    chance = torch.Generator().manual_seed(0)
    pending: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}

    def flush() -> None:
        name = f"diffusion_pytorch_model-{len(set(files.values())):05}.safetensors"
        save_file(pending, folder / name)
        files.update(dict.fromkeys(pending, name))
        pending.clear()

    for layer, shape in shapes(blocks).items():
        weight = torch.randn(shape, generator=chance) * 0.02
        weight *= torch.exp(0.3 * torch.randn((shape[0], *[1] * (len(shape) - 1)), generator=chance))
        weight *= 1 + 4 * (torch.rand(shape, generator=chance) < 1e-3)
        pending[f"{layer}.weight"] = weight.half()
        if sum(t.nbytes for t in pending.values()) > SHARD:
            flush()
    flush()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def build_bank(checkpoint: Path, bank: Path, blocks: int) -> dict[str, Any]:
    """The bank from the files alone."""
    space = SearchSpace.of(shapes(blocks), "paper")
    source = Checkpoint(checkpoint)
    began = time.perf_counter()
    Bank.build(bank, space, "benchmark", lambda n: source(f"{n}.weight"), workers=torch.get_num_threads())
    return {"seconds": time.perf_counter() - began, "weights": space.weights, "layers": len(space.layers)}


def limits(checkpoint: Path, blocks: int) -> dict[str, Any]:
    """Sorting every row once, and copying the data once, as fp32 and in one thread."""
    source, seconds = Checkpoint(checkpoint), {"sort": 0.0, "copy": 0.0}
    for layer, shape in shapes(blocks).items():
        rows = source(f"{layer}.weight").float().reshape(shape[0], -1).numpy()
        for name, work in (("sort", lambda rows=rows: np.sort(rows, axis=1)), ("copy", rows.copy)):
            began = time.perf_counter()
            work()
            seconds[name] += time.perf_counter() - began
    return seconds


def switch_live(checkpoint: Path, bank: Path, blocks: int) -> dict[str, Any]:
    """Seconds for going over between random configurations of a live fp16 denoiser."""
    source, model = Checkpoint(checkpoint), pixart(blocks)
    model.to_empty(device="cpu").half()
    modules = weight_modules(model)
    space = SearchSpace.of(shapes(blocks), "paper")
    for name in space.layers:
        modules[name].weight.data.copy_(source(f"{name}.weight"))
    switch = Switch(model, Bank(bank, space, "benchmark"), weight_layers(model))
    drawn = [sample(space, "spread", 0, i, (3.0, 4.5)) for i in range(4)]
    times, changed = [], []
    for configuration in drawn:
        began = time.perf_counter()
        changed.append(switch.apply(configuration))
        times.append(time.perf_counter() - began)
    return {"seconds": times[1:], "layers changed": changed[1:]}


def zoo_banks(folder: Path) -> dict[str, Any]:
    """The six options of every layer of the shipped models."""
    found = {}
    for name in zoo.ENTRIES:
        pipeline = zoo.load(name)
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        modules = weight_modules(denoiser)
        space = SearchSpace.of({n: tuple(m.weight.shape) for n, m in modules.items()}, "paper")
        began = time.perf_counter()
        Bank.build(
            folder / name, space, name, lambda n, modules=modules: stored_weight(modules[n].weight.detach()),
            workers=torch.get_num_threads(),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
        found[name] = {"seconds": seconds, "weights": space.weights, "bytes over fp16": size / (2 * space.weights)}
    return found


def beside_others(checkpoint: Path) -> list[dict[str, Any]]:
    """K-Means per channel of 16 and 8 levels on channels of sample layers: ours on one thread and on all of them.

    scikit-learn gets one thread: more only slow it down on channels of this size.
    """
    source, rows, threads = Checkpoint(checkpoint), [], torch.get_num_threads()
    block = "transformer_blocks.0"
    for layer in (f"{block}.attn1.to_q", f"{block}.ff.net.2", "caption_projection.linear_1", "pos_embed.proj"):
        weight = source(f"{layer}.weight")[:_CHANNELS]
        flat = weight.float().reshape(_CHANNELS, -1).numpy()
        METHODS["kmeans_c"].quantize(weight[:1], (4, 3))  # compiled before it is timed
        repeated = weight.repeat(_REPEATED, *[1] * (weight.ndim - 1))
        alone, together, theirs, models = math.inf, math.inf, math.inf, []
        for _ in range(3):  # in turn, and the best of each: the machine is shared
            torch.set_num_threads(1)
            began = time.perf_counter()
            values = METHODS["kmeans_c"].quantize(repeated, (4, 3))
            alone = min(alone, (time.perf_counter() - began) / _REPEATED)
            torch.set_num_threads(threads)
            began = time.perf_counter()
            METHODS["kmeans_c"].quantize(repeated, (4, 3))
            together = min(together, (time.perf_counter() - began) / _REPEATED)
            with threadpool_limits(1):
                began = time.perf_counter()
                models = [[KMeans(2**b, max_iter=100).fit(row[:, None]) for row in flat] for b in (4, 3)]
                theirs = min(theirs, time.perf_counter() - began)
        for b, value, fitted in zip((4, 3), values, models):
            back = dequantize_weight(value)[:_CHANNELS].float().reshape(_CHANNELS, -1).numpy()
            error = float(((back.astype(np.float64) - flat) ** 2).sum())
            best = sum(optimum(row, 2**b) for row in flat.astype(np.float64))
            sklearn = sum(model.inertia_ for model in fitted)
            rows.append({
                "layer": layer, "weights a channel": flat.shape[1], "bits": b,
                "nanoseconds a weight": {name: 1e9 * t / flat.size for name, t in (
                    ("one thread", alone), ("all threads", together), ("scikit-learn", theirs))},
                "error over oracle": error / best if best > 1e-12 else 1.0,
                "error over scikit-learn": error / sklearn if sklearn > 1e-12 else 1.0,
            })  # fmt: skip
    return rows


def under_a_moment(checkpoint: Path) -> list[dict[str, Any]]:
    """Inputs are made up: their variances fall over three powers of ten along random directions."""
    source, rows = Checkpoint(checkpoint), []
    for layer in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"):
        weight = source(f"{layer}.weight")
        n = weight.shape[1]
        chance = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(torch.randn(n, n, generator=chance))[0]
        root = torch.logspace(0, -1.5, n)[:, None] * directions
        moment = Moment((root.T @ root,))
        for method, number in (("row", 2), ("lowrank", 5)):  # compiled, and the moment factored, before it is timed
            METHODS[method].quantize(weight[:16], (number,), moment)
        held = torch.linalg.svdvals(weight.float() @ root.T).double().square()
        for method, number in (("row", 2), ("row", 4), ("lowrank", 16), ("lowrank", 64)):
            began = time.perf_counter()
            (value,) = METHODS[method].quantize(weight, (number,), moment)
            seconds = time.perf_counter() - began
            error = float(moment.errors(dequantize_weight(value).float() - weight.float()).sum())
            if method == "lowrank":
                least = float(held[number:].sum())
            else:
                (nearest,) = METHODS[method].quantize(weight, (number,))
                least = float(moment.errors(dequantize_weight(nearest).float() - weight.float()).sum())
            rows.append({"layer": layer, "option": value.option, "seconds": seconds, "error over": error / least})
    return rows


def optimum(row: np.ndarray, clusters: int) -> float:
    """The oracle's squared error of a channel."""
    centers = np.array(kmeans1d.cluster(row, min(clusters, row.size)).centroids)
    return float(((row[:, None] - centers) ** 2).min(axis=1).sum())


def faster(rows: list[dict[str, Any]], blocks: int) -> dict[str, float]:
    """How much less time the whole denoiser takes than scikit-learn would, from the samples nearest in length."""
    samples = {row["weights a channel"]: row["nanoseconds a weight"] for row in rows}
    total = dict.fromkeys(("one thread", "all threads", "scikit-learn"), 0.0)
    for shape in shapes(blocks).values():
        nearest = min(samples, key=lambda n: abs(math.log(n / math.prod(shape[1:]))))
        for name in total:
            total[name] += math.prod(shape) * samples[nearest][name]
    return {name: total["scikit-learn"] / t for name, t in total.items()}


def in_process(work: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """The result of the call in a new process, and the most bytes that were resident there."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, work, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        sys.exit(f"{work.__name__} failed")
    finally:
        process.join()


def _answer(send: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = work(*arguments)
    send.send((result, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 blocks instead of 28")
    blocks = 4 if parser.parse_args().quick else 28
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, bank = Path(temporary, "checkpoint"), Path(temporary, "bank")
        checkpoint.mkdir()
        in_process(write_checkpoint, checkpoint, blocks)
        built, peak = in_process(build_bank, checkpoint, bank, blocks)
        built["peak bytes"] = peak
        built["bytes over fp16"] = sum(f.stat().st_size for f in bank.glob("*")) / (2 * built["weights"])
        built |= {f"seconds of a {name}": s for name, s in in_process(limits, checkpoint, blocks)[0].items()}
        result = {"bank": built, "switch": in_process(switch_live, checkpoint, bank, blocks)[0]}
        result["zoo"] = in_process(zoo_banks, Path(temporary, "zoo"))[0]
        result["beside others"] = in_process(beside_others, checkpoint)[0]
        result["under a moment"] = in_process(under_a_moment, checkpoint)[0]
    millions = built["weights"] / 1e6
    print(
        f"bank of {millions:.0f} M weights, {built['layers']} layers × 6 options: {built['seconds']:.0f} s "
        f"({2 * millions / built['seconds']:.1f} MB/s of fp16), peak {peak / 1e9:.2f} GB, "
        f"{built['bytes over fp16']:.3f} × the fp16 bytes; a sort takes {built['seconds of a sort']:.1f} s, "
        f"a copy {built['seconds of a copy']:.1f} s"
    )
    print("switch:", ", ".join(f"{s:.2f} s" for s in result["switch"]["seconds"]))
    for name, entry in result["zoo"].items():
        print(f"{name}: {entry['seconds']:.1f} s, {entry['bytes over fp16']:.3f} × the fp16 bytes")
    for row in result["beside others"]:
        times = row["nanoseconds a weight"]
        print(
            f"{row['layer']:<29} {row['bits']} bits, {row['weights a channel']:4} weights a channel: "
            f"{times['one thread']:.0f} ns a weight, scikit-learn {times['scikit-learn']:.0f} ns; error "
            f"{row['error over oracle']:.6f} of the oracle's, {row['error over scikit-learn']:.4f} of scikit-learn's"
        )
    for row in result["under a moment"]:
        beside = "the least of the rank" if row["option"].startswith("lowrank") else "nearest rounding's"
        print(
            f"{row['layer']:<29} {row['option']:<10} {row['seconds']:.1f} s; error {row['error over']:.3f} of {beside}"
        )
    ratios = result["faster than scikit-learn"] = faster(result["beside others"], blocks)
    print(
        f"all layers by these samples: {ratios['one thread']:.0f} × as fast as scikit-learn thread for thread, "
        f"{ratios['all threads']:.0f} × on {torch.get_num_threads()} threads"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantizers.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
