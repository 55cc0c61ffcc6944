"""What docs/comparison.md says was measured, and its figure, from the rows that benchmarks/peers.py keeps.

    python benchmarks/peers_docs.py

Writes both anew and measures nothing: a table of the best that each tool has up to a size, all rows, what did not run,
and a figure of PSNR against bytes of the whole denoiser with a line a tool. Numbers are means over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np

from pages import FIGURES, write_table
from qua2sedimo.formats.files import write_text

#: Committed: versions, sizes of the models, and a row for each model, seed, tool and setting.
KEPT = FIGURES / "peers.json"
FIGURE = FIGURES / "peers.svg"
PAGE = "comparison.md"
OURS = "ours"
#: Ours are blue, as in the other figures.
COLORS = {
    OURS: "#08306b", "SDNQ": "#d97706", "quanto": "#8e1b1b", "torchao": "#7b4fa3", "bitsandbytes": "#c2539b",
    "HQQ": "#2f9e6e", "GGUF": "#6b7d2f", "GPTQ": "#e2604a", "AdaRound": "#555555", "Q-Diffusion": "#c79a1e",
    "SVDQuant's branch": "#b79b7f",
    "ours, nearest": "#7fb8da",
}  # fmt: skip
#: Bits a weight of the whole denoiser: the columns of the first table.
LIMITS = (2.25, 2.75, 3.25, 3.75, 4.25, 5.25, 6.5, 8.75)
Row = dict[str, Any]


@dataclass
class Kept:
    """Everything that was measured."""

    versions: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Kept:
        return cls(**json.loads(KEPT.read_text())) if KEPT.exists() else cls()

    def keep(self, key: str, row: Row) -> None:
        """Add a row, and write all: a row a line, so that a change shows which rows changed."""
        self.rows[key] = row
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.rows.items()))
        head = f'"versions": {json.dumps(self.versions)},\n"models": {json.dumps(self.models)}'
        write_text(KEPT, f'{{{head},\n"rows": {{\n{lines}\n}}}}\n')
        print(key, json.dumps({k: v for k, v in row.items() if k != "values"}), flush=True)


def measured(kept: Kept) -> list[Row]:
    """Rows with a model and bits a weight of the whole denoiser, means over seeds; without those that failed."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for key, row in kept.rows.items():
        if "error" not in row:
            groups.setdefault((key.split()[0], row["tool"], row["setting"]), []).append(row)
    return [_mean(model, of, kept.models[model]["weights"]) for (model, _, _), of in groups.items()]


def _mean(model: str, of: list[Row], weights: int) -> Row:
    means = {name: float(np.mean([row[name] for row in of])) for name, value in of[0].items() if _is_number(value)}
    return {
        **of[0], **means, "model": model, "bits": 8 * means["nbytes"] / weights, "seeds": len(of),
        "spread": float(np.std([row["psnr"] for row in of], ddof=1)) if len(of) > 1 else None,
    }  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def frontier(rows: Iterable[Row]) -> list[Row]:
    """The rows that are better than every smaller one, in order of size."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda r: (r["nbytes"], -r["psnr"])):
        if not found or row["psnr"] > found[-1]["psnr"]:
            found.append(row)
    return found


def best_up_to(rows: Iterable[Row], bits: float) -> Row | None:
    """The row of highest PSNR among those of at most that many bits a weight of the whole denoiser."""
    fitting = [row for row in rows if row["bits"] <= bits]
    return max(fitting, key=lambda row: row["psnr"], default=None)


# The figure ----------------------------------------------------------------------------------------------------------


def figure(rows: list[Row]) -> alt.HConcatChart:
    """A panel a model: marks are settings, a line joins those of a tool that no smaller one of it surpasses."""
    return alt.hconcat(*(_panel(model, rows) for model in _models(rows)), spacing=18).configure_legend(
        labelLimit=300, symbolStrokeWidth=2
    )


def _panel(model: str, rows: list[Row]) -> alt.LayerChart:
    here = [row for row in rows if row["model"] == model]
    tools = [tool for tool in COLORS if any(row["tool"] == tool for row in rows)]
    color = alt.Color(
        "tool:N", title=None, scale=alt.Scale(domain=tools, range=[COLORS[tool] for tool in tools]),
        legend=alt.Legend(orient="bottom", columns=8, symbolOpacity=1),
    )  # fmt: skip
    fronts = [row for tool in tools for row in frontier(r for r in here if r["tool"] == tool)]
    x = alt.X("megabytes:Q", title="MB of the whole denoiser", scale=alt.Scale(zero=False, nice=False, padding=8))
    y = alt.Y("psnr:Q", title="PSNR, dB", scale=alt.Scale(zero=False))
    dots = alt.Chart(_data(here)).mark_point(filled=True, size=16, opacity=0.35).encode(x=x, y=y, color=color)
    width = alt.StrokeWidth("ours:N", legend=None, scale=alt.Scale(domain=[False, True], range=[1.6, 3.2]))
    lines = alt.Chart(_data(fronts)).mark_line(point={"size": 34, "filled": True})
    encoded = lines.encode(x=x, y=y, color=color, strokeWidth=width)
    return alt.layer(dots, encoded).properties(title=model, width=290, height=330)


def _data(rows: list[Row]) -> alt.Data:
    named = ("tool", "setting", "psnr")
    return alt.Data(
        values=[
            {**{k: row[k] for k in named}, "megabytes": row["nbytes"] / 1e6, "ours": row["tool"] == OURS}
            for row in rows
        ]
    )


def _models(rows: list[Row]) -> list[str]:
    return sorted({row["model"] for row in rows})


# The tables ----------------------------------------------------------------------------------------------------------


def best_table(rows: list[Row]) -> list[str]:
    """The best PSNR of each tool up to a size."""
    lines = _head(["model", "tool", *(f"≤ {limit:g}" for limit in LIMITS)])
    for model in _models(rows):
        for tool in COLORS:
            of = [row for row in rows if (row["model"], row["tool"]) == (model, tool)]
            found = [best_up_to(of, limit) for limit in LIMITS]
            if any(found):
                cells = [f"{row['psnr']:.1f}" if row else "–" for row in found]
                lines.append(_line([model, tool, *cells]))
    return lines


def rows_table(rows: list[Row]) -> list[str]:
    """Every row, by model, tool and size."""
    lines = _head(
        ["model", "tool", "setting", "bytes", "bits a weight", "PSNR, dB", "features", "Fréchet", "accuracy", "seeds"]
    )
    tools = list(COLORS)
    for row in sorted(rows, key=lambda r: (r["model"], tools.index(r["tool"]), r["nbytes"])):
        spread = f" ± {row['spread']:.1f}" if row["spread"] is not None else ""
        name = f"**{row['setting']}**" if row["recommended"] else row["setting"]
        lines.append(_line([
            row["model"], row["tool"], name, f"{row['nbytes']:,.0f}", f"{row['bits']:.2f}",
            f"{row['psnr']:.1f}{spread}", f"{row['features']:.4f}", f"{row['frechet_full']:.2f}",
            f"{row['accuracy']:.1f}", str(row["seeds"]),
        ]))  # fmt: skip
    return lines


def failed_table(kept: Kept) -> list[str]:
    """What did not run, with its error: models that failed alike in one row."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, row in kept.rows.items():
        if "error" in row:
            models = groups.setdefault((row["tool"], row["setting"], row["error"]), [])
            models += [key.split()[0]] if key.split()[0] not in models else []
    lines = _head(["tool", "setting", "models", "error"])
    for (tool, setting, error), models in sorted(groups.items()):
        lines.append(_line([tool, setting, ", ".join(models), error.replace("|", "\\|").replace("`", "'")]))
    return lines


def versions_table(versions: Mapping[str, str]) -> list[str]:
    return [*_head(["tool", "version"]), *(_line([tool, number]) for tool, number in versions.items())]


def _head(names: list[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_docs(kept: Kept) -> None:
    """Put tables and figure where the page shows them."""
    rows = measured(kept)
    figure(rows).save(FIGURE)
    for name, lines in (
        ("best", best_table(rows)), ("rows", rows_table(rows)), ("failed", failed_table(kept)),
        ("versions", versions_table(kept.versions)),
    ):  # fmt: skip
        write_table(PAGE, name, lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_docs(Kept.load())
