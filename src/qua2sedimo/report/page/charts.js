"use strict";
// Draws the charts that are in view first, the others while nothing else is to be done, so that the page can be used
// meanwhile and all of them are there when it is printed.
(async () => {
  const root = document.documentElement;
  const specifications = JSON.parse(document.getElementById("specifications").textContent);
  const options = {
    renderer: "svg",
    ast: true, // no eval: the page forbids it
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: "custom" },
  };

  /** The chart with room for its legend settled: were it to change while it is drawn, the legend would be cut off. */
  function settled(place) {
    const room = Math.max(0, place.clientWidth - 90);
    const whole = JSON.stringify(specifications[place.dataset.chart]);
    return JSON.parse(whole.replace(/"expr":"[^"]*"/g, (found) => found.replace(/\bwidth\b/g, room)));
  }

  async function draw(place) {
    const name = place.dataset.chart;
    try {
      const { view } = await vegaEmbed(place, settled(place), { ...options, downloadFileName: name });
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

  const waiting = new Set(document.querySelectorAll("[data-chart]")), near = new Set();
  let hurry = false, drawn = 0;
  const later = globalThis.requestIdleCallback ?? setTimeout;
  const idle = () => new Promise((resume) => (hurry ? setTimeout(resume) : later(resume, { timeout: 400 })));
  // On paper charts have another width. They are drawn before the browser lays out the sheets, as soon as this returns.
  function fitTo(paper) {
    root.classList.toggle("printing", paper);
    dispatchEvent(new Event("resize"));
  }
  addEventListener("beforeprint", () => { hurry = true; fitTo(true); });
  addEventListener("afterprint", () => fitTo(false));
  await new Promise((resume) => {
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) near[isIntersecting ? "add" : "delete"](target);
      resume();
    }, { rootMargin: "25%" });
    for (const place of waiting) watch.observe(place);
    setTimeout(resume, 250); // a page that is not shown is not observed either
  });
  const first = () => [...waiting].find((place) => near.has(place));
  while (waiting.size) {
    if (!first() && !root.dataset.visible) root.dataset.visible = Math.round(performance.now());
    if (!first()) await idle();
    const place = first() ?? [...waiting][0];
    waiting.delete(place);
    drawn += await draw(place);
    await new Promise((resume) => setTimeout(resume));
  }
  root.dataset.visible ??= Math.round(performance.now());
  root.dataset.drawn = drawn;
  root.dataset.finished = Math.round(performance.now());
  dispatchEvent(new Event("resize")); // charts as wide as the page allows, now that all of it stands
})();
