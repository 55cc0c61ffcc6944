"""Compensated options against nearest rounding at equal size, on images that nothing was learned from.

    python benchmarks/compensation.py [--models digits-dit …] [--bits 2 2.5 3 3.5] [--seeds 0 1] [--images 64]
    python benchmarks/compensation.py --transfer      # choices of 2.5 bits where they were not observed
    python benchmarks/compensation.py --counts        # how many observed images are needed
    python benchmarks/compensation.py --calls         # how many calls options must be weighed by
    python benchmarks/compensation.py --paper         # the paper's options, nearest and compensated
    python benchmarks/compensation.py --search        # what measuring images adds to quick choices
    python benchmarks/compensation.py --targets       # quick choices for other programs' formats
    python benchmarks/compensation.py --docs          # only write the tables of docs/compensation.md

For every size: the choice by the sum of weight errors among the paper's methods with nearest rounding; the choice by
gradients, not polished; and `quick`, which polishes it. Uniform options with nearest rounding stand beside them.
Studies are kept in FOLDER, rows in docs/figures/compensation.json: stopped, it goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pages import write_table
from qua2sedimo import Qua2SeDiMoError, Study, StudySettings, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.images.ledger import EVALUATION
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.metrics.estimates import mean_estimate
from qua2sedimo.metrics.estimator import MetricEstimator, References
from qua2sedimo.option_changes import LayerChanges, OptionChanges
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight
from qua2sedimo.search import best_configurations, by_gradients, sum_of_errors
from qua2sedimo.study.evidence import evidence
from qua2sedimo.zoo.captions import varied_captions

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "figures" / "compensation.json"
PAGE = "compensation.md"
METRICS = ("psnr", "features", "frechet_full", "accuracy")
UNIFORM = ("uaq-4", "uaq-6", "kmeans_a-4", "kmeans_a-6", "kmeans_c-4")
NEAREST, PLAIN, QUICK = "nearest, sum of errors", "gradients, not polished", "quick"
_TRANSFERRED = 2.5
_BESIDE = "uaq-6"  # what a nearest-rounded denoiser of the same quality loses elsewhere
_LARGER = "pictures of 1.5 × the side"
_SEARCHED = 500  # images of a search
_FORMATS_AT = (3.0, 3.5, 4.5)  # bits of choices for other programs
#: Calls that options are weighed by, and how many separate parts of all calls are tried.
_WEIGHED, _SHARES = (8, 16, 32, 64), 2
#: Observed images, and the steps of each where these are fewer than the study's: the last are those of large denoisers.
_COUNTS = ((1, None), (2, None), (4, None), (8, None), (16, None), (32, None), (24, None), (24, 4), (24, 6))

Values = Mapping[str, QuantizedWeight]


class Rows:
    """Measured rows by key; a row that is there is not measured again."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}

    def __call__(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.rows:
            self.rows[key] = measure()
            write_json(ROWS, dict(sorted(self.rows.items())))
            shown = {k: v for k, v in self.rows[key].items() if k != "values"}
            print(key, json.dumps(shown), flush=True)
        return self.rows[key]


class Judge:
    """Measures weights of one study on images that nothing was learned from, as the study makes them or otherwise."""

    def __init__(self, study: Study, count: int) -> None:
        self.inside, self.count = study.workspace, count
        self.images = EVALUATION.images(count)

    def __call__(self, values: Values) -> dict[str, Any]:
        """Every metric; and PSNR of every image."""
        self.write(values)
        made = self.inside.generator(self.images.start, self.images.stop)
        found = self._estimator(made)
        row: dict[str, Any] = {m: round(found[m].value, 4) for m in found}
        row |= {"low": round(found["psnr"].low, 3), "high": round(found["psnr"].high, 3)}
        return {**row, "values": [round(float(v), 3) for v in psnr(made, self._full)]}

    def elsewhere(self, several: Iterable[Values], generator: Generator) -> list[list[float]]:
        """PSNR of each image with other arguments or inputs, for each of several quantized denoisers."""
        made = []
        for values in ({}, *several):
            self.write(values)
            made.append(generator(self.images.start, self.images.stop))
        return [[round(float(v), 3) for v in psnr(images, made[0])] for images in made[1:]]

    def write(self, values: Values) -> None:
        self.inside.switch.restore()
        for unit, value in values.items():
            self.inside.switch.write(unit, value)

    @cached_property
    def _full(self) -> np.ndarray:
        self.write({})
        return self.inside.generator(self.images.start, self.images.stop)

    @cached_property
    def _estimator(self) -> MetricEstimator:
        full, others = self._full, EVALUATION.images(self.count, skip=self.count)
        self.write({})
        other = self.inside.generator(others.start, others.stop)
        inputs = [i for i in map(self.inside.generation.input, self.images) if i is not None]
        references = References(full, other, self.inside.real_pictures)
        return MetricEstimator(references, inputs, METRICS, self.inside.input_score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=float, default=[2.0, 2.5, 3.0, 3.5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=64, help="Images that judge.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--transfer", action="store_true", help="Choices of 2.5 bits where they were not observed.")
    parser.add_argument("--counts", action="store_true", help="How many observed images are needed.")
    parser.add_argument("--calls", action="store_true", help="How many calls options must be weighed by.")
    parser.add_argument("--paper", action="store_true", help="The paper's options, nearest and compensated.")
    parser.add_argument("--search", action="store_true", help="What measuring images adds to quick choices.")
    parser.add_argument("--targets", action="store_true", help="Quick choices for other programs' formats.")
    parser.add_argument("--ours", action="store_true", help="Without uniform options and choices by weight errors.")
    parser.add_argument("--docs", action="store_true", help="Only write the tables of the page.")
    asked = parser.parse_args()
    rows = Rows()
    for seed in [] if asked.docs else asked.seeds:
        for model in asked.models:
            if asked.transfer:
                transfer(rows, asked, model, seed)
            elif asked.counts:
                counts(rows, asked, model, seed)
            elif asked.calls:
                weighed(rows, asked, model, seed)
            elif asked.paper:
                paper(rows, asked, model, seed)
            elif asked.search:
                searched(rows, asked, model, seed)
            elif asked.targets:
                for_programs(rows, asked, model, seed)
            else:
                if not asked.ours:
                    beside(rows, asked, model, seed)
                sizes(rows, asked, model, seed)
    write_docs(rows.rows)


def opened(asked: argparse.Namespace, model: str, seed: int, **changes: Any) -> Study:
    """The study of a model with these settings, with its bank."""
    entry = zoo.ENTRIES[model]
    of: dict[str, Any] = {"model": model, "inputs": list(entry.inputs), "arguments": dict(entry.arguments), "images": 4}
    settings = StudySettings(**{**of, "seed": seed, **changes})
    name = "-".join([model, str(seed), *(str(v) for v in changes.values())])
    study = Study.create(asked.work / re.sub(r"[^\w.-]+", "_", name), settings)
    study.quantize()
    return study


def beside(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Uniform options, and choices by weight errors, with nearest rounding."""
    near = opened(asked, model, seed, options="wide", rounding="nearest")
    judge = Judge(near, asked.images)
    space = near.workspace.space
    for text in UNIFORM:
        configuration = space.uniform(Option.parse(text))
        rows(f"{model} {seed} uniform {text}", lambda: {
            "average_bits": space.average_bits(configuration), **judge(nearest_values(near, configuration))  # noqa: B023
        })  # fmt: skip
    for bits in asked.bits:
        if bits > 2.2:  # below, these options with their overhead do not reach
            best = _program(near, sum_of_errors, bits)
            rows(f"{model} {seed} {bits:g} {NEAREST}", lambda: {
                "average_bits": space.average_bits(best), **judge(near.workspace.bank.values(best))  # noqa: B023
            })  # fmt: skip
    near.workspace.switch.restore()


def sizes(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Choices by gradients at every size, polished and not."""
    began = time.time()
    study = opened(asked, model, seed)
    prepared = time.time() - began
    judge = Judge(study, asked.images)
    for bits in asked.bits:
        best = _program(study, by_gradients, bits)
        average = study.workspace.space.average_bits(best)
        rows(f"{model} {seed} {bits:g} {PLAIN}",
             lambda: {"average_bits": average, **judge(study.workspace.bank.values(best))})  # noqa: B023  # fmt: skip
        rows(f"{model} {seed} {bits:g} {QUICK}", lambda: quick_row(study, judge, bits, prepared))  # noqa: B023


def nearest_values(study: Study, configuration: Mapping[str, Option]) -> Values:
    """Weights under any configuration with nearest rounding, also of options that the study does not offer."""
    weight = study.workspace.weight
    return {n: METHODS[o.method].quantize(weight(n), [o.number])[0] for n, o in configuration.items()}


def quick_row(study: Study, judge: Judge, bits: float, prepared: float) -> dict[str, Any]:
    began = time.time()
    choice = study.quick(bits)
    seconds = {"prepared_s": round(prepared), "polish_s": round(time.time() - began)}
    found = judge(study.workspace.values(choice))
    observed = {"observed": study.workspace.observed_images, "polished": choice.polished is not None}
    return {"average_bits": choice.average_bits, **observed, **seconds, **found}


def _program(study: Study, proposer: Callable[..., Any], bits: float) -> Any:
    space = study.workspace.space
    return next(best_configurations(space, proposer(evidence(study.workspace)), int(bits * space.weights / 8)))


def transfer(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """PSNR of choices of 2.5 bits with arguments and prompts that were not observed, beside nearest rounding."""
    near, study = opened(asked, model, seed, options="wide", rounding="nearest"), opened(asked, model, seed)
    before = near.workspace.bank.values(_program(near, sum_of_errors, _TRANSFERRED))
    uniform = nearest_values(near, near.workspace.space.uniform(Option.parse(_BESIDE)))
    after = study.workspace.values(study.quick(_TRANSFERRED))
    judge = Judge(study, asked.images)
    for name, generation, scheduler in _elsewhere(study):

        def measure(generation: Generation = generation, scheduler: Any = scheduler) -> dict[str, Any]:
            pipeline = study.workspace.pipeline
            usual, pipeline.scheduler = pipeline.scheduler, scheduler or pipeline.scheduler
            try:
                generator = Generator(pipeline, generation)
                return _beside_nearest(*judge.elsewhere((before, uniform, after), generator))
            finally:
                pipeline.scheduler = usual

        rows(f"{model} {seed} transfer {name}", measure)
    if (larger := _larger(study)) is not None:
        rows(f"{model} {seed} transfer {_LARGER}, observed there", lambda: _observed_there(asked, model, seed, larger))


def _observed_there(asked: argparse.Namespace, model: str, seed: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same choice with statistics of larger pictures, judged on these, beside nearest rounding."""
    near = opened(asked, model, seed, options="wide", rounding="nearest")
    before = near.workspace.bank.values(_program(near, sum_of_errors, _TRANSFERRED))
    uniform = nearest_values(near, near.workspace.space.uniform(Option.parse(_BESIDE)))
    study = opened(asked, model, seed, arguments=arguments)
    several = (before, uniform, study.workspace.values(study.quick(_TRANSFERRED)))
    psnr_of = Judge(study, asked.images).elsewhere(several, study.workspace.generator)
    return _beside_nearest(*psnr_of)


def _beside_nearest(near: list[float], beside: list[float], quick: list[float]) -> dict[str, Any]:
    """Mean PSNR of each, and the gain over nearest rounding with its interval, paired by image."""
    gain = mean_estimate(np.array(quick) - np.array(near))
    return {
        NEAREST: round(float(np.mean(near)), 2), QUICK: round(float(np.mean(quick)), 2),
        _BESIDE: round(float(np.mean(beside)), 2),
        "gain": round(gain.value, 2), "low": round(gain.low, 2), "high": round(gain.high, 2),
    }  # fmt: skip


def _larger(study: Study) -> dict[str, Any] | None:
    """Arguments for pictures of 1.5 times the side; None for a pipeline that does not take a size."""
    inside = study.workspace
    if "height" not in signature(type(inside.pipeline).__call__).parameters:
        return None
    side = zoo.ENTRIES[str(inside.settings.model)].side * 3 // 2
    return {**inside.settings.arguments, "height": side, "width": side}


def _elsewhere(study: Study) -> list[tuple[str, Generation, Any]]:
    """(name, what to generate, another scheduler or None) of every setting."""
    from diffusers import UniPCMultistepScheduler

    inside = study.workspace
    inputs, arguments, seed = inside.settings.inputs, inside.settings.arguments, inside.settings.seed
    steps, guidance = arguments["num_inference_steps"], arguments.get("guidance_scale")
    found = [("as observed", Generation(inputs, arguments, seed), None)]
    for name, factor in (("half the steps", 0.5), ("twice the steps", 2.0)):
        count = max(1, round(steps * factor))
        if count != steps:
            found.append((name, Generation(inputs, {**arguments, "num_inference_steps": count}, seed), None))
    if guidance is not None and isinstance(inputs[0], str):  # digits-dit has no class that stands for none
        found.append(("guidance 1", Generation(inputs, {**arguments, "guidance_scale": 1.0}, seed), None))
        found.append(
            ("twice the guidance", Generation(inputs, {**arguments, "guidance_scale": 2 * guidance}, seed), None)
        )
    if (larger := _larger(study)) is not None:
        found.append((_LARGER, Generation(inputs, larger, seed), None))
    other = UniPCMultistepScheduler.from_config(inside.pipeline.scheduler.config)
    found.append(("UniPC", Generation(inputs, arguments, seed), other))
    euler = type(inside.pipeline.scheduler).from_config(inside.pipeline.scheduler.config, solver_order=1)
    found.append(("first order", Generation(inputs, arguments, seed), euler))
    if any(isinstance(i, str) for i in inputs):
        known = {*inputs, *inside.observed_inputs}
        texts = [text for text in varied_captions(96, seed=1234) if text not in known]
        found.append(("held-out prompts", Generation(texts, arguments, seed), None))
    return found


def counts(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Quick choices of 2.5 bits from few observed images."""
    for count, steps in _COUNTS:
        key = f"{model} {seed} observed {count}" + (f" in {steps} steps" if steps else "")
        if key not in rows.rows:
            study = opened(asked, model, seed, observe=count, **({"observe_steps": steps} if steps else {}))
            judge = Judge(study, asked.images)
            best = _program(study, by_gradients, _TRANSFERRED)
            plain = judge(study.workspace.bank.values(best))["psnr"]
            rows(key, lambda: {PLAIN: plain, **quick_row(study, judge, _TRANSFERRED, 0.0)})  # noqa: B023


def weighed(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Choices of 2.5 bits, not polished, by changes in some of the calls that options were weighed in."""
    study = opened(asked, model, seed)
    bank, judge = study.workspace.bank, Judge(study, asked.images)
    every = bank.changes
    calls = len(next(iter(every.of.values())).places)
    order = torch.randperm(calls, generator=torch.Generator().manual_seed(0))
    for count in _WEIGHED:
        for share in range(min(_SHARES, calls // count)):
            some = order[share * count : (share + 1) * count]
            of = {n: LayerChanges(c.values[:, some], [c.places[i] for i in some]) for n, c in every.of.items()}
            bank.changes = OptionChanges(every.space, of, True)
            for known in {"encoding", "unmeasured"} & set(study.workspace.__dict__):
                del study.workspace.__dict__[known]
            best = _program(study, by_gradients, _TRANSFERRED)
            rows(f"{model} {seed} weighed {count} part {share}", lambda: judge(bank.values(best)))  # noqa: B023
    bank.changes = every


def paper(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """The paper's six options at 3.5 bits: by errors or gradients, with nearest or compensated rounding."""
    for rounding, proposer in (
        ("nearest", sum_of_errors),
        ("compensated", sum_of_errors),
        ("compensated", by_gradients),
    ):
        study = opened(asked, model, seed, options="paper", rounding=rounding)
        judge = Judge(study, asked.images)
        best = _program(study, proposer, 3.5)
        average = study.workspace.space.average_bits(best)
        key = f"{model} {seed} paper {rounding}, {proposer.__name__}"
        rows(key, lambda: {"average_bits": average, **judge(study.workspace.bank.values(best))})  # noqa: B023


def searched(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Choices of a search, polished as quick ones are, and their gain over these, paired by image."""
    opened(asked, model, seed)
    folder = asked.work / f"{model}-{seed}"
    for bits in asked.bits:
        key = f"{model} {seed} {bits:g} search"
        if key in rows.rows:
            continue
        copy = asked.work / f"{model}-{seed}-search-{bits:g}"  # of its own: no search knows what another measured
        if not copy.exists():
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("choices", "search", "records.db*"))
        study = Study(copy)
        judge = Judge(study, asked.images)
        ours = judge(study.workspace.values(study.quick(bits)))  # anew: rounded by the same code
        began = time.time()
        made = study.search(bits, _SEARCHED)
        seconds, compared = round(time.time() - began), made.compared
        found = judge(study.workspace.values(made.choice))
        gain = mean_estimate(np.array(found["values"]) - np.array(ours["values"]))
        about = {"gain": round(gain.value, 2), "gain_low": round(gain.low, 2), "gain_high": round(gain.high, 2)}
        about["quick"] = ours["psnr"]
        if compared is not None:  # else both are the same configuration
            about |= {"measuring": round(compared.measured - compared.gradients, 2), "kept": compared.gain >= 0}
        rows(key, lambda: {**found, **about, "images": _SEARCHED, "search_s": seconds})  # noqa: B023


def for_programs(rows: Rows, asked: argparse.Namespace, model: str, seed: int) -> None:
    """Quick choices among all options, and among those that another program's format holds, where they reach."""
    for target in (None, "sdnq", "gguf"):
        study = opened(asked, model, seed, **({} if target is None else {"target": target}))
        judge = Judge(study, asked.images)
        for bits in _FORMATS_AT:
            with suppress(Qua2SeDiMoError):
                rows(f"{model} {seed} {bits:g} for {target or 'packed'}", lambda: quick_row(study, judge, bits, 0.0))  # noqa: B023
        study.workspace.switch.restore()


# docs/compensation.md ------------------------------------------------------------------------------------------------


def write_docs(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the tables of docs/compensation.md."""
    write_table(PAGE, "sizes", _sizes_table(rows))
    write_table(PAGE, "transfer", _transfer_table(rows))
    write_table(PAGE, "counts", _counts_table(rows))
    write_table(PAGE, "calls", _calls_table(rows))
    write_table(PAGE, "paper", _paper_table(rows))
    if _grouped(rows, r"(\S+) for (\S+)"):
        write_table("formats.md", "targets", _targets_table(rows))
    if _grouped(rows, r"(\S+) search"):
        write_table(PAGE, "search", _search_table(rows))


def _grouped(rows: Mapping[str, Mapping[str, Any]], pattern: str) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """Rows whose key matches MODEL SEED PATTERN, over seeds, by model and the pattern's groups."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for key, row in rows.items():
        match = re.fullmatch(rf"(\S+) \d+ {pattern}", key)
        if match:
            found.setdefault(match.groups(), []).append(row)
    return found


def _mean(of: list[Mapping[str, Any]], name: str, digits: int = 1) -> str:
    values = [row[name] for row in of if name in row]
    return f"{np.mean(values):.{digits}f}" if values else "–"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body)]


def _sizes_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sized = _grouped(rows, rf"(\S+) ({NEAREST}|{PLAIN}|{QUICK})") | _grouped(rows, r"(uniform) (\S+)")
    body = []
    for (model, bits, how), of in sorted(sized.items()):
        body.append([
            model, bits, how, _mean(of, "average_bits", 3), _mean_spread(of, "psnr"), _mean(of, "features", 4),
            _mean(of, "frechet_full", 2), _mean(of, "accuracy", 3), str(len(of)),
        ])  # fmt: skip
    head = ["model", "size", "choice and rounding", "bits", "PSNR, dB", "features", "Fréchet", "accuracy", "seeds"]
    return _table(head, body)


def _transfer_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    body = []
    for (model, where), of in _grouped(rows, "transfer (.+)").items():
        gain = f"{_mean(of, 'gain')} [{_mean(of, 'low')}, {_mean(of, 'high')}]"
        body.append([model, where, _mean(of, NEAREST), _mean(of, _BESIDE), _mean(of, QUICK), gain])
    head = ["model", "images", "nearest, dB", f"uniform {_BESIDE}, dB", "quick, dB", "gain over nearest [95 %]"]
    return _table(head, body)


def _counts_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = _grouped(rows, r"observed (\d+(?: in \d+ steps)?)")
    body = [
        [model, count, _mean_spread(of, PLAIN), _mean_spread(of, "psnr"),
         f"{sum(r['polished'] for r in of)} of {len(of)}"]
        for (model, count), of in sorted(found.items(), key=lambda item: (item[0][0], *_numbers(item[0][1])))
    ]  # fmt: skip
    return _table(["model", "images observed", "not polished, dB", "quick, dB", "polish kept"], body)


def _calls_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A column for each number of calls; separate parts of all calls stand beside each other."""
    found = _grouped(rows, r"weighed (\d+) part \d+")
    models = sorted({model for model, _ in found})
    body = [
        [model, *(" · ".join(f"{r['psnr']:.1f}" for r in found.get((model, str(count)), ())) for count in _WEIGHED)]
        for model in models
    ]
    return _table(["model", *(f"{count} calls" for count in _WEIGHED)], body)


def _mean_spread(of: list[Mapping[str, Any]], name: str) -> str:
    """The mean over seeds, with their standard deviation where there are several."""
    spread = f" ± {np.std([row[name] for row in of], ddof=1):.1f}" if len(of) > 1 else ""
    return f"{_mean(of, name)}{spread}"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _paper_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = {"sum_of_errors": "sum of errors", "by_gradients": "gradients"}
    body = [
        [model, rounding, said[by], _mean(of, "average_bits", 3), _mean(of, "psnr")]
        for (model, rounding, by), of in _grouped(rows, r"paper (\w+), (\w+)").items()
    ]
    return _table(["model", "rounding", "chosen by", "bits", "PSNR, dB"], body)


def _targets_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    programs, found = ("packed", "sdnq", "gguf"), _grouped(rows, r"(\S+) for (\S+)")
    places = dict.fromkeys((model, bits) for model, bits, _ in sorted(found))
    body = [[m, b, *(_mean(found.get((m, b, program), []), "psnr") for program in programs)] for m, b in places]
    return _table(["model", "size", "all options, dB", "for SDNQ, dB", "for GGUF, dB"], body)


def _search_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    body = []
    for (model, bits), of in sorted(_grouped(rows, r"(\S+) search").items()):
        gain = f"{_mean(of, 'gain', 2)} [{_mean(of, 'gain_low', 2)}, {_mean(of, 'gain_high', 2)}]"
        measured = [row for row in of if "measuring" in row]
        adds = _mean(measured, "measuring", 2) if measured else "the same"
        kept = "–" if not measured else "yes" if all(row["kept"] for row in measured) else "no"
        body.append([model, bits, adds, kept, _mean(of, "psnr"), gain, _mean(of, "search_s", 0)])
    header = [
        "model",
        "size",
        "found, dB more than gradients",
        "kept",
        "search, dB",
        "more than quick [95 %]",
        "seconds",
    ]
    return _table(header, body)


if __name__ == "__main__":
    main()
