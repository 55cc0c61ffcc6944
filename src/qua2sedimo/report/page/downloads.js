"use strict";
// The page's numbers as files: a table as CSV, or everything as JSON.
(() => {
  const nameOf = (layer) => study.layers.rows[layer][0];
  const named = (table) => table === study.options
    ? { columns: table.columns, rows: table.rows.map(([layer, ...rest]) => [nameOf(layer), ...rest]) }
    : table;
  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = ({ columns, rows }) => [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";

  function save(name, kind, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  for (const button of document.querySelectorAll("#downloads button")) {
    button.addEventListener("click", () => {
      const { table } = button.dataset;
      if (table) save(`${table}.csv`, "text/csv", csv(named(study[table])));
      else save("report.json", "application/json", JSON.stringify({ ...study, options: named(study.options) }, null, 1));
    });
  }
  const { documentElement: root } = document;
  root.dataset.usable = Math.round(performance.now()); // all but the charts
})();
