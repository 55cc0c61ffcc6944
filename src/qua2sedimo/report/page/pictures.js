"use strict";
// The viewer lays two pictures of the grid over one another; the grid can show differences from its first row.
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const grid = document.getElementById("grid");
  const rows = [...grid.tBodies[0].rows].map((row) => ({
    name: row.cells[0].querySelector("span").textContent,
    images: [...row.querySelectorAll("img")],
  }));
  const captions = [...grid.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
  const stage = viewer.querySelector(".stage");
  const layers = [stage.querySelector(".under"), stage.querySelector(".over")];
  const tags = stage.querySelectorAll(".tag");
  const selects = viewer.querySelectorAll("select");
  const shown = { rows: [0, 1], column: 0 };

  function show() {
    // The left picture is on top and cut off at the edge, so that what is named left is left.
    shown.rows.forEach((row, side) => {
      const source = rows[row].images[shown.column];
      const image = layers[1 - side];
      image.src = source.src;
      image.alt = source.alt;
      image.classList.toggle("tiny", source.classList.contains("tiny"));
      tags[side].textContent = rows[row].name;
      selects[side].value = row;
    });
    viewer.querySelector(".prompt").textContent = captions[shown.column];
    viewer.querySelector("output").textContent = `${shown.column + 1} of ${captions.length}`;
    rows.forEach(({ images }, row) => images.forEach((image, column) =>
      image.classList.toggle("shown", column === shown.column && shown.rows.includes(row))));
    tellApart();
  }

  async function pixels(image) {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  }

  async function tellApart() {
    const names = shown.rows.map((row) => rows[row].name);
    const [a, b] = await Promise.all(shown.rows.map((row) => pixels(rows[row].images[shown.column])));
    if (names.some((name, side) => name !== tags[side].textContent)) return; // another pair was chosen meanwhile
    const mean = a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / ((a.length * 3) / 4);
    document.getElementById("apart").textContent =
      `Their colours differ by ${mean.toFixed(1)} of 255 on average.`;
  }

  const wipe = stage.querySelector("input");
  wipe.addEventListener("input", () => stage.style.setProperty("--wipe", `${wipe.value}%`));
  segments(viewer.querySelector(".segments"), ({ view }) => { stage.dataset.view = view; });
  selects.forEach((select, side) => {
    select.append(...rows.map(({ name }, row) => new Option(name, row)));
    select.addEventListener("change", () => { shown.rows[side] = Number(select.value); show(); });
  });
  for (const button of viewer.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      shown.column = (shown.column + Number(button.dataset.step) + captions.length) % captions.length;
      show();
    });
  }

  rows.forEach(({ images }, row) => images.forEach((image, column) => {
    const cell = document.createElement("button");
    cell.type = "button";
    image.replaceWith(cell);
    cell.append(image);
    cell.addEventListener("click", () => {
      shown.column = column;
      if (row !== shown.rows[0]) shown.rows[1] = row;
      show();
    });
  }));
  segments(document.getElementById("grid-view"), ({ view }) => {
    const difference = view === "difference";
    for (const { images } of rows.slice(1)) {
      images.forEach((image, column) => {
        const cell = image.parentElement;
        cell.classList.toggle("difference", difference);
        cell.style.backgroundImage = difference ? `url(${rows[0].images[column].src})` : "";
      });
    }
  });
  show();
})();
