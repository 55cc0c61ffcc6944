"""How long pictures take from each folder that `export` writes, and what loading them needs.

    pip install --no-deps --target FOLDER sdnq==0.2.8
    python benchmarks/formats.py --sdnq FOLDER [--study STUDY] [--bits 3.5] [--images 16] [--work FOLDER]

The choice of a study that was made for SDNQ, such as one of `benchmarks/compensation.py --targets`, is exported in
every form. Each folder, and the original in fp32, is loaded in a process of its own, where the pictures are made five
times, in turn with the other processes. Seconds are medians of the process's processor time on one thread. Writes
docs/figures/formats.json and the table of docs/formats.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from pages import FIGURES, write_table
from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.study.choices import Choice

ROWS = FIGURES / "formats.json"
RESULTS = Path(__file__).parent / "results"
FORMS = ("packed", "sdnq", "diffusers")
_REPEATS = 5
#: Loads a folder, then makes the pictures once for every line that arrives, and answers with seconds.
_READER = """
import json, resource, sys, time
folder, arguments, inputs, library = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
import diffusers, torch, qua2sedimo.runtime, qua2sedimo.zoo.pixels
if library:
    __import__(library)
torch.set_num_threads(1)
began = time.process_time()
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
print(json.dumps({"load": time.process_time() - began}), flush=True)
for line in sys.stdin:
    began = time.process_time()
    pipeline(inputs, generator=torch.Generator().manual_seed(0), output_type="np", **arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"make": time.process_time() - began, "peak": peak}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdnq", type=Path, help="Where SDNQ's package is; without it only the table is written.")
    parser.add_argument("--study", type=Path, default=RESULTS / "compensation" / "avatars-pixart-0-sdnq")
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--work", type=Path, default=RESULTS / "formats")
    asked = parser.parse_args()
    if asked.sdnq is not None:
        study = Study(asked.study)
        rows = measured(asked, study, exported(asked, study))
        write_json(ROWS, {"model": study.workspace.settings.model, "bits": asked.bits, "rows": rows})
    write_docs(json.loads(ROWS.read_text()))


def exported(asked: argparse.Namespace, study: Study) -> dict[str, Path]:
    """The folder of every form, and of the original."""
    folders = {"original": zoo.ENTRIES[str(study.workspace.settings.model)].folder}
    for form in FORMS:
        folders[form] = asked.work / form
        study.export(Choice.load(study.folder / "choices" / f"{asked.bits:g}.json"), folders[form], form=form)
    return folders


def measured(asked: argparse.Namespace, study: Study, folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Megabytes on disk, seconds and peak memory of every folder."""
    settings = study.workspace.settings
    inputs = [settings.inputs[i % len(settings.inputs)] for i in range(asked.images)]
    paths = os.pathsep.join([str(asked.sdnq), *sys.path[1:]])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SDNQ_USE_TORCH_COMPILE": "0"}
    running = {}
    for name, folder in folders.items():
        given = [
            str(folder),
            json.dumps(dict(settings.arguments)),
            json.dumps(inputs),
            "sdnq" if name == "sdnq" else "",
        ]
        running[name] = subprocess.Popen(
            [sys.executable, "-c", _READER, *given], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    loads = {name: _answer(process)["load"] for name, process in running.items()}
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for _ in range(_REPEATS + 1):  # the first does not count
        for name, process in running.items():
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
            made[name].append(_answer(process))
    for process in running.values():
        process.communicate()
    rows = {
        name: {
            "mb": sum(f.stat().st_size for f in folders[name].rglob("*.safetensors")) / 1e6, "load_s": loads[name],
            "make_s": median(answer["make"] for answer in made[name][1:]), "peak_mb": made[name][-1]["peak"] / 1e6,
        }
        for name in running
    }  # fmt: skip
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()}


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise SystemExit("a process that makes pictures has ended")


def write_docs(found: dict[str, Any]) -> None:
    """Replace the table of docs/formats.md."""
    rows = found["rows"]
    original = rows["original"]["make_s"]
    lines = [
        "| form | weights of the pipeline, MB | loading, s | pictures, × the original | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        times = f"{row['load_s']:.2f} | {row['make_s'] / original:.2f}"
        lines.append(f"| {name} | {row['mb']:.1f} | {times} | {row['peak_mb']:.0f} |")
    write_table("formats.md", "speed", lines)


if __name__ == "__main__":
    main()
