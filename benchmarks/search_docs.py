"""What docs/search-results.md says was measured, and its figure, from the rows that benchmarks/search.py keeps.

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
from qua2sedimo.formats.files import write_text

#: Committed: what was judged, a row an answer, with the value of each image.
KEPT = FIGURES / "search.json"
FIGURE = FIGURES / "search.svg"
OURS = "ours, search"
TENTH, PUBLISHED = "ours, search for a tenth", "paper: 500 records, argmax"
#: Answers of one procedure after other numbers of images, which the figure draws as one.
SAME = {
    "ours, rounds without finals": "ours, rounds",
    TENTH: OURS,
    PUBLISHED: "paper: predictor, argmax",
}
#: Ours are blue, the paper's red, each layer alone orange, what needs no pictures grey.
COLORS = {
    OURS: "#08306b", "ours, rounds": "#2f7fbc", "ours, layers alone": "#7fb8da",
    "paper's scores, program": "#8e1b1b", "paper: predictor, argmax": "#e2604a",
    "one layer at a time, program": "#d97706", "one layer at a time, greedy": "#f2b661",
    "sum of errors, program": "#555555", "first and last high, program": "#a3a3a3", "random search": "#b79b7f",
}  # fmt: skip
Row = dict[str, Any]


def kept_rows() -> list[Row]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def keep_rows(rows: list[Row]) -> None:
    """A row a line, so that a change shows which answers changed."""
    write_text(KEPT, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


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


def tenth_table(rows: list[Row]) -> str:
    """Markdown: how much better a search for a tenth of the paper's images is, a row a model, a column a size."""
    of = {(r["model"], r["asked"], r["seed"], r["procedure"]): r for r in rows if r["objective"] == "psnr"}
    pairs = [(key, row, of[(*key[:3], PUBLISHED)]) for key, row in of.items() if key[3] == TENTH]
    sizes = sorted({key[1] for key, *_ in pairs}, key=float)
    lines = ["", "### A search for 200 images less the paper's procedure for 2,000, dB", ""]
    lines += [f"| | {' | '.join(f'{size} bits' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for model in dict.fromkeys(key[0] for key, *_ in pairs):
        cells = []
        for size in sizes:
            both = [(ours, paper) for key, ours, paper in pairs if key[:2] == (model, size)]
            cells.append(_difference([np.array(a["values"]) - np.array(b["values"]) for a, b in both]))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(paired: list[np.ndarray]) -> str:
    """Mean of differences on the same images, of all seeds, with the half width of its 95 % interval."""
    every = np.concatenate(paired)
    return f"{every.mean():+.2f} ±{1.96 * every.std(ddof=1) / np.sqrt(len(every)):.2f}"


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
    difference = _difference(paired) if paired and group[0]["procedure"] != OURS else ""
    name = f"**{OURS}**" if group[0]["procedure"] == OURS else group[0]["procedure"]
    return (
        f"| {name} | {mean['average_bits']:.2f} | {mean['images']:.0f} | {mean['psnr']:.2f} | {difference} "
        f"| {mean['frechet']:.1f} |"
    )


def figure(rows: list[Row]) -> alt.FacetChart:
    """A panel a model and size: PSNR of each procedure's answer against the images it spent, means over the seeds."""
    points = [
        {"panel": f"{r['model']}, {r['asked']} bits", "procedure": SAME.get(r["procedure"], r["procedure"]),
         "images": np.mean([o["images"] for o in same]), "psnr": np.mean([o["psnr"] for o in same])}
        for same in _stages(rows)
        for r in same[:1]
    ]  # fmt: skip
    chart = alt.Chart().encode(
        x=alt.X("images:Q", title="images spent", scale=alt.Scale(type="sqrt", domain=[0, 2100])),
        y=alt.Y("psnr:Q", title="PSNR, dB", scale=alt.Scale(zero=False)),
        color=alt.Color(
            "procedure:N",
            title=None,
            scale=alt.Scale(domain=list(COLORS), range=list(COLORS.values())),
            legend=alt.Legend(orient="bottom", columns=3, labelLimit=300),
        ),
    )
    shaped = chart.mark_point(filled=True, size=60).encode(
        shape=alt.Shape("procedure:N", title=None, scale=alt.Scale(domain=list(COLORS)))
    )
    return (
        alt.layer(shaped, data=alt.Data(values=points))
        .properties(width=210, height=170)
        .facet(facet=alt.Facet("panel:N", title=None), columns=3)
        .resolve_scale(y="independent")
    )


def _stages(rows: list[Row]) -> list[list[Row]]:
    """Answers to be averaged over seeds: of one procedure, model and size, and the same in order of images spent."""
    drawn = [r for r in rows if r["asked"] != "any" and r["objective"] == "psnr" and ", W" not in r["procedure"]]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    place: dict[tuple[Any, ...], int] = {}
    for row in sorted(drawn, key=lambda r: -r["images"]):
        key = (row["model"], row["asked"], row["procedure"])
        number = place[(*key, row["seed"])] = place.get((*key, row["seed"]), -1) + 1
        groups.setdefault((*key, number), []).append(row)
    return list(groups.values())


def write_docs(rows: list[Row]) -> None:
    """Put tables and figure where the page shows them."""
    figure(rows).save(FIGURE)
    write_measured("search-results.md", tenth_table(rows) + "\n" + tables(rows) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_docs(kept_rows())
