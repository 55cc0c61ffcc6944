"use strict";
(() => {
  const root = document.documentElement;
  const specifications = JSON.parse(document.getElementById("specifications").textContent);
  const options = {
    renderer: "svg",
    ast: true, // no eval: the page forbids it
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: "custom" },
  };

  async function draw(place) {
    try {
      const name = place.dataset.chart;
      await vegaEmbed(place, specifications[name], { ...options, downloadFileName: name });
      return 1;
    } catch (error) {
      place.textContent = `This chart could not be drawn: ${error.message}`;
      noteError(error.message);
      return 0;
    }
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    table.tHead.querySelectorAll("button").forEach((button, column) => {
      button.addEventListener("click", () => {
        const head = button.parentElement;
        const numeric = head.classList.contains("n");
        const first = numeric ? "descending" : "ascending";
        const other = numeric ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          return sign * (numeric ? x - y : compare(x, y));
        });
        body.append(...rows);
      });
    });
  }

  function filterable(input, table, output) {
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of rows) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      output.textContent = `${shown} of ${rows.length}`;
    });
  }

  const table = document.getElementById("layer-table");
  if (table) {
    sortable(table);
    filterable(document.getElementById("filter"), table, document.getElementById("shown"));
  }
  Promise.all([...document.querySelectorAll("[data-chart]")].map(draw)).then((drawn) => {
    root.dataset.drawn = drawn.reduce((sum, one) => sum + one, 0);
    dispatchEvent(new Event("resize")); // charts as wide as the page allows, now that all of it stands
  });
})();
