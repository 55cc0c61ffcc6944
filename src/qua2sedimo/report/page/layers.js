"use strict";
// The layer table: sorting, searching, filtering, and what each layer could have had.
const layerTable = (() => {
  const table = document.getElementById("layer-table");
  if (!table) return null;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, number) => ({ row, number }));
  const numbers = new Map(rows.map(({ row, number }) => [row, number]));
  /** What a row says, read when it is first asked for. */
  const said = (one) => one.cells ?? (one.cells = [...one.row.cells].map((cell) => cell.textContent));
  const heads = table.tHead.rows[0].cells;
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const column = Object.fromEntries(study.layers.columns.map((name, i) => [name, i]));
  const optionsOf = study.layers.rows.map(() => []);
  for (const [layer, ...option] of study.options.rows) optionsOf[layer].push(option);
  const read = (value, digits) => value === null ? "–" : Number(value.toPrecision(digits)).toString().replace("-", "−");

  function close() {
    for (const detail of body.querySelectorAll(".detail")) detail.remove();
    for (const button of body.querySelectorAll("[aria-expanded=true]")) button.setAttribute("aria-expanded", false);
  }

  function cell(text, kind = "td", numeric = false) {
    const made = document.createElement(kind);
    made.textContent = text;
    if (numeric) made.className = "n";
    return made;
  }

  function details(number) {
    const layer = study.layers.rows[number];
    const detail = document.createElement("tr");
    detail.className = "detail";
    const inside = document.createElement("td");
    inside.colSpan = heads.length;
    const why = document.createElement("p");
    why.textContent = `${layer[column.option]}: ${layer[column.decided]}. ${layer[column.reason]}`;
    const small = document.createElement("table");
    const head = small.createTHead().insertRow();
    const unit = study.about.cost_unit;
    ["option", "bits per weight", "bytes", "relative error", "score", `costs, ${unit}`].forEach((title, i) =>
      head.append(cell(title, "th", i > 0)));
    const options = small.createTBody();
    for (const [name, bits, bytes, error, score, spread, cost, costSpread] of optionsOf[number].sort((a, b) => a[1] - b[1])) {
      const row = options.insertRow();
      if (name === layer[column.option]) row.className = "chosen";
      row.append(cell(name), cell(bits.toFixed(2), "td", true), cell(bytes.toLocaleString("en"), "td", true),
        cell(read(error, 2), "td", true), cell(`${read(score, 3)} ± ${read(spread, 1)}`, "td", true),
        cell(cost === null ? "–" : `${read(cost, 2)} ± ${read(costSpread, 1)}`, "td", true));
    }
    inside.append(why, small);
    detail.append(inside);
    return detail;
  }

  body.addEventListener("click", ({ target }) => {
    const button = target.closest("button[aria-expanded]");
    if (!button) return;
    const row = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", !open);
    if (open) row.nextElementSibling.remove();
    else row.after(details(numbers.get(row)));
  });

  table.tHead.querySelectorAll("button").forEach((button, i) => {
    const key = (one) => one.row.cells[i].dataset.value ?? said(one)[i];
    button.addEventListener("click", () => {
      close();
      const head = button.parentElement;
      const numeric = head.classList.contains("n");
      const [first, other] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of heads) one.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * (numeric ? key(a) - key(b) : compare(key(a), key(b))));
      body.append(...rows.map(({ row }) => row));
    });
  });

  const input = document.getElementById("filter");
  const selects = [...document.querySelectorAll("#layers select")];
  const output = document.getElementById("shown");
  function filter() {
    close();
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value).map((select) => [Number(select.dataset.column), select.value]);
    let shown = 0;
    for (const one of rows) {
      const { row } = one, cells = said(one), text = cells.join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || wanted.some(([i, value]) => cells[i] !== value);
      shown += !row.hidden;
    }
    output.textContent = `${shown} of ${rows.length}`;
  }
  input.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);

  /** Show the layers of a chart's mark: of an operation, of a block, or one layer. */
  return (mark) => {
    input.value = mark.layer ?? "";
    const [operation, block, option] = selects;
    operation.value = mark.layer ? "" : mark.operation ?? "";
    block.value = mark.layer ? "" : mark.block ?? "";
    option.value = mark.option ?? "";
    filter();
    document.getElementById("layers").scrollIntoView();
  };
})();
