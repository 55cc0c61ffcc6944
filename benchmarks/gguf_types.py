"""GGUF's types at equal bytes: nearest rounding against rounding that compensates, on fresh images of shipped models.

    python benchmarks/gguf_types.py [--models digits-dit avatars-pixart] [--options gguf_k-3 gguf_k-4 gguf_0-4]
                                    [--cli BUILD/bin/sd-cli]

Every layer that holds the type gets it, the others stay in 16 bits; so all ways have the same bytes. PSNR is to the
pictures in full precision of the same noise, which nothing was learned from. `ggml` is its own encoder, which other
programs' files are made with, by `sd-cli -M convert` of stable-diffusion.cpp (built as
benchmarks/stable_diffusion_cpp.py says); `package` is that of the package gguf, which has none for the K types. Writes
docs/figures/gguf_types.json and the table of docs/formats.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from pages import FIGURES, write_table
from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.ledger import EVALUATION
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, from_blocks, type_of

ROWS = FIGURES / "gguf_types.json"
_WITHOUT_ENCODER = "gguf_k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["digits-dit", "avatars-pixart"], choices=list(zoo.ENTRIES))
    parser.add_argument("--options", nargs="*", default=["gguf_k-3", "gguf_k-4", "gguf_0-4"])
    parser.add_argument("--images", type=int, default=16, help="Images that judge.")
    parser.add_argument("--observe", type=int, default=64, help="Images that statistics are taken from.")
    parser.add_argument("--cli", type=Path, help="stable-diffusion.cpp's sd-cli, for ggml's own encoder.")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        with tempfile.TemporaryDirectory() as folder:
            rows |= measured(model, asked, Path(folder))
        write_json(ROWS, rows)
    write_docs(rows)


def measured(model: str, asked: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a model, each printed as soon as it is known."""
    entry, rows = zoo.ENTRIES[model], dict[str, dict[str, Any]]()
    settings = StudySettings(
        model=model, inputs=list(entry.inputs), arguments=dict(entry.arguments), target="gguf",
        options=",".join(asked.options), observe=asked.observe,
    )  # fmt: skip
    inside = Study.create(folder / "study", settings).workspace
    inside.build_bank()
    images = EVALUATION.images(asked.images)
    full = inside.full_precision_generator()(images.start, images.stop)
    for option in map(Option.parse, asked.options):
        layers = [name for name in inside.candidates.layers if option in inside.candidates.options[name]]
        nbytes = sum(option.nbytes(inside.candidates.shapes[name]) for name in layers)
        weights = sum(int(np.prod(inside.candidates.shapes[name])) for name in layers)
        kind = type_of(option.method, option.number).name
        ways = [
            "nearest",
            "package" * (option.method != _WITHOUT_ENCODER),
            "ggml" * (asked.cli is not None),
            "compensated",
        ]
        for how in filter(None, ways):
            if how == "ggml":
                values = _by_ggml(asked.cli, {name: inside.weight(name) for name in layers}, option, folder)
            else:
                values = {name: _quantized(inside, name, option, how) for name in layers}
            row = {
                "bits": round(8 * nbytes / weights, 4), "bytes": nbytes, "layers": len(layers),
                **_psnr(inside, values, images, full),
            }  # fmt: skip
            print(model, kind, how, "  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            rows[f"{model} {kind} {how}"] = row
    return rows


def _by_ggml(
    cli: Path, weights: Mapping[str, torch.Tensor], option: Option, folder: Path
) -> dict[str, QuantizedWeight]:
    """Encoded by ggml, under names that its converter has no rules for."""
    names = {f"layer.{i}.weight": name for i, name in enumerate(weights)}
    save_file({new: weights[old].contiguous() for new, old in names.items()}, folder / "given.safetensors")
    kind = type_of(option.method, option.number).name
    words = [cli, "-M", "convert", "-m", folder / "given.safetensors", "-o", folder / "made.gguf", "--type"]
    subprocess.run([*map(str, words), kind.replace("Q", "q", 1)], check=True, capture_output=True)
    found = {}
    for tensor in gguf.GGUFReader(folder / "made.gguf").tensors:
        assert tensor.tensor_type.name == kind, f"{tensor.name} is {tensor.tensor_type.name}"
        name, blocks = names[tensor.name], torch.from_numpy(np.array(tensor.data))
        found[name] = from_blocks(option.method, option.number, blocks, weights[name].dtype)
    return found


def _quantized(inside: Any, name: str, option: Option, how: str) -> QuantizedWeight:
    if how == "compensated":
        return inside.bank.get(name, option)
    weight = inside.weight(name)
    if how == "package":
        kind = gguf.GGMLQuantizationType[type_of(option.method, option.number).name]
        blocks = gguf.quants.quantize(weight.float().numpy(), kind)
        return from_blocks(option.method, option.number, torch.from_numpy(blocks), weight.dtype)
    return METHODS[option.method].quantize(weight, [option.number])[0]


def _psnr(inside: Any, values: Mapping[str, QuantizedWeight], images: range, full: np.ndarray) -> dict[str, float]:
    """Mean PSNR of the images, in dB, and its standard error."""
    for name, value in values.items():
        inside.switch.write(name, value)
    found = psnr(inside.generator(images.start, images.stop), full)
    for name in values:
        inside.switch.write(name, None)
    return {"psnr": round(float(found.mean()), 2), "error": round(float(found.std() / np.sqrt(len(found))), 2)}


def write_docs(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the table of docs/formats.md."""
    ways = ("nearest", "package", "ggml", "compensated")
    lines = ["| model | type | nearest | package `gguf` | ggml | compensated |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys(key.rpartition(" ")[0] for key in rows):
        model, kind = key.split(" ")
        cells = [f"{r['psnr']:.1f} ±{r['error']:.1f}" if (r := rows.get(f"{key} {way}")) else "–" for way in ways]
        lines.append(f"| {model} | {kind}, {rows[f'{key} nearest']['bits']:.4g} bits | " + " | ".join(cells) + " |")
    write_table("formats.md", "types", lines)


if __name__ == "__main__":
    main()
