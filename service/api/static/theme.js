// Runs before the first paint, so that a chosen theme does not flash in.
(() => {
  const order = ["auto", "light", "dark"];
  const names = { auto: "as the system has it", light: "light", dark: "dark" };
  let theme = "auto";
  try {
    theme = localStorage.getItem("stride-theme") ?? "auto";
  } catch {
    // Storage may be forbidden: the theme is then the system's until it is chosen.
  }
  if (!order.includes(theme)) theme = "auto";
  document.documentElement.dataset.theme = theme;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      document.documentElement.dataset.theme = theme;
      button.setAttribute("aria-label", `Theme: ${names[theme]}. Change it`);
      button.title = `Theme: ${names[theme]}`;
    };
    button.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try {
        localStorage.setItem("stride-theme", theme);
      } catch {
        // It holds for this page all the same.
      }
      show();
    });
    show();
  });
})();
