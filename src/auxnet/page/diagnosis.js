"use strict";
// The figures of a diagnosis, drawn from the JSON in #data: a colour per run, or per output where there is one run.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const isDark = () => document.documentElement.dataset.theme === "dark";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const COLOURS = {
    light: ["#0072b2", "#c24a00", "#00795a", "#a8488a", "#8a6a00", "#444444"],
    dark: ["#6db9ee", "#ff9a56", "#3fcfa2", "#eb9fd0", "#f0d04c", "#cccccc"],
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "x"];
  let scale = "linear";

  // Rows of each run and output, with how that line looks: [{name, line, marker, rows}].
  function lines(rowsOf) {
    return runs.flatMap((run, r) => {
      const rows = rowsOf(run) || [], outputs = [...new Set(rows.map((row) => row.output))];
      return outputs.map((output, k) => {
        const parts = runs.length > 1 ? [run.name] : [];
        if (output != null && run.ends.length > 1) parts.push(`output ${output}`);
        const place = runs.length > 1 ? r : k, shade = COLOURS[isDark() ? "dark" : "light"], which = shade[place % shade.length];
        return {
          name: safe(parts.join(", ") || (run.ends.length > 1 ? "all outputs" : run.name)), rows: rows.filter((row) => row.output === output),
          line: { color: which, width: 2.2, dash: runs.length > 1 ? DASHES[k % DASHES.length] : "solid" },
          marker: { color: which, size: 7, symbol: SYMBOLS[(runs.length > 1 ? r : k) % SYMBOLS.length] },
        };
      });
    });
  }
  function axis(title, more) {
    return {
      title: { text: title, standoff: 8 }, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true,
      ticks: "outside", tickcolor: colour("line"), ...more,
    };
  }
  function draw(id, traces, xaxis, yaxis, shapes = []) {
    const place = byId(`${id}-plot`);
    if (!place) return null;
    return Plotly.react(place, traces, {
      xaxis, yaxis, shapes, showlegend: true, hovermode: "closest", dragmode: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), size: 13, family: "system-ui, sans-serif" }, margin: { l: 62, r: 20, t: 12, b: 46 },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    }, { displayModeBar: false, responsive: true });
  }
  const one = () => [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: colour("muted"), width: 1, dash: "dot" } }];
  const shareAxis = (title, type) => axis(title, type === "log" ? { type, dtick: "D2" } : { rangemode: "tozero" });
  const base = { mode: "lines+markers" };

  function shares() {
    const traces = lines((run) => run.shares).map(({ rows, ...look }) => ({
      ...base, ...look, x: rows.map((row) => row.layer), y: rows.map((row) => row.share), hovertemplate: "layer %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
    }));
    return draw("shares", traces, axis("layer", { rangemode: "tozero" }), shareAxis("share of supervision", scale), one());
  }
  function epochs() {
    const traces = lines((run) => {
      const shallowest = Math.min(...run.epochs.map((row) => row.layer));
      return run.epochs.filter((row) => row.layer === shallowest);
    }).map(({ rows, ...look }) => ({
      ...base, ...look, x: rows.map((row) => row.epoch), y: rows.map((row) => row.share), hovertemplate: "epoch %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
    }));
    const last = Math.max(1, ...traces.flatMap((trace) => trace.x));
    return draw("epochs", traces, axis("epoch", { dtick: Math.max(1, Math.round(last / 10)) }), shareAxis("share at the shallowest layer", "linear"), one());
  }
  function probes() {
    const traces = lines((run) => run.probes).map(({ rows, marker, ...look }, r) => {
      const run = runs.filter((each) => each.probes)[r];
      return {
        ...base, ...look, name: runs.length > 1 ? safe(run.name) : "linear probe", x: rows.map((row) => row.layer), y: rows.map((row) => row.accuracy),
        marker: { ...marker, symbol: rows.map((row) => (run.ends.includes(row.layer) ? "circle-open" : "circle")), size: rows.map((row) => (run.ends.includes(row.layer) ? 11 : 6)), line: { color: marker.color, width: 2 } },
        error_y: { type: "data", symmetric: false, array: rows.map((row) => row.high - row.accuracy), arrayminus: rows.map((row) => row.accuracy - row.low), thickness: 1, width: 3 },
        hovertemplate: "layer %{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
      };
    });
    return draw("probes", traces, axis("layer", { rangemode: "tozero" }), axis("accuracy on validation", { tickformat: ".0%" }));
  }
  const drawAll = () => Promise.all([shares(), epochs(), probes()]);

  for (const [value, text] of [["linear", "Linear"], ["log", "Log"]]) {
    const label = document.createElement("label"), input = document.createElement("input"), span = document.createElement("span");
    Object.assign(input, { type: "radio", name: "scale", value, checked: value === scale });
    input.addEventListener("change", () => { scale = value; shares(); });
    span.textContent = text;
    label.append(input, span);
    byId("scale").append(label);
  }
  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
  }
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  setTheme(prefersDark.matches ? "dark" : "light");
  prefersDark.addEventListener("change", () => { if (!chosen) { setTheme(prefersDark.matches ? "dark" : "light"); drawAll(); } });
  byId("theme").addEventListener("click", () => { chosen = true; setTheme(isDark() ? "light" : "dark"); drawAll(); });
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); drawAll(); });
  addEventListener("afterprint", () => { setTheme(before || "light"); drawAll(); });
  drawAll().then(() => { document.documentElement.dataset.ready = ""; });
})();
