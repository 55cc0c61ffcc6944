"use strict";
// The button beside the code that loads the model. Files opened from disk may not use the clipboard: then it is selected.
(() => {
  const button = document.getElementById("copy-code"), code = document.getElementById("loading");
  if (!button) return;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
})();
