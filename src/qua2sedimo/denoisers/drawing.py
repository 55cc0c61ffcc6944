"""The graph as an SVG: one box per block in data-flow order, arcs for skip connections, a block's layers on click.

There is no script: a box links to its panel, which CSS shows while it is the link's target. This works in any browser.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape

from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.denoisers.layers import WeightLayer

_BOX, _ROW, _LINE, _LEFT, _TOP = 250, 44, 15, 20, 56
#: What stands in every drawing.
DRAWN = "Click a block for its layers."
_STYLE = """
text{font:12px system-ui,sans-serif;fill:#1f2933} .head{font-size:15px;font-weight:600}
.small{font-size:10px;fill:#616e7c}
.box{fill:#eef4fb;stroke:#3e7cb1} a:hover .box{fill:#d7e6f5} .edge{fill:none;stroke:#3e7cb1;stroke-opacity:.75}
.fan{stroke:#9aa5b1;stroke-opacity:.35} .panel{display:none} .panel:target{display:inline}
.paper{fill:#fff;stroke:#3e7cb1}
"""


def block_edges(graph: Graph) -> dict[tuple[str, str], int]:
    """Number of edges between each pair of blocks; a combine node belongs to the block of its latest input."""
    block: list[str] = []
    edges: Counter[tuple[str, str]] = Counter()
    for node in graph.nodes:
        if node.kind == "layer":
            block.append(graph.layers[node.name].block)
        else:
            block.append(block[max(node.inputs)])
        edges.update((block[source], block[-1]) for source in node.inputs if block[source] != block[-1])
    return dict(edges)


def drawing(graph: Graph) -> str:
    """The SVG document."""
    blocks: dict[str, list[WeightLayer]] = {}
    for node in graph.nodes:
        if node.kind == "layer":
            unit = graph.layers[node.name]
            blocks.setdefault(unit.block, []).append(unit)
    edges = block_edges(graph)
    rows = {name: i for i, name in enumerate(blocks)}
    fan = Counter(source for source, _ in edges)
    reach = max((abs(rows[a] - rows[b]) for a, b in edges), default=1)
    deep = max(len(units) for units in blocks.values())
    height = max(_TOP + len(rows) * _ROW, _TOP + deep * _LINE + 60) + 20
    width = _LEFT + _BOX + 240 + 560
    weights = sum(unit.weights for unit in graph.layers.values())
    title = f"{graph.denoiser}: {len(graph.layers)} units, {weights / 1e6:,.1f} M weights"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<text class="head" x="{_LEFT}" y="24">{escape(title)}</text>',
            f'<text class="small" x="{_LEFT}" y="42">{DRAWN}</text>',
            *(_edge(rows[a], rows[b], reach, fan[a] > 4, f"{a} → {b}") for a, b in edges),
            *(_block(name, units, rows[name]) for name, units in blocks.items()),
            *(_panel(units, name, rows, height) for name, units in blocks.items()),
            "</svg>",
        ]
    )


def _edge(start: int, stop: int, reach: int, fans_out: bool, what: str) -> str:
    style = "edge fan" if fans_out else "edge"
    if stop == start + 1:
        x, y = _LEFT + _BOX / 2, _TOP + start * _ROW + 32
        path = f"M{x} {y}V{y + _ROW - 32}"
    else:
        x, y, end = _LEFT + _BOX, _TOP + start * _ROW + 22, _TOP + stop * _ROW + 10
        out = x + 16 + 210 * abs(stop - start) / reach
        path = f"M{x} {y}C{out} {y} {out} {end} {x} {end}"
    return f'<path class="{style}" d="{path}"><title>{escape(what)}</title></path>'


def _block(name: str, units: list[WeightLayer], row: int) -> str:
    y = _TOP + row * _ROW
    parts = sum(unit.span is not None for unit in units)
    what = f"{len(units)} units, {sum(unit.weights for unit in units):,} weights" + (
        f", {parts} parts" if parts else ""
    )
    return (
        f'<a href="#block-{row}"><title>{escape(name)}: {escape(what)}</title>'
        f'<rect class="box" x="{_LEFT}" y="{y}" width="{_BOX}" height="32" rx="5"/>'
        f'<text x="{_LEFT + 10}" y="{y + 14}">{escape(name)}</text>'
        f'<text class="small" x="{_LEFT + 10}" y="{y + 27}">{escape(what)}</text></a>'
    )


def _panel(units: list[WeightLayer], name: str, rows: Mapping[str, int], height: int) -> str:
    x, tall = _LEFT + _BOX + 230, len(units) * _LINE + 34
    y = min(_TOP + rows[name] * _ROW, height - tall - 10)
    lines = [
        f'<text x="{x + 10}" y="{y + 36 + i * _LINE}">{escape(unit.name)} '
        f'<tspan class="small">{escape(unit.operation)} {"×".join(map(str, unit.shape))}</tspan></text>'
        for i, unit in enumerate(units)
    ]
    head = f'<text class="head" x="{x + 10}" y="{y + 19}">{escape(name)}</text>'
    paper = f'<rect class="paper" x="{x}" y="{y}" width="550" height="{tall + 6}" rx="5"/>'
    return f'<g class="panel" id="block-{rows[name]}">{paper}{head}{"".join(lines)}</g>'
