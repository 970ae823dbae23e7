"""The HTML of a diagnosis: one file with its styles, its program (Plotly among it) and its data inside.

The tables and sentences are written here; the figures are drawn by page/diagnosis.js. Every text that comes from a
user passes `escape` on its way into HTML, and `json_inside_html` on its way into the data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from auxnet import __version__
from auxnet.report_page import asset, json_inside_html, unbroken

MADE_BY = f"auxnet diagnose {__version__}"
SHOWN = ("name", "method", "ends", "shares", "probes", "epochs")
"""what the figures are drawn from"""

Run = dict[str, Any]
"""what `diagnosing.gather` returns"""


def is_ours(path: Path) -> bool:
    """Whether a file was made by this command."""
    with path.open("rb") as file:
        return b"auxnet diagnose" in file.read(1000)


def page(runs: Sequence[Run], headline: str) -> str:
    """The whole page, under a headline."""
    from plotly.offline import get_plotlyjs

    title = f"{len(runs)} runs" if len(runs) > 1 else runs[0]["name"]
    probed = any(run["probes"] for run in runs)
    followed = any(run["epochs"] for run in runs)
    parts = {
        "title": escape(f"auxnet diagnosis: {title}"),
        "made_by": MADE_BY,
        "eyebrow": escape("; ".join(dict.fromkeys(f"{run['name']}: {run['data']}, {run['method']}" for run in runs))),
        "headline": f"<h1>{unbroken(_sentence(headline))}</h1>" + "".join(_said(run, headline) for run in runs),
        "figures": "".join(
            _card(*figure) for figure, there in ((SHARES, True), (EPOCHS, followed), (PROBES, probed)) if there
        ),
        "links": "".join(
            f'<a href="#{name}">{title}</a>'
            for name, title, there in (
                ("shares", "Supervision", True),
                ("epochs", "Over the epochs", followed),
                ("probes", "Probes", probed),
                ("gradients", "Gradients", True),
            )
            if there
        ),
        "gradients": "".join(_gradients(run, len(runs) > 1) for run in runs),
        "footer": escape(
            f"Made by {MADE_BY}. This file is complete in itself and opens offline. "
            + " ".join(dict.fromkeys(_measured(run) for run in runs))
        ),
        "data": json_inside_html([{key: run[key] for key in SHOWN} for run in runs]),
        "plotly": get_plotlyjs(),
        "css": asset("report.css"),
        "js": asset("diagnosis.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset("diagnosis.html"))


SHARES = (
    "shares",
    "How much of the gradient is supervision that arrives unchanged",
    "At each layer, the norm of the gradient at the output above over that of the gradient which arrives (joint: of "
    "all outputs above, weighted; else a line per output, from its own layer down). 1: nothing is lost in between; "
    "towards 0: what the layers in between make of it drowns the supervision.",
)
EPOCHS = (
    "epochs",
    "How the share moved in training",
    "The share of supervision at the shallowest layer after each epoch (auxnet train --diagnose).",
)
PROBES = (
    "probes",
    "What a linear classifier reads off each layer",
    "Accuracy of logistic regression on the feature after a layer, averaged over its positions, on validation images; "
    "bars are 95 % intervals. Open markers: where outputs sit.",
)


def _card(name: str, title: str, caption: str) -> str:
    switch = '<div class="switches"><fieldset id="scale" class="switch"><legend>Scale</legend></fieldset></div>'
    return (
        f'<section id="{name}" class="card"><h2>{title}</h2><figure>{switch if name == "shares" else ""}'
        f'<div class="plot" id="{name}-plot" role="img" aria-label="{escape(title)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _said(run: Run, headline: str) -> str:
    """The sentences of a run, under its name unless the headline is its own."""
    more = "".join(f"<li>{unbroken(_sentence(said))}</li>" for said in run["said"] if said != headline)
    name = "" if headline in run["said"] else f"<h3>{escape(run['name'])}</h3>"
    return f'{name}<ul class="headlines">{more}</ul>'


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."


def _gradients(run: Run, named: bool) -> str:
    """Norms by output and segment, cosines by pair of outputs and segment."""
    K = len(run["depths"])
    segments = range(1, K + 1)
    norm = {(row["output"], row["segment"]): row["norm"] for row in run["norms"]}
    cosine = {(row["output"], row["other"], row["segment"]): row["cosine"] for row in run["agreements"]}
    norms = [
        [f"{k} (layer {run['ends'][k - 1]})", *(_number(norm.get((k, j)), "4g") for j in segments)] for k in segments
    ]
    cosines = [
        [f"{a} and {b}", *(_number(cosine.get((a, b, j)), "3f") for j in (*segments, None))]
        for a in segments
        for b in range(a + 1, K + 1)
    ]
    title = f"<h3>{escape(run['name'])}: {escape(run['method'])}</h3>" if named else ""
    heads = [f"segment {j}" for j in segments]
    text = f"{title}{_table('norm of the gradient of output', heads, norms)}"
    return text + (_table("cosine between outputs", [*heads, "all they share"], cosines) if cosines else "")


def _table(first: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in (first, *heads))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{first}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:.{form}}"


def _measured(run: Run) -> str:
    device = run["device"]
    probed = run["probes"][0] if run["probes"] else None
    probes = (
        f"; probes on {probed['trained_on']:,} training and {probed['images']:,} validation images" if probed else ""
    )
    return (
        f"{run['name']}: gradients on {run['images']:,} training images of the last epoch, in batches of "
        f"{run['batch_size']}{probes}; {device['name']}, torch {run['versions']['torch']}; weights "
        f"{run['weights_sha256'][:12]}."
    )
