"""The rows of the coverage page: one class in a process of its own, kept until what was run or its versions change."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.denoisers.coverage import check, given, use  # noqa: E402
from tests.denoisers.coverage.registry import CONFIGURATIONS  # noqa: E402
from tests.sweep import asked, registry  # noqa: E402
from tests.sweep import check as walking  # noqa: E402
from tests.sweep.entries import ENTRIES  # noqa: E402

from qua2sedimo.formats.files import write_json  # noqa: E402

Row = dict[str, Any]
KEPT = ROOT / "benchmarks" / "results" / "coverage"
_LIBRARIES = ("qua2sedimo", "diffusers", "transformers", "peft", "accelerate", "torch")
_INPUTS = ("prompt", "class_labels", "batch_size")


def denoiser(name: str) -> Row:
    """The row of a transformer or U-Net class."""
    with tempfile.TemporaryDirectory() as folder:
        checked = check.check(name, Path(folder) / "packed")
        used = use.answers(name, Path(folder) / "used")
        plain = given.given_answers(name, Path(folder) / "given")
    graph = checked.graph
    units = graph.layers.values()
    return {
        "class": name,
        "layers": len(checked.modules),
        "units": len(graph.layers),
        "parts": sum(unit.span is not None for unit in units),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "bypassed": len(graph.bypassed),
        "operations": dict(sorted(Counter(unit.operation for unit in units).items())),
        "wrong": checked.wrong,
        "answers": {**plain, **used},
    }


def pipeline(name: str) -> Row:
    """The row of a pipeline class."""
    parameters = inspect.signature(registry.in_scope()[name].__call__).parameters
    with tempfile.TemporaryDirectory() as folder:
        found = walking.walk(name, Path(folder) / "walk")
        answers = asked.asked_of(name, Path(folder) / "asked")
    return {
        "class": name, "takes": [input_ for input_ in _INPUTS if input_ in parameters], "passed": found.passed,
        "wrong": found.wrong, "remark": found.remark, "answers": answers,
    }  # fmt: skip


#: What a row is of → (the function that makes it, modules with what is asked, a class's tiny instance).
KINDS: dict[str, tuple[Callable[[str], Row], tuple[Any, ...], Callable[[str], Any]]] = {
    "denoiser": (denoiser, (check, use, given), lambda name: CONFIGURATIONS[name].arguments),
    "pipeline": (pipeline, (walking, asked), lambda name: ENTRIES[name]),
}


def key(kind: str, name: str) -> str:
    """A digest of the versions, of the questions, and of the class's tiny instance."""
    _, modules, instance = KINDS[kind]
    versions = [f"{library} {importlib.metadata.version(library)}" for library in _LIBRARIES]
    described = re.sub(r" at 0x\w+", "", repr(instance(name)))
    content = [*versions, described, *(inspect.getsource(module) for module in modules)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def rows(kind: str, names: list[str], limit: float, jobs: int, fresh: bool) -> Iterator[tuple[Row, bool]]:
    """(row, whether it was kept from an earlier run) of each class, as they are finished; without jobs, of kept ones.

    A class that raises, ends its process, or takes more than ``limit`` seconds has a row with the reason under
    ``failed``, which is not kept.
    """
    waiting = []
    for name in names:
        file = KEPT / f"{name}.json"
        kept = json.loads(file.read_text()) if file.is_file() and not fresh else {}
        if kept.get("key") == key(kind, name):
            yield kept["row"], True
        else:
            waiting.append(name)
    if not jobs:
        return
    # Children are forked from a process that has imported this module, and computed nothing.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_made, kind, name, limit) for name in waiting]
        for done in as_completed(running):
            yield done.result(), False


def _made(kind: str, name: str, limit: float) -> Row:
    context = multiprocessing.get_context("forkserver")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sending, kind, name))
    began = time.perf_counter()
    process.start()
    sending.close()
    try:
        row = receiving.recv() if receiving.poll(limit) else {"class": name, "failed": f"not done in {limit:.0f} s"}
    except EOFError:
        process.join()
        row = {"class": name, "failed": f"its process ended with status {process.exitcode}"}
    process.kill()
    process.join()
    row["seconds"] = round(time.perf_counter() - began, 1)
    if "failed" not in row:
        write_json(KEPT / f"{name}.json", {"key": key(kind, name), "row": row})
    return row


def _child(sending: Connection, kind: str, name: str) -> None:
    """Send the row of a class; what libraries print is lost."""
    warnings.filterwarnings("ignore")
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            row = KINDS[kind][0](name)
        except Exception as error:
            row = {"class": name, "failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    sending.send(row)
