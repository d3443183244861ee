// Before the first paint: the chosen theme, so that nothing flashes; and the mark that scripts run.
"use strict";
document.documentElement.classList.add("scripted");
try {
  const chosen = localStorage.getItem("adloop-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch (error) {
  // Storage is forbidden here: the system's theme holds.
  console.info("The theme cannot be kept:", error.message);
}
