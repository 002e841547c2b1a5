// Loaded before the page is drawn, so that it never flashes in the other theme. No module.
(() => {
  const KEY = "maestrale.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const apply = () => {
    document.documentElement.dataset.theme = kept() ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  window.switchTheme = () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    // The system's own theme again is no choice of its own: it goes on following the system.
    try {
      if ((next === "dark") === system.matches) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
    } catch { /* storage is forbidden: for this page only */ }
    document.documentElement.dataset.theme = next;
    return next;
  };
  apply();
})();
