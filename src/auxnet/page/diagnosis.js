"use strict";
// The figures of a diagnosis, drawn from the JSON in #data: a colour per run, or per output of a single run.
(() => {
  const runs = JSON.parse(byId("data").textContent);
  let scale = "linear";

  // For each run and output its rows, and how its line looks: [{name, line, marker, rows}].
  function lines(rowsOf) {
    return runs.flatMap((run, r) => {
      const rows = rowsOf(run) || [], outputs = [...new Set(rows.map((row) => row.output))];
      return outputs.map((output, k) => {
        const parts = runs.length > 1 ? [short(run.name, 28)] : [];
        if (output != null && run.ends.length > 1) parts.push(`output ${output}`);
        const which = shade(runs.length > 1 ? r : k), lone = symbol(outputs.length > 1 ? k : r);
        const look = runs.length > 1 && outputs.length > 1 ? ofSeveral(r, k) : { dash: "solid", symbol: lone };
        return {
          name: safe(parts.join(", ") || (run.ends.length > 1 ? "all outputs" : short(run.name, 28))),
          rows: rows.filter((row) => row.output === output),
          line: { color: which, width: 2.2, dash: look.dash },
          marker: { color: which, size: 7, symbol: look.symbol },
        };
      });
    });
  }
  function show(id, traces, xaxis, yaxis, shapes = []) {
    const place = byId(`${id}-plot`);
    if (!place) return null;
    heightenFor(place, traces);
    return draw(place.id, traces, { xaxis, yaxis, shapes, showlegend: true });
  }
  const one = () => [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: colour("muted"), width: 1, dash: "dot" },
  }];
  const base = { mode: "lines+markers" };

  function shares() {
    const traces = lines((run) => run.shares).map(({ rows, ...look }) => ({
      ...base, ...look, x: rows.map((row) => row.layer), y: rows.map((row) => row.share),
      hovertemplate: "layer %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
    }));
    const ticks = decadesOf(traces.flatMap((trace) => trace.y));
    const shares = axis("share of supervision", scale === "log" ? { type: scale, ...ticks } : { rangemode: "tozero" });
    return show("shares", traces, axis("layer", { rangemode: "tozero" }), shares, one());
  }
  function epochs() {
    const traces = lines((run) => {
      const shallowest = Math.min(...run.epochs.map((row) => row.layer));
      return run.epochs.filter((row) => row.layer === shallowest);
    }).map(({ rows, ...look }) => ({
      ...base, ...look, x: rows.map((row) => row.epoch), y: rows.map((row) => row.share),
      hovertemplate: "epoch %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
    }));
    const last = Math.max(1, ...traces.flatMap((trace) => trace.x));
    const shares = axis("share at the shallowest layer", { rangemode: "tozero" });
    return show("epochs", traces, epochAxis(last), shares, one());
  }
  function probes() {
    const traces = lines((run) => run.probes).map(({ rows, marker, ...look }, r) => {
      const run = runs.filter((each) => each.probes)[r], ends = rows.map((row) => run.ends.includes(row.layer));
      return {
        ...base, ...look, name: runs.length > 1 ? safe(short(run.name, 28)) : "linear probe",
        x: rows.map((row) => row.layer), y: rows.map((row) => row.accuracy),
        marker: {
          ...marker, symbol: ends.map((end) => (end ? "circle-open" : "circle")),
          size: ends.map((end) => (end ? 11 : 6)), line: { color: marker.color, width: 2 },
        },
        error_y: bars(rows, "accuracy", 1, { thickness: 1, width: 3 }),
        hovertemplate: "layer %{x}: %{y:.2%}<extra>%{fullData.name}</extra>",
      };
    });
    const accuracy = axis("accuracy on validation", { tickformat: ".2~%" });
    return show("probes", traces, axis("layer", { rangemode: "tozero" }), accuracy);
  }
  const drawAll = () => Promise.all([shares(), epochs(), probes()]);

  switcher("scale", [["linear", "Linear"], ["log", "Log"]], scale, (value) => { scale = value; shares(); });
  redraw = drawAll;
  drawAll().then(() => { document.documentElement.dataset.ready = ""; });
})();
