"""What the additive model learns from layers measured alone and from random records, for the same number of images.

    python benchmarks/additive.py STUDY [STUDY …]

Each study needs layers measured alone (`qua2sedimo search` or `frontier` does that) and random records (`qua2sedimo
measure`). The last 60 random records are predicted, none of which was learned from. Writes
benchmarks/results/additive.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo import Study
from qua2sedimo.formats.files import write_json
from qua2sedimo.study.evidence import FEW, evidence

RESULTS = Path(__file__).parent / "results"
_TEST = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    rows = []
    for folder in parser.parse_args().studies:
        known = evidence(Study(folder).workspace, ["single", "sample"])
        alone = [m for m in known.measured if m.kind == 0]
        random = [m for m in known.measured if m.kind == 1]
        training, test = random[:-_TEST], random[-_TEST:]
        layers = len(known.space.layers)
        sets = {
            "layers alone, one option": alone[:layers],
            "random records, as many": training[:layers],
            "random records, all": training,
            "layers alone, all options": alone,
            "layers alone and random records": alone[:layers] + training,
        }
        for name, measured in sets.items():
            predicted = replace(known, measured=measured).predicted([m.configuration for m in test])
            error = predicted - [m.quality for m in test]
            rank = float(spearmanr(predicted, [m.quality for m in test]).statistic)
            images = FEW * len(measured)
            rows.append({"study": folder.name, "learned from": name, "images": images, "rank correlation": rank,
                         "scatter, dB": float(np.std(error))})  # fmt: skip
            print(f"{folder.name:16} {name:32} {images:5} images  {rank:.3f}  ±{np.std(error):.2f} dB", flush=True)
    write_json(RESULTS / "additive.json", rows)


if __name__ == "__main__":
    main()
