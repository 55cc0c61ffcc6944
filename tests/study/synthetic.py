"""A study whose measurements take no time: what a worker would paint and measure is made up from relative errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Study
from qua2sedimo.options import Configuration
from qua2sedimo.study.workspace import Workspace

OPTIONS = "uaq-2,uaq-4,kmeans_a-3"


@dataclass
class Seen:
    """Jobs that workers did, as (what, configuration's digest or None, images)."""

    jobs: list[tuple[str, str | None, range]] = field(default_factory=list)

    def images(self, what: str) -> int:
        return sum(len(images) for kind, _, images in self.jobs if kind == what)


def made_up(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """From now on every worker makes its measurements up; returns what they do."""
    seen = Seen()

    def work_of(study: Workspace) -> Callable[[str], str]:
        def work(content: str) -> str:
            job: dict[str, Any] = json.loads(content)
            images = range(job["start"], job["stop"])
            configuration = Configuration.from_json(job.get("configuration") or "{}")
            seen.jobs.append((job["do"], configuration.digest if configuration else None, images))
            if job["do"] == "paint":
                Path(job["to"]).parent.mkdir(exist_ok=True)
                save_file({"images": pictures(images)}, job["to"])
                return json.dumps(0.01)  # seconds
            return json.dumps(measured(study, configuration, images) if job["do"] == "measure" else None)

        return work

    monkeypatch.setattr("qua2sedimo.study.worker.work_of", work_of)
    monkeypatch.setattr(Workspace, "full_precision", lambda self, images: pictures(images))
    return seen


def pictures(images: range) -> np.ndarray:
    return np.stack([np.random.default_rng(i).random((8, 8, 1)) for i in images]).astype(np.float32)


def measured(study: Workspace, configuration: Configuration, images: range) -> dict[str, Any]:
    """−10·log₁₀ of the sum of relative errors, each layer of its own weight, and a little of every image's own."""
    weights = np.random.default_rng(7).lognormal(size=len(study.space.layers))
    errors = study.bank.errors
    damage = sum(
        w * errors[n][configuration[n]].relative_mse
        for n, w in zip(study.space.layers, weights)
        if n in configuration and configuration[n] in errors[n]
    )
    common = -10 * np.log10(damage + 1e-3)
    own = [float(common + np.random.default_rng([i, len(configuration)]).normal()) for i in images]
    return {
        "start": images.start, "values": {"psnr": own}, "seconds": 0.01, "sets": {}, "peak_memory": 1, "versions": {}
    }  # fmt: skip


def study_in(folder: Path, **changes: Any) -> Study:
    """A study of the small DiT; its bank is built for real."""
    settings = small_settings(options=OPTIONS, batch=2, **changes)
    study = Study.create(folder, settings, small_pipeline())
    study.quantize()
    return study
