"use strict";
// Light or dark: as the system prefers until the button is pressed, and light on paper. Runs before the page is shown.
const byId = (id) => document.getElementById(id);
const isDark = () => document.documentElement.dataset.theme === "dark";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
let redraw = () => undefined; // set by a page's program: draws its figures in the colours of the new theme
{
  const button = byId("theme"), prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let pressed = false, onScreen = null;
  const change = (theme) => {
    const other = theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    button.textContent = other === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Change to ${other} colours`);
    redraw();
  };
  const follow = () => change(prefersDark.matches ? "dark" : "light");
  follow();
  button.hidden = false;
  prefersDark.addEventListener("change", () => { if (!pressed) follow(); });
  button.addEventListener("click", () => { pressed = true; change(isDark() ? "light" : "dark"); });
  addEventListener("beforeprint", () => { onScreen = document.documentElement.dataset.theme; change("light"); });
  addEventListener("afterprint", () => change(onScreen));
}
