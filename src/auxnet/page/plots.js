"use strict";
// What the programs of all pages share: lines and points that can be told apart, controls, Plotly in the page's look.
const SYMBOLS = [
  "circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "x", "hexagon", "triangle-down",
];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SHADES = {
  light: ["#0072b2", "#c24a00", "#00795a", "#a8488a", "#8a6a00", "#444444"],
  dark: ["#6db9ee", "#ff9a56", "#3fcfa2", "#eb9fd0", "#f0d04c", "#cccccc"],
};
// Orange to navy on white, violet to yellow on black: readable with every common colour blindness, and in grey.
const RAMPS = {
  light: ["#d9651f", "#bf3a7a", "#7b2a9e", "#12207f"],
  dark: ["#c05bd8", "#f0709a", "#fba152", "#f6e04a"],
};
const shades = () => SHADES[isDark() ? "dark" : "light"];
const shade = (n) => shades()[n % shades().length];
// A dash for line n: when the shades begin again, the lines have other dashes than the first lines of their shade.
const dash = (n) => DASHES[(n + Math.floor(n / shades().length)) % DASHES.length];
const symbol = (n) => SYMBOLS[n % SYMBOLS.length];
// The look of output k of run r if colours tell runs: dashes and symbols tell outputs, symbols also runs of one shade.
const ofSeveral = (r, k) => ({
  dash: DASHES[k % DASHES.length], symbol: symbol(k + Math.floor(r / shades().length)),
});
const ramp = () => RAMPS[isDark() ? "dark" : "light"];
// The colour at a share of the way along the ramp.
function along(share) {
  const stops = ramp().map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const place = share * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[below].map((v, i) => Math.round(v + (place - below) * (stops[below + 1][i] - v)));
  return `rgb(${mixed.join(",")})`;
}

function significant(v) { return v >= 100 ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toFixed(2); }
function count(v) {
  if (v >= 1e9) return `${significant(v / 1e9)} G`;
  if (v >= 1e6) return `${significant(v / 1e6)} M`;
  if (v >= 1e3) return `${significant(v / 1e3)} k`;
  return `${Number(v.toPrecision(3))}`;
}
// Text from users only ever becomes a text node, or in Plotly a text in which markup and TeX are escaped.
function safe(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
}
// A name shortened in its middle: names that begin alike often end differently.
function short(text, length) {
  const letters = [...text], half = (length - 1) / 2; // whole characters: a string's units may be halves of an emoji
  const part = (...ends) => letters.slice(...ends).join("");
  return letters.length > length ? `${part(0, Math.ceil(half))}…${part(-Math.floor(half))}` : text;
}
function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
// Words in which commands in backticks become code.
function tell(place, words) {
  place.replaceChildren(...words.split(/`(auxnet [^`]*)`/).map((part, n) => n % 2 ? element("code", part) : part));
}
function switcher(id, options, chosen, changed) {
  const field = byId(id);
  for (const old of field.querySelectorAll("label")) old.remove();
  for (const [value, text, off] of options) {
    const label = element("label"), input = element("input");
    Object.assign(input, { type: "radio", name: id, value, checked: value === chosen, disabled: Boolean(off) });
    if (off) label.title = off;
    input.addEventListener("change", () => changed(value));
    label.append(input, element("span", text));
    field.append(label);
  }
}
function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 8 }, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
    automargin: true, ticks: "outside", tickcolor: colour("line"), ...more,
  };
}
// Error bars from each row's low to its high, about its `key`.
function bars(rows, key, scale, look) {
  return {
    type: "data", symmetric: false, ...look, array: rows.map((row) => scale * (row.high - row[key])),
    arrayminus: rows.map((row) => scale * (row[key] - row.low)),
  };
}
const epochAxis = (last) => axis("epoch", { // no tick between two epochs
  dtick: Math.max(1, Math.round(last / 10)), ...(last > 1 ? {} : { range: [0.5, 1.5] }),
});
// The ticks of a logarithmic axis: more between two powers of ten on a short axis, evenly spaced on the shortest.
const TICKS = [[2.2, [1]], [0.7, [1, 2, 5]], [0.35, [1, 1.5, 2, 3, 4, 6, 8]]]; // [its decades, the ticks of each]
function decades([low, high]) {
  const digits = TICKS.find(([least]) => high - low > least)?.[1], values = [];
  if (digits)
    for (let power = Math.floor(low); power <= Math.ceil(high); power += 1)
      values.push(...digits.map((digit) => digit * 10 ** power));
  else if (high > low) {
    const fifth = (10 ** high - 10 ** low) / 5, unit = 10 ** Math.floor(Math.log10(fifth));
    const step = unit * [1, 2, 5, 10].find((times) => times * unit >= fifth);
    for (let n = Math.ceil(10 ** low / step); n * step <= 10 ** high; n += 1) values.push(n * step);
  } else return {};
  const words = values.map((v) => count(v).replace(/\.0+ /, " ").replace(/(\.\d*?)0+ /, "$1 "));
  const told = new Set(words).size === words.length;
  const full = (v) => v.toLocaleString("en", { maximumSignificantDigits: 12 });
  return { tickvals: values, ticktext: told ? words : values.map(full) };
}
// The same for an axis whose range follows from its values; values of 0 and below are not drawn.
function decadesOf(values) {
  const places = values.filter((v) => v > 0).map(Math.log10), low = Math.min(...places), high = Math.max(...places);
  return decades(low === high ? [low - 1, high + 1] : [low, high]);
}
const isNarrow = (place) => place.clientWidth < 520;
// A figure becomes higher by the rows of its legend beyond the third, so that the plot itself keeps its height.
function heightenFor(place, traces) {
  const shown = traces.filter((trace) => trace.name && trace.showlegend !== false);
  const names = shown.map((trace) => trace.name.length);
  const columns = Math.max(1, Math.floor((place.clientWidth - 80) / (50 + 7 * Math.max(0, ...names))));
  place.style.setProperty("--more", `${19 * Math.max(0, Math.ceil(names.length / columns) - 3)}px`);
}
function draw(id, traces, layout) {
  const place = byId(id), narrow = isNarrow(place);
  const base = {
    height: place.clientHeight, // Plotly itself measures it only the first time
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: shades(),
    font: { color: colour("ink"), size: narrow ? 12 : 13, family: "system-ui, sans-serif" },
    margin: { l: narrow ? 48 : 62, r: narrow ? 18 : 20, t: 12, b: 46 }, hovermode: "closest", dragmode: false,
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
    legend: {
      orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: narrow ? 11 : 12.5 }, traceorder: "normal",
    },
  };
  return Plotly.react(place, traces, { ...base, ...layout }, { displayModeBar: false, responsive: true });
}
