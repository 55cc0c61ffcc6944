"""Seconds of a measured configuration beside the bare pipeline call, split in switch, generate and compare; memory.

    python benchmarks/measuring.py [--models digits-dit avatars-pixart avatars-unet] [--images 16] [--repeats 5]

Every configuration is measured right after bare calls of the pipeline for the same images; columns are medians, the
overhead is the median of the pairs. Writes benchmarks/results/measuring.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from qua2sedimo.commands.app import settings_for
from qua2sedimo.evaluation.trial import TimedGenerator, TimedSwitch, peak_bytes, try_out
from qua2sedimo.study import Study

RESULTS = Path(__file__).parent / "results"


def measured(model: str, images: int, repeats: int, folder: Path) -> dict[str, float | str]:
    """One row of the table."""
    settings = settings_for(model, None, "{}", "uaq-2,uaq-3,uaq-4,kmeans_a-3,kmeans_a-4,kmeans_c-4", images, None, 0)
    study = Study.create(folder, settings)
    study.build_bank()
    before = peak_bytes()
    generator = TimedGenerator(study.pipeline, study.generator.generation)
    switch = TimedSwitch(study.denoiser, study.bank, study.graph.layers, study.original_weights())
    measurer = study.measurer(0, images, generator, switch)
    trial = try_out(measurer, generator, switch, [study.sampler(i) for i in range(repeats + 1)])
    return {
        "model": model,
        "layers": len(study.space.layers),
        "images": images,
        "batch": study.batch,
        "bare": trial.bare,
        "switch": trial.switch,
        "generate": trial.generate,
        "metrics": trial.metrics,
        "total": trial.total,
        "overhead": trial.overhead,
        "weights_bytes": sum(p.numel() * p.element_size() for p in study.denoiser.parameters()),
        "copied_bytes": switch.originals.copied_bytes,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-dit", "avatars-pixart", "avatars-unet"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    rows = []
    print(
        f"{'model':<16}{'bare':>8}{'switch':>8}{'generate':>10}{'metrics':>9}{'total':>8}{'overhead':>10}{'copies':>9}"
    )
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(model, asked.images, asked.repeats, Path(folder))
        rows.append(row)
        print(
            f"{model:<16}{row['bare']:8.2f}{row['switch']:8.3f}{row['generate']:10.2f}{row['metrics']:9.3f}"
            f"{row['total']:8.2f}{row['overhead']:10.1%}{row['copied_bytes'] / 1e6:7.2f}MB"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "measuring.json").write_text(json.dumps(rows, indent=1))
    print(f"peak resident memory {peak_bytes() / 1e9:.2f} GB, the libraries included")


if __name__ == "__main__":
    main()
