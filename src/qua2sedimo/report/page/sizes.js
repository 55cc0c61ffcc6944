"use strict";
// What another size would be like: a slider over the sizes of the table, and the measurement nearest to each.
(() => {
  const slider = document.getElementById("size");
  if (!slider) return;
  const { columns, rows } = study.sizes;
  const operations = columns.slice(3);
  const most = Math.max(...rows.flatMap((row) => row.slice(3)));
  const bars = document.getElementById("size-bars");
  const lines = operations.map((name) => {
    const line = document.createElement("div");
    const label = document.createElement("span"), bar = document.createElement("i"), value = document.createElement("small");
    label.textContent = name;
    line.append(label, bar, value);
    bars.append(line);
    return { bar, value };
  });
  const unit = slider.dataset.unit;
  const measured = study.measurements.rows
    .filter(([kind, , , value]) => kind !== "random" && kind !== "full" && value !== null)
    .map(([kind, name, bits, value]) => ({ name: name || kind, bits, value }));
  const better = slider.dataset.better === "higher" ? 1 : -1;

  function nearest(bits) {
    const close = measured.filter((one) => Math.abs(one.bits - bits) <= 0.15);
    return close.sort((a, b) => better * (b.value - a.value))[0];
  }

  function show() {
    const [bits, size, change, ...widths] = rows[slider.value];
    document.getElementById("size-bits").textContent = `${bits.toFixed(2)} bits per weight, ${size}`;
    const by = change === null ? "" : Math.abs(change) < 0.05 ? "about as good as this choice"
      : `${Math.abs(change).toFixed(1)} dB ${change > 0 ? "better" : "worse"} than this choice`;
    document.getElementById("size-change").textContent = by && `Expected by gradients: ${by}.`;
    const near = nearest(bits);
    document.getElementById("size-near").textContent = near
      ? `Measured near this size: “${near.name}” with ${near.bits.toFixed(2)} bits, ${near.value.toPrecision(3)} ${unit}.`
      : "Nothing was measured near this size.";
    widths.forEach((width, i) => {
      lines[i].bar.style.width = `${100 * width / most}%`;
      lines[i].value.textContent = width.toFixed(2);
    });
    const picture = document.getElementById("size-picture");
    const row = near && [...document.querySelectorAll("#grid tbody tr")].find((one) => one.cells[0].querySelector("span").textContent === near.name);
    picture.hidden = !row;
    if (row) {
      const source = row.querySelector("img");
      picture.src = source.src;
      picture.alt = source.alt;
      picture.classList.toggle("tiny", source.classList.contains("tiny"));
    }
  }
  slider.addEventListener("input", show);
  show();
})();
