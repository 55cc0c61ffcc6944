"use strict";
// The graph as rows from top to bottom, blocks that open, and arcs in the margin for where values come from.
(() => {
  const place = document.getElementById("flow");
  if (!place) return;
  const ROW = 28, NS = "http://www.w3.org/2000/svg";
  const nodes = study.graph.rows.map(([name, kind, block, inputs], number) => ({ name, kind, block, inputs, number }));
  const named = Object.fromEntries(study.layers.columns.map((name, i) => [name, i]));
  const layers = new Map(study.layers.rows.map((row) => [row[0], row]));
  const blocks = new Map();
  for (const node of nodes) {
    if (!blocks.has(node.block)) blocks.set(node.block, { name: node.block, nodes: [], open: false });
    blocks.get(node.block).nodes.push(node);
  }
  const costs = study.layers.rows.map((row) => row[named.bit_cost] ?? 0);
  const dearest = Math.max(...costs, 1e-9);
  let lines = new Map();

  function summary(block) {
    const chosen = block.nodes.map((node) => layers.get(node.name)).filter(Boolean);
    const weights = chosen.reduce((sum, layer) => sum + layer[named.weights], 0);
    const bytes = chosen.reduce((sum, layer) => sum + layer[named.bytes], 0);
    const units = block.nodes.filter((node) => node.kind === "layer").length;
    const mean = chosen.reduce((sum, layer) => sum + (layer[named.bit_cost] ?? 0), 0) / (chosen.length || 1);
    return {
      what: `${units} ${units === 1 ? "layer" : "layers"}`,
      bits: weights ? `${((8 * bytes) / weights).toFixed(2)} bits` : "",
      cost: chosen.length ? mean : null,
    };
  }

  function element(kind, className, text = "") {
    const made = document.createElement(kind);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function costBar(cost) {
    const bar = element("i", "cost");
    if (cost !== null) {
      bar.style.setProperty("--share", Math.max(0, cost) / dearest);
      bar.title = `4 → 3 bits costs ${Number(cost.toPrecision(2))} ${study.about.cost_unit} a layer`;
    }
    return bar;
  }

  function blockRow(block) {
    const { what, bits, cost } = summary(block);
    const row = element("button", "row block");
    row.type = "button";
    row.setAttribute("aria-expanded", block.open);
    row.append(element("span", "name", block.name), element("span", "muted", what), element("span", "n", bits), costBar(cost));
    row.addEventListener("click", () => { block.open = !block.open; draw(block.name); });
    return row;
  }

  function nodeRow(node) {
    const layer = layers.get(node.name);
    const row = element("div", node.kind === "layer" ? "row node" : "row node meet");
    const name = element("span", "name");
    name.append(element("code", "", node.kind === "layer" ? node.name : node.kind));
    name.title = node.name;
    const chosen = layer ? layer[named.option] : node.kind === "layer" ? "16 bits" : "";
    row.append(name, element("span", "muted", layer ? layer[named.operation] : ""), element("span", "n", chosen),
      costBar(layer ? layer[named.bit_cost] : null));
    return row;
  }

  function arc([from, to], width) {
    const path = document.createElementNS(NS, "path");
    const out = width - 10 - Math.min(width - 14, 13 * Math.log2(to - from + 1));
    const [y, end] = [(from + 1.5) * ROW, (to + 1.5) * ROW];
    const bend = Math.min(ROW * 0.8, (end - y) / 2);
    path.setAttribute("d", `M${width - 4} ${y + 3}C${out} ${y + 3} ${out} ${y + 3} ${out} ${y + bend}V${end - bend}C${out} ${end - 3} ${out} ${end - 3} ${width - 4} ${end - 3}`);
    return path;
  }

  function draw(focus) {
    const rows = [], at = new Map();
    for (const block of blocks.values()) {
      at.set(block.name, rows.length);
      rows.push(blockRow(block));
      if (!block.open) continue;
      for (const node of block.nodes) {
        at.set(node.number, rows.length);
        rows.push(nodeRow(node));
      }
    }
    const where = (node) => at.get(node.number) ?? at.get(node.block);
    const edges = new Map();
    for (const node of nodes) {
      for (const input of node.inputs) {
        const [from, to] = [where(nodes[input]), where(node)];
        if (from !== to) edges.set(`${from} ${to}`, from < to ? [from, to] : [to, from]);
      }
    }
    const width = place.clientWidth < 500 ? 64 : 150;
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("width", width);
    svg.setAttribute("height", (rows.length + 1) * ROW);
    svg.setAttribute("aria-hidden", true);
    lines = new Map(rows.map((_, i) => [i, []]));
    for (const edge of edges.values()) {
      const path = arc(edge, width);
      lines.get(edge[0]).push([path, "out"]);
      lines.get(edge[1]).push([path, "in"]);
      svg.append(path);
    }
    const list = element("div", "rows");
    const head = element("div", "row head");
    head.append(...["block", "operation", "bits, option", "cost of a bit"].map((title) => element("span", "", title)));
    list.append(head, ...rows);
    rows.forEach((row, i) => {
      row.addEventListener("pointerenter", () => highlight(i, true));
      row.addEventListener("pointerleave", () => highlight(i, false));
      row.addEventListener("focus", () => highlight(i, true));
      row.addEventListener("blur", () => highlight(i, false));
    });
    place.replaceChildren(svg, list);
    if (focus !== undefined) rows[at.get(focus)].focus({ preventScroll: true });
  }

  function highlight(row, on) {
    for (const [path, way] of lines.get(row) ?? []) {
      path.classList.toggle(way, on);
      if (on) path.parentNode.append(path);
    }
  }

  function all(open) {
    for (const block of blocks.values()) block.open = open;
    draw();
  }
  document.getElementById("open-all").addEventListener("click", () => all(true));
  document.getElementById("close-all").addEventListener("click", () => all(false));
  draw();
})();
