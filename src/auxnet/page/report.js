"use strict";
// The figures of a report, drawn from the JSON in #data. Every choice is made on validation errors.
(() => {
  const D = JSON.parse(byId("data").textContent);
  const several = D.runs.length > 1;
  const NO_LIMIT = 200;
  const state = { run: 0, axis: "macs", curve: "val_error", scale: "linear", output: null, curveOutput: 0 };
  const AXES = {
    depth: { title: "depth (layers)", word: "layers", type: "linear", text: (v) => `${v}` },
    params: { title: "parameters", word: "parameters", type: "log", text: count },
    macs: { title: "multiply-adds for one image", word: "MACs", type: "linear", text: count },
    latency: { title: "latency of one image (ms)", word: "ms", type: "linear", text: (v) => `${significant(v)} ms` },
  };

  // ---- words and numbers ------------------------------------------------------------------------------------
  function percent(v, digits = 2) { return `${(100 * v).toFixed(digits)} %`; }
  function points(v) { return `${v.toFixed(1)} point${v.toFixed(1) === "1.0" ? "" : "s"}`; }
  function interval(e) { return `${(100 * e.low).toFixed(1)} – ${(100 * e.high).toFixed(1)}`; }
  function short(text, length = 14) { return text.length > length ? `${text.slice(0, length - 1)}…` : text; }

  // ---- colours ----------------------------------------------------------------------------------------------
  function ofOutput(k, K) { return along(K > 1 ? k / (K - 1) : 1); }
  function faded(rgb, alpha) {
    const parts = rgb.startsWith("#") ? [1, 3, 5].map((i) => parseInt(rgb.slice(i, i + 2), 16)) : rgb.match(/\d+/g);
    return `rgba(${parts.slice(0, 3).join(",")},${alpha})`;
  }

  // ---- plotly -----------------------------------------------------------------------------------------------
  function show(id, traces, layout, label) {
    const place = byId(id);
    place.classList.remove("absent");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", label);
    draw(id, traces, layout);
  }
  function absent(id, why) {
    const place = byId(id);
    if (place.data) Plotly.purge(place);
    place.classList.add("absent");
    place.removeAttribute("role");
    place.textContent = why;
  }

  // ---- choosing: the rule of `auxnet select`, on validation errors alone ---------------------------------------
  function limitValue(id, key) {
    const position = Number(byId(id).value), values = run().outputs.map((o) => o[key]).filter((v) => v !== null);
    if (position >= NO_LIMIT || !values.length) return Infinity;
    const low = 0.8 * Math.min(...values), high = 1.1 * Math.max(...values);
    return low * (high / low) ** (position / (NO_LIMIT - 1));
  }
  function limits() {
    return {
      within: Number(byId("within").value), params: limitValue("max-params", "params"),
      macs: limitValue("max-macs", "macs"), latency: limitValue("max-latency", "latency"),
    };
  }
  function choose(outputs, limit) {
    const fits = outputs.filter((o) => ["params", "macs", "latency"].every((key) => limit[key] === Infinity || o[key] <= limit[key]));
    if (!fits.length) return { chosen: null, best: null, bar: null };
    const best = fits.reduce((a, b) => (b.val.error < a.val.error ? b : a));
    const bar = best.val.error + limit.within / 100;
    return { chosen: fits.find((o) => o.val.error <= bar + 1e-9), best, bar };
  }
  const run = () => D.runs[state.run];
  const deepest = () => run().outputs[run().outputs.length - 1];

  function showChoice() {
    const limit = limits(), { chosen, best } = choose(run().outputs, limit);
    const say = (id, value, text) => {
      byId(`${id}-value`).textContent = text;
      byId(`${id}-value`).dataset.value = value;
      byId(id).setAttribute("aria-valuetext", text);
    };
    say("within", limit.within, points(limit.within));
    for (const key of ["params", "macs", "latency"]) {
      const none = run().outputs.some((o) => o[key] === null);
      byId(`max-${key}`).disabled = none;
      say(`max-${key}`, limit[key], none ? "not measured" : limit[key] === Infinity ? "no limit" : `≤ ${AXES[key].text(limit[key])}`);
    }
    const costs = byId("costs");
    costs.replaceChildren();
    byId("answer").dataset.output = chosen ? chosen.output : "none";
    const flags = [limit.within ? ` --within ${limit.within}` : ""];
    for (const [key, flag] of [["params", "max-params"], ["macs", "max-macs"], ["latency", "max-latency"]])
      if (limit[key] !== Infinity) flags.push(` --${flag} ${key === "latency" ? limit[key].toPrecision(4) : Math.floor(limit[key])}`);
    byId("command").textContent = `auxnet select ${run().folder}${flags.join("")}`;
    if (!chosen) {
      byId("choice").textContent = "No output meets these limits";
      const least = ["params", "macs", "latency"].filter((key) => limit[key] !== Infinity && run().outputs.every((o) => o[key] > limit[key]));
      byId("reason").textContent = least.length
        ? `Even the cheapest output needs ${least.map((key) => smallest(key)).join(" and ")}.`
        : "Each output breaks one limit or another.";
    } else {
      byId("choice").textContent = `Output ${chosen.output} of ${run().outputs.length}, depth ${chosen.depth}`;
      const bound = limit.params !== Infinity || limit.macs !== Infinity || limit.latency !== Infinity;
      const among = bound ? "of the outputs that fit" : "of all";
      byId("reason").textContent = chosen === best
        ? `It has the lowest validation error ${among}, and no smaller one comes within ${points(limit.within)} of it.`
        : `The smallest within ${points(limit.within)} of the lowest validation error ${among}: ${percent(best.val.error)}, output ${best.output}.`;
      const row = (name, value, aside) => {
        const cell = element("dd", value);
        if (aside) cell.append(" ", element("small", aside));
        costs.append(element("dt", name), cell);
      };
      const share = (key) => (chosen === deepest() ? "" : `${Math.round((100 * chosen[key]) / deepest()[key])} % of output ${deepest().output}`);
      row("Validation error", percent(chosen.val.error), `[${interval(chosen.val)}], n = ${chosen.val.n.toLocaleString("en")}`);
      row("Test error (report only)", percent(chosen.test.error), `[${interval(chosen.test)}], n = ${chosen.test.n.toLocaleString("en")}`);
      row("Parameters", chosen.params.toLocaleString("en"), share("params"));
      row("MACs", chosen.macs.toLocaleString("en"), share("macs"));
      if (chosen.latency !== null) row("Latency", AXES.latency.text(chosen.latency), share("latency"));
    }
    for (const line of document.querySelectorAll("#outputs tr[data-output]")) {
      const here = chosen && Number(line.dataset.run) === state.run && Number(line.dataset.output) === chosen.output;
      line.classList.toggle("chosen", Boolean(here));
    }
    showFront(limit);
  }
  function smallest(key) {
    const value = Math.min(...run().outputs.map((o) => o[key]));
    return key === "latency" ? AXES.latency.text(value) : `${value.toLocaleString("en")} ${AXES[key].word}`;
  }

  // ---- error against cost ----------------------------------------------------------------------------------------
  function front(outputs, key) {
    const sorted = [...outputs].sort((a, b) => a[key] - b[key] || a.val.error - b.val.error);
    let lowest = Infinity;
    return sorted.filter((o) => o.val.error < lowest && ((lowest = o.val.error), true));
  }
  function showFront(limit) {
    const key = state.axis, kind = AXES[key], { chosen, bar } = choose(run().outputs, limit);
    const shown = D.runs.map((r, index) => ({ r, index })).filter(({ r }) => r.outputs.every((o) => o[key] !== null));
    const every = shown.flatMap(({ r }) => r.outputs), xs = every.map((o) => o[key]);
    const log = kind.type === "log", place = (v) => (log ? Math.log10(v) : v);
    const low = Math.min(...xs.map(place)), high = Math.max(...xs.map(place)), span = high - low || 1;
    const range = [low - 0.08 * span, high + 0.08 * span];
    const aside = (v) => (log ? 10 ** (Math.log10(v) + 0.012 * span) : v + 0.012 * span);
    const bars = (o, set, c) => ({
      type: "data", symmetric: false, array: o.map((e) => 100 * (e[set].high - e[set].error)),
      arrayminus: o.map((e) => 100 * (e[set].error - e[set].low)), color: c, thickness: 1.6, width: 4,
    });
    const traces = [], top = Math.max(...every.flatMap((o) => [o.val.high, o.test.high])) * 106;
    for (const { r, index } of shown) {
      const K = r.outputs.length, own = (k) => (several ? shade(index) : ofOutput(k, K));
      const colours = r.outputs.map((_, k) => own(k)), best = front(r.outputs, key), name = several ? safe(r.name) : "";
      const text = r.outputs.map((o) => `<b>${several ? `${name}, ` : ""}output ${o.output}</b>, depth ${o.depth}<br>${count(o.params)} parameters, ${count(o.macs)} MACs` +
        (o.latency === null ? "" : `, ${AXES.latency.text(o.latency)}`) + `<br>validation ${percent(o.val.error)} [${interval(o.val)}], n = ${o.val.n}<br>test ${percent(o.test.error)} [${interval(o.test)}], n = ${o.test.n}`);
      traces.push({ x: best.map((o) => o[key]), y: best.map((o) => 100 * o.val.error), mode: "lines", hoverinfo: "skip", name: several ? name : "Pareto front (validation)",
        line: { shape: "hv", width: 1.6, dash: several ? DASHES[index % DASHES.length] : "dot", color: several ? shade(index) : colour("muted") }, legendgroup: `run${index}`, showlegend: !several });
      for (const [set, open] of [["test", true], ["val", false]])
        r.outputs.forEach((o, k) => traces.push({
          x: [set === "test" ? aside(o[key]) : o[key]], y: [100 * o[set].error], error_y: bars([o], set, open ? faded(colours[k], 0.55) : colours[k]), mode: "markers", text: [text[k]],
          hovertemplate: "%{text}<extra></extra>", legendgroup: several ? `run${index}` : set, showlegend: several ? !open && k === K - 1 : k === K - 1,
          name: several ? name : open ? "test" : "validation", marker: { symbol: SYMBOLS[k % SYMBOLS.length] + (open ? "-open" : ""), size: open ? 8 : 11, color: colours[k], line: { width: open ? 1.6 : 0, color: colours[k] } },
        }));
    }
    if (chosen && chosen[key] !== null)
      traces.push({ x: [chosen[key]], y: [100 * chosen.val.error], mode: "markers", name: "chosen", hoverinfo: "skip",
        marker: { symbol: "circle-open", size: 24, color: colour("accent"), line: { width: 3, color: colour("accent") } } });
    const shapes = [], cut = limit[key], notes = shown.flatMap(({ r, index }) => r.outputs.map((o, k) => ({
      x: place(o[key]), y: 100 * o.val.error, text: `<b>${o.output}</b>`, showarrow: false, xanchor: "right", xshift: -15,
      font: { color: several ? shade(index) : ofOutput(k, r.outputs.length), size: 13 },
    })));
    if (cut !== undefined && cut !== Infinity) {
      const edge = Math.max(place(cut), range[0]);
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: log ? 10 ** edge : edge, x1: log ? 10 ** range[1] : range[1], y0: 0, y1: 1, fillcolor: faded(colour("muted"), 0.16), line: { width: 0 }, layer: "below" });
      notes.push({ x: edge, y: 1, xref: "x", yref: "paper", text: "too costly →", showarrow: false, xanchor: edge > range[1] - 0.2 * span ? "right" : "left", yanchor: "top", font: { color: colour("muted"), size: 12 } });
    }
    if (bar !== null)
      shapes.push({ type: "rect", xref: "paper", yref: "y", x0: 0, x1: 1, y0: -5, y1: 100 * bar, fillcolor: faded(colour("accent"), 0.1), line: { width: 0 }, layer: "below" });
    if (!shown.length) return absent("front-plot", "Latency was not measured for these runs.");
    const ticks = log ? decades(range) : { tickformat: key === "macs" ? "~s" : "" };
    show("front-plot", traces, {
      xaxis: axis(kind.title, { type: kind.type, range, ...ticks }), yaxis: axis("error (%)", { range: [-0.03 * top, top] }), shapes, annotations: notes,
    }, `Error against ${kind.title} with 95 percent intervals: ` + every.map((o) => `output ${o.output}: ${kind.text(o[key])}, validation ${percent(o.val.error)}, test ${percent(o.test.error)}`).join("; "));
    const sizes = several ? "see the table for n" : `n = ${run().outputs[0].val.n.toLocaleString("en")} validation and ${run().outputs[0].test.n.toLocaleString("en")} test images`;
    byId("front-note").textContent = `Numbers: outputs. Filled: validation; open, drawn slightly to the right: test. Bars: 95 % Wilson intervals; ${sizes}. ` +
      `${several ? "Lines: Pareto fronts" : "Dotted: Pareto front"} on validation. Blue band: errors that are good enough under the limits above.` + latencyWords();
    return undefined;
  }
  function latencyWords() { return state.axis === "latency" && run().latency_words ? ` ${run().latency_words}` : ""; }

  // ---- learning curves ---------------------------------------------------------------------------------------------
  function showLearning() {
    const words = { val_error: "validation error (%)", val_loss: "validation loss (nats)", train_loss: "training loss (nats)" };
    const key = state.curve, traces = [], shapes = [], scaled = (v) => (v === null ? null : key === "val_error" ? 100 * v : v);
    D.runs.forEach((r, index) => {
      const K = r.curves.outputs.length;
      r.curves.outputs.forEach((o, k) => {
        if (several && state.curveOutput && o.output !== Math.min(state.curveOutput, K)) return;
        const c = several ? shade(index) : ofOutput(k, K);
        traces.push({ x: r.curves.epochs, y: o[key].map(scaled), mode: r.curves.epochs.length > 1 ? "lines" : "markers", line: { color: c, width: k === K - 1 ? 2.6 : 1.9, dash: several ? DASHES[index % DASHES.length] : DASHES[(K - 1 - k) % DASHES.length] },
          name: several ? `${safe(r.name)}, output ${o.output}` : `output ${o.output} (depth ${o.depth})`,
          hovertemplate: `epoch %{x}: %{y:.4~g}<extra>${several ? `${safe(short(r.name))}, ` : ""}output ${o.output}</extra>` });
      });
    });
    const r = run();
    for (const epoch of r.curves.drops) shapes.push({ type: "line", x0: epoch - 0.5, x1: epoch - 0.5, y0: 0, y1: 1, yref: "paper", line: { color: colour("muted"), width: 1, dash: "dot" } });
    if (!traces.length || !r.curves.epochs.length) return absent("learning-plot", "metrics.jsonl holds no finished epoch.");
    show("learning-plot", traces, {
      xaxis: epochAxis(r.epochs.last), yaxis: axis(words[key], { type: state.scale, rangemode: state.scale === "linear" ? "tozero" : "normal" }), shapes, hovermode: "x unified",
    }, `Learning curves: ${words[key]} after each epoch. ` + traces.map((t) => `${t.name} ends at ${Number(t.y[t.y.length - 1]).toPrecision(3)}`).join("; "));
    const n = r.data.val ? `Validation: n = ${r.data.val.toLocaleString("en")} images that are never trained on. ` : "";
    byId("learning-note").textContent = `${n}The figures of this page are of the last epoch (${r.epochs.last}); the best on validation was ${r.epochs.best}.` + (r.curves.drops.length ? " Dotted: the step size drops." : "");
    return undefined;
  }

  // ---- early exit ----------------------------------------------------------------------------------------------------
  function showExits() {
    const with_ = D.runs.map((r, index) => ({ r, index })).filter(({ r }) => r.exits);
    if (!run().exits) {
      for (const id of ["exits-plot", "shares-plot"]) absent(id, run().outputs.length < 2 ? "A net of one output has no early exit." : missing());
      byId("exits-note").textContent = byId("shares-note").textContent = "";
      return;
    }
    const traces = [];
    for (const { r, index } of with_) {
      const c = several ? shade(index) : colour("accent"), p = r.exits.points, name = several ? `${safe(r.name)}: ` : "";
      const text = p.map((e) => `validation ${percent(e.val_error)}, test ${percent(e.test.error)} [${interval(e.test)}]<br>${count(e.macs)} MACs an image on test<br>` + e.shares.map((s, k) => `output ${k + 1}: ${(100 * s).toFixed(0)} % leave`).join("<br>"));
      if (!several) {
        traces.push({ x: [...p.map((e) => e.macs), ...p.map((e) => e.macs).reverse()], y: [...p.map((e) => 100 * e.test.high), ...p.map((e) => 100 * e.test.low).reverse()], fill: "toself", fillcolor: faded(c, 0.14), line: { width: 0 }, hoverinfo: "skip", mode: "lines", name: "95 % interval (test)" });
        traces.push({ x: p.map((e) => e.val_macs), y: p.map((e) => 100 * e.val_error), mode: "lines", line: { color: colour("muted"), width: 1.6, dash: "dot" }, hoverinfo: "skip", name: "early exit, validation" });
      }
      traces.push({ x: p.map((e) => e.macs), y: p.map((e) => 100 * e.test.error), text, hovertemplate: "%{text}<extra></extra>", mode: "lines+markers", marker: { size: 4, color: c }, line: { color: c, width: 2.2, dash: several ? DASHES[index % DASHES.length] : "solid" }, name: `${name}early exit, test` });
      r.outputs.forEach((o, k) => traces.push({ x: [o.macs], y: [100 * o.test.error], mode: "markers", name: `${name}one output alone, test`, showlegend: k === r.outputs.length - 1, hovertemplate: `output ${o.output} alone: ${percent(o.test.error)}<extra></extra>`,
        marker: { size: 11, symbol: `${SYMBOLS[k % SYMBOLS.length]}-open`, line: { width: 2 }, color: several ? c : ofOutput(k, r.outputs.length) } }));
    }
    const top = 104 * Math.max(0.01, ...with_.flatMap(({ r }) => r.outputs.map((o) => o.test.high)));  // no marker is cut at 0
    const layout = { xaxis: axis("mean multiply-adds an image", { tickformat: "~s" }), yaxis: axis("error (%)", { range: [-0.03 * top, top] }) };
    show("exits-plot", traces, layout, "Test error of early exit against the mean multiply-adds of an image, beside each output alone");
    byId("exits-note").textContent = run().exits.words;
    const p = run().exits.points, K = run().outputs.length;
    const areas = run().outputs.map((o, k) => ({ x: p.map((e) => e.macs), y: p.map((e) => 100 * e.shares[k]), stackgroup: "one", mode: "lines", line: { width: 0.8, color: colour("card") }, fillcolor: ofOutput(k, K), name: `output ${o.output}`, hovertemplate: `output ${o.output}: %{y:.1f} %<extra></extra>` }));
    show("shares-plot", areas, { xaxis: layout.xaxis, yaxis: axis("share of images (%)", { range: [0, 100] }), hovermode: "x unified", legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" } }, "Share of test images that leave at each output, against the mean multiply-adds of an image");
    byId("shares-note").textContent = `Test images, n = ${run().outputs[0].test.n.toLocaleString("en")}${several ? `; ${run().name}` : ""}.`;
  }
  function missing() { return `Not shown: ${run().missing || "the run holds no such figures"}`; }

  // ---- calibration, confusion, gallery: one output of one run ------------------------------------------------------------
  function showCalibration() {
    const r = run(), o = r.outputs[state.output - 1];
    if (!r.calibration) { byId("calibration-note").textContent = ""; return absent("calibration-plot", missing()); }
    const { bins, ece } = r.calibration[state.output - 1], c = several ? shade(state.run) : ofOutput(state.output - 1, r.outputs.length);
    const most = Math.max(...bins.map((b) => b.count));
    show("calibration-plot", [
      { x: [0, 100], y: [0, 100], mode: "lines", line: { color: colour("muted"), dash: "dash", width: 1.4 }, hoverinfo: "skip", name: "perfect" },
      { x: bins.map((b) => 50 * (b.from + b.to)), y: bins.map((b) => b.count), width: bins.map((b) => 96 * (b.to - b.from)), type: "bar", yaxis: "y2", marker: { color: faded(c, 0.3) }, name: "images", hovertemplate: "%{y} images<extra></extra>" },
      { x: bins.map((b) => 100 * b.confidence), y: bins.map((b) => 100 * b.accuracy), mode: "lines+markers", name: `output ${o.output}`, line: { color: c, width: 2 }, marker: { size: 9, color: c, symbol: SYMBOLS[(state.output - 1) % SYMBOLS.length] },
        error_y: { type: "data", symmetric: false, array: bins.map((b) => 100 * (b.high - b.accuracy)), arrayminus: bins.map((b) => 100 * (b.accuracy - b.low)), color: c, thickness: 1.4, width: 3 },
        text: bins.map((b) => `sure ${percent(b.confidence, 1)}, right ${percent(b.accuracy, 1)}<br>${b.count} images`), hovertemplate: "%{text}<extra></extra>" },
    ], {
      xaxis: axis("how sure the output is (%)", { range: [0, 101], anchor: "y2" }), yaxis: axis("how often it is right (%)", { range: [0, 104], domain: [0.3, 1] }),
      yaxis2: axis("images", { domain: [0, 0.22], range: [0, 1.08 * most], nticks: 3, anchor: "x" }), showlegend: false,
    }, `Reliability of output ${o.output}: expected calibration error ${percent(ece)}`);
    byId("calibration-note").textContent = `Output ${o.output}, test, n = ${o.test.n.toLocaleString("en")}: expected calibration error ${percent(ece)} (15 equal bins), log-loss ${o.test.log_loss.toFixed(3)} nats. On the dashed line, it is as right as it is sure; below it, it is too sure. Bars: 95 % intervals.`;
    return undefined;
  }
  function showConfusion() {
    const r = run(), o = r.outputs[state.output - 1], names = r.classes, list = byId("pairs");
    list.replaceChildren();
    if (!r.confusion) { byId("confusion-note").textContent = ""; return absent("confusion-plot", missing()); }
    const table = r.confusion[state.output - 1];
    for (const [truth, answer, times] of table.pairs) {
      const line = element("li"), words = element("span");
      words.append(names[truth], element("span", " taken for "), names[answer]);
      line.append(words, element("b", `${times}×`));
      list.append(line);
    }
    if (!table.pairs.length) list.append(element("li", "nothing: it makes no mistake"));
    if (!table.counts) { byId("confusion-note").textContent = ""; return absent("confusion-plot", `${names.length} classes are too many to draw; the pairs most often confused are listed.`); }
    const C = names.length, totals = table.counts.map((row) => row.reduce((a, b) => a + b, 0));
    const z = table.counts.map((row, t) => row.map((v, a) => (a === t || !totals[t] ? null : (100 * v) / totals[t])));
    const text = table.counts.map((row, t) => row.map((v, a) => `${safe(names[t])} taken for ${safe(names[a])}: ${v} of ${totals[t]}`));
    const ticks = { tickvals: names.map((_, i) => i), ticktext: names.map((n) => safe(short(n))), showgrid: false, ticks: "" };
    const every = C > 26 ? { ...ticks, tickvals: ticks.tickvals.filter((i) => i % Math.ceil(C / 20) === 0), ticktext: ticks.ticktext.filter((_, i) => i % Math.ceil(C / 20) === 0) } : ticks;
    const most = Math.max(1, ...z.flat().filter((v) => v !== null)), notes = [];
    if (C <= 12) table.counts.forEach((row, t) => row.forEach((v, a) => { if (v) notes.push({ x: a, y: t, text: `${v}`, showarrow: false, font: { size: 12, color: a === t ? colour("muted") : z[t][a] > 0.5 * most ? colour("card") : colour("ink") } }); }));
    show("confusion-plot", [{ type: "heatmap", z, text, hovertemplate: "%{text}<extra></extra>", hoverongaps: false, xgap: C > 40 ? 0 : 1, ygap: C > 40 ? 0 : 1, zmin: 0, zmax: most,
      colorscale: [[0, colour("card")], [1, isDark() ? "#ffb27a" : "#9a2f00"]], colorbar: { title: { text: "% of the class", side: "right" }, thickness: 12, outlinewidth: 0 } }], {
      xaxis: axis("answer", { ...every, side: "bottom", tickangle: C > 10 || names.some((n) => n.length > 3) ? -45 : 0 }), yaxis: axis("truth", { ...every, autorange: "reversed" }), annotations: notes,
    }, `Confusion of output ${o.output}; most often: ${table.pairs.slice(0, 5).map(([t, a, n]) => `${names[t]} taken for ${names[a]} ${n} times`).join(", ")}`);
    byId("confusion-note").textContent = `Output ${o.output}, test, n = ${o.test.n.toLocaleString("en")}, error ${percent(o.test.error)}. Only mistakes are coloured, by their share of the true class${C <= 12 ? "; grey numbers on the diagonal are right answers" : ""}.`;
    return undefined;
  }
  function showGallery() {
    const r = run(), list = byId("images");
    list.replaceChildren();
    if (!r.gallery) { byId("gallery-note").textContent = missing(); return; }
    byId("gallery-note").textContent = r.gallery.length
      ? `${r.gallery.length} of the ${r.gallery_of.toLocaleString("en")} test images (n = ${r.data.test.toLocaleString("en")}) that some output gets wrong and every deeper one right, each output's answer below it, shallow to deep. ` +
        "Taken evenly over the classes and the outputs from which on the answer is right; not chosen for looks."
      : "There is no test image that only deeper outputs get right.";
    for (const item of r.gallery) {
      const line = element("li"), picture = element("img"), answers = element("dl");
      picture.src = item.png;
      picture.alt = `test image ${item.index}, ${r.classes[item.label]}; right from output ${item.from} on`;
      item.answers.forEach(([answer, sure], k) => {
        const good = answer === item.label;
        const said = element("dd", `${good ? "✓" : "✗"} ${r.classes[answer]}`, good ? "right" : "wrong");
        answers.append(element("dt", `${k + 1}`), said, element("dd", `${Math.round(100 * sure)} %`, "p"));
      });
      line.append(picture, element("div", r.classes[item.label], "truth"), answers);
      list.append(line);
    }
  }

  // ---- controls --------------------------------------------------------------------------------------------------------
  function outputSwitches() {
    const options = run().outputs.map((o) => [o.output, `${o.output}`]);
    for (const id of ["calibration-output", "confusion-output"])
      switcher(id, options, state.output, (k) => {
        state.output = k;
        for (const other of document.querySelectorAll("#calibration-output input, #confusion-output input")) other.checked = Number(other.value) === k;
        showCalibration();
        showConfusion();
      });
  }
  function resetLimits() {
    const errors = run().outputs.map((o) => 100 * o.val.error), spread = Math.max(...errors) - Math.min(...errors);
    byId("within").max = Math.min(100, Math.max(5, Math.ceil(spread)));
    byId("within").value = D.within;
    for (const id of ["max-params", "max-macs", "max-latency"]) byId(id).value = NO_LIMIT;
  }
  function showRun() {
    state.output = run().chosen;
    outputSwitches();
    const none = D.runs.every((r) => r.outputs.some((o) => o.latency === null));
    switcher("axis", [["depth", "Depth"], ["params", "Parameters"], ["macs", "MACs"], ["latency", "Latency", none && "not measured"]], state.axis, (v) => { state.axis = v; showFront(limits()); });
    resetLimits();
    showChoice();
    drawFigures();
    showGallery();
  }
  function drawFigures() { showLearning(); showExits(); showCalibration(); showConfusion(); }

  if (several) {
    byId("run-pick").hidden = false;
    D.runs.forEach((r, index) => byId("run").append(new Option(r.name, index)));
    byId("run").addEventListener("change", () => { state.run = Number(byId("run").value); showRun(); });
    byId("curve-output").hidden = false;
    const K = Math.max(...D.runs.map((r) => r.curves.outputs.length));
    state.curveOutput = K;
    switcher("curve-output", [[0, "all"], ...Array.from({ length: K }, (_, k) => [k + 1, k + 1 === K ? "final" : `${k + 1}`])], K, (v) => { state.curveOutput = v; showLearning(); });
  }
  switcher("curve", [["val_error", "Validation error"], ["val_loss", "Validation loss"], ["train_loss", "Training loss"]], state.curve, (v) => { state.curve = v; showLearning(); });
  switcher("scale", [["linear", "Linear"], ["log", "Log"]], state.scale, (v) => { state.scale = v; showLearning(); });
  for (const id of ["within", "max-params", "max-macs", "max-latency"]) byId(id).addEventListener("input", showChoice);
  byId("reset").addEventListener("click", (event) => { event.preventDefault(); resetLimits(); showChoice(); });
  redraw = () => { showFront(limits()); drawFigures(); };
  showRun();
  document.documentElement.dataset.ready = "";
})();
