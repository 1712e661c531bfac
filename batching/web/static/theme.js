// Loaded before anything is drawn: the theme that was chosen, and the mark by which styles know that scripts run.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  let theme = null;
  try {
    theme = localStorage.getItem("batching-theme");
  } catch {
    // Storage is forbidden: the theme is the system's.
  }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
})();
