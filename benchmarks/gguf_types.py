"""GGUF's types at equal bytes: nearest rounding against rounding that compensates, on fresh images of shipped models.

    python benchmarks/gguf_types.py [--models digits-dit avatars-pixart] [--options gguf_k-3 gguf_k-4 gguf_0-4]

Every layer that holds the type gets it, the others stay in 16 bits; so both ways have the same bytes. PSNR is to the
pictures in full precision of the same noise, which nothing was learned from. `package` is the encoder of the package
gguf, which has none for the K types. Prints rows and writes benchmarks/results/gguf_types.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.ledger import EVALUATION
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, from_blocks, type_of

RESULTS = Path(__file__).parent / "results"
_WITHOUT_ENCODER = "gguf_k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["digits-dit", "avatars-pixart"], choices=list(zoo.ENTRIES))
    parser.add_argument("--options", nargs="*", default=["gguf_k-3", "gguf_k-4", "gguf_0-4"])
    parser.add_argument("--images", type=int, default=16, help="Images that judge.")
    parser.add_argument("--observe", type=int, default=64, help="Images that statistics are taken from.")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(model, asked, Path(folder))
        write_json(RESULTS / "gguf_types.json", rows)


def measured(model: str, asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The rows of a model, each printed as soon as it is known."""
    entry, rows = zoo.ENTRIES[model], []
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
        for how in ("nearest", *(["package"] if option.method != _WITHOUT_ENCODER else []), "compensated"):
            values = {name: _quantized(inside, name, option, how) for name in layers}
            row = {
                "model": model, "type": type_of(option.method, option.number).name, "how": how,
                "bits": round(8 * nbytes / weights, 4), "bytes": nbytes, "layers": len(layers),
                **_psnr(inside, values, images, full),
            }  # fmt: skip
            print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    return rows


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


if __name__ == "__main__":
    main()
