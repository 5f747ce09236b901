// Before anything is drawn: the theme that was chosen on this machine, so that no other one flashes up.
(function () {
  "use strict";
  var theme = null;
  try {
    theme = localStorage.getItem("registry.theme");
  } catch (error) {
    // No storage in this browser: the system's theme.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
