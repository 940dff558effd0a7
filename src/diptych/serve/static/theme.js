// Sets the theme before anything is drawn: a classic script in the head, so that a dark page does not flash.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("diptych-theme"); } catch { /* storage may be closed: the system's theme then */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
