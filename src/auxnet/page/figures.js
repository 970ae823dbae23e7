"use strict";
// Plotly's figures, drawn into their places in the look of the page. A colour in a figure may be the name of one of the
// page's colours ("--accent") or a share of the way along the page's ramp (0 to 1); a scale of colours is the ramp.
// Names of lines and words on an axis are text, never markup.
(() => {
  function ofPage(key, value) {
    if (key === "colorscale") return ramp().map((hex, n, all) => [n / (all.length - 1), hex]);
    if (key === "color" && typeof value === "number") return along(value);
    if (key === "name") return safe(value);
    if (["x", "y", "categoryarray", "ticktext"].includes(key) && Array.isArray(value))
      return value.map((each) => (typeof each === "string" ? safe(each) : each));
    return key === "color" && String(value).startsWith("--") ? colour(value.slice(2)) : value;
  }
  function ticks(key, { type }, data) {
    const on = data.filter((trace) => (trace.xaxis || "x").replace("x", "xaxis") === key);
    return type === "log" ? decadesOf(on.flatMap((trace) => trace.x)) : {};
  }
  function drawAll() {
    const figures = Object.entries(JSON.parse(byId("data").textContent, ofPage));
    return Promise.all(figures.map(([id, { data, layout }]) => {
      const { title, template, width, legend, plot_bgcolor, ...own } = layout;
      for (const key of Object.keys(own).filter((each) => /^[xy]axis/.test(each))) {
        const { title: words, ...more } = own[key];
        own[key] = axis(words?.text, { ...ticks(key, more, data), ...more });
      }
      if (own.height) byId(`${id}-plot`).style.height = `${own.height}px`;
      return draw(`${id}-plot`, data, own);
    }));
  }
  redraw = drawAll;
  drawAll().then(() => { document.documentElement.dataset.ready = ""; });
})();
