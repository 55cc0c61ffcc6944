"use strict";
// Draws the charts in the order they are read, one after the other, so that the page can be used meanwhile.
(async () => {
  const root = document.documentElement;
  const specifications = JSON.parse(document.getElementById("specifications").textContent);
  const options = {
    renderer: "svg",
    ast: true, // no eval: the page forbids it
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: "custom" },
  };

  async function draw(place) {
    const name = place.dataset.chart;
    try {
      const { view } = await vegaEmbed(place, specifications[name], { ...options, downloadFileName: name });
      view.addEventListener("click", (_, item) => {
        const mark = item?.datum;
        if (layerTable && mark && (mark.operation || mark.block)) layerTable(mark);
      });
      return 1;
    } catch (error) {
      place.textContent = `This chart could not be drawn: ${error.message}`;
      noteError(error.message);
      return 0;
    }
  }

  let drawn = 0;
  for (const place of document.querySelectorAll("[data-chart]")) {
    drawn += await draw(place);
    await new Promise((resume) => setTimeout(resume));
  }
  root.dataset.drawn = drawn;
  root.dataset.finished = Math.round(performance.now());
  dispatchEvent(new Event("resize")); // charts as wide as the page allows, now that all of it stands
})();
