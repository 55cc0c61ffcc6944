"""What docs/search.md says was measured, and its figure, from the rows that benchmarks/search.py keeps.

    python benchmarks/search_docs.py

Writes both anew and measures nothing: tables of means over seeds, a row a procedure, and a figure of PSNR against the
images that each procedure spent.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import altair as alt
import numpy as np

from pages import FIGURES, write_measured

#: Committed: what was judged, a row an answer, with the value of each image.
KEPT = FIGURES / "search.json"
FIGURE = FIGURES / "search.svg"
OURS = "ours, search"
Row = dict[str, Any]


def kept_rows() -> list[Row]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def tables(rows: list[Row]) -> str:
    """Markdown: for each model, objective and size, a row a procedure, means over the seeds."""
    lines: list[str] = []
    for model, objective in dict.fromkeys((r["model"], r["objective"]) for r in rows):
        of = [r for r in rows if (r["model"], r["objective"]) == (model, objective)]
        seeds = len({r["seed"] for r in of})
        lines += ["", f"### {model}, objective `{objective}`, {seeds} seed{'s' if seeds > 1 else ''}"]
        for asked in dict.fromkeys(r["asked"] for r in of):
            title = "uniform options" if asked == "any" else f"{asked} bits"
            lines += ["", f"| {title} | bits | images | PSNR, dB | less ours | Fréchet |", "|---|---|---|---|---|---|"]
            at = [r for r in of if r["asked"] == asked]
            ours = {r["seed"]: np.array(r["values"]) for r in at if r["procedure"] == OURS}
            lines += [_line(group, ours) for group in _groups(at)]
    return "\n".join(lines)


def _groups(rows: list[Row]) -> list[list[Row]]:
    """The last answer of each procedure, that after most images, of every seed."""
    last: dict[str, dict[int, Row]] = {}
    for row in rows:
        seen = last.setdefault(row["procedure"], {})
        if row["images"] >= seen.get(row["seed"], row)["images"]:
            seen[row["seed"]] = row
    return [list(seen.values()) for seen in last.values()]


def _line(group: list[Row], ours: dict[int, np.ndarray]) -> str:
    mean = {k: float(np.mean([r[k] for r in group])) for k in ("average_bits", "images", "psnr", "frechet")}
    paired = [np.array(r["values"]) - ours[r["seed"]] for r in group if r["seed"] in ours]
    difference = ""
    if paired and group[0]["procedure"] != OURS:
        all_of = np.concatenate(paired)
        difference = f"{all_of.mean():+.2f} ±{1.96 * all_of.std(ddof=1) / np.sqrt(len(all_of)):.2f}"
    name = f"**{OURS}**" if group[0]["procedure"] == OURS else group[0]["procedure"]
    return (
        f"| {name} | {mean['average_bits']:.2f} | {mean['images']:.0f} | {mean['psnr']:.2f} | {difference} "
        f"| {mean['frechet']:.1f} |"
    )


def figure(rows: list[Row]) -> alt.FacetChart:
    """A panel a model and size: PSNR of each procedure's answer against the images it spent, means over the seeds."""
    points = [
        {"panel": f"{r['model']}, {r['asked']} bits", "procedure": r["procedure"].removesuffix(" without finals"),
         "images": r["images"], "seed": r["seed"], "psnr": r["psnr"]}
        for r in rows
        if r["asked"] != "any" and r["objective"] == "psnr" and ", W" not in r["procedure"]
    ]  # fmt: skip
    chart = alt.Chart().encode(
        x=alt.X("mean(images):Q", title="images spent", scale=alt.Scale(domain=[0, 1080])),
        y=alt.Y("mean(psnr):Q", title="PSNR, dB", scale=alt.Scale(zero=False)),
        color=alt.Color("procedure:N", title=None, legend=alt.Legend(orient="bottom", columns=3, labelLimit=300)),
        detail="images:Q",
    )
    shaped = chart.mark_point(filled=True, size=60).encode(shape=alt.Shape("procedure:N", title=None))
    return (
        alt.layer(shaped, data=alt.Data(values=points))
        .properties(width=210, height=170)
        .facet(facet=alt.Facet("panel:N", title=None), columns=3)
        .resolve_scale(y="independent")
    )


def write_docs(rows: list[Row]) -> None:
    """Put tables and figure where the page shows them."""
    figure(rows).save(FIGURE)
    write_measured("search.md", tables(rows) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_docs(kept_rows())
