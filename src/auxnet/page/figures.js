"use strict";
// Figures as Plotly describes them, drawn into their places in the colours of the page.
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const drawn = Object.entries(figures).map(([id, figure]) => {
    const layout = {
      ...figure.layout, title: undefined, template: undefined, width: undefined, height: undefined, autosize: true, dragmode: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), size: 13, family: "system-ui, sans-serif" },
      margin: { l: 62, r: 20, t: 12, b: 46 },
    };
    for (const key of Object.keys(layout).filter((each) => /^[xy]axis/.test(each))) {
      const ticks = layout[key].type === "log" ? { dtick: "D2" } : {};
      layout[key] = { ...ticks, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true, ...layout[key] };
    }
    return Plotly.newPlot(`${id}-plot`, figure.data, layout, { responsive: true, displayModeBar: false });
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.ready = ""; });
})();
