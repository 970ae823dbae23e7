"use strict";
// The figures of a report, drawn from the JSON in #data. Every choice is made on validation errors.
(() => {
  const D = JSON.parse(byId("data").textContent);
  const several = D.runs.length > 1;
  const finished = D.runs.map((r, index) => ({ r, index })).filter(({ r }) => r.finished);
  const NO_LIMIT = 200;
  const COSTS = ["params", "macs", "latency"];
  const state = {
    run: finished.length ? finished[0].index : 0,
    axis: "macs", curve: "val_error", scale: "linear", output: null, curveOutput: 0,
  };
  const AXES = {
    depth: { title: "depth (layers)", word: "layers", type: "linear", text: (v) => `${v}` },
    params: { title: "parameters", word: "parameters", type: "log", text: count },
    macs: { title: "multiply-adds for one image", word: "MACs", type: "linear", text: count },
    latency: { title: "latency of one image (ms)", word: "ms", type: "linear", text: (v) => `${significant(v)} ms` },
  };

  // ---- words and numbers ----------------------------------------------------------------------------------------
  function percent(v, digits = 2) { return `${(100 * v).toFixed(digits)} %`; }
  function points(v) { return `${v.toFixed(1)} point${v.toFixed(1) === "1.0" ? "" : "s"}`; }
  function interval(e) { return `${(100 * e.low).toFixed(1)} – ${(100 * e.high).toFixed(1)}`; }
  function quartiles(o) { return `[${significant(o.latency_low)} – ${significant(o.latency_high)}]`; }
  function exact(v) { return v.toLocaleString("en"); }
  function nameOf(r) { return safe(short(r.name, 28)); } // in a legend
  function which(o) { return several ? `${run().name}, output ${o.output}` : `Output ${o.output}`; }
  function missing() { return `Not shown: ${run().missing || "the run holds no such figures"}`; }

  // ---- colours --------------------------------------------------------------------------------------------------
  function ofOutput(k, K) { return along(K > 1 ? k / (K - 1) : 1); }
  // The colour of output k of run r: one for each run, or for each output of a single run.
  function colourOf(r, k, K) { return several ? shade(r) : ofOutput(k, K); }
  function faded(rgb, alpha) {
    const parts = rgb.startsWith("#") ? [1, 3, 5].map((i) => parseInt(rgb.slice(i, i + 2), 16)) : rgb.match(/\d+/g);
    return `rgba(${parts.slice(0, 3).join(",")},${alpha})`;
  }

  // ---- plotly ---------------------------------------------------------------------------------------------------
  function show(id, traces, layout, label) {
    const place = byId(id);
    place.classList.remove("absent");
    if (!place.data) place.replaceChildren(); // what `absent` said
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", label);
    heightenFor(place, traces);
    draw(id, traces, layout);
  }
  function absent(id, why) {
    const place = byId(id);
    if (place.data) Plotly.purge(place);
    place.classList.add("absent");
    place.removeAttribute("role");
    tell(place, why);
  }

  // ---- choosing: the rule of `auxnet select`, on validation errors alone ----------------------------------------
  function limitValue(id, key) {
    const position = Number(byId(id).value), values = run().outputs.map((o) => o[key]).filter((v) => v !== null);
    if (position >= NO_LIMIT || !values.length) return Infinity;
    const low = 0.8 * Math.min(...values), high = 1.1 * Math.max(...values);
    const limit = low * (high / low) ** (position / (NO_LIMIT - 1));
    return key === "latency" ? Number(limit.toPrecision(4)) : Math.floor(limit); // as the command below has it
  }
  function limits() {
    const found = { within: Number(byId("within").value) };
    for (const key of COSTS) found[key] = limitValue(`max-${key}`, key);
    return found;
  }
  function choose(outputs, limit) {
    const fits = outputs
      .filter((o) => COSTS.every((key) => limit[key] === Infinity || o[key] <= limit[key]))
      .sort((a, b) => a.macs - b.macs || a.val.error - b.val.error);
    if (!fits.length) return { chosen: null, best: null, bar: null, equal: [] };
    const best = fits.reduce((a, b) => (b.val.error < a.val.error ? b : a));
    const bar = best.val.error + limit.within / 100;
    const equal = fits.filter((o) => o !== best && o.val.error === best.val.error);
    return { chosen: fits.find((o) => o.val.error <= bar + 1e-12), best, bar, equal };
  }
  // As words.p_text: two digits, or as many as tell p from 0.05, the border.
  function pText(p) {
    for (let digits = 2; ; digits++) {
      const said = Number(p.toPrecision(digits));
      if (said !== 0.05 || p === 0.05 || digits === 17) return said;
    }
  }
  // What select's test says of the chosen output beside each that is better, tied, or cheaper and not told apart.
  function verdicts(chosen, best, equal) {
    const outputs = run().outputs, p = run().p_values && run().p_values[chosen.output - 1];
    if (!p) return "";
    const better = (a, b) => a.val.error < b.val.error || (a.val.error === b.val.error && a.macs < b.macs);
    const overall = outputs.reduce((a, b) => (better(b, a) ? b : a));
    const compared = [best, overall].filter((o) => o !== chosen);
    if (chosen === best) compared.push(...equal.slice(-1));
    const alike = outputs.filter((o) => o.macs < chosen.macs && p[o.output - 1] >= 0.05);
    if (chosen === overall) compared.push(...alike.sort((a, b) => a.macs - b.macs).slice(0, 1));
    const said = [...new Set(compared)].map((o) => {
      const q = p[o.output - 1], other = `output ${o.output} (${percent(o.val.error)} error)`;
      const images = `${exact(o.val.images)} validation images, McNemar's p = ${pText(q)} (Holm)`;
      return q < 0.05 ? `it is worse than ${other} beyond chance on these ${images}`
        : `it cannot be told apart from ${other} on these ${images}`;
    });
    return said.length ? ` ${said.join("; ").replace("it", "It")}.` : "";
  }
  const run = () => D.runs[state.run];
  const deepest = () => run().outputs[run().outputs.length - 1];

  // The command that makes this choice. With budgets the default of --within is another: it is always given.
  function command(limit) {
    const flags = [`--within ${limit.within}`];
    for (const key of COSTS.filter((each) => limit[each] !== Infinity))
      flags.push(`--max-${key} ${limit[key]}`);
    return `${run().select} ${flags.join(" ")}`;
  }
  function showLimits(limit) {
    const say = (id, value, text) => {
      byId(`${id}-value`).textContent = text;
      byId(`${id}-value`).dataset.value = value;
      byId(id).setAttribute("aria-valuetext", text);
    };
    say("within", limit.within, points(limit.within));
    for (const key of COSTS) {
      const none = run().outputs.some((o) => o[key] === null);
      const bound = limit[key] === Infinity ? "no limit" : `≤ ${AXES[key].text(limit[key])}`;
      byId(`max-${key}`).disabled = none;
      say(`max-${key}`, limit[key], none ? "not measured" : bound);
    }
  }
  function showCosts(chosen) {
    const row = (name, value, aside) => {
      const cell = element("dd", value);
      if (aside) cell.append(" ", element("small", aside));
      byId("costs").append(element("dt", name), cell);
    };
    const worth = (name, e) => row(name, percent(e.error), `[${interval(e)}], n = ${exact(e.images)}`);
    const share = (key) => {
      const of = Math.round((100 * chosen[key]) / deepest()[key]);
      return chosen === deepest() ? "" : `${of} % of output ${deepest().output}`;
    };
    worth("Validation error", chosen.val);
    worth("Test error (report only)", chosen.test);
    row("Parameters", exact(chosen.params), share("params"));
    row("MACs", exact(chosen.macs), share("macs"));
    if (chosen.latency !== null) {
      const aside = [quartiles(chosen), share("latency")].filter(Boolean).join(", ");
      row("Latency", AXES.latency.text(chosen.latency), aside);
    }
  }
  function showChoice() {
    const limit = limits(), { chosen, best, equal } = choose(run().outputs, limit);
    const bound = COSTS.filter((key) => limit[key] !== Infinity);
    showLimits(limit);
    byId("costs").replaceChildren();
    byId("answer").dataset.output = chosen ? chosen.output : "none";
    byId("command").textContent = command(limit);
    if (!chosen) {
      byId("choice").textContent = "No output meets these limits";
      const least = bound.filter((key) => run().outputs.every((o) => o[key] > limit[key]));
      byId("reason").textContent = least.length
        ? `Even the cheapest output needs ${least.map((key) => smallest(key)).join(" and ")}.`
        : "Each output breaks one limit or another.";
    } else {
      byId("choice").textContent = `Output ${chosen.output} of ${run().outputs.length}, depth ${chosen.depth}`;
      const all = several ? `of ${run().name}` : "of all", among = bound.length ? "of the outputs that fit" : all;
      const within = points(limit.within);
      const tied = equal.length ? `, tied with ${equal.map((o) => `output ${o.output}`).join(" and ")}` : "";
      const lone = !limit.within || run().outputs.every((o) => o.macs >= chosen.macs);
      const near = lone ? "" : `, and no smaller one comes within ${within} of it`;
      byId("reason").textContent = chosen === best
        ? `It has the lowest validation error ${among}${tied}${near}.`
        : `The smallest within ${within} of the lowest validation error ${among}: ` +
          `${percent(best.val.error)}, output ${best.output}.`;
      byId("reason").append(verdicts(chosen, best, equal));
      showCosts(chosen);
    }
    for (const line of document.querySelectorAll("#outputs tr[data-output]")) {
      const here = chosen && Number(line.dataset.run) === state.run && Number(line.dataset.output) === chosen.output;
      line.classList.toggle("chosen", Boolean(here));
    }
    showFront(limit);
  }
  function smallest(key) {
    const value = Math.min(...run().outputs.map((o) => o[key]));
    return key === "latency" ? AXES.latency.text(value) : `${exact(value)} ${AXES[key].word}`;
  }

  // ---- error against cost ---------------------------------------------------------------------------------------
  function front(outputs, key) {
    const sorted = [...outputs].sort((a, b) => a[key] - b[key] || a.val.error - b.val.error);
    let lowest = Infinity;
    return sorted.filter((o) => o.val.error < lowest && ((lowest = o.val.error), true));
  }
  function hovered(r, o) {
    const cost = `${count(o.params)} parameters, ${count(o.macs)} MACs`;
    const time = o.latency === null ? "" : `, ${AXES.latency.text(o.latency)} ${quartiles(o)}`;
    const worth = (e) => `${percent(e.error)} [${interval(e)}], n = ${e.images}`;
    return `<b>${several ? `${safe(r.name)}, ` : ""}output ${o.output}</b>, depth ${o.depth}<br>${cost}${time}` +
      `<br>validation ${worth(o.val)}<br>test ${worth(o.test)}`;
  }
  // The Pareto front of a run, and its outputs: two markers each, with intervals; test is drawn `aside` of validation.
  function tracesOfRun(r, index, key, aside) {
    const K = r.outputs.length, best = front(r.outputs, key), name = nameOf(r);
    const colours = r.outputs.map((_, k) => colourOf(index, k, K));
    const traces = [{
      x: best.map((o) => o[key]), y: best.map((o) => 100 * o.val.error), mode: "lines", hoverinfo: "skip",
      name: several ? name : "Pareto front (validation)", legendgroup: `run${index}`, showlegend: !several,
      line: {
        shape: "hv", width: 1.6, dash: several ? dash(index) : "dot",
        color: several ? shade(index) : colour("muted"),
      },
    }];
    for (const [set, open] of [["test", true], ["val", false]])
      r.outputs.forEach((o, k) => traces.push({
        x: [open ? aside(o[key]) : o[key]], y: [100 * o[set].error], mode: "markers",
        error_y: bars([o[set]], "error", 100, {
          color: open ? faded(colours[k], 0.55) : colours[k], thickness: 1.6, width: 4,
        }),
        text: [hovered(r, o)], hovertemplate: "%{text}<extra></extra>",
        name: several ? name : open ? "test" : "validation", legendgroup: several ? `run${index}` : set,
        showlegend: several ? !open && k === K - 1 : k === K - 1,
        marker: {
          symbol: symbol(k) + (open ? "-open" : ""), size: open ? 8 : 11, color: colours[k],
          line: { width: open ? 1.6 : 0, color: colours[k] },
        },
      }));
    return traces;
  }
  function showFront(limit) {
    const key = state.axis, kind = AXES[key], { chosen, bar } = choose(run().outputs, limit);
    const shown = finished.filter(({ r }) => r.outputs.every((o) => o[key] !== null));
    if (!shown.length) return absent("front-plot", "Latency was not measured for these runs.");
    const every = shown.flatMap(({ r }) => r.outputs), xs = every.map((o) => o[key]);
    const log = kind.type === "log", place = (v) => (log ? Math.log10(v) : v);
    const low = Math.min(...xs.map(place)), high = Math.max(...xs.map(place));
    const span = high - low || (log ? 0.3 : 0.2 * high);
    const range = [low - (isNarrow(byId("front-plot")) ? 0.16 : 0.08) * span, high + 0.08 * span];
    const aside = (v) => (log ? 10 ** (Math.log10(v) + 0.012 * span) : v + 0.012 * span);
    const top = Math.max(...every.flatMap((o) => [o.val.high, o.test.high])) * 106;
    const traces = shown.flatMap(({ r, index }) => tracesOfRun(r, index, key, aside));
    if (chosen && chosen[key] !== null)
      traces.push({
        x: [chosen[key]], y: [100 * chosen.val.error], mode: "markers", name: "chosen", hoverinfo: "skip",
        marker: {
          symbol: "circle-open", size: 24, color: colour("accent"), line: { width: 3, color: colour("accent") },
        },
      });
    const shapes = [], cut = limit[key];
    const notes = shown.flatMap(({ r, index }) => r.outputs.map((o, k) => ({
      x: place(o[key]), y: 100 * o.val.error, text: `<b>${o.output}</b>`, showarrow: false, xanchor: "right",
      xshift: -15, font: { color: colourOf(index, k, r.outputs.length), size: 13 },
    })));
    if (cut !== undefined && cut !== Infinity) {
      const edge = Math.max(place(cut), range[0]);
      shapes.push({
        type: "rect", xref: "x", yref: "paper", y0: 0, y1: 1,
        x0: log ? 10 ** edge : edge, x1: log ? 10 ** range[1] : range[1],
        fillcolor: faded(colour("muted"), 0.16), line: { width: 0 }, layer: "below",
      });
      notes.push({
        x: edge, y: 1, xref: "x", yref: "paper", text: "too costly →", showarrow: false, yanchor: "top",
        xanchor: edge > range[1] - 0.2 * span ? "right" : "left", font: { color: colour("muted"), size: 12 },
      });
    }
    if (bar !== null)
      shapes.push({
        type: "rect", xref: "paper", yref: "y", x0: 0, x1: 1, y0: -0.07 * top, y1: 100 * bar,
        fillcolor: faded(colour("accent"), 0.1), line: { width: 0 }, layer: "below",
      });
    const whole = key === "depth" && span < 8 ? { dtick: 1 } : {}; // no tick between two layers
    const ticks = log ? decades(range) : { tickformat: key === "macs" ? "~s" : "", ...whole };
    const worth = (o) => `validation ${percent(o.val.error)}, test ${percent(o.test.error)}`;
    const said = every.map((o) => `output ${o.output}: ${kind.text(o[key])}, ${worth(o)}`);
    show("front-plot", traces, {
      xaxis: axis(kind.title, { type: kind.type, range, ...ticks }),
      yaxis: axis("error (%)", { range: [-0.07 * top, top] }), shapes, annotations: notes,
    }, `Error against ${kind.title} with 95 percent intervals: ${said.join("; ")}`);
    byId("front-note").textContent = frontNote();
  }
  function frontNote() {
    const { val, test } = run().outputs[0];
    const sizes = `n = ${exact(val.images)} validation and ${exact(test.images)} test images`;
    const latency = state.axis === "latency" ? ` ${D.latency_words}` : "";
    return "Numbers: outputs. Filled: validation; open, drawn slightly to the right: test. Bars: 95 % Wilson " +
      `intervals; ${several ? "see the table for n" : sizes}. ` +
      `${several ? "Lines: Pareto fronts" : "Dotted: Pareto front"} on validation. Blue band: errors that are good ` +
      `enough under the limits above${several ? `, of ${run().name}` : ""}.${latency}`;
  }

  // ---- learning curves ------------------------------------------------------------------------------------------
  function showLearning() {
    const inNats = D.runs.every((r) => r.recipe.loss === "cross_entropy"); // on validation the log-loss is measured
    const words = {
      val_error: "validation error (%)", val_loss: "validation loss (nats)",
      train_loss: `training loss${inNats ? " (nats)" : ""}`,
    };
    const key = state.curve, log = state.scale === "log";
    const scaled = (v) => (v === null || (log && v <= 0) ? null : key === "val_error" ? 100 * v : v);
    const isAlone = (v, i, y) => v !== null && (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null;
    const titled = (o, name) => (several ? `${name}, output ${o.output}` : `output ${o.output} (depth ${o.depth})`);
    const most = Math.max(...D.runs.map((r) => r.curves.outputs.length));
    const all = several && most > 1 && !state.curveOutput; // if each has one output, dashes tell runs
    const marked = all && (most > DASHES.length || D.runs.length > shades().length); // dashes or shades repeat
    const traces = D.runs.flatMap((r, index) => {
      const K = r.curves.outputs.length;
      const look = (k) => (all ? ofSeveral(index, k) : { dash: dash(several ? index : K - 1 - k) });
      const marker = (y) => (y.some(isAlone) ? { size: 9 } : { size: 7, maxdisplayed: 12 });
      const drawn = (o) => !several || !state.curveOutput || o.output === Math.min(state.curveOutput, K);
      const curves = r.curves.outputs.map((o, k) => ({ o, y: o[key].map(scaled), k, color: colourOf(index, k, K) }));
      return curves.filter(({ o }) => drawn(o)).map(({ o, y, k, color }) => ({
        x: r.curves.epochs, y, mode: marked || y.some(isAlone) ? "lines+markers" : "lines",
        marker: { ...marker(y), color, symbol: look(k).symbol },
        line: { color, width: k === K - 1 ? 2.6 : 1.9, dash: look(k).dash },
        name: titled(o, nameOf(r)), meta: titled(o, r.name),
        hovertemplate: "epoch %{x}: %{y:.4~g}" +
          `<extra>${several ? `${safe(short(r.name, 14))}, ` : ""}output ${o.output}</extra>`,
      }));
    });
    const r = run();
    const shapes = r.curves.drops.map((epoch) => ({
      type: "line", x0: epoch - 0.5, x1: epoch - 0.5, y0: 0, y1: 1, yref: "paper",
      line: { color: colour("muted"), width: 1, dash: "dot" },
    }));
    const values = traces.flatMap((trace) => trace.y).filter((v) => v !== null);
    const lacks = values.length < traces.flatMap((trace) => trace.y).length;
    byId("learning-note").textContent = learningNote(r) + (log && lacks ? " 0 has no place on this scale." : "");
    if (!traces.length || !r.curves.epochs.length)
      return absent("learning-plot", "metrics.jsonl holds no finished epoch.");
    const ends = traces.map((t) => `${t.meta} ends at ${Number(t.y[t.y.length - 1]).toPrecision(3)}`);
    show("learning-plot", traces, {
      xaxis: epochAxis(Math.max(...D.runs.map((each) => each.epochs.last))), shapes, hovermode: "x unified",
      yaxis: axis(words[key], log ? { type: "log", ...decadesOf(values) } : { rangemode: "tozero" }),
    }, `Learning curves: ${words[key]} after each epoch. ${ends.join("; ")}`);
  }
  function learningNote(r) {
    const said = [], open = D.runs.filter((each) => !each.finished);
    const whose = several ? ` of ${r.name}` : "";
    if (r.finished) {
      if (r.data.val) said.push(`Validation${whose}: n = ${exact(r.data.val)} images that are never trained on.`);
      const { last, best } = r.epochs;
      const figures = `The figures${whose || " of this page"} are of the last epoch (${last})`;
      said.push(`${figures}; the best on validation was ${best}.`);
    }
    if (open.length) {
      const stands = open.map((each) => `${each.name} (${each.epochs.last} of ${each.recipe.epochs} epochs)`);
      said.push(`Not finished: ${stands.join(", ")}.`);
    }
    if (r.curves.drops.length) said.push(`Dotted: the step size${whose} falls to half or less.`);
    return said.join(" ");
  }

  // ---- early exit -----------------------------------------------------------------------------------------------
  // On validation, where thresholds are chosen. Test is drawn for exits.json alone; hovering tells the rest.
  function tracesOfExits(r, index) {
    const c = several ? shade(index) : colour("accent"), p = r.exits.points;
    const group = several ? { legendgroup: `run${index}` } : {}; // with several runs, only the line is in the legend
    const macs = p.map((e) => e.macs), traces = [];
    const leave = (s, k) => `output ${k + 1}: ${(100 * s).toFixed(0)} % leave`;
    const said = (e) => `validation ${percent(e.val.error)} [${interval(e.val)}], ${count(e.macs)} MACs an image` +
      `<br>${e.shares.map(leave).join("<br>")}` +
      `<br>(test ${percent(e.test.error)} [${interval(e.test)}], ${count(e.test_macs)} MACs)`;
    if (!several) {
      const high = p.map((e) => 100 * e.val.high), low = p.map((e) => 100 * e.val.low);
      traces.push({
        x: [...macs, ...[...macs].reverse()], y: [...high, ...low.reverse()], mode: "lines", line: { width: 0 },
        fill: "toself", fillcolor: faded(c, 0.14), hoverinfo: "skip", name: "95 % interval",
      });
    }
    traces.push({
      x: macs, y: p.map((e) => 100 * e.val.error), text: p.map(said), hovertemplate: "%{text}<extra></extra>",
      mode: "lines+markers", marker: { size: 4, color: c }, name: several ? nameOf(r) : "early exit", ...group,
      line: { color: c, width: 2.2, dash: several ? dash(index) : "solid" },
    });
    const K = r.outputs.length;
    const alone = (o) => `output ${o.output} alone: validation ${percent(o.val.error)} (test ${percent(o.test.error)})`;
    r.outputs.forEach((o, k) => traces.push({
      x: [o.macs], y: [100 * o.val.error], mode: "markers", name: "one output alone", ...group,
      showlegend: !several && k === K - 1, hovertemplate: `${alone(o)}<extra></extra>`,
      marker: { size: 11, symbol: `${symbol(k)}-open`, line: { width: 2 }, color: colourOf(index, k, K) },
    }));
    const e = r.exits.solved;
    const solved = {
      mode: "markers", hovertemplate: "exits.json: %{text}<extra></extra>", showlegend: !several, ...group,
    };
    if (e)
      traces.push({
        x: [e.macs], y: [100 * e.val.error], name: "exits.json", text: [said(e)], ...solved,
        marker: { size: 17, symbol: "circle-open", line: { width: 2.4 }, color: c },
      }, {
        x: [e.test_macs], y: [100 * e.test.error], name: "exits.json on test", text: [said(e)], ...solved,
        marker: { size: 11, symbol: "x-thin", line: { width: 2.4, color: c } },
        error_y: bars([e.test], "error", 100, { color: c, thickness: 1.4, width: 3 }),
      });
    return traces;
  }
  function showExits() {
    const K = run().outputs.length;
    if (!run().exits) {
      const why = K < 2 ? "A net of one output has no early exit." : missing();
      for (const id of ["exits-plot", "shares-plot"]) absent(id, why);
      byId("exits-note").textContent = byId("shares-note").textContent = "";
      return;
    }
    const shown = finished.filter(({ r }) => r.exits);
    const ringed = shown.map(({ r }) => r.exits.solved).filter(Boolean);
    const ends = [...shown.flatMap(({ r }) => r.outputs.map((o) => o.val.high)), ...ringed.map((e) => e.test.high)];
    const highest = Math.max(0.01, ...ends);
    const top = 104 * highest; // and no marker is cut at 0
    const xaxis = axis("mean multiply-adds an image", { tickformat: "~s" });
    const yaxis = axis(ringed.length ? "error (%)" : "validation error (%)", { range: [-0.07 * top, top] });
    show("exits-plot", shown.flatMap(({ r, index }) => tracesOfExits(r, index)), { xaxis, yaxis },
      "Validation error of early exit against the mean multiply-adds of an image, beside each output alone");
    const open = `A line per run; open markers: its outputs, each alone. ${run().name}: `;
    tell(byId("exits-note"), (several ? open : "") + run().exits.words);
    const p = run().exits.points, whose = several ? `; ${run().name}` : "";
    byId("shares-note").textContent = `Validation images, n = ${exact(run().outputs[0].val.images)}${whose}.`;
    if (p.every((e) => e.macs === p[0].macs)) {
      const leaves = p[0].shares.map((s, k) => s && `${percent(s, 0)} at output ${k + 1}`).filter(Boolean);
      return absent("shares-plot", `The same whatever the mean may cost: ${leaves.join(", ")}.`);
    }
    const areas = run().outputs.map((o, k) => ({
      x: p.map((e) => e.macs), y: p.map((e) => 100 * e.shares[k]), stackgroup: "one", mode: "lines",
      line: { width: 0.8, color: colour("card") }, fillcolor: ofOutput(k, K), name: `output ${o.output}`,
      hovertemplate: `output ${o.output}: %{y:.1f} %<extra></extra>`,
    }));
    show("shares-plot", areas, {
      xaxis, yaxis: axis("share of images (%)", { range: [0, 100] }), hovermode: "x unified",
    }, "Share of validation images that leave at each output, against the mean multiply-adds of an image");
  }

  // ---- calibration, confusion, gallery: one output of one run ---------------------------------------------------
  function showCalibration() {
    const r = run(), place = state.output - 1, o = r.outputs[place];
    if (!r.calibration) {
      byId("calibration-note").textContent = "";
      return absent("calibration-plot", missing());
    }
    const { bins, calibration_error: error } = r.calibration[place];
    const c = colourOf(state.run, place, r.outputs.length);
    const most = Math.max(...bins.map((b) => b.count));
    const sure = (b) => `sure ${percent(b.confidence, 1)}, right ${percent(b.accuracy, 1)}<br>${b.count} images`;
    show("calibration-plot", [
      {
        x: [0, 100], y: [0, 100], mode: "lines", line: { color: colour("muted"), dash: "dash", width: 1.4 },
        hoverinfo: "skip", name: "perfect",
      },
      {
        x: bins.map((b) => 50 * (b.from + b.to)), y: bins.map((b) => b.count), type: "bar", yaxis: "y2",
        width: bins.map((b) => 96 * (b.to - b.from)), marker: { color: faded(c, 0.3) }, name: "images",
        hovertemplate: "%{y} images<extra></extra>",
      },
      {
        x: bins.map((b) => 100 * b.confidence), y: bins.map((b) => 100 * b.accuracy), mode: "lines+markers",
        cliponaxis: false,
        name: `output ${o.output}`, line: { color: c, width: 2 }, marker: { size: 9, color: c, symbol: symbol(place) },
        error_y: bars(bins, "accuracy", 100, { color: c, thickness: 1.4, width: 3 }),
        text: bins.map(sure), hovertemplate: "%{text}<extra></extra>",
      },
    ], {
      xaxis: axis("how sure the output is (%)", { range: [0, 101], anchor: "y2" }),
      yaxis: axis("how often it is right (%)", { range: [0, 104], domain: [0.3, 1] }),
      yaxis2: axis("images", { domain: [0, 0.22], range: [0, 1.08 * most], nticks: 3, anchor: "x" }),
      showlegend: false,
    }, `Reliability. ${which(o)}: expected calibration error ${percent(error)}`);
    byId("calibration-note").textContent =
      `${which(o)}, test, n = ${exact(o.test.images)}: expected calibration error ${percent(error)} (15 equal ` +
      `bins), log-loss ${o.test.loss.toFixed(3)} nats. On the dashed line, it is as right as it is sure; below it, ` +
      "it is too sure. Bars: 95 % intervals.";
  }
  function showPairs(pairs, names) {
    byId("pairs").replaceChildren();
    for (const [truth, answer, times] of pairs) {
      const line = element("li"), words = element("span");
      words.append(names[truth], element("span", " taken for "), names[answer]);
      line.append(words, element("b", `${times}×`));
      byId("pairs").append(line);
    }
    if (!pairs.length) byId("pairs").append(element("li", "nothing: it makes no mistake"));
  }
  // The ticks of an axis of classes: all of them, or about twenty; without the beginning that all names share.
  function classTicks(names) {
    const step = names.length > 26 ? Math.ceil(names.length / 20) : 1;
    const at = names.map((_, i) => i).filter((i) => i % step === 0);
    const letters = names.map((name) => [...name]), [first] = letters;
    const begins = (n) => letters.every((each) => each.length > n && each[n - 1] === first[n - 1]);
    let same = 0;
    while (step > 1 && begins(same + 1)) same += 1;
    const ticktext = at.map((i) => safe(short(letters[i].slice(same).join(""), 14)));
    return { tickvals: at, ticktext, showgrid: false, ticks: "" };
  }
  // How often, written into the cells of a small table.
  function cellNotes(counts, z, most) {
    const onCell = (t, a) => (z[t][a] > 0.5 * most ? colour("card") : colour("ink"));
    return counts.flatMap((row, t) => row.map((v, a) => ({ v, a })).filter(({ v }) => v).map(({ v, a }) => ({
      x: a, y: t, text: `${v}`, showarrow: false,
      font: { size: 12, color: a === t ? colour("muted") : onCell(t, a) },
    })));
  }
  function showConfusion() {
    const r = run(), o = r.outputs[state.output - 1], names = r.classes, C = names.length;
    byId("confusion-note").textContent = "";
    if (!r.confusion) {
      byId("pairs").replaceChildren();
      return absent("confusion-plot", missing());
    }
    const { counts, pairs } = r.confusion[state.output - 1];
    showPairs(pairs, names);
    if (!counts) {
      const why = `${C} classes are too many to draw; the pairs most often confused are listed.`;
      return absent("confusion-plot", why);
    }
    const totals = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const z = counts.map((row, t) => row.map((v, a) => (a === t || !totals[t] ? null : (100 * v) / totals[t])));
    const said = (t, a, v) => `${safe(names[t])} taken for ${safe(names[a])}: ${v} of ${totals[t]}`;
    const text = counts.map((row, t) => row.map((v, a) => said(t, a, v)));
    const most = Math.max(1, ...z.flat().filter((v) => v !== null)), gap = C > 40 ? 0 : 1;
    const slanted = C > 10 || names.some((n) => n.length > 3);
    const often = pairs.slice(0, 5).map(([t, a, n]) => `${names[t]} taken for ${names[a]} ${n} times`).join(", ");
    show("confusion-plot", [{
      type: "heatmap", z, text, hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
      xgap: gap, ygap: gap, zmin: 0, zmax: most,
      colorscale: [[0, colour("card")], [1, isDark() ? "#ffb27a" : "#9a2f00"]],
      colorbar: { title: { text: "% of the class", side: "right" }, thickness: 12, outlinewidth: 0 },
    }], {
      xaxis: axis("answer", { ...classTicks(names), side: "bottom", tickangle: slanted ? -45 : 0 }),
      yaxis: axis("truth", { ...classTicks(names), autorange: "reversed" }),
      annotations: C <= 12 ? cellNotes(counts, z, most) : [],
    }, `Confusion. ${which(o)}; most often: ${often}`);
    const grey = C <= 12 ? "; grey numbers on the diagonal are right answers" : "";
    byId("confusion-note").textContent =
      `${which(o)}, test, n = ${exact(o.test.images)}, error ${percent(o.test.error)}. Only mistakes are ` +
      `coloured, by their share of the true class${grey}.`;
  }
  function showGallery() {
    const r = run(), list = byId("images"), whose = several ? `${r.name}: ` : "";
    list.replaceChildren();
    if (!r.gallery) {
      tell(byId("gallery-note"), missing());
      return;
    }
    byId("gallery-note").textContent = whose + (r.gallery.length
      ? `${r.gallery.length} of the ${exact(r.gallery_of)} test images (n = ${exact(r.data.test)}) that some output ` +
        "gets wrong and every deeper one right, each output's answer below it, shallow to deep. Taken in turn from " +
        "the outputs from which on the answer is right, and there from the classes; not chosen for looks."
      : "There is no test image that one output gets wrong, and all deeper ones right.");
    for (const item of r.gallery) {
      const line = element("li"), picture = element("img"), answers = element("dl");
      picture.src = item.png;
      picture.alt = `test image ${item.index}, ${r.classes[item.label]}; right from output ${item.from} on`;
      item.answers.forEach(([answer, sure], k) => {
        const good = answer === item.label;
        const said = element("dd", `${good ? "✓" : "✗"} ${r.classes[answer]}`, good ? "right" : "wrong");
        said.title = r.classes[answer]; // the full name, if there is no place for it
        answers.append(element("dt", `${k + 1}`), said, element("dd", `${Math.round(100 * sure)} %`, "p"));
      });
      line.append(picture, element("div", r.classes[item.label], "truth"), answers);
      list.append(line);
    }
  }

  // ---- controls -------------------------------------------------------------------------------------------------
  function outputSwitches() {
    const options = run().outputs.map((o) => [o.output, `${o.output}`]);
    for (const id of ["calibration-output", "confusion-output"])
      switcher(id, options, state.output, (k) => {
        state.output = k;
        for (const other of document.querySelectorAll("#calibration-output input, #confusion-output input"))
          other.checked = Number(other.value) === k;
        showCalibration();
        showConfusion();
      });
  }
  function resetLimits() {
    const errors = run().outputs.map((o) => 100 * o.val.error), spread = Math.max(...errors) - Math.min(...errors);
    byId("within").max = Math.min(49, Math.max(5, Math.ceil(spread))); // select takes less than 50
    byId("within").value = D.within;
    for (const key of COSTS) byId(`max-${key}`).value = NO_LIMIT;
  }
  function showRun() {
    state.output = run().chosen;
    outputSwitches();
    const none = finished.every(({ r }) => r.outputs.some((o) => o.latency === null));
    const axes = [["depth", "Depth"], ["params", "Parameters"], ["macs", "MACs"]];
    axes.push(["latency", "Latency", none && "not measured"]);
    switcher("axis", axes, state.axis, (v) => {
      state.axis = v;
      showFront(limits());
    });
    resetLimits();
    showChoice();
    drawFigures();
    showGallery();
  }
  function drawFigures() {
    showLearning();
    if (finished.length) {
      showExits();
      showCalibration();
      showConfusion();
    }
  }
  function learningControls() {
    const curves = [["val_error", "Validation error"], ["val_loss", "Validation loss"]];
    curves.push(["train_loss", "Training loss"]);
    const change = (key) => (value) => {
      state[key] = value;
      showLearning();
    };
    if (several) {
      byId("curve-output").hidden = false;
      const K = Math.max(...D.runs.map((r) => r.curves.outputs.length));
      const each = Array.from({ length: K }, (_, k) => [k + 1, k + 1 === K ? "final" : `${k + 1}`]);
      state.curveOutput = K;
      switcher("curve-output", [[0, "all"], ...each], K, change("curveOutput"));
    }
    switcher("curve", curves, state.curve, change("curve"));
    switcher("scale", [["linear", "Linear"], ["log", "Log"]], state.scale, change("scale"));
  }
  function choiceControls() {
    if (finished.length > 1) {
      byId("run-pick").hidden = false;
      for (const { r, index } of finished) byId("run").append(new Option(r.name, index));
      byId("run").addEventListener("change", () => {
        state.run = Number(byId("run").value);
        showRun();
      });
    }
    for (const id of ["within", ...COSTS.map((key) => `max-${key}`)]) byId(id).addEventListener("input", showChoice);
    byId("reset").addEventListener("click", (event) => {
      event.preventDefault();
      resetLimits();
      showChoice();
    });
  }

  learningControls();
  redraw = () => {
    if (finished.length) showFront(limits());
    drawFigures();
  };
  if (finished.length) {
    choiceControls();
    showRun();
  } else drawFigures();
  document.documentElement.dataset.ready = "";
})();
