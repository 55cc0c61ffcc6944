"""How well each loss of the predictor ranks configurations it never saw, beside predictors without a graph.

    python benchmarks/predictor.py [STUDY ...]

Studies default to those benchmarks/demo.py left. Every record is predicted by models that neither trained on it nor
were selected by it. Writes benchmarks/results/predictor.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from qua2sedimo import Study
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.predictor.losses import LOSSES
from qua2sedimo.report.assemble import predictor_quality

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    studies = [Path(a) for a in sys.argv[1:]] or sorted(p.parent for p in RESULTS.glob("*/study.yaml"))
    if not studies:
        sys.exit("no study: run benchmarks/demo.py first, or name study folders")
    rows = []
    for folder in studies:
        study = Study(folder)
        choices, objective = study.training_data(study.records.all("sample"))
        for loss in LOSSES:
            ensemble = fit_ensemble(study.encoding, choices, objective, FitSettings(loss=loss))
            quality = predictor_quality(study, ensemble)
            rows.append((folder.name, f"graph network, {loss}", quality.rank_correlation))
        rows += [(folder.name, name, value) for name, value in quality.baselines.items()]
        print(f"\n{folder.name}: {len(objective)} records, noise ceiling {quality.noise_ceiling:.3f}")
        for name, predictor, value in rows:
            if name == folder.name:
                print(f"  {predictor:<28} {value.value:.3f}  [{value.low:.3f}, {value.high:.3f}]")
    RESULTS.mkdir(exist_ok=True)
    content = [{"study": name, "predictor": predictor, **asdict(value)} for name, predictor, value in rows]
    (RESULTS / "predictor.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
