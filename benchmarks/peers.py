"""Other tools beside this package: quality of pictures against the bytes of the whole denoiser as each tool saves it.

    python benchmarks/peers.py [--models digits-dit …] [--tools SDNQ HQQ …] [--settings PATTERN] [--seeds 0 1]
    python benchmarks/peers.py --ours [--bits 4 5]    # quick choices, as benchmarks/compensation.py makes them
    python benchmarks/peers.py --docs                 # only write the page

Every tool quantizes a copy of the denoiser through its public API (`pip install 'qua2sedimo[peers]'`). Its weights, as
the tool itself reads them back, then make the images that benchmarks/compensation.py judges by, in the same precision
for all. Rows are kept in docs/figures/peers.json, errors too: stopped, it goes on. --retry tries errors again.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import compensation
from compensation import QUICK, Judge, opened, quick_row
from peers_docs import Kept, write_docs
from peers_rivals import rivals
from peers_tools import Setting, Subject, Weights, full_bytes, packed_bytes, settings, versions
from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.denoisers import denoiser_of
from qua2sedimo.statistics import Statistics


class PeerJudge(Judge):
    """Judges weights by the names of their parameters, whatever made them."""

    def __init__(self, study: Study, count: int) -> None:
        super().__init__(study, count)
        self._originals: Weights = {}

    def write(self, values: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self.inside.denoiser.named_parameters())
        for name, original in self._originals.items():
            parameters[name].data.copy_(original)
        self._originals = {name: parameters[name].data.clone() for name in values}
        for name, value in values.items():
            parameters[name].data.copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--tools", nargs="*", help="Only these tools.")
    parser.add_argument("--settings", default="", help="Only settings whose tool and name match this pattern.")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--images", type=int, default=64, help="Images that judge.")
    parser.add_argument("--ours", action="store_true", help="Quick choices in place of other tools.")
    parser.add_argument("--bits", nargs="*", type=float, default=[2.0, 2.5, 3.0, 3.5, 4.0, 5.0], help="With --ours.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--retry", action="store_true", help="Try again what failed.")
    parser.add_argument("--docs", action="store_true", help="Only write the page.")
    asked = parser.parse_args()
    kept = Kept.load()
    for seed in [] if asked.docs else asked.seeds:
        for model in asked.models:
            if asked.ours:
                ours(kept, asked, model, seed)
            else:
                peers(kept, asked, model, seed)
    write_docs(kept)


def peers(kept: Kept, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Every setting of every tool."""
    made = partial(_subject, asked, model, seed, _study(asked, model, seed))
    first = made()
    judge = PeerJudge(first.study, asked.images)
    kept.models[model] = _about(first)
    kept.versions |= {tool: found for tool, found in versions().items() if found != "not installed"}
    for setting in [*settings(first), *rivals()]:
        key = f"{model} {seed} {setting.tool} {setting.name}"
        tried = key in kept.rows and not (asked.retry and "error" in kept.rows[key])
        chosen = not asked.tools or setting.tool in asked.tools
        if chosen and not tried and re.search(asked.settings, f"{setting.tool} {setting.name}"):
            about = {"tool": setting.tool, "setting": setting.name, "recommended": setting.recommended}
            kept.keep(key, {**about, **_measured(setting, made(), judge)})


def _measured(setting: Setting, subject: Subject, judge: PeerJudge) -> dict[str, Any]:
    began = time.time()
    try:
        with torch.no_grad():
            saved = setting.quantize(subject)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{setting.tool}: {error}. Install the tools: pip install 'qua2sedimo[peers]'") from error
    except Exception as error:  # what a tool cannot do is a result
        said = str(error).strip() or type(error).__name__
        return {"error": said.splitlines()[0][:160]}
    seconds = round(time.time() - began, 1)
    layers = len(saved.weights)
    return {"nbytes": saved.nbytes, "layers": layers, "quantize_s": seconds, **judge(saved.weights)}


def ours(kept: Kept, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Quick choices: those of benchmarks/compensation.py, and others made now."""
    known = json.loads(compensation.ROWS.read_text())
    subject = _subject(asked, model, seed, _study(asked, model, seed))
    kept.models[model] = _about(subject)
    weights = subject.study.workspace.candidates.weights
    for bits in asked.bits:
        key, before = f"{model} {seed} ours {bits:g}", known.get(f"{model} {seed} {bits:g} {QUICK}")
        if key in kept.rows:
            continue
        if before is None:
            study = opened(asked, model, seed)
            before = quick_row(study, Judge(study, asked.images), bits, 0.0)
        nbytes = packed_bytes(subject, round(before["average_bits"] * weights / 8))
        about = {"tool": "ours", "setting": f"quick, {bits:g} bits", "recommended": True, "nbytes": nbytes}
        kept.keep(key, {**about, **before})


def _study(asked: argparse.Namespace, model: str, seed: int) -> Study:
    """A study of a model for its images and layers; nothing of it is quantized."""
    entry = zoo.ENTRIES[model]
    of: dict[str, Any] = {"model": model, "inputs": list(entry.inputs), "arguments": dict(entry.arguments), "images": 4}
    found = StudySettings(**of, seed=seed, options="wide", rounding="nearest")
    return Study.create(asked.work / f"{model}-{seed}-peers", found)


def _subject(asked: argparse.Namespace, model: str, seed: int, study: Study) -> Subject:
    @cache
    def observed() -> Statistics:
        """The statistics of benchmarks/compensation.py's study: rivals observe what ours do."""
        return opened(asked, model, seed).workspace.statistics

    denoiser = denoiser_of(zoo.load(model, torch.float16))[1]
    return Subject(denoiser, study, lambda layer: observed().moment(layer), lambda: observed().calls)


def _about(subject: Subject) -> dict[str, int]:
    """What sizes are divided by: numbers in the denoiser, and in the layers that this package quantizes."""
    full = full_bytes(subject.denoiser)
    return {"weights": full // 2, "layers": subject.study.workspace.candidates.weights, "full_bytes": full}


if __name__ == "__main__":
    main()
