"use strict";
// Rows of buttons of which one is pressed.
const segments = (group, onPress) => {
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      onPress(button.dataset);
    });
  }
};
for (const card of document.querySelectorAll(".tabbed")) {
  const layers = card.querySelectorAll(".layer");
  segments(card.querySelector(".segments"), ({ layer }) =>
    layers.forEach((one, i) => one.toggleAttribute("data-off", i !== Number(layer))));
}
